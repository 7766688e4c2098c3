//! P: `dns`: whom names are looked up with, and who publishes texts.

use std::net::{IpAddr, SocketAddr};

use super::provider;
use crate::settings::DnsSettings;
use crate::yaml::{Fields, Problems, quoted};

/// With the names of all DNS providers, also of what is wrong.
pub(super) fn dns(mut fields: Fields, problems: &mut Problems) -> (DnsSettings, Vec<String>) {
    let resolvers = resolvers(&mut fields, problems);
    let (providers, names) = provider::all(fields.take("providers"), problems);
    fields.finish(&[], problems);
    let settings = DnsSettings {
        resolvers,
        providers,
    };
    (settings, names)
}

fn resolvers(fields: &mut Fields, problems: &mut Problems) -> Vec<SocketAddr> {
    let texts = fields.strings("resolvers", problems);
    let mut servers: Vec<SocketAddr> = Vec::new();
    for text in texts {
        match server(&text.value) {
            Some(server) if servers.contains(&server) => {
                problems.add(text.at, format!("{} is listed twice", quoted(&text.value)));
            }
            Some(server) => servers.push(server),
            None => {
                let reason = format!("{}: not the address of a resolver", quoted(&text.value));
                let hint = "an IP address, with a port where that is not 53: \"192.0.2.53\", \"[2001:db8::53]:5353\"";
                problems.add_with_hint(text.at, reason, Some(hint));
            }
        }
    }
    servers
}

/// An address, with a port where that is not 53.
pub(super) fn server(text: &str) -> Option<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let alone = bare.parse::<IpAddr>().ok();
    alone
        .map(|address| SocketAddr::new(address, PORT))
        .or_else(|| text.parse().ok())
        .filter(|server: &SocketAddr| server.port() != 0)
}

const PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_an_address_with_or_without_a_port() {
        for (text, expected) in [
            ("192.0.2.53", "192.0.2.53:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("2001:db8::53", "[2001:db8::53]:53"),
            ("[2001:db8::53]", "[2001:db8::53]:53"),
            ("[2001:db8::53]:5353", "[2001:db8::53]:5353"),
        ] {
            let server = server(text).map(|server| server.to_string());
            assert_eq!(server.as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "ns.example.com",
            "192.0.2.53:0",
            "192.0.2.53:x",
            "192.0.2.1/24",
        ] {
            assert_eq!(server(text), None, "{text}");
        }
    }
}
