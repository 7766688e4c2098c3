//! P: addresses that no vhost file may name, because what answers there is not the operator's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why `address` cannot be an upstream; `None` where it can.
///
/// Cloud metadata services answer credentials to whoever asks. Addresses that stand for another
/// one (mapped, compatible, NAT64, 6to4) are judged by what they stand for.
pub fn refused_as_upstream(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => refused_v4(address),
        IpAddr::V6(address) => refused_v6(address),
    }
}

/// Why `address` cannot be a server name; `None` where it can.
pub fn refused_as_name(address: IpAddr) -> Option<&'static str> {
    refused_as_upstream(address)
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    if METADATA_V4.contains(&address) {
        return Some("the address of a cloud's metadata service");
    }
    if address.is_link_local() {
        return Some("a link-local address");
    }
    if address.octets()[0] == 0 {
        return Some("an unspecified address");
    }
    // 224.0.0.0/4 is multicast, 240.0.0.0/4 reserved up to the broadcast address
    (address.octets()[0] >= 224).then_some("a multicast or broadcast address")
}

fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("an unspecified address");
    }
    if address.is_loopback() {
        return None;
    }
    if METADATA_V6.contains(&address) {
        return Some("the address of a cloud's metadata service");
    }
    if address.is_unicast_link_local() {
        return Some("a link-local address");
    }
    if address.is_multicast() {
        return Some("a multicast or broadcast address");
    }
    match address.segments() {
        // IPv4-mapped and IPv4-compatible (RFC 4291 §2.5.5): there is a plain spelling
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] => Some("an IPv4 address written as IPv6"),
        // NAT64 (RFC 6052 §2.1, RFC 8215) and 6to4 (RFC 3056 §2)
        [0x64, 0xff9b, 0 | 1, .., high, low] | [0x2002, high, low, ..] => {
            refused_v4(embedded(high, low))
        }
        _ => None,
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// AWS, Azure and GCP use 169.254.169.254 (link-local); these are the others.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba
    Ipv4Addr::new(192, 0, 0, 192),     // Oracle
];

const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), // AWS
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),  // GCP
];

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> bool {
        refused_as_upstream(text.parse().unwrap()).is_some()
    }

    #[test]
    fn metadata_link_local_multicast_and_unspecified_addresses_are_refused() {
        for text in [
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            assert!(refused(text), "{text}");
        }
    }

    #[test]
    fn an_address_that_stands_for_a_refused_one_is_refused() {
        for text in [
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(refused(text), "{text}");
        }
    }

    #[test]
    fn loopback_private_and_public_addresses_are_not_refused() {
        for text in [
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "192.168.1.1",
            "203.0.113.7",
            "::1",
            "2001:db8::1",
            "fd12::1",
            "64:ff9b::203.0.113.7",
        ] {
            assert!(!refused(text), "{text}");
        }
    }
}
