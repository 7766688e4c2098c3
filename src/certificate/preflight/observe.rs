//! N: what there is to see before an order: DNS, this host's addresses, and what answers there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::askable::may_ask;
use super::fetch::{Challenge, Fetched, Ports, Surroundings};
use super::{Ca, Method, Observations, Observed, caa};
use crate::certificate::Identifier;
use crate::certificate::renew::Chance;
use crate::dns::{Addresses, Caa, Dns, Lookup, Resolver};
use crate::settings::Settings;

/// What is looked with. Cheap to clone.
#[derive(Clone)]
pub struct Checks {
    dns: Arc<dyn Dns>,
    /// Where challenges are asked for.
    ports: Ports,
    /// Shared by the clones: each fetch has a socket.
    at_once: Arc<Semaphore>,
    /// The operator says whose DNS counts, also for a CA of his own.
    chosen: bool,
}

impl Checks {
    /// Asks nobody yet.
    pub fn new(settings: &Settings) -> Self {
        let ports = match is_beside_us(&settings.acme.directory) {
            true => Ports {
                http: settings.nginx.http_port,
                https: settings.nginx.https_port,
            },
            false => Ports::PUBLIC,
        };
        Self {
            dns: Arc::new(Resolver::new(&settings.dns)),
            ports,
            at_once: Arc::new(Semaphore::new(FETCHES_AT_ONCE)),
            chosen: !settings.dns.resolvers.is_empty(),
        }
    }

    /// The CA, as far as what is seen here is what it sees.
    pub fn in_view(&self, ca: Ca) -> Ca {
        Ca {
            private: ca.private && !self.chosen,
            ..ca
        }
    }

    /// All that is known of an order: what `vhostd doctor` is to show. Takes some seconds at most.
    pub async fn observe(
        &self,
        identifiers: &[Identifier],
        ca: Ca,
        challenge: &Challenge,
        method: Method,
        ahead: Option<time::Duration>,
    ) -> Observations {
        let names = self.look_up(identifiers).await;
        let mut seen = Observations {
            names,
            host: host_addresses(),
            ca: self.in_view(ca),
            ahead,
            method,
            issued: false,
        };
        for fetch in self.fetch_all(&seen, challenge).join_all().await {
            seen.note(fetch);
        }
        seen
    }

    /// One that nobody has asked for before: no cache on the way has its answer.
    pub fn challenge(&self, thumbprint: &str, chance: Chance<'_>) -> Challenge {
        let lots = [chance(), chance()].map(|lot| format!("{:016x}", lot.to_bits()));
        Challenge {
            token: format!("vhostd-looks-{}", lots.concat()),
            thumbprint: thumbprint.to_owned(),
            ports: self.ports,
        }
    }

    /// What DNS says of each, all at once.
    pub async fn look_up(&self, identifiers: &[Identifier]) -> Vec<Observed> {
        let names = identifiers
            .iter()
            .filter_map(|identifier| match identifier {
                Identifier::Dns(name) => Some(name.clone()),
                Identifier::Ip(_) => None,
            });
        let names: Vec<String> = names.collect();
        let levels = names.iter().flat_map(|name| caa::climb(name));
        let levels: BTreeSet<String> = levels.collect();
        let (addresses, records) = tokio::join!(self.addresses(names), self.caa(levels));
        let observed = identifiers.iter().map(|identifier| match identifier {
            Identifier::Dns(name) => Observed {
                identifier: identifier.clone(),
                addresses: addresses.get(name).cloned(),
                caa: caa::climb(name)
                    .into_iter()
                    .map(|level| {
                        let said = records.get(&level).cloned();
                        (level, said)
                    })
                    .collect(),
                fetched: Vec::new(),
            },
            Identifier::Ip(address) => Observed {
                identifier: identifier.clone(),
                addresses: Some(Addresses::of(*address)),
                caa: Vec::new(),
                fetched: Vec::new(),
            },
        });
        observed.collect()
    }

