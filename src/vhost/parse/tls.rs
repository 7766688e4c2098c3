//! P: the `tls` key of a vhost, and what the settings share with it.

use std::path::PathBuf;

use super::challenge;
use crate::certificate::PemFiles;
use crate::diagnostic::Located;
use crate::settings::{KeyType, KeyTypes};
use crate::vhost::{NO_OWNER, TlsDefaults, TlsMode, TlsSpec, normalized};
use crate::yaml::{self, Fields, Node, Problems, Value, quoted};

/// A word, or a mapping of what is asked of the CA.
pub(super) fn parse(
    node: Option<Node>,
    defaults: &TlsDefaults,
    problems: &mut Problems,
) -> TlsSpec {
    match node {
        None => TlsSpec::default(),
        Some(node) if matches!(node.value, Value::Mapping(_)) => {
            let fields = Fields::of(node, "`tls`", problems);
            fields.map_or_else(TlsSpec::default, |fields| {
                mapping(fields, defaults, problems)
            })
        }
        Some(node) => TlsSpec {
            mode: mode(node, problems),
            ..TlsSpec::default()
        },
    }
}

fn mapping(mut fields: Fields, defaults: &TlsDefaults, problems: &mut Problems) -> TlsSpec {
    let profile = fields
        .string("profile", problems)
        .and_then(|text| self::profile(&text, problems));
    let key_types = fields
        .take("key_type")
        .and_then(|node| self::key_types(node, problems));
    let challenge = challenge::of_vhost(&mut fields, defaults, problems);
    let asks = profile.is_some() || key_types.is_some() || challenge.is_some();
    let files = files(&mut fields, asks, problems);
    fields.finish(PLANNED_KEYS, problems);
    TlsSpec {
        // what only a CA of ACME has, and what is not plain HTTP
        mode: (profile.is_some() || challenge.is_some() || files.is_some())
            .then_some(TlsMode::Auto),
        profile,
        key_types,
        challenge,
        files,
    }
}

/// Both or neither, and then nothing is asked of a CA.
fn files(fields: &mut Fields, asks: bool, problems: &mut Problems) -> Option<PemFiles> {
    let chain = fields.string("certificate", problems);
    let key = fields.string("certificate_key", problems);
    let (chain, key) = match (chain, key) {
        (Some(chain), Some(key)) => (chain, key),
        (None, None) => return None,
        (Some(text), None) => {
            let hint = "the private key's file, as in certificate_key: /etc/ssl/private/a.key";
            problems.add_with_hint(text.at, "`certificate_key` is missing", Some(hint));
            return None;
        }
        (None, Some(text)) => {
            let hint = "the chain's file, as in certificate: /etc/ssl/a.pem";
            problems.add_with_hint(text.at, "`certificate` is missing", Some(hint));
            return None;
        }
    };
    if asks {
        let reason = "a certificate from files has the profile and key type that it has";
        let hint = "leave `profile` and `key_type` out, and `challenge` and `dns`";
        problems.add_with_hint(chain.at, reason, Some(hint));
    }
    Some(PemFiles {
        chain: path(&chain, problems)?,
        key: path(&key, problems)?,
        uid: NO_OWNER,
    })
}

/// Absolute and normalized; of whatever file a key names.
pub(crate) fn path(text: &Located<String>, problems: &mut Problems) -> Option<PathBuf> {
    match normalized(&text.value) {
        Ok(path) => Some(path),
        Err(error) => {
            problems.add(text.at, format!("{}: {error}", quoted(&text.value)));
            None
        }
    }
}

/// `auto`, `internal` or `off`, with the booleans of YAML 1.1.
pub(crate) fn mode(node: Node, problems: &mut Problems) -> Option<TlsMode> {
    let expected = "auto, internal or off";
    let text = match node.value {
        Value::Bool(true) => return Some(TlsMode::Auto),
        Value::Bool(false) => return Some(TlsMode::Off),
        _ => yaml::string(node, expected, problems)?,
    };
    match text.value.as_str() {
        "auto" => Some(TlsMode::Auto),
        "internal" => Some(TlsMode::Internal),
        "off" => Some(TlsMode::Off),
        other => {
            problems.unknown_word(text.at, other, &["auto", "internal", "off"]);
            None
        }
    }
}

/// draft-ietf-acme-profiles: which ones there are, the CA says.
pub(crate) fn profile(text: &Located<String>, problems: &mut Problems) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&text.value.len()) && text.value.bytes().all(plain) {
        return Some(text.value.clone());
    }
    let reason = format!("{}: not the name of a profile", quoted(&text.value));
    problems.add_with_hint(
        text.at,
        reason,
        Some("as in classic, tlsserver or shortlived"),
    );
    None
}

/// One type, or a list of two that nginx serves together.
pub(crate) fn key_types(node: Node, problems: &mut Problems) -> Option<KeyTypes> {
    let at = node.at;
    let items = match node.value {
        Value::Sequence(items) => items,
        _ => {
            let text = yaml::string(node, "a type of key, or a list of two", problems)?;
            return key_type(&text, problems).map(KeyTypes::from);
        }
    };
    let count = items.len();
    let types = items.into_iter().filter_map(|item| {
        let text = yaml::string(item, "a type of key", problems)?;
        key_type(&text, problems)
    });
    let types: Vec<KeyType> = types.collect();
    let found = match *types.as_slice() {
        _ if types.len() < count => return None,
        [only] => Some(only.into()),
        [one, other] => KeyTypes::both(one, other),
        _ => None,
    };
    if found.is_none() {
        let reason = "`key_type` is one type, or an ECDSA and an RSA one";
        let hint = "as in [ecdsa-p256, rsa-2048]: nginx serves one certificate of each kind";
        problems.add_with_hint(at, reason, Some(hint));
    }
    found
}

fn key_type(text: &Located<String>, problems: &mut Problems) -> Option<KeyType> {
    let found = KeyType::named(&text.value);
    if found.is_none() {
        problems.unknown_word(text.at, &text.value, &KeyType::ALL.map(KeyType::as_str));
    }
    found
}

/// All that a mapping takes.
pub(super) const KEYS: &[&str] = &[
    "certificate",
    "certificate_key",
    "challenge",
    "dns",
    "key_type",
    "profile",
];
const PLANNED_KEYS: &[&str] = &["hsts", "min_version"];
