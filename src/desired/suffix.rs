//! P: names that many share: `co.uk`, `github.io` (publicsuffix.org, both of its sections).

use psl::{List, Psl};

use crate::vhost::ServerName;

/// Whether `name` is a public suffix, or the wildcard for everything directly below one: nobody can
/// own that, and it would take what others have there.
pub(super) fn is_shared(name: &ServerName) -> bool {
    if name.is_address() {
        return false;
    }
    let text = name.as_str();
    let zone = text.strip_prefix("*.").unwrap_or(text);
    // the list reads labels from the right; of a top level that it does not know, the last one is
    // the suffix, which is no name of ours
    List.find(zone.rsplit('.').map(str::as_bytes)).len == zone.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(name: &str) -> bool {
        is_shared(&name.parse().unwrap())
    }

    #[test]
    fn a_public_suffix_and_the_wildcard_directly_below_it_are_shared() {
        for name in [
            "co.uk",
            "*.co.uk",
            "github.io",
            "*.github.io",
            "*.duckdns.org",
            // `*.ck`: every name below `ck`
            "anything.ck",
            "*.anything.ck",
            // a suffix in another script, either way
            "公司.cn",
            "*.xn--55qx5d.cn",
            "CO.UK",
        ] {
            assert!(shared(name), "{name}");
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
            assert!(!shared(name), "{name}");
        }
    }
}
