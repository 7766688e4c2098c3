//! P: whether a certificate is of the plain form that CAs issue, and that OpenSSL certainly loads.
//!
//! OpenSSL reads ASN.1 by rules of its own, and nginx refuses its whole configuration for one
//! certificate that it does not take. Asking it costs a process each time. What has nothing but DER
//! (X.690) in a few common types, names that are UTF-8, and keys and signatures of a short list has
//! nothing that it could refuse; all else is for somebody to try out.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};

/// One value of DER.
#[derive(Clone, Copy)]
struct Element<'a> {
    /// Class, form and number, in one byte.
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

/// RFC 5280 §4.1: version 3, without unique identifiers.
pub(super) fn is_ordinary(certificate: &[u8]) -> bool {
    read_certificate(certificate).is_some()
}

fn read_certificate(der: &[u8]) -> Option<()> {
    let certificate = only(der)?.of(SEQUENCE)?;
    let [body, algorithm, signature] = certificate.parts()?.try_into().ok()?;
    let body: [Element<'_>; 8] = body.of(SEQUENCE)?.parts()?.try_into().ok()?;
    let [version, serial, same, issuer, validity, subject, key, rest] = body;
    signature.of(BIT_STRING)?.checked()?;
    let is_version_3 = version.tag == EXPLICIT_0 && version.content == [INTEGER, 1, 2];
    serial.of(INTEGER)?.checked()?;
    let known = SIGNATURES.contains(&algorithm.whole) && same.whole == algorithm.whole;
    read_name(issuer)?;
    let [not_before, not_after] = validity.of(SEQUENCE)?.parts()?.try_into().ok()?;
    for time in [not_before, not_after] {
        time.either(UTC_TIME, GENERALIZED_TIME)?.checked()?;
    }
    read_name(subject)?;
    read_key(key)?;
    read_extensions(only(rest.of(EXPLICIT_3)?.content)?)?;
    (is_version_3 && known).then_some(())
}

/// OpenSSL compares names in UTF-8, and reads none that it cannot convert.
fn read_name(name: Element<'_>) -> Option<()> {
    for set in name.of(SEQUENCE)?.parts()? {
        let attributes = set.of(SET)?.parts()?;
        if attributes.is_empty() {
            return None;
        }
        for attribute in attributes {
            let [kind, value] = attribute.of(SEQUENCE)?.parts()?.try_into().ok()?;
            kind.of(OBJECT_IDENTIFIER)?.checked()?;
            let text = [UTF8_STRING, PRINTABLE_STRING, IA5_STRING].contains(&value.tag);
            text.then_some(())?;
            value.checked()?;
        }
    }
    Some(())
}

/// A key that it cannot read counts as one of no bits.
fn read_key(key: Element<'_>) -> Option<()> {
    let [algorithm, bits] = key.of(SEQUENCE)?.parts()?.try_into().ok()?;
    bits.of(BIT_STRING)?.checked()?;
    let (_, algorithm) = KEYS.iter().find(|(der, _)| *der == algorithm.whole)?;
    let parsed = ParsedPublicKey::new(*algorithm, key.whole);
    // as it is in every certificate; OpenSSL reads the short form as well
    let is_whole = bits.content.get(1) != Some(&COMPRESSED_EVEN)
        && bits.content.get(1) != Some(&COMPRESSED_ODD);
    (parsed.is_ok() && is_whole).then_some(())
}

fn read_extensions(extensions: Element<'_>) -> Option<()> {
    let mut kinds = Vec::new();
    for extension in extensions.of(SEQUENCE)?.parts()? {
        let parts = extension.of(SEQUENCE)?.parts()?;
        let (kind, value) = match parts.as_slice() {
            [kind, value] => (kind, value),
            [kind, critical, value] if critical.whole == TRUE => (kind, value),
            _ => return None,
        };
        kind.of(OBJECT_IDENTIFIER)?.checked()?;
        only(value.of(OCTET_STRING)?.content)?.checked()?;
        if kinds.contains(&kind.content) {
            return None;
        }
        kinds.push(kind.content);
    }
    (!kinds.is_empty()).then_some(())
}

impl<'a> Element<'a> {
    fn of(self, tag: u8) -> Option<Self> {
        (self.tag == tag).then_some(self)
    }

    fn either(self, one: u8, other: u8) -> Option<Self> {
        self.of(one).or_else(|| self.of(other))
    }

    fn parts(&self) -> Option<Vec<Element<'a>>> {
        let (mut rest, mut parts) = (self.content, Vec::new());
        while !rest.is_empty() {
            let (part, after) = split(rest)?;
            parts.push(part);
            rest = after;
        }
        Some(parts)
    }

    /// Whether it is DER, all the way down, in types that are on the list.
    fn checked(self) -> Option<Self> {
        self.is_strict(DEEPEST).then_some(self)
    }

    fn is_strict(&self, depth: usize) -> bool {
        let content = self.content;
        match self.tag {
            BOOLEAN => matches!(content, [0 | 0xff]),
            INTEGER => match content {
                [0, next, ..] => *next >= 0x80,
                [0xff, next, ..] => *next < 0x80,
                _ => !content.is_empty(),
            },
            BIT_STRING => match content {
                [0] => true,
                [unused @ 0..8, .., last] => last.trailing_zeros() >= u32::from(*unused),
                _ => false,
            },
            OCTET_STRING => true,
            NULL => content.is_empty(),
            OBJECT_IDENTIFIER => is_object_identifier(content),
            UTF8_STRING => std::str::from_utf8(content).is_ok_and(|text| !text.contains('\0')),
            PRINTABLE_STRING | IA5_STRING => content.iter().all(|byte| (1..0x80).contains(byte)),
            UTC_TIME => content.len() == 13 && is_time(content),
            GENERALIZED_TIME => content.len() == 15 && is_time(content),
            SEQUENCE | SET | CONTEXT_CONSTRUCTED..PRIVATE => {
                let parts = self.parts().filter(|_| depth > 0);
                parts.is_some_and(|parts| parts.iter().all(|part| part.is_strict(depth - 1)))
            }
            // of a type that only whoever asked for it knows
            CONTEXT_PRIMITIVE..CONTEXT_CONSTRUCTED => true,
            _ => false,
        }
    }
}

