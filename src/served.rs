//! N: whether nginx still shows visitors the certificates that it should.
//!
//! A reload is proven when it happens (`reconcile::proof`); afterwards a hand-written server block,
//! another `default_server` or somebody's own restart of nginx may come between. So every name is
//! asked for once a day, and soon after its certificate changed: one handshake at each listener, one
//! after the other and with pauses, so that a thousand names are not felt.

mod record; // W what was seen last

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::certificate::glance::glance;
use crate::generation::manifest::{Manifest, ServedName};
use crate::installation::Installation;
use crate::nginx::probe::{Knows, ProbeError, reachable};
use crate::notice::change::Difference;
use crate::reconcile::proof::{fingerprint, secure_sockets};

pub use record::ServedRecord;

/// Names, and what each should show.
pub type Expected = BTreeMap<String, Showing>;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Showing {
    /// Fingerprints: of two types of key a client gets one.
    leaves: Vec<String>,
    at: Vec<SocketAddr>,
}

/// What a look found of the names that it was about.
#[derive(Debug, Default)]
pub struct Looked {
    /// Those that answered, with what they should have had.
    pub asked: Expected,
    /// Of those.
    pub differences: Vec<Difference>,
}

/// Shows a name's certificate at an address.
pub type Show<'a> = &'a dyn Fn(SocketAddr, &str, Knows) -> Result<Vec<u8>, ProbeError>;

/// What `manifest` says of each name with TLS.
pub fn expected(manifest: &Manifest) -> Expected {
    let names = manifest.names.iter();
    let with_tls = names.filter(|name| name.leaf.is_some());
    let showing = |name: &ServedName| Showing {
        leaves: name.leaves().cloned().collect(),
        at: secure_sockets(manifest, name),
    };
    with_tls
        .map(|name| (name.host.clone(), showing(name)))
        .collect()
}

/// Asks for those names of the active generation. What seems wrong is asked for again while nobody
/// may activate another one: in the middle of a reload every answer is right.
pub fn look(
    installation: &Installation,
    names: &BTreeSet<String>,
    now: OffsetDateTime,
) -> Result<Looked, String> {
    let generations = &installation.generations;
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let manifest = generations.active().map_err(|e| words(&e))?.manifest;
    let show = |address, host: &str, knows| installation.host_nginx.show(address, host, knows);
    let wanted = of(&expected(&manifest), names);
    let first = survey(&show, &wanted, Pace::Easy, now);
    if first.differences.is_empty() {
        return Ok(first);
    }
    let doubted: Vec<String> = first.differences.into_iter().map(|it| it.host).collect();
    let mut looked = Looked {
        asked: first.asked,
        differences: Vec::new(),
    };
    looked.asked.retain(|host, _| !doubted.contains(host));
    for some in doubted.chunks(DOUBTED_AT_ONCE) {
        let locked = generations.lock(LOCK_LIMIT).map_err(|e| words(&e))?;
        let manifest = generations.active().map_err(|e| words(&e))?.manifest;
        let wanted = of(&expected(&manifest), &some.iter().cloned().collect());
        let second = survey(&show, &wanted, Pace::Fast, now);
        drop(locked);
        let is_whole = second.asked.len() == wanted.len();
        looked.asked.extend(second.asked);
        looked.differences.extend(second.differences);
        if !is_whole {
            break;
        }
        // whoever wants to reconcile comes in between
        thread::sleep(LONGEST_REST);
    }
    Ok(looked)
}

