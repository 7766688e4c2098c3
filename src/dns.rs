//! N: what DNS says of a name.
//!
//! Three questions can be asked of it: which addresses a name has, who may issue for it, and which
//! texts its authoritative servers publish. "There is none", "there is no such name" and "nobody
//! could say" are three outcomes: RFC 8659 §3 takes only the first two for an answer.

mod authority; // N what a zone's own servers say, past every cache
pub(crate) mod exchange; // N one message to one name server
mod message; // P questions and replies
mod resolv_conf; // P whom this host asks

use std::fs;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::sync::Semaphore;

use crate::settings::DnsSettings;
use message::{Question, Said};
use resolv_conf::Patience;

/// The seam between decisions and DNS. Names are A-labels, without a last dot.
pub trait Dns: Send + Sync {
    /// A and AAAA, at the end of its CNAMEs. That there is neither is what the zone's own servers
    /// say: a resolver may remember it for an hour after somebody has added one.
    fn addresses<'a>(&'a self, name: &'a str) -> Looking<'a, Addresses>;
    /// The CAA records at exactly this name, or at the end of its CNAMEs; its parents are the
    /// caller's to ask about (RFC 8659 §3). Where there are some, they are those of the zone's own
    /// servers, if these can be asked.
    fn caa<'a>(&'a self, name: &'a str) -> Looking<'a, Lookup<Vec<Caa>>>;
    /// The TXT records that each authoritative server of the name has, past every cache.
    fn txt<'a>(&'a self, name: &'a str) -> Looking<'a, Lookup<Published>>;
}

pub type Looking<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// At least one record, or why there is none.
pub type Lookup<T> = Result<T, NoAnswer>;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses {
    pub v4: Lookup<Vec<Ipv4Addr>>,
    pub v6: Lookup<Vec<Ipv6Addr>>,
}

/// RFC 8659 §4.1.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caa {
    /// Who does not know the tag must not issue.
    pub critical: bool,
    /// In lower case.
    pub tag: String,
    pub value: String,
}

/// A name's texts, where they really are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Published {
    /// The name at the end of its CNAMEs.
    pub target: String,
    /// The apex of the zone that the target is in, or would be.
    pub zone: String,
    /// One for each address of each of the zone's name servers.
    pub servers: Vec<Authority>,
}

/// One of a zone's name servers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    pub name: String,
    /// `None`: its name has none.
    pub address: Option<SocketAddr>,
    pub values: Lookup<Vec<String>>,
}

/// Why there is no record.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoAnswer {
    #[error("{0:?} is no name that DNS takes")]
    BadName(String),
    #[error("its CNAME records lead to no end")]
    Circle,
    /// The name is there; none of its records has the type.
    #[error("it has no such record")]
    NoData,
    /// NXDOMAIN.
    #[error("there is no such name")]
    NoSuchName,
    #[error("{server} answers, but not as the authority that it should be")]
    NotAuthoritative { server: SocketAddr },
    /// SERVFAIL, REFUSED and their like: nobody knows. Broken DNSSEC is one.
    #[error("{server} answers {code}{}", why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default())]
    ServerFailure {
        code: String,
        server: SocketAddr,
        why: Option<String>,
    },
    #[error("{server} does not answer")]
    TimedOut { server: SocketAddr },
    /// A resolver says that there is none, and the zone's own servers could not be asked.
    #[error("there seems to be none, but its own name servers do not say so")]
    Unconfirmed,
    #[error("{server} is out of reach: {reason}")]
    Unreachable { server: SocketAddr, reason: String },
}

impl NoAnswer {
    /// Whether DNS has said that there is nothing; else nobody knows.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NoData | Self::NoSuchName)
    }
}

