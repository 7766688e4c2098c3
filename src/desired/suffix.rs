//! P: names that many share: `co.uk`, everything below `github.io` (publicsuffix.org).

use psl::{List, Psl, Type};

use crate::vhost::ServerName;

/// What speaks against a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Shared {
    /// The wildcard for everything directly below a suffix of either section: it would take what
    /// others have there.
    Below,
    /// A suffix under which a registry sells names. One of the private section is, as an exact name,
    /// a host like any other: a hosting company gives it to one customer, and it takes nothing that is
    /// below it.
    Registry,
}

/// RFC 8375: everybody's own, at home.
const HOME: &str = "home.arpa";

pub(super) fn shared(name: &ServerName) -> Option<Shared> {
    if name.is_address() {
        return None;
    }
    let text = name.as_str();
    let zone = text.strip_prefix("*.").unwrap_or(text);
    // the list reads labels from the right; of a top level that it does not know, the last one is
    // the suffix, which is no name of ours
    let found = List.find(zone.rsplit('.').map(str::as_bytes));
    if zone == HOME || found.len != zone.len() {
        return None;
    }
    match name.is_wildcard() {
        true => Some(Shared::Below),
        false => (found.typ == Some(Type::Icann)).then_some(Shared::Registry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Option<Shared> {
        shared(&name.parse().unwrap())
    }

    #[test]
    fn the_wildcard_directly_below_a_public_suffix_of_either_section_is_shared() {
        for name in [
            "*.co.uk",
            "*.github.io",
            "*.duckdns.org",
            "*.anything.ck",
            "*.xn--55qx5d.cn",
            // `*.compute-1.amazonaws.com`, `*.vps.myjino.ru`
            "*.ec2-1-2-3-4.compute-1.amazonaws.com",
            "*.site.vps.myjino.ru",
        ] {
            assert_eq!(of(name), Some(Shared::Below), "{name}");
        }
    }

    #[test]
    fn what_a_registry_sells_names_under_is_shared() {
        for name in [
            "co.uk",
            // `*.ck`: every name below `ck`
            "anything.ck",
            // a suffix in another script
            "公司.cn",
            "CO.UK",
        ] {
            assert_eq!(of(name), Some(Shared::Registry), "{name}");
        }
    }

    #[test]
    fn a_host_that_a_hosting_company_gives_to_one_customer_is_not() {
        for name in [
            "ec2-1-2-3-4.compute-1.amazonaws.com",
            "site.vps.myjino.ru",
            "me.github.io",
            "github.io",
            "home.arpa",
            "nas.home.arpa",
            "*.home.arpa",
            "*.nas.home.arpa",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn names_below_a_suffix_and_private_zones_are_not() {
        for name in [
            "example.co.uk",
            "*.example.co.uk",
            "example.com",
            "*.example.com",
            "me.github.io",
            "*.me.github.io",
            // an exception of the list: `!www.ck`
            "www.ck",
            "app.internal",
            "*.app.internal",
            "a.localhost",
            "*.a.localhost",
            "x.test",
            "*.a.example",
            "*.home.lan",
            "192.0.2.1",
            "[2001:db8::1]",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
