//! P: which addresses are asked for a challenge.
//!
//! What a name leads to is its owner's word, and who asks is root: only what the internet reaches as
//! well, and this host itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `Err`: why not. `own`: the addresses of this host's interfaces; with a loopback address it has all
/// of them (RFC 1122 §3.2.1.3).
///
/// What is not public is in IANA's registries of special-purpose addresses (RFC 6890); an address
/// that stands for another one is judged by that.
pub fn may_ask(address: IpAddr, own: &[IpAddr]) -> Result<(), &'static str> {
    let address = address.to_canonical();
    let is_own = |it: &IpAddr| {
        let loops = it.is_loopback() && address.is_loopback();
        *it == address || (loops && it.is_ipv4() == address.is_ipv4())
    };
    let special = match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    };
    match special {
        Some(kind) if !own.iter().any(is_own) => Err(kind),
        _ => Ok(()),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let kind = match address.octets() {
        [0, ..] => "an unspecified address",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "a private address",
        [100, 64..=127, ..] => "an address of a provider's inner network",
        [127, ..] => "a loopback address",
        // Azure's WireServer
        [168, 63, 129, 16] => "an address of a cloud's own services",
        [169, 254, ..] => "a link-local address",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "an address for documentation",
        [192, 0, 0, _] | [192, 88, 99, _] | [198, 18..=19, ..] | [240..=255, ..] => {
            "a reserved address"
        }
        [224..=239, ..] => "a multicast address",
        _ => return None,
    };
    Some(kind)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let kind = match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "an unspecified address",
        [0, 0, 0, 0, 0, 0, 0, 1] => "a loopback address",
        // NAT64 (RFC 6052 §2.1) and 6to4 (RFC 3056 §2)
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            return special_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
        }
        [0xfc00..=0xfdff, ..] => "a private address",
        [0xfe80..=0xfebf, ..] => "a link-local address",
        [0xff00..=0xffff, ..] => "a multicast address",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "an address for documentation",
        // Teredo (RFC 4380) among them, which stands for an IPv4 address, too
        [0x2001, 0..=0x1ff, ..] => "a reserved address",
        // RFC 4291 §2.4: all that is given out
        [0x2000..=0x3fff, ..] => return None,
        _ => "a reserved address",
    };
    Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_public_addresses_and_this_hosts_own_are_asked() {
        let refused = |text: &str| may_ask(parsed(text), &[]).err();
        for (kind, texts) in [
            (
                "an unspecified address",
                "0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0 64:ff9b::0.0.0.1 2002:0:1::",
            ),
            (
                "a private address",
                "10.0.0.5 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fd00:ec2::254 \
                 fd20:ce::254 ::ffff:10.0.0.5 64:ff9b::10.0.0.5 2002:a00:5::1",
            ),
            (
                "an address of a provider's inner network",
                "100.64.0.1 100.100.100.200 100.127.255.255 ::ffff:100.100.100.200",
            ),
            (
                "a loopback address",
                "127.0.0.1 127.9.9.9 ::1 ::ffff:127.0.0.1 64:ff9b::127.0.0.1",
            ),
            (
                "an address of a cloud's own services",
                "168.63.129.16 ::ffff:168.63.129.16",
            ),
            (
                "a link-local address",
                "169.254.169.254 169.254.0.1 fe80::1 febf::1 ::ffff:169.254.169.254 \
                 64:ff9b::169.254.169.254 2002:a9fe:a9fe::1",
            ),
            (
                "an address for documentation",
                "192.0.2.1 198.51.100.1 203.0.113.7 2001:db8::1 3fff::1",
            ),
            (
                "a reserved address",
                "192.0.0.192 192.88.99.1 198.18.0.1 198.19.255.255 240.0.0.1 255.255.255.255 \
                 ::10.0.0.5 ::203.0.114.1 64:ff9b:1::203.0.114.1 100::1 fec0::1 5f00::1 4000::1 \
                 2001::1 2001:10::1 2001:20::1 2001:1ff::1",
            ),
            (
                "a multicast address",
                "224.0.0.1 239.255.255.255 ff02::1 ::ffff:224.0.0.1",
            ),
        ] {
            for text in texts.split_whitespace() {
                assert_eq!(refused(text), Some(kind), "{text}");
            }
        }
        for text in "1.1.1.1 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 168.63.129.15 \
                     172.15.0.1 172.32.0.1 192.0.1.1 192.167.1.1 198.17.0.1 198.20.0.1 223.255.255.255 \
                     ::ffff:1.1.1.1 64:ff9b::1.1.1.1 2002:101:101::1 2001:200::1 2001:4860:4860::8888 \
                     2a01:4f8::1 2606:4700::1111 3ffe::1"
            .split_whitespace()
        {
            assert_eq!(refused(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_of_this_host_is_asked_whatever_kind_it_is_of() {
        let own = ["127.0.0.1", "10.0.0.5", "169.254.7.7", "fd12::1", "fe80::7"].map(parsed);
        for (text, expected) in [
            ("10.0.0.5", true),
            ("::ffff:10.0.0.5", true),
            ("10.0.0.6", false),
            ("169.254.7.7", true),
            ("169.254.169.254", false),
            ("fd12::1", true),
            ("fd12::2", false),
            ("fe80::7", true),
            ("127.0.0.1", true),
            ("127.0.0.2", true),
            // it has no IPv6
            ("::1", false),
            ("1.1.1.1", true),
        ] {
            assert_eq!(may_ask(parsed(text), &own).is_ok(), expected, "{text}");
        }
        assert!(may_ask(parsed("::1"), &[parsed("::1")]).is_ok());
    }
}
