//! P: `dns.providers`: who publishes the texts of dns-01.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{dns, path};
use crate::diagnostic::{Located, Position};
use crate::settings::{Algorithm, ExecSettings, Means, ProviderSettings, Rfc2136Settings};
use crate::vhost::parse::assets::duration;
use crate::yaml::{self, Fields, Node, Problems, Value, quoted};

/// By name, each a mapping. The names are also those of what is wrong.
pub(super) fn all(
    node: Option<Node>,
    problems: &mut Problems,
) -> (BTreeMap<String, ProviderSettings>, Vec<String>) {
    let Some(node) = node else {
        return Default::default();
    };
    let entries = match node.value {
        Value::Mapping(entries) => entries,
        Value::Null => return Default::default(),
        other => {
            let reason = format!("expected names with providers, found {}", other.kind());
            let hint =
                "as in own: {rfc2136: {server: 192.0.2.53, secret_file: /etc/vhostd/tsig.key}}";
            problems.add_with_hint(node.at, reason, Some(hint));
            return Default::default();
        }
    };
    let names = entries.iter().map(|(name, _)| name.value.clone()).collect();
    let mut providers = BTreeMap::new();
    for (name, node) in entries {
        if !is_name(&name.value) {
            let reason = format!("{}: not a name for a DNS provider", quoted(&name.value));
            let hint = "letters, digits, `-` and `_`, at most 64";
            problems.add_with_hint(name.at, reason, Some(hint));
        }
        let fields = Fields::of(node, "a DNS provider", problems);
        let provider = fields.and_then(|fields| provider(fields, name.at, problems));
        providers.extend(provider.map(|provider| (name.value, provider)));
    }
    (providers, names)
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

fn provider(mut fields: Fields, at: Position, problems: &mut Problems) -> Option<ProviderSettings> {
    let exec = fields.take("exec").and_then(|node| exec(node, problems));
    let environment = environment(fields.take("environment"), problems);
    let rfc2136 = fields.mapping("rfc2136", problems);
    let timeout = limit(&mut fields, "timeout", problems);
    let propagation = limit(&mut fields, "propagation", problems);
    let given = (fields.given("exec"), fields.given("rfc2136"));
    let has_environment = fields.given("environment");
    fields.finish(&[], problems);
    let means = match given {
        (true, true) => {
            problems.add(at, "`exec` and `rfc2136` in one DNS provider");
            None
        }
        (false, false) => {
            let hint = "as in exec: [/usr/local/bin/dns-hook], or rfc2136: {server: …}";
            problems.add_with_hint(at, "neither `exec` nor `rfc2136`", Some(hint));
            None
        }
        (true, false) => exec.map(|(program, arguments)| {
            Means::Exec(ExecSettings {
                program,
                arguments,
                environment,
            })
        }),
        (false, true) => {
            if has_environment {
                problems.add(at, "`environment` is for `exec`");
            }
            self::rfc2136(rfc2136?, problems).map(Means::Rfc2136)
        }
    };
    Some(ProviderSettings {
        means: means?,
        timeout: timeout.unwrap_or(TIMEOUT),
        propagation: propagation.unwrap_or(PROPAGATION),
    })
}

/// An argv, which no shell reads.
fn exec(node: Node, problems: &mut Problems) -> Option<(PathBuf, Vec<String>)> {
    let mut words = yaml::strings(
        node,
        "a program, or a list of it and its arguments",
        problems,
    );
    if let Some(odd) = words.iter().find(|word| word.value.contains('\0')) {
        problems.add(odd.at, "a NUL in an argument");
        return None;
    }
    if words.is_empty() {
        return None;
    }
    let program = words.remove(0);
    if !program.value.starts_with('/') {
        let reason = format!(
            "{}: not the absolute path of a program",
            quoted(&program.value)
        );
        let hint = "as in exec: [/usr/local/bin/dns-hook, --verbose]; no shell reads it";
        problems.add_with_hint(program.at, reason, Some(hint));
        return None;
    }
    let arguments = words.into_iter().map(|word| word.value);
    Some((PathBuf::from(program.value), arguments.collect()))
}

fn environment(node: Option<Node>, problems: &mut Problems) -> BTreeMap<String, String> {
    let Some(node) = node else {
        return BTreeMap::new();
    };
    let Value::Mapping(entries) = node.value else {
        problems.add_with_hint(
            node.at,
            format!("expected variables, found {}", node.value.kind()),
            Some("as in environment: {TOKEN_FILE: /etc/vhostd/dns.token}"),
        );
        return BTreeMap::new();
    };
    let mut variables = BTreeMap::new();
    for (name, node) in entries {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let digit = name.value.starts_with(|c: char| c.is_ascii_digit());
        if name.value.is_empty() || digit || !name.value.bytes().all(plain) {
            let reason = format!("{}: not the name of a variable", quoted(&name.value));
            let hint = "letters, digits and `_`, and no digit first";
            problems.add_unshown(name.at, &reason, hint);
        } else if name.value.starts_with("VHOSTD_") {
            let reason = format!("{} is not yours to set", quoted(&name.value));
            let hint = "variables that begin with VHOSTD_ are vhostd's";
            problems.add_unshown(name.at, &reason, hint);
        }
        match node.value {
            Value::String(text) => _ = variables.insert(name.value, text),
            other => {
                let name = quoted(&name.value);
                let reason = format!("{name}: expected a string, found {}", other.kind());
                let hint = "put it in quotes if it is meant as text";
                problems.add_unshown(node.at, &reason, hint);
            }
        }
    }
    variables
}

fn rfc2136(mut fields: Fields, problems: &mut Problems) -> Option<Rfc2136Settings> {
    let at = fields.at;
    let server = fields.string("server", problems).and_then(|text| {
        let server = dns::server(&text.value);
        if server.is_none() {
            let reason = format!("{}: not the address of a name server", quoted(&text.value));
            let hint = "an IP address, with a port where that is not 53: \"192.0.2.53\", \"[2001:db8::53]:5353\"";
            problems.add_with_hint(text.at, reason, Some(hint));
        }
        server
    });
    let zone = fields.string("zone", problems);
    let zone = zone.and_then(|text| name(&text, "a zone", problems));
    let key_name = fields.string("key_name", problems);
    let key_name = key_name.and_then(|text| name(&text, "the name of a key", problems));
    let algorithm = fields.string("algorithm", problems).and_then(|text| {
        let known = Algorithm::ALL.map(Algorithm::as_str);
        let algorithm = Algorithm::from_word(&text.value);
        if algorithm.is_none() {
            problems.unknown_word(text.at, &text.value, &known);
        }
        algorithm
    });
    let secret_file = fields.string("secret_file", problems);
    let secret_file = secret_file.and_then(|text| path(&text, problems));
    for (key, example) in [
        ("server", "as in server: 192.0.2.53"),
        (
            "secret_file",
            "the key's file, as in secret_file: /etc/vhostd/tsig.key",
        ),
    ] {
        if !fields.given(key) {
            problems.add_with_hint(at, format!("`{key}` is missing"), Some(example));
        }
    }
    fields.refuse_secret("secret", "secret_file", problems);
    fields.finish(&[], problems);
    Some(Rfc2136Settings {
        server: server?,
        zone,
        secret_file: secret_file?,
        key_name,
        algorithm,
    })
}

/// A domain name of plain labels, without the last dot.
fn name(text: &Located<String>, what: &str, problems: &mut Problems) -> Option<String> {
    let bare = text.value.strip_suffix('.').unwrap_or(&text.value);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let labels = || bare.split('.').all(|label| (1..=63).contains(&label.len()));
    if bare.bytes().all(plain) && labels() && bare.len() <= 253 {
        return Some(bare.to_ascii_lowercase());
    }
    problems.add(text.at, format!("{}: not {what}", quoted(&text.value)));
    None
}

fn limit(fields: &mut Fields, key: &'static str, problems: &mut Problems) -> Option<Duration> {
    let node = fields.take(key)?;
    let seconds = match &node.value {
        Value::Integer(seconds) => u64::try_from(*seconds).ok(),
        Value::String(text) => duration(text),
        _ => None,
    };
    let limit = seconds.map(Duration::from_secs);
    let limit = limit.filter(|limit| (Duration::from_secs(1)..=LONGEST).contains(limit));
    if limit.is_none() {
        let hint = "seconds, or a number with s or m, as in 2m";
        problems.add_with_hint(
            node.at,
            "not a duration from one second to one hour",
            Some(hint),
        );
    }
    limit
}

const TIMEOUT: Duration = Duration::from_secs(60);
const PROPAGATION: Duration = Duration::from_secs(120);
const LONGEST: Duration = Duration::from_secs(3600);
