//! P: `challenge` and `dns`: how a CA is shown who controls a name, in a vhost's `tls` and in `acme`.

use crate::certificate::Challenge;
use crate::diagnostic::{Located, Position};
use crate::vhost::TlsDefaults;
use crate::yaml::{Fields, Problems, nearest, quoted};

/// Of a vhost; `None`: it leaves that to the settings.
pub(super) fn of_vhost(
    fields: &mut Fields,
    defaults: &TlsDefaults,
    problems: &mut Problems,
) -> Option<Challenge> {
    let word = fields.string("challenge", problems);
    let dns = fields.string("dns", problems);
    let provider = dns
        .as_ref()
        .and_then(|dns| known(dns, &defaults.providers, problems));
    let named = fields.given("dns");
    let Some(kind) = kind(word.as_ref(), problems) else {
        return Some(refused());
    };
    match kind {
        Kind::Http01 => {
            if let Some(dns) = dns {
                let hint = "leave one of them out";
                problems.add_with_hint(dns.at, "`dns` is for dns-01", Some(hint));
            }
            Some(Challenge::Http01)
        }
        Kind::Dns01(_) | Kind::Unsaid if named => Some(provider.map_or_else(refused, dns01)),
        Kind::Dns01(at) => Some(match defaults.dns() {
            Some(provider) => dns01(provider),
            None => which(at, &defaults.providers, problems).unwrap_or_else(refused),
        }),
        Kind::Unsaid => None,
    }
}

/// Of the settings: what is usual, and the provider of those that need one.
pub(crate) fn default(
    fields: &mut Fields,
    providers: &[String],
    problems: &mut Problems,
) -> (Challenge, Option<String>) {
    let word = fields.string("challenge", problems);
    let dns = fields.string("dns", problems);
    let provider = dns.as_ref().and_then(|dns| known(dns, providers, problems));
    let challenge = match (kind(word.as_ref(), problems), &provider) {
        (None | Some(Kind::Http01), _) | (Some(Kind::Unsaid), None) => None,
        (Some(_), Some(provider)) => Some(dns01(provider.clone())),
        (Some(Kind::Dns01(at)), None) => match providers {
            _ if dns.is_some() => None,
            [only] => Some(dns01(only.clone())),
            _ => which(at, providers, problems),
        },
    };
    (challenge.unwrap_or_default(), provider)
}

enum Kind {
    Dns01(Position),
    Http01,
    Unsaid,
}

fn kind(word: Option<&Located<String>>, problems: &mut Problems) -> Option<Kind> {
    let Some(word) = word else {
        return Some(Kind::Unsaid);
    };
    match word.value.as_str() {
        "dns-01" => return Some(Kind::Dns01(word.at)),
        "http-01" => return Some(Kind::Http01),
        // RFC 8737 §3: by the server's own certificate, chosen by ALPN, which nginx cannot choose by
        "tls-alpn-01" => {
            let reason = "tls-alpn-01 does not go through nginx, which has port 443";
            let hint = "http-01 or dns-01; docs/dns-01.md#tls-alpn-01 says why";
            problems.add_with_hint(word.at, reason, Some(hint));
        }
        other => problems.unknown_word(word.at, other, &["http-01", "dns-01"]),
    }
    None
}

/// What was said wrongly is not said again about each name that nothing else can prove.
fn refused() -> Challenge {
    dns01(String::new())
}

fn dns01(provider: String) -> Challenge {
    Challenge::Dns01(provider.into())
}

fn known(name: &Located<String>, providers: &[String], problems: &mut Problems) -> Option<String> {
    if providers.contains(&name.value) {
        return Some(name.value.clone());
    }
    let words: Vec<&str> = providers.iter().map(String::as_str).collect();
    let hint = match nearest(&name.value, &words) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if words.is_empty() => NONE.to_owned(),
        None => format!("the settings have {}", words.join(", ")),
    };
    let reason = format!("there is no DNS provider {}", quoted(&name.value));
    problems.add_with_hint(name.at, reason, Some(hint));
    None
}

fn which<T>(at: Position, providers: &[String], problems: &mut Problems) -> Option<T> {
    match providers {
        [] => problems.add_with_hint(at, "dns-01 needs a DNS provider", Some(NONE)),
        [first, ..] => {
            let reason = "dns-01 through which DNS provider?";
            let hint = format!("as in dns: {first}; there are {}", providers.join(", "));
            problems.add_with_hint(at, reason, Some(hint));
        }
    }
    None
}

/// Why there is no way for a certificate with a wildcard, and what to do.
pub(super) fn no_way(chosen: Option<&Challenge>, providers: &[String]) -> (&'static str, String) {
    match (chosen, providers) {
        (Some(_), _) => (
            "and this vhost says http-01",
            "leave `challenge` out, or write dns-01".to_owned(),
        ),
        (None, []) => (
            "and the settings have no DNS provider",
            "name one in `dns.providers` of the settings (docs/dns-01.md), or set `tls: internal` (vhostd's own CA) or `tls: off` for this vhost".to_owned(),
        ),
        (None, [first, ..]) => (
            "and there are several DNS providers",
            format!(
                "choose one, as in tls: {{dns: {first}}}, or `acme.dns` in the settings; there are {}",
                providers.join(", ")
            ),
        ),
    }
}

const NONE: &str = "name one in `dns.providers` of the settings: docs/dns-01.md";
