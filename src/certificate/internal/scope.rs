//! P: what a root of our CA may speak for (RFC 5280 §4.2.1.10, name constraints).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use psl::{Info, List, Psl, Type};
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::certificate::Identifier;
use crate::vhost::{NameError, ServerName};

/// A part of all names: a zone with everything below it, or a network.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Subtree {
    /// A-labels in lower case, at least one; no wildcard, no dot before or after.
    Zone(String),
    /// The address has no bits beyond the prefix, which is at least 1.
    Network { address: IpAddr, prefix: u8 },
}

/// What a root may speak for, and nothing else.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scope(BTreeSet<Subtree>);

/// Why a text is no subtree.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SubtreeError {
    #[error("that is every address")]
    EveryAddress,
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("not a network")]
    Network,
    #[error("names below it are sold to everybody")]
    PublicSuffix,
    #[error("a zone is all that is below it: leave the `*.` out")]
    Wildcard,
}

impl Subtree {
    /// `example.internal`, `10.0.0.0/8`, `192.0.2.1`.
    pub fn parse(text: &str) -> Result<Self, SubtreeError> {
        let (start, length) = match text.split_once('/') {
            Some((start, length)) => (start, Some(length)),
            None => (text, None),
        };
        if let Ok(address) = start.parse::<IpAddr>() {
            let width = width(address);
            let prefix = length.map_or(Ok(width), str::parse::<u8>);
            let prefix = prefix.map_err(|_| SubtreeError::Network)?;
            return match prefix {
                0 => Err(SubtreeError::EveryAddress),
                1.. if prefix <= width => Ok(Self::network(address, prefix)),
                _ => Err(SubtreeError::Network),
            };
        }
        if text.starts_with('*') {
            return Err(SubtreeError::Wildcard);
        }
        // one label is enough for a zone
        let below: ServerName = format!("x.{text}").parse()?;
        let zone = below.as_str().strip_prefix("x.").unwrap_or_default();
        let suffix = suffix(zone);
        let sold = suffix.len == zone.len() && suffix.typ == Some(Type::Icann);
        match sold && !PRIVATE_ZONES.contains(&zone) {
            true => Err(SubtreeError::PublicSuffix),
            false => Ok(Self::Zone(zone.to_owned())),
        }
    }

    fn network(address: IpAddr, prefix: u8) -> Self {
        let beyond = u32::from(width(address) - prefix);
        let address = match address {
            IpAddr::V4(it) => {
                let mask = u32::MAX.checked_shl(beyond).unwrap_or(0);
                Ipv4Addr::from_bits(it.to_bits() & mask).into()
            }
            IpAddr::V6(it) => {
                let mask = u128::MAX.checked_shl(beyond).unwrap_or(0);
                Ipv6Addr::from_bits(it.to_bits() & mask).into()
            }
        };
        Self::Network { address, prefix }
    }

    /// The least that a person would call the same owner's: the registrable domain of a name, or a
    /// whole top level under which no registry sells any (`lan`); of an address, itself.
    fn around(identifier: &Identifier) -> Self {
        let name = match identifier {
            Identifier::Ip(address) => return Self::network(*address, width(*address)),
            Identifier::Dns(name) => name.strip_prefix("*.").unwrap_or(name),
        };
        let suffix = suffix(name);
        let owned = match suffix.typ {
            None => suffix.len,
            Some(_) => {
                let above = name.len().saturating_sub(suffix.len + 1);
                let label = name.get(..above).unwrap_or_default().rsplit('.').next();
                suffix.len + 1 + label.map_or(0, str::len)
            }
        };
        let start = name.len().saturating_sub(owned);
        Self::Zone(name.get(start..).unwrap_or(name).to_owned())
    }

