//! P: `dns`: whom names are looked up with.

use std::net::{IpAddr, SocketAddr};

use crate::yaml::{Fields, Problems, quoted};

pub(super) fn resolvers(mut fields: Fields, problems: &mut Problems) -> Vec<SocketAddr> {
    let texts = fields.strings("resolvers", problems);
    fields.finish(&[], problems);
    let mut servers: Vec<SocketAddr> = Vec::new();
    for text in texts {
        match resolver(&text.value) {
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

fn resolver(text: &str) -> Option<SocketAddr> {
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
            let server = resolver(text).map(|server| server.to_string());
            assert_eq!(server.as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "ns.example.com",
            "192.0.2.53:0",
            "192.0.2.53:x",
            "192.0.2.1/24",
        ] {
            assert_eq!(resolver(text), None, "{text}");
        }
    }
}
