//! P: the blocks of a PEM file (RFC 7468), as OpenSSL reads it.
//!
//! A file of an operator has more than its certificates: parameters, keys, the text that
//! `openssl x509 -text` writes, a byte order mark. Text between blocks may be in any encoding.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// What is between one `-----BEGIN LABEL-----` and its end. No `Debug`: it may be a private key.
#[allow(missing_debug_implementations)]
#[derive(Clone)]
pub(crate) struct Block {
    pub(crate) label: String,
    /// By its header (RFC 1421 §4.6.1.1), as traditional keys with a passphrase are.
    pub(crate) is_encrypted: bool,
    /// `None`: it has no end, or is no base64.
    pub(crate) contents: Option<Vec<u8>>,
}

/// All of them, in the file's order.
pub(crate) fn blocks(bytes: &[u8]) -> Vec<Block> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let mut lines = bytes.split(|byte| *byte == b'\n').map(trimmed).peekable();
    let mut blocks = Vec::new();
    while let Some(line) = lines.next() {
        let Some(label) = label(line, BEGIN) else {
            continue;
        };
        let (mut body, mut ended) = (Vec::new(), false);
        while let Some(line) = lines.next_if(|line| label_of_begin(line).is_none()) {
            if line.starts_with(DASHES) {
                ended = self::label(line, END) == Some(label);
                break;
            }
            body.push(line);
        }
        let (header, text) = split_header(&body);
        blocks.push(Block {
            label: String::from_utf8_lossy(label).into_owned(),
            is_encrypted: header.iter().any(|line| contains(line, b"ENCRYPTED")),
            contents: text.filter(|_| ended).and_then(decoded),
        });
    }
    blocks
}

/// PEM of one block.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let mut pem = format!("-----BEGIN {label}-----\n");
    let text = BASE64_STANDARD.encode(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// Without the carriage return, and whatever else is invisible at the end of a line.
fn trimmed(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| *byte > b' ');
    &line[..end.map_or(0, |last| last + 1)]
}

fn label<'a>(line: &'a [u8], begin: &[u8]) -> Option<&'a [u8]> {
    let label = line.strip_prefix(begin)?.strip_suffix(DASHES)?;
    // carriage returns alone end no line
    label.iter().all(|byte| *byte >= b' ').then_some(label)
}

fn label_of_begin(line: &[u8]) -> Option<&[u8]> {
    label(line, BEGIN)
}

/// The header, which ends with an empty line, and the lines of base64. None where an empty line is
/// among these: OpenSSL takes what is above it for a header.
fn split_header<'a, 'b>(body: &'a [&'b [u8]]) -> (&'a [&'b [u8]], Option<&'a [&'b [u8]]>) {
    let (header, text) = match body.iter().position(|line| line.is_empty()) {
        Some(empty) => (&body[..empty], &body[empty + 1..]),
        None => (&body[..0], body),
    };
    let is_header = header.iter().all(|line| line.contains(&b':'));
    let is_whole = is_header && text.iter().all(|line| !line.is_empty());
    (header, is_whole.then_some(text))
}

fn decoded(lines: &[&[u8]]) -> Option<Vec<u8>> {
    let text: Vec<u8> = lines.concat();
    let blank = |byte: &u8| !byte.is_ascii_whitespace();
    let text: Vec<u8> = text.into_iter().filter(blank).collect();
    BASE64_STANDARD.decode(text).ok()
}

fn contains(line: &[u8], word: &[u8]) -> bool {
    line.windows(word.len()).any(|window| window == word)
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

#[cfg(test)]
mod tests {
    use super::*;

    /// `label=contents`, `!` of a damaged block, `*` of an encrypted one.
    fn read(text: impl AsRef<[u8]>) -> String {
        let told = |block: &Block| {
            let contents = block.contents.as_deref().map(String::from_utf8_lossy);
            let encrypted = if block.is_encrypted { "*" } else { "" };
            let contents = contents.as_deref().unwrap_or("!");
            format!("{}={encrypted}{contents}", block.label)
        };
        let all: Vec<String> = blocks(text.as_ref()).iter().map(told).collect();
        all.join(" ")
    }

    /// Each was given to OpenSSL 3.0 as well.
    #[test]
    fn blocks_are_read_as_openssl_reads_them() {
        let block = "-----BEGIN A-----\naGVsbG8=\n-----END A-----\n";
        let crlf = block.replace('\n', "\r\n");
        let one = "A=hello";
        for (text, expected) in [
            (block.to_owned(), one),
            (format!("\u{feff}{block}"), one),
            (crlf, one),
            (block.trim_end().to_owned(), one),
            (block.replace('\n', " \t\n"), one),
            (block.replace("aGVs", "aG\n Vs"), one),
            (block.replace("aGVs", "\naGVs"), one),
            (
                format!("text\n{block}more: text\n{block}"),
                "A=hello A=hello",
            ),
            (block.replace("aGVs", "aGVs\n\n"), "A=!"),
            (block.replace("aGVs", "!!!"), "A=!"),
            (block.replace("END A", "END B"), "A=!"),
            (block.replace("-----END A-----", ""), "A=!"),
            (
                format!("{}{block}", block.replace("-----END A-----", "")),
                "A=! A=hello",
            ),
            (
                block.replace("aGVs", "Proc-Type: 4,ENCRYPTED\nDEK-Info: x\n\naGVs"),
                "A=*hello",
            ),
            // OpenSSL finds no block in these
            (format!("  {block}"), ""),
            (block.replace('\n', "\r"), ""),
            (String::new(), ""),
        ] {
            assert_eq!(read(&text), expected, "{text:?}");
        }
        let latin_1 = [b"caf\xe9 \0\n", block.as_bytes()].concat();
        assert_eq!(read(latin_1), one);
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        for length in [0, 1, 47, 48, 49, 300] {
            let der = vec![b'x'; length];
            let pem = encode("A B", &der);
            assert!(pem.lines().all(|line| line.len() <= 64));
            assert!(blocks(pem.as_bytes())[0].contents == Some(der), "{pem}");
        }
    }
}