    /// Of those that answered in time.
    async fn addresses(&self, names: Vec<String>) -> BTreeMap<String, Addresses> {
        let mut asked = JoinSet::new();
        for name in names {
            let dns = self.dns.clone();
            asked.spawn(async move {
                let found = timeout(LIMIT, dns.addresses(&name)).await;
                found.ok().map(|found| (name, found))
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    async fn caa(&self, names: BTreeSet<String>) -> BTreeMap<String, Lookup<Vec<Caa>>> {
        let mut asked = JoinSet::new();
        for name in names {
            let dns = self.dns.clone();
            asked.spawn(async move {
                let found = timeout(LIMIT, dns.caa(&name)).await;
                found.ok().map(|found| (name, found))
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    /// Asks for the challenge at the addresses of each name, those that DNS gave before. What is
    /// dropped is not waited for.
    pub fn fetch_all(&self, seen: &Observations, challenge: &Challenge) -> JoinSet<Fetch> {
        let mut asked = JoinSet::new();
        // by dns-01 the CA fetches nothing
        let fetched = seen.names.iter().enumerate();
        for (of, observed) in fetched.filter(|_| seen.method == Method::Http01) {
            let addresses = observed.addresses.iter().flat_map(Addresses::all);
            for address in addresses.take(MOST_ADDRESSES) {
                let (me, challenge) = (self.clone(), challenge.clone());
                let (name, host) = (observed.identifier.to_string(), seen.host.clone());
                if let Err(kind) = may_ask(address, &host) {
                    let fetched = Fetched::NotAsked(kind);
                    let fetch = Fetch {
                        of,
                        address,
                        fetched,
                    };
                    asked.spawn(std::future::ready(fetch));
                    continue;
                }
                asked.spawn(async move {
                    // never closed: an error cannot come
                    let _turn = me.at_once.acquire().await;
                    let around = Surroundings {
                        dns: &*me.dns,
                        host: &host,
                    };
                    let fetched = timeout(LIMIT, challenge.fetch(&name, address, &around)).await;
                    let late = || Fetched::Failed(format!("no answer within {LIMIT:?}"));
                    Fetch {
                        of,
                        address,
                        fetched: fetched.unwrap_or_else(|_| late()),
                    }
                });
            }
        }
        asked
    }
}

/// What was answered at an address.
#[derive(Debug)]
pub struct Fetch {
    /// Which of the names.
    of: usize,
    address: IpAddr,
    fetched: Fetched,
}

impl Observations {
    pub(super) fn note(&mut self, fetch: Fetch) {
        if let Some(observed) = self.names.get_mut(fetch.of) {
            observed.fetched.push((fetch.address, fetch.fetched));
        }
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checks")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// What the interfaces have. An error is as no address: what is not known to be ours is looked at.
pub fn host_addresses() -> Vec<IpAddr> {
    let interfaces = getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    });
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    addresses.into_iter().collect()
}

/// A CA on this very host, as in a test, asks for challenges where nginx really listens.
fn is_beside_us(directory: &str) -> bool {
    let url = directory.parse::<http::Uri>().ok();
    let host = url.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse().is_ok_and(|it: IpAddr| it.is_loopback())
}

/// For all of a step: a name that is slow to answer keeps no order waiting for longer.
const LIMIT: Duration = Duration::from_secs(3);
const FETCHES_AT_ONCE: usize = 16;
/// Of one name; a CDN has more, which are alike.
const MOST_ADDRESSES: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::dns::{Looking, NoAnswer, Published};

    /// Knows nothing, notes who is asked for, and never answers about `silent`.
    #[derive(Default)]
    struct Fake {
        asked: Mutex<Vec<String>>,
        silent: Option<&'static str>,
    }

    impl Fake {
        async fn answer<T>(&self, kind: &str, name: &str, answer: T) -> T {
            self.asked.lock().unwrap().push(format!("{kind} {name}"));
            if self.silent == Some(name) {
                std::future::pending::<()>().await;
            }
            answer
        }
    }

    impl Dns for Fake {
        fn addresses<'a>(&'a self, name: &'a str) -> Looking<'a, Addresses> {
            let none = Addresses {
                v4: Err(NoAnswer::NoData),
                v6: Err(NoAnswer::NoData),
            };
            Box::pin(self.answer("A", name, none))
        }

        fn caa<'a>(&'a self, name: &'a str) -> Looking<'a, Lookup<Vec<Caa>>> {
            Box::pin(self.answer("CAA", name, Err(NoAnswer::NoData)))
        }

        fn txt<'a>(&'a self, _: &'a str) -> Looking<'a, Lookup<Published>> {
            unreachable!("nobody asks for it")
        }
    }

    fn checks(fake: &Arc<Fake>) -> Checks {
        Checks {
            dns: fake.clone(),
            ports: Ports::PUBLIC,
            at_once: Arc::new(Semaphore::new(FETCHES_AT_ONCE)),
            chosen: false,
        }
    }

    fn names(names: &[&str]) -> Vec<Identifier> {
        let names = names.iter();
        let names = names.map(|name| match name.parse() {
            Ok(address) => Identifier::Ip(address),
            Err(_) => Identifier::Dns((*name).to_owned()),
        });
        names.collect()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn names_of_one_domain_ask_about_it_once_and_addresses_ask_nothing() {
        let fake = Arc::new(Fake::default());
        let names = names(&["a.example.com", "b.example.com", "203.0.113.7"]);
        let seen = checks(&fake).look_up(&names).await;
        let mut asked = fake.asked.lock().unwrap().clone();
        asked.sort();
        let expected = [
            "A a.example.com",
            "A b.example.com",
            "CAA a.example.com",
            "CAA b.example.com",
            "CAA com",
            "CAA example.com",
        ];
        assert_eq!(asked, expected);
        let levels = seen[1].caa.iter().map(|(level, _)| level.as_str());
        let levels: Vec<_> = levels.collect();
        assert_eq!(levels, ["b.example.com", "example.com", "com"]);
        assert_eq!(
            seen[2].addresses,
            Some(Addresses::of("203.0.113.7".parse().unwrap()))
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_that_is_neither_public_nor_this_hosts_is_not_asked_for_the_challenge() {
        let checks = checks(&Arc::new(Fake::default()));
        let asked = names(&["10.255.0.5", "169.254.169.254", "::ffff:168.63.129.16"]);
        let seen = Observations {
            names: checks.look_up(&asked).await,
            host: vec!["10.255.0.7".parse().unwrap()],
            ca: Ca::default(),
            ahead: None,
            method: Method::Http01,
            issued: false,
        };
        let challenge = checks.challenge("print", &|| 0.5);
        let fetched = checks.fetch_all(&seen, &challenge).join_all().await;
        let mut fetched: Vec<_> = fetched.into_iter().map(|it| (it.of, it.fetched)).collect();
        fetched.sort_by_key(|(of, _)| *of);
        let kinds = [
            "a private address",
            "a link-local address",
            "an address of a cloud's own services",
        ];
        let kinds = kinds.map(Fetched::NotAsked);
        assert_eq!(fetched, kinds.into_iter().enumerate().collect::<Vec<_>>());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_of_which_nobody_answers_is_waited_for_no_longer_than_the_limit_and_unknown() {
        let fake = Arc::new(Fake {
            silent: Some("slow.example.com"),
            ..Fake::default()
        });
        let begin = tokio::time::Instant::now();
        let names = names(&["slow.example.com", "a.example.com"]);
        let seen = checks(&fake).look_up(&names).await;
        assert!(begin.elapsed() >= LIMIT && begin.elapsed() < 10 * LIMIT);
        assert_eq!(seen[0].addresses, None);
        assert_eq!(seen[0].caa[0], ("slow.example.com".to_owned(), None));
        assert!(seen[1].addresses.is_some());
        assert!(seen[1].caa.iter().all(|(_, said)| said.is_some()));
    }
}