/// Asks this host's resolvers, or those of the settings. Cheap to clone.
///
/// Nothing is kept between questions: a person who mends a record and tries again is not shown the
/// old one by us.
#[derive(Clone, Debug)]
pub struct Resolver {
    servers: Servers,
    /// Shared by the clones: a certificate may have a hundred names.
    at_once: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
enum Servers {
    Set(Arc<[SocketAddr]>),
    /// Read at every question: a lease may bring another one.
    File(PathBuf),
}

impl Resolver {
    /// Opens and reads nothing yet.
    pub fn new(settings: &DnsSettings) -> Self {
        let servers = match settings.resolvers.as_slice() {
            [] => Servers::File(RESOLV_CONF.into()),
            set => Servers::Set(set.into()),
        };
        Self {
            servers,
            at_once: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE)),
        }
    }

    fn servers(&self) -> (Arc<[SocketAddr]>, Patience) {
        match &self.servers {
            Servers::Set(servers) => (servers.clone(), Patience::default()),
            // a host without the file asks itself, as resolv.conf(5) says
            Servers::File(path) => {
                let text = fs::read_to_string(path).unwrap_or_default();
                let servers = resolv_conf::name_servers(&text);
                (servers.into(), resolv_conf::patience(&text))
            }
        }
    }

    /// The first reply of a resolver that knows. Who fails or is silent passes the question on, and
    /// all are asked again: a datagram may be lost.
    async fn reply(&self, question: &Question) -> Lookup<(Message, SocketAddr)> {
        // never closed: an error cannot come
        let _turn = self.at_once.acquire().await;
        let (servers, Patience { timeout, attempts }) = self.servers();
        let mut last = Err(NoAnswer::NoData);
        for server in (0..attempts).flat_map(|_| servers.iter()) {
            match exchange::ask(*server, question, timeout).await {
                Ok(reply) => {
                    let said = message::read(question, &reply, *server, |_| Some(()));
                    let reply = (reply, *server);
                    match said {
                        Err(error @ NoAnswer::ServerFailure { .. }) => last = Err(error),
                        _ => return Ok(reply),
                    }
                }
                Err(error) => last = Err(error),
            }
        }
        last
    }

    async fn records<T>(
        &self,
        name: &Name,
        kind: RecordType,
        pick: impl Fn(&RData) -> Option<T>,
    ) -> Lookup<Vec<T>> {
        let mut name = name.clone();
        for _ in 0..message::MAXIMUM_ALIASES {
            let question = Question::new(&name, kind, true)?;
            let (reply, server) = self.reply(&question).await?;
            match message::read(&question, &reply, server, &pick)? {
                Said::Answer(records) => return Ok(records),
                Said::Elsewhere(target) => name = target,
            }
        }
        Err(NoAnswer::Circle)
    }

    async fn both(&self, name: &Name) -> Addresses {
        let (v4, v6) = tokio::join!(
            self.records(name, RecordType::A, message::ipv4),
            self.records(name, RecordType::AAAA, message::ipv6),
        );
        Addresses { v4, v6 }
    }
}

impl Resolver {
    /// As [`Resolver::both`]; that there is neither is asked again where nobody remembers.
    async fn confirmed(&self, name: &Name) -> Addresses {
        let addresses = self.both(name).await;
        let absent = |error: &NoAnswer| error.is_absence();
        let neither =
            addresses.v4.as_ref().is_err_and(absent) && addresses.v6.as_ref().is_err_and(absent);
        if !neither {
            return addresses;
        }
        let (v4, v6) = tokio::join!(
            self.past_caches(name, RecordType::A, message::ipv4),
            self.past_caches(name, RecordType::AAAA, message::ipv6),
        );
        Addresses { v4, v6 }
    }
}

impl Dns for Resolver {
    fn addresses<'a>(&'a self, name: &'a str) -> Looking<'a, Addresses> {
        Box::pin(async move {
            match message::absolute(name) {
                Ok(name) => self.confirmed(&name).await,
                Err(error) => Addresses {
                    v4: Err(error.clone()),
                    v6: Err(error),
                },
            }
        })
    }

    fn caa<'a>(&'a self, name: &'a str) -> Looking<'a, Lookup<Vec<Caa>>> {
        Box::pin(async move {
            let name = message::absolute(name)?;
            let remembered = self.records(&name, RecordType::CAA, message::caa).await?;
            let now = self.past_caches(&name, RecordType::CAA, message::caa);
            Ok(match now.await {
                Ok(records) => records,
                // the last was removed
                Err(error) if error.is_absence() => return Err(error),
                Err(_) => remembered,
            })
        })
    }

    fn txt<'a>(&'a self, name: &'a str) -> Looking<'a, Lookup<Published>> {
        Box::pin(self.published(name))
    }
}

impl Addresses {
    /// What is an address by itself.
    pub fn of(address: IpAddr) -> Self {
        let (mut v4, mut v6) = (Err(NoAnswer::NoData), Err(NoAnswer::NoData));
        match address {
            IpAddr::V4(address) => v4 = Ok(vec![address]),
            IpAddr::V6(address) => v6 = Ok(vec![address]),
        }
        Self { v4, v6 }
    }

    /// IPv6 first, as Let's Encrypt takes them.
    pub fn all(&self) -> Vec<IpAddr> {
        let v6 = self.v6.iter().flatten().copied().map(IpAddr::V6);
        let v4 = self.v4.iter().flatten().copied().map(IpAddr::V4);
        v6.chain(v4).collect()
    }

    /// Where there are none: a failure before an absence, which it could hide.
    pub fn why_none(&self) -> NoAnswer {
        let errors = [self.v4.as_ref().err(), self.v6.as_ref().err()];
        let known = errors.iter().flatten();
        let failure = known.clone().find(|error| !error.is_absence());
        let error = failure.or_else(|| known.clone().next());
        error.map_or(NoAnswer::NoData, |error| (*error).clone())
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Each has a socket.
const QUESTIONS_AT_ONCE: usize = 32;