fn of(expected: &Expected, names: &BTreeSet<String>) -> Expected {
    let mine = expected.iter().filter(|(host, _)| names.contains(*host));
    mine.map(|(host, showing)| (host.clone(), showing.clone()))
        .collect()
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pace {
    /// Most of the time is left to others.
    Easy,
    Fast,
}

fn survey(show: Show<'_>, expected: &Expected, pace: Pace, now: OffsetDateTime) -> Looked {
    let mut looked = Looked::default();
    for (host, showing) in expected {
        let begin = Instant::now();
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for address in showing.at.iter().copied().map(reachable) {
            match shown(show, address, host, &showing.leaves, now) {
                Ok(None) => {}
                Ok(Some(instead)) => found.entry(instead).or_default().push(address.to_string()),
                // an nginx that is down or stalled says nothing about any name
                Err(()) => return looked,
            }
        }
        looked.asked.insert(host.clone(), showing.clone());
        if let Some((found, addresses)) = found.pop_first() {
            looked.differences.push(Difference {
                host: host.clone(),
                addresses,
                found,
            });
        }
        if pace == Pace::Easy {
            thread::sleep((begin.elapsed() * REST_FACTOR).min(LONGEST_REST));
        }
    }
    looked
}

/// What is shown instead of what should be; an error where nothing answers.
fn shown(
    show: Show<'_>,
    address: SocketAddr,
    host: &str,
    leaves: &[String],
    now: OffsetDateTime,
) -> Result<Option<String>, ()> {
    let kinds: &[(Knows, &str)] = match leaves.len() {
        0 | 1 => &[(Knows::All, "")],
        _ => &[
            (Knows::EcdsaAlone, "to clients of ECDSA alone, "),
            (Knows::RsaAlone, "to clients of RSA alone, "),
        ],
    };
    let mut seen = BTreeSet::new();
    for (knows, whom) in kinds {
        match show(address, host, *knows) {
            // each type of key has one of its own
            Ok(der) if leaves.contains(&fingerprint(&der)) && seen.insert(fingerprint(&der)) => {}
            Ok(der) => return Ok(Some(format!("{whom}{}", glance(&der, now)))),
            Err(ProbeError::Foreign(why)) => {
                return Ok(Some(format!("{whom}no certificate at all ({why})")));
            }
            Err(ProbeError::Connect(_) | ProbeError::Talk(_)) => return Err(()),
        }
    }
    Ok(None)
}

/// A handshake takes its time twice, here and in nginx: five parts of six are left to others.
const REST_FACTOR: u32 = 5;
const LONGEST_REST: Duration = Duration::from_millis(500);
/// While nobody may activate anything.
const DOUBTED_AT_ONCE: usize = 8;
/// Whoever reconciles just now is not in anybody's way: it is looked again.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH
    }

    fn all(hosts: &[&str], listeners: &[&str]) -> Expected {
        let of = |host: &&str| Showing {
            leaves: vec![fingerprint(host.as_bytes())],
            at: listeners.iter().map(|it| it.parse().unwrap()).collect(),
        };
        let hosts = hosts.iter();
        hosts.map(|host| ((*host).to_owned(), of(host))).collect()
    }

    #[test]
    fn a_name_that_shows_something_else_at_one_address_differs_there() {
        let show = |address: SocketAddr, host: &str, _| match (host, address.is_ipv6()) {
            ("b.example", true) => Ok(b"other".to_vec()),
            ("c.example", _) => Err(ProbeError::Foreign("alert".to_owned())),
            _ => Ok(host.as_bytes().to_vec()),
        };
        let listeners = ["0.0.0.0:443", "[::]:443"];
        let expected = all(&["a.example", "b.example", "c.example"], &listeners);
        let looked = survey(&show, &expected, Pace::Fast, now());
        assert_eq!(looked.asked.len(), 3);
        let hosts: Vec<_> = looked.differences.iter().map(|it| &it.host).collect();
        assert_eq!(hosts, ["b.example", "c.example"]);
        assert_eq!(looked.differences[0].addresses, ["[::1]:443"]);
        assert!(looked.differences[1].found.contains("no certificate"));
    }

    #[test]
    fn of_two_types_of_key_each_is_looked_for() {
        let leaves = ["ecdsa", "rsa"].map(|leaf| fingerprint(leaf.as_bytes()));
        let address = "127.0.0.1:443".parse().unwrap();
        let found = |ecdsa: &'static str, rsa: &'static str| {
            let show = |_: SocketAddr, _: &str, knows| match knows {
                Knows::All => unreachable!("it chooses for us"),
                Knows::EcdsaAlone => Ok(ecdsa.as_bytes().to_vec()),
                Knows::RsaAlone if rsa.is_empty() => {
                    Err(ProbeError::Foreign("TLS alert".to_owned()))
                }
                Knows::RsaAlone => Ok(rsa.as_bytes().to_vec()),
            };
            shown(&show, address, "a.example", &leaves, now()).unwrap()
        };
        assert_eq!(found("ecdsa", "rsa"), None);
        for (ecdsa, rsa, whom) in [
            ("other", "rsa", "to clients of ECDSA alone, "),
            ("ecdsa", "other", "to clients of RSA alone, "),
            ("ecdsa", "ecdsa", "to clients of RSA alone, "),
            ("ecdsa", "", "to clients of RSA alone, no certificate"),
        ] {
            let found = found(ecdsa, rsa).unwrap();
            assert!(found.starts_with(whom), "{found}");
        }
    }

    #[test]
    fn an_nginx_that_does_not_answer_says_nothing_about_any_name() {
        let show = |_: SocketAddr, host: &str, _| match host {
            "a.example" => Ok(host.as_bytes().to_vec()),
            _ => Err(ProbeError::Talk(std::io::ErrorKind::WouldBlock.into())),
        };
        let listeners = ["127.0.0.1:443"];
        let expected = all(&["a.example", "b.example", "c.example"], &listeners);
        let looked = survey(&show, &expected, Pace::Fast, now());
        assert_eq!(looked.asked, all(&["a.example"], &listeners));
        assert!(looked.differences.is_empty());
        // what was known of the others stays
        let difference = |host: &str| Difference {
            host: host.to_owned(),
            addresses: Vec::new(),
            found: String::new(),
        };
        let mut record = ServedRecord {
            checked_at: now(),
            differences: ["a.example", "c.example", "gone.example"]
                .map(difference)
                .to_vec(),
        };
        record.learn(&looked, &expected);
        assert_eq!(record.differences, [difference("c.example")]);
    }
}
