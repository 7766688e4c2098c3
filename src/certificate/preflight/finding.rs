//! P: what was found before an order, in words that say what to do.

use std::fmt;
use std::net::IpAddr;

use time::Duration;

use crate::certificate::words::one_line;

/// One thing that is in an order's way, or looks so. Its words are a sentence about a name, and say
/// what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Finding {
    /// A CAA record with a tag that must be understood, and is not.
    CaaCritical {
        name: String,
        at: String,
        tag: String,
    },
    CaaDenies {
        name: String,
        /// Where the records are.
        at: String,
        /// Whom they name.
        allowed: Vec<String>,
        /// The CA, as such a record would name it.
        ca: String,
    },
    CaaNarrows {
        name: String,
        at: String,
        parameter: &'static str,
        value: String,
        ours: String,
    },
    CaaUnknown {
        name: String,
        at: String,
        why: String,
    },
    Clock {
        /// Of the CA's.
        ahead: Duration,
    },
    /// An address that this host does not have, and that does not answer as it should.
    Foreign {
        name: String,
        address: IpAddr,
        /// `None`: nobody tried.
        why: Option<String>,
    },
    /// The name is there, without A and AAAA.
    NoAddress {
        name: String,
        should: Vec<IpAddr>,
    },
    NoName {
        name: String,
        should: Vec<IpAddr>,
    },
    /// An address that this host does not have, and that the internet does not reach.
    NotAsked {
        name: String,
        address: IpAddr,
        /// `a private address`
        kind: &'static str,
    },
    OtherAnswer {
        name: String,
        address: IpAddr,
        what: String,
    },
    /// An address of ours.
    Unanswered {
        name: String,
        address: IpAddr,
        why: String,
    },
    Unresolved {
        name: String,
        why: String,
    },
}

impl Finding {
    /// Another CA might issue all the same.
    pub fn is_about_the_ca(&self) -> bool {
        matches!(self, Self::CaaDenies { .. } | Self::CaaNarrows { .. })
    }

    /// What is the same while nothing has changed: why a fetch failed is not.
    pub fn about(&self) -> String {
        match self {
            Self::CaaCritical { name, at, tag } => format!("caa {tag} {at} {name}"),
            Self::CaaDenies { name, at, .. } => format!("caa {at} {name}"),
            Self::CaaNarrows {
                name,
                at,
                parameter,
                ..
            } => format!("caa {parameter} {at} {name}"),
            Self::CaaUnknown { name, at, .. } => format!("caa unknown {at} {name}"),
            Self::Clock { .. } => "clock".to_owned(),
            Self::Foreign { name, address, .. } => format!("foreign {address} {name}"),
            Self::NoAddress { name, .. } => format!("no address {name}"),
            Self::NoName { name, .. } => format!("no name {name}"),
            Self::NotAsked { name, address, .. } => format!("not asked {address} {name}"),
            Self::OtherAnswer { name, address, .. } => format!("other {address} {name}"),
            Self::Unanswered { name, address, .. } => format!("unanswered {address} {name}"),
            Self::Unresolved { name, .. } => format!("unresolved {name}"),
        }
    }

    /// Fit for a terminal: what strangers published is in it.
    pub fn told(&self) -> String {
        one_line(self.to_string().as_bytes())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CaaCritical { .. }
            | Self::CaaDenies { .. }
            | Self::CaaNarrows { .. }
            | Self::CaaUnknown { .. } => self.fmt_caa(f),
            Self::Clock { ahead } => write!(
                f,
                "this host's clock is {} the CA's: set it (timedatectl set-ntp true), or \
                 certificates count as not yet valid, or are renewed at the wrong time",
                apart(*ahead)
            ),
            Self::Foreign { name, address, why } => foreign(f, name, *address, why.as_deref()),
            Self::NoAddress { name, should } => write!(
                f,
                "{name} has no A or AAAA record: add {}, then `vhostd renew {name}`",
                records(should)
            ),
            Self::NoName { name, should } => write!(
                f,
                "{name} does not exist in DNS: add {}, then `vhostd renew {name}`",
                records(should)
            ),
            Self::NotAsked {
                name,
                address,
                kind,
            } => write!(
                f,
                "{name} has the {} record {address}, which is no address of this host but {kind}: \
                 vhostd does not ask there whether challenges are answered, and a public CA cannot; \
                 correct the record, unless your own CA reaches this host by it",
                record(*address)
            ),
            Self::OtherAnswer {
                name,
                address,
                what,
            } => write!(
                f,
                "challenges for {name} are answered by something else at {address}: {what}; \
                 /.well-known/acme-challenge/ on port 80 has to lead to this host's nginx"
            ),
            Self::Unanswered { name, address, why } => write!(
                f,
                "challenges for {name} are not answered at {address}, which is this host: {why}; \
                 the CA needs port 80, and follows redirects to port 443"
            ),
            Self::Unresolved { name, why } => {
                write!(f, "the addresses of {name} cannot be looked up: {why}")
            }
        }
    }
}