    fn permits(&self, identifier: &Identifier) -> bool {
        match (self, identifier) {
            (Self::Zone(zone), Identifier::Dns(name)) => {
                let name = name.strip_prefix("*.").unwrap_or(name);
                let above = name.strip_suffix(zone.as_str());
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            (Self::Network { address, prefix }, Identifier::Ip(other)) => {
                address.is_ipv4() == other.is_ipv4() && Self::network(*other, *prefix) == *self
            }
            _ => false,
        }
    }

    fn of(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(zone) => Some(Self::Zone(zone.to_ascii_lowercase())),
            GeneralName::IPAddress(bytes) => {
                let (address, mask) = bytes.split_at_checked(bytes.len() / 2)?;
                let prefix = mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
                let address = match address.len() {
                    4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
                    _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
                };
                Some(Self::network(address, u8::try_from(prefix).ok()?))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zone(zone) => f.write_str(zone),
            Self::Network { address, prefix } if *prefix == width(*address) => address.fmt(f),
            Self::Network { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

impl Scope {
    /// For a root that is made for `identifiers`: what is around each of them, and what nobody
    /// outside has anyway, so that the next private name needs no further root.
    pub fn around<'a>(identifiers: impl IntoIterator<Item = &'a Identifier>) -> Self {
        let zones = PRIVATE_ZONES.map(|zone| Subtree::Zone(zone.to_owned()));
        let networks = PRIVATE_NETWORKS.map(|(it, prefix)| Subtree::network(it, prefix));
        let mut subtrees: BTreeSet<Subtree> = zones.into_iter().chain(networks).collect();
        for identifier in identifiers {
            if !subtrees.iter().any(|subtree| subtree.permits(identifier)) {
                subtrees.insert(Subtree::around(identifier));
            }
        }
        Self(subtrees)
    }

    /// What a certificate says; `None`: it may speak for every name.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let constraints = certificate.name_constraints().ok().flatten()?.value;
        let permitted = constraints.permitted_subtrees.iter().flatten();
        Some(Self(
            permitted
                .filter_map(|it| Subtree::of(&it.base))
                .collect::<BTreeSet<_>>(),
        ))
    }

    pub fn permits(&self, identifier: &Identifier) -> bool {
        self.0.iter().any(|subtree| subtree.permits(identifier))
    }

    /// A kind of name without any permitted subtree would be free: all of it is excluded then.
    pub(super) fn constraints(&self) -> NameConstraints {
        let zones = |it: &&Subtree| matches!(it, Subtree::Zone(_));
        let mut excluded_subtrees = Vec::new();
        if self.0.iter().all(|it| !zones(&it)) {
            excluded_subtrees.push(GeneralSubtree::DnsName(String::new()));
        }
        if self.0.iter().all(|it| zones(&it)) {
            excluded_subtrees.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
            excluded_subtrees.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
        }
        let permitted = self.0.iter().map(|subtree| match subtree {
            Subtree::Zone(zone) => GeneralSubtree::DnsName(zone.clone()),
            Subtree::Network { address, prefix } => {
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, *prefix))
            }
        });
        NameConstraints {
            permitted_subtrees: permitted.collect(),
            excluded_subtrees,
        }
    }

    /// In words, each of them.
    pub fn subtrees(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// In few words.
    pub fn summary(&self) -> String {
        let everybodys = Self::around([]).0;
        match self.0.is_superset(&everybodys) {
            false => self.subtrees().join(", "),
            true if self.0 == everybodys => "private names and addresses".to_owned(),
            true => format!(
                "{}, private names and addresses",
                self.peculiar().join(", ")
            ),
        }
    }

    /// Those that not every root has: what a person knows it by.
    pub fn peculiar(&self) -> Vec<String> {
        let everybodys = Self::around([]);
        let peculiar = self.0.iter().filter(|it| !everybodys.0.contains(it));
        peculiar.map(ToString::to_string).collect()
    }
}

impl<'a> Extend<&'a Self> for Scope {
    fn extend<T: IntoIterator<Item = &'a Self>>(&mut self, scopes: T) {
        for scope in scopes {
            self.0.extend(scope.0.iter().cloned());
        }
    }
}

impl FromIterator<Subtree> for Scope {
    fn from_iter<T: IntoIterator<Item = Subtree>>(subtrees: T) -> Self {
        Self(subtrees.into_iter().collect())
    }
}

/// The end of a name under which everybody can have one (publicsuffix.org); of a top level that the
/// list does not know, the last label.
fn suffix(name: &str) -> Info {
    List.find(name.rsplit('.').map(str::as_bytes))
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Names that are nobody's on the Internet: RFC 8375, ICANN's resolution of 2024-07-29, RFC 6762,
/// RFC 6761.
const PRIVATE_ZONES: [&str; 5] = ["home.arpa", "internal", "local", "localhost", "test"];

/// RFC 1918, loopback (RFC 1122, RFC 4291), RFC 4193.
const PRIVATE_NETWORKS: [(IpAddr, u8); 6] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(name: &str) -> Identifier {
        Identifier::Dns(name.into())
    }

    fn ip(address: &str) -> Identifier {
        Identifier::Ip(address.parse().unwrap())
    }

    #[test]
    fn a_root_is_made_for_the_domain_of_a_name_and_for_what_is_private_anyway() {
        let of = |name: &str| Scope::around([&dns(name)]).peculiar();
        assert_eq!(of("shop.example.com"), ["example.com"]);
        assert_eq!(of("*.a.b.example.co.uk"), ["example.co.uk"]);
        // somebody else's neighbours at a hosting company are not ours
        assert_eq!(of("me.github.io"), ["me.github.io"]);
        assert_eq!(of("nas.lan"), ["lan"]);
        assert!(of("nas.home.arpa").is_empty() && of("a.b.test").is_empty());
        assert_eq!(
            Scope::around([&ip("203.0.113.7")]).peculiar(),
            ["203.0.113.7"]
        );
        assert!(Scope::around([&ip("192.168.1.1")]).peculiar().is_empty());
    }

    #[test]
    fn a_scope_permits_what_is_in_it_or_below_and_nothing_beside() {
        let scope = Scope::around([&dns("a.example.com"), &ip("2001:db8::7")]);
        for inside in [
            "example.com",
            "x.y.example.com",
            "*.example.com",
            "localhost",
        ] {
            assert!(scope.permits(&dns(inside)), "{inside}");
        }
        for outside in ["example.org", "badexample.com", "com", "*.com"] {
            assert!(!scope.permits(&dns(outside)), "{outside}");
        }
        for inside in ["10.1.2.3", "172.31.0.1", "::1", "fd00::1", "2001:db8::7"] {
            assert!(scope.permits(&ip(inside)), "{inside}");
        }
        for outside in ["172.32.0.1", "1.1.1.1", "2001:db8::8", "::a00:1"] {
            assert!(!scope.permits(&ip(outside)), "{outside}");
        }
    }

    #[test]
    fn subtrees_are_zones_and_networks_that_are_not_everybodys() {
        let parsed = |text: &str| Subtree::parse(text).map(|it| it.to_string());
        for (text, meant) in [
            ("Example.Internal", "example.internal"),
            ("lan", "lan"),
            ("home.arpa", "home.arpa"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1"),
            ("fd00::/8", "fd00::/8"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(meant), "{text}");
        }
        use SubtreeError::{EveryAddress, Name, Network, PublicSuffix, Wildcard};
        assert_eq!(parsed("com"), Err(PublicSuffix));
        assert_eq!(parsed("co.uk"), Err(PublicSuffix));
        assert_eq!(parsed("*.example.com"), Err(Wildcard));
        assert_eq!(parsed("0.0.0.0/0"), Err(EveryAddress));
        assert_eq!(parsed("10.0.0.0/33"), Err(Network));
        assert_eq!(parsed("10.0.0.0/x"), Err(Network));
        for bad in ["", ".example.com", "a b", "10.0.0.0.0", "x/8"] {
            assert!(
                matches!(parsed(bad), Err(Name(_))),
                "{bad}: {:?}",
                parsed(bad)
            );
        }
    }
}