/// No sub-identifier begins with a padding, and the last one ends.
fn is_object_identifier(content: &[u8]) -> bool {
    let begins = |at: usize| at == 0 || content.get(at - 1).is_some_and(|byte| *byte < 0x80);
    let padded = content
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == 0x80 && begins(at));
    !padded && content.last().is_some_and(|byte| *byte < 0x80)
}

fn is_time(content: &[u8]) -> bool {
    let digits = content.strip_suffix(b"Z");
    digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_digit))
}

fn only(der: &[u8]) -> Option<Element<'_>> {
    let (element, rest) = split(der)?;
    rest.is_empty().then_some(element)
}

/// X.690 §8.1, §10.1: a tag of one byte, then the length in as few bytes as can be.
fn split(der: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let [tag, first, after @ ..] = der else {
        return None;
    };
    let (length, after) = match *first {
        short @ 0..=0x7f => (usize::from(short), after),
        long @ 0x81..=0x83 => {
            let (bytes, after) = after.split_at_checked(usize::from(long - 0x80))?;
            let length = bytes
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            let least = if bytes.len() == 1 {
                0x80
            } else {
                1 << (8 * (bytes.len() - 1))
            };
            (length >= least).then_some((length, after))?
        }
        _ => return None,
    };
    let (content, rest) = after.split_at_checked(length)?;
    let whole = der.get(..der.len() - rest.len())?;
    let element = Element {
        tag: *tag,
        content,
        whole,
    };
    (tag & LONG_TAG != LONG_TAG).then_some((element, rest))
}

const BOOLEAN: u8 = 1;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OCTET_STRING: u8 = 4;
const NULL: u8 = 5;
const OBJECT_IDENTIFIER: u8 = 6;
const UTF8_STRING: u8 = 12;
const PRINTABLE_STRING: u8 = 19;
const IA5_STRING: u8 = 22;
const UTC_TIME: u8 = 23;
const GENERALIZED_TIME: u8 = 24;
const LONG_TAG: u8 = 0x1f;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_PRIMITIVE: u8 = 0x80;
const CONTEXT_CONSTRUCTED: u8 = 0xa0;
const PRIVATE: u8 = 0xc0;
const EXPLICIT_0: u8 = 0xa0;
const EXPLICIT_3: u8 = 0xa3;
const TRUE: [u8; 3] = [BOOLEAN, 1, 0xff];
/// SEC 1 §2.3.3.
const COMPRESSED_EVEN: u8 = 2;
const COMPRESSED_ODD: u8 = 3;
/// Real ones need seven; OpenSSL goes to thirty.
const DEEPEST: usize = 16;

/// RFC 5758 §3.2: ecdsa-with-SHA256, -SHA384 and -SHA512; RFC 4055 §5: the same hashes with RSA.
const SIGNATURES: [&[u8]; 6] = [
    &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2],
    &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3],
    &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4],
    &[
        0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 11, 5, 0,
    ],
    &[
        0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 12, 5, 0,
    ],
    &[
        0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 13, 5, 0,
    ],
];
/// RFC 5480 §2: on P-256 and P-384; RFC 3279 §2.3.1: RSA.
const KEYS: [(&[u8], &dyn VerificationAlgorithm); 3] = [
    (
        &[
            0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d,
            3, 1, 7,
        ],
        &ECDSA_P256_SHA256_ASN1,
    ),
    (
        &[
            0x30, 16, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 34,
        ],
        &ECDSA_P384_SHA384_ASN1,
    ),
    (
        &[
            0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0,
        ],
        &RSA_PKCS1_2048_8192_SHA256,
    ),
];