impl Finding {
    /// Of CAA records; nothing of anything else.
    fn fmt_caa(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CaaCritical { name, at, tag } => write!(
                f,
                "the CAA record `{tag}` at {at} forbids every CA that does not know it: remove it, \
                 then `vhostd renew {name}`"
            ),
            Self::CaaDenies {
                name,
                at,
                allowed,
                ca,
            } => {
                let allowed = match allowed.is_empty() {
                    true => "no CA".to_owned(),
                    false => format!("only {}", allowed.join(", ")),
                };
                let tag = match name.starts_with("*.") {
                    true => "issuewild",
                    false => "issue",
                };
                write!(
                    f,
                    "the CAA records at {at} allow {allowed} for {name}: add `{at}. CAA 0 {tag} \
                     \"{ca}\"`, then `vhostd renew {name}`"
                )
            }
            Self::CaaNarrows {
                name,
                at,
                parameter,
                value,
                ours,
            } => write!(
                f,
                "the CAA record at {at} asks for {parameter}={value}, and this order has {ours}: \
                 change the record, then `vhostd renew {name}`"
            ),
            Self::CaaUnknown { name, at, why } => write!(
                f,
                "the CAA records at {at}, which may speak for {name}, cannot be looked up ({why}): \
                 a CA that cannot either must refuse"
            ),
            _ => Ok(()),
        }
    }
}

fn foreign(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    address: IpAddr,
    why: Option<&str>,
) -> fmt::Result {
    let kind = record(address);
    write!(
        f,
        "{name} has the {kind} record {address}, which is no address of this host"
    )?;
    match why {
        Some(why) => write!(f, ", and no challenge is answered there: {why}")?,
        None => f.write_str(", and nobody could look in time whether it leads here")?,
    }
    f.write_str(match address {
        IpAddr::V6(_) => "; Let's Encrypt tries IPv6 first: remove the record unless it leads here",
        IpAddr::V4(_) => {
            "; from within a network behind NAT that may be so, else correct the record"
        }
    })
}

/// Of this host's addresses, those that the internet can reach: what a record should be.
pub(super) fn publicly(host: &[IpAddr]) -> Vec<IpAddr> {
    let mut public: Vec<_> = host.iter().copied().filter(is_public).collect();
    public.sort();
    public.truncate(2);
    public
}

/// Not private, not shared (RFC 6598), not this host's or this link's own.
pub(super) fn is_public(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || shared)
        }
        // RFC 4291 §2.4: all that is given out
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000,
    }
}

/// Whether only a network of its own has this host: by RFC 6761 and its followers, or by use.
pub(in crate::certificate) fn is_private_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return !is_public(&address);
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let below = |zone: &&str| {
        let rest = name.strip_suffix(*zone);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !name.contains('.') || PRIVATE_ZONES.iter().any(below)
}

const PRIVATE_ZONES: [&str; 9] = [
    "corp",
    "home",
    "home.arpa",
    "internal",
    "invalid",
    "lan",
    "local",
    "localhost",
    "test",
];

fn records(should: &[IpAddr]) -> String {
    match should.is_empty() {
        true => "an A record for this host's public address".to_owned(),
        false => {
            let each = should.iter();
            let each: Vec<_> = each
                .map(|address| format!("{} record for {address}", with_article(*address)))
                .collect();
            each.join(" or ")
        }
    }
}

fn with_article(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "an A",
        IpAddr::V6(_) => "an AAAA",
    }
}

fn record(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "A",
        IpAddr::V6(_) => "AAAA",
    }
}

/// `3 hours behind`
fn apart(ahead: Duration) -> String {
    let way = match ahead.is_negative() {
        true => "behind",
        false => "ahead of",
    };
    let off = ahead.abs();
    let (count, unit) = match off {
        off if off >= Duration::days(2) => (off.whole_days(), "days"),
        off if off >= Duration::hours(2) => (off.whole_hours(), "hours"),
        off => (off.whole_minutes(), "minutes"),
    };
    format!("{count} {unit} {way}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_host_is_one_that_only_its_network_has() {
        for host in [
            "127.0.0.1",
            "[::1]",
            "10.1.2.3",
            "[fd00::1]",
            "ca",
            "localhost",
            "ca.internal",
            "CA.lan.",
            "step.home.arpa",
        ] {
            assert!(is_private_host(host), "{host}");
        }
        for host in [
            "acme-v02.api.letsencrypt.org",
            "203.0.113.7",
            "[2001:db8::7]",
            "ca.internal.example",
        ] {
            assert!(!is_private_host(host), "{host}");
        }
    }
}
