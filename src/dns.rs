//! N: what DNS says of a name.
//!
//! Three questions can be asked of it: which addresses a name has, who may issue for it, and which
//! texts its authoritative servers publish. "There is none", "there is no such name" and "nobody
//! could say" are three outcomes: RFC 8659 §3 takes only the first two for an answer.

pub(crate) mod exchange; // N one message to one name server
mod message; // P questions and replies
mod resolv_conf; // P whom this host asks

use std::fs;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;

use crate::settings::DnsSettings;
use message::{Question, Said};

/// The seam between decisions and DNS. Names are A-labels, without a last dot.
pub trait Dns: Send + Sync {
    /// A and AAAA, at the end of its CNAMEs.
    fn addresses<'a>(&'a self, name: &'a str) -> Looking<'a, Addresses>;
    /// The CAA records at exactly this name, or at the end of its CNAMEs; its parents are the
    /// caller's to ask about (RFC 8659 §3).
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
    /// SERVFAIL, REFUSED and their like: nobody knows. Broken DNSSEC is one.
    #[error("{server} answers {code}{}", why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default())]
    ServerFailure {
        code: String,
        server: SocketAddr,
        why: Option<String>,
    },
    #[error("{server} does not answer")]
    TimedOut { server: SocketAddr },
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
        Self { servers }
    }

    fn servers(&self) -> Arc<[SocketAddr]> {
        match &self.servers {
            Servers::Set(servers) => servers.clone(),
            // a host without the file asks itself, as resolv.conf(5) says
            Servers::File(path) => {
                let text = fs::read_to_string(path).unwrap_or_default();
                resolv_conf::name_servers(&text).into()
            }
        }
    }

    /// The first reply of a resolver that knows. Who fails or is silent passes the question on, and
    /// all are asked twice: a datagram may be lost.
    async fn reply(&self, question: &Question) -> Lookup<(Message, SocketAddr)> {
        let servers = self.servers();
        let mut last = Err(NoAnswer::NoData);
        for server in [&servers, &servers].into_iter().flat_map(|all| all.iter()) {
            match exchange::ask(*server, question, TRY).await {
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

    /// Where a name's CNAMEs lead. The name itself is not asked for its TXT: a resolver would
    /// remember that there is none.
    async fn target(&self, name: &Name) -> Lookup<Name> {
        let mut name = name.clone();
        for _ in 0..message::MAXIMUM_ALIASES {
            match self.records(&name, RecordType::CNAME, message::alias).await {
                Ok(aliases) => match aliases.into_iter().next() {
                    Some(alias) => name = alias,
                    None => return Ok(name),
                },
                Err(error) if error.is_absence() => return Ok(name),
                Err(error) => return Err(error),
            }
        }
        Err(NoAnswer::Circle)
    }

    /// The zone that a name is in, whether or not the name is there.
    async fn zone(&self, name: &Name) -> Lookup<Name> {
        let mut at = name.clone();
        while !at.is_root() {
            let question = Question::new(&at, RecordType::SOA, true)?;
            let (reply, _) = self.reply(&question).await?;
            if let Some(zone) = message::zone(&at, &reply) {
                return Ok(zone);
            }
            at = at.base_name();
        }
        Err(NoAnswer::NoSuchName)
    }

    async fn published(&self, name: &str) -> Lookup<Published> {
        let target = self.target(&message::absolute(name)?).await?;
        let zone = self.zone(&target).await?;
        let names = self
            .records(&zone, RecordType::NS, message::name_server)
            .await?;
        let mut asked = JoinSet::new();
        for name in names {
            let (me, target) = (self.clone(), target.clone());
            asked.spawn(async move { me.authorities(name, &target).await });
        }
        let mut servers: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
        servers.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
        Ok(Published {
            target: message::written(&target),
            zone: message::written(&zone),
            servers,
        })
    }

    /// What the name server `name` has at `target`, at each of its addresses.
    async fn authorities(&self, name: Name, target: &Name) -> Vec<Authority> {
        let addresses = self.both(&name).await;
        let name = message::written(&name);
        let all = addresses.all();
        if all.is_empty() {
            let values = Err(addresses.why_none());
            let address = None;
            return vec![Authority {
                name,
                address,
                values,
            }];
        }
        let mut asked = JoinSet::new();
        for address in all {
            let server = self.socket_of(address);
            let (name, target) = (name.clone(), target.clone());
            asked.spawn(async move {
                Authority {
                    name,
                    address: Some(server),
                    values: texts_at(server, &target).await,
                }
            });
        }
        asked.join_all().await
    }

    /// Where the settings name this address with a port, that is where its server is.
    fn socket_of(&self, address: IpAddr) -> SocketAddr {
        let servers = self.servers();
        let set = servers.iter().find(|server| server.ip() == address);
        set.copied()
            .unwrap_or(SocketAddr::new(address, resolv_conf::PORT))
    }
}

impl Dns for Resolver {
    fn addresses<'a>(&'a self, name: &'a str) -> Looking<'a, Addresses> {
        Box::pin(async move {
            match message::absolute(name) {
                Ok(name) => self.both(&name).await,
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
            self.records(&name, RecordType::CAA, message::caa).await
        })
    }

    fn txt<'a>(&'a self, name: &'a str) -> Looking<'a, Lookup<Published>> {
        Box::pin(self.published(name))
    }
}

impl Addresses {
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

/// The authoritative server is asked itself, twice where it is silent.
async fn texts_at(server: SocketAddr, target: &Name) -> Lookup<Vec<String>> {
    let question = Question::new(target, RecordType::TXT, false)?;
    let reply = match exchange::ask(server, &question, TRY).await {
        Err(NoAnswer::TimedOut { .. }) => exchange::ask(server, &question, TRY).await?,
        reply => reply?,
    };
    match message::read(&question, &reply, server, message::text)? {
        Said::Answer(values) => Ok(values),
        // it was no alias a moment ago
        Said::Elsewhere(_) => Err(NoAnswer::NoData),
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// For one server to answer once; a resolver asks far away itself.
const TRY: Duration = Duration::from_millis(1500);
