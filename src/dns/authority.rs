//! N: what a zone's own servers say, past every cache.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::message::{self, Question, Said};
use super::{Authority, Lookup, NoAnswer, Published, Resolver, exchange, resolv_conf};

/// A name where it really is, and what each of its servers said.
struct Found<T> {
    target: Name,
    zone: Name,
    servers: Vec<Answered<T>>,
}

struct Answered<T> {
    server: Name,
    /// `None`: its name has none.
    address: Option<SocketAddr>,
    records: Lookup<Vec<T>>,
}

/// Which records of a reply are wanted.
type Pick<T> = fn(&RData) -> Option<T>;

impl Resolver {
    pub(super) async fn published(&self, name: &str) -> Lookup<Published> {
        let name = message::absolute(name)?;
        let found = self.found(&name, RecordType::TXT, message::text).await?;
        let servers = found.servers.into_iter().map(|server| Authority {
            name: message::written(&server.server),
            address: server.address,
            values: server.records,
        });
        let mut servers: Vec<_> = servers.collect();
        servers.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
        Ok(Published {
            target: message::written(&found.target),
            zone: message::written(&found.zone),
            servers,
        })
    }

    /// The records of a name, as its zone's own servers have them. There are none only where each
    /// that answers says so: one may not have heard of a new record yet.
    pub(super) async fn past_caches<T: Send + 'static>(
        &self,
        name: &Name,
        kind: RecordType,
        pick: Pick<T>,
    ) -> Lookup<Vec<T>> {
        let found = timeout(CONFIRMATION, self.found(name, kind, pick));
        let Ok(found) = found.await else {
            return Err(NoAnswer::Unconfirmed);
        };
        let mut absence = None;
        for server in found?.servers {
            match server.records {
                Ok(records) => return Ok(records),
                Err(error) if error.is_absence() => absence = Some(error),
                Err(_) => {}
            }
        }
        Err(absence.unwrap_or(NoAnswer::Unconfirmed))
    }

    async fn found<T: Send + 'static>(
        &self,
        name: &Name,
        kind: RecordType,
        pick: Pick<T>,
    ) -> Lookup<Found<T>> {
        let target = self.target(name).await?;
        let zone = self.zone(&target).await?;
        let names = self
            .records(&zone, RecordType::NS, message::name_server)
            .await?;
        let mut asked = JoinSet::new();
        for server in names.into_iter().take(MOST_SERVERS) {
            let (me, target) = (self.clone(), target.clone());
            asked.spawn(async move { me.said_by(server, &target, kind, pick).await });
        }
        let servers = asked.join_all().await.into_iter().flatten().collect();
        Ok(Found {
            target,
            zone,
            servers,
        })
    }

    /// Where a name's CNAMEs lead. The name itself is not asked for the records: a resolver would
    /// remember that there are none.
    async fn target(&self, name: &Name) -> Lookup<Name> {
        let mut name = name.clone();
        for _ in 0..message::MAXIMUM_ALIASES {
            let aliases = self.records(&name, RecordType::CNAME, message::alias);
            match aliases.await.map(|aliases| aliases.into_iter().next()) {
                Ok(Some(alias)) => name = alias,
                Ok(None) => return Ok(name),
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

    /// What one name server has at `target`, at each of its addresses.
    async fn said_by<T: Send + 'static>(
        &self,
        server: Name,
        target: &Name,
        kind: RecordType,
        pick: Pick<T>,
    ) -> Vec<Answered<T>> {
        let addresses = self.both(&server).await;
        let all = addresses.all();
        if all.is_empty() {
            return vec![Answered {
                server,
                address: None,
                records: Err(addresses.why_none()),
            }];
        }
        let mut asked = JoinSet::new();
        for address in all {
            let at = self.socket_of(address);
            let (server, target) = (server.clone(), target.clone());
            let at_once = self.at_once.clone();
            asked.spawn(async move {
                // never closed: an error cannot come
                let _turn = at_once.acquire().await;
                Answered {
                    server,
                    address: Some(at),
                    records: said_at(at, &target, kind, pick).await,
                }
            });
        }
        asked.join_all().await
    }

    /// Where the settings name this address with a port, that is where its server is.
    fn socket_of(&self, address: IpAddr) -> SocketAddr {
        let (servers, _) = self.servers();
        let set = servers.iter().find(|server| server.ip() == address);
        set.copied()
            .unwrap_or(SocketAddr::new(address, resolv_conf::PORT))
    }
}

/// The server itself is asked, twice where it is silent.
async fn said_at<T>(
    server: SocketAddr,
    target: &Name,
    kind: RecordType,
    pick: Pick<T>,
) -> Lookup<Vec<T>> {
    let question = Question::new(target, kind, false)?;
    let reply = match exchange::ask(server, &question, TRY).await {
        Err(NoAnswer::TimedOut { .. }) => exchange::ask(server, &question, TRY).await?,
        reply => reply?,
    };
    // somebody between answers for all the world, and remembers (RFC 1035 §4.1.1, AA)
    let knows = matches!(
        reply.metadata.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    );
    if knows && !reply.metadata.authoritative {
        return Err(NoAnswer::NotAuthoritative { server });
    }
    match message::read(&question, &reply, server, pick)? {
        Said::Answer(records) => Ok(records),
        // it was no alias a moment ago
        Said::Elsewhere(_) => Err(NoAnswer::NoData),
    }
}

/// The root has 13; who publishes thousands wants our questions to go somewhere.
const MOST_SERVERS: usize = 32;
/// For one server to answer once.
const TRY: Duration = Duration::from_millis(1500);
/// An order waits for it. Some networks let nobody but their own resolver ask outside.
const CONFIRMATION: Duration = Duration::from_millis(1500);
