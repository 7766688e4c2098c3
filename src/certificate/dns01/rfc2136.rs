//! N: signed updates of a zone (RFC 2136, RFC 8945), over TCP.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{Name, RData, Record as DnsRecord, TSigner};
use tokio::time::timeout;

use super::record::Record;
use super::tsig_key::{TsigKey, TsigKeyError};
use super::{Changing, DnsProvider, ProviderError};
use crate::clock::Clock;
use crate::diagnostic::fault;
use crate::dns::exchange;
use crate::settings::{Algorithm, Rfc2136Settings};

pub struct Rfc2136 {
    settings: Rfc2136Settings,
    timeout: Duration,
    clock: Clock,
}

/// Why a name server did not change its zone.
#[derive(Debug, thiserror::Error)]
pub enum Rfc2136Error {
    #[error(
        "sign for {server}: it does not know the key {key}, or does not let it change this name"
    )]
    BadKey { server: SocketAddr, key: String },
    #[error("put {0:?} into a DNS message")]
    BadName(String),
    #[error("sign for {server}: its secret for the key {key} is another one than that of {}", file.display())]
    BadSignature {
        server: SocketAddr,
        key: String,
        file: PathBuf,
    },
    #[error("sign for {server}: its clock differs from this host's by more than {FUDGE} s")]
    BadTime { server: SocketAddr },
    #[error("read the key in {}: {source}", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: TsigKeyError,
    },
    #[error("change {name} in {zone} at {server}, which does not have that zone")]
    NoZone {
        server: SocketAddr,
        name: String,
        zone: String,
    },
    #[error("change {name} at {server}: it is outside of the zone {zone}")]
    Outside {
        server: SocketAddr,
        name: String,
        zone: String,
    },
    #[error("read the key in {}: {}", path.display(), fault(source))]
    ReadKey {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("change {name} in {zone} at {server} with the key {key}: it answers {code}")]
    Refused {
        server: SocketAddr,
        name: String,
        zone: String,
        key: String,
        code: ResponseCode,
    },
    #[error("sign an update: {0}")]
    Sign(String),
    #[error("reach {server}: it does not answer within {} s", limit.as_secs())]
    TimedOut { server: SocketAddr, limit: Duration },
    #[error("reach {server}: {}", fault(source))]
    Unreachable {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("believe the answer of {server}: {reason}")]
    Unsigned { server: SocketAddr, reason: String },
}

#[derive(Clone, Copy)]
enum Change {
    Add,
    Delete,
}

impl Rfc2136 {
    pub(super) fn new(settings: &Rfc2136Settings, timeout: Duration, clock: Clock) -> Self {
        Self {
            settings: settings.clone(),
            timeout,
            clock,
        }
    }

    async fn change(&self, change: Change, record: &Record) -> Result<(), Rfc2136Error> {
        let server = self.settings.server;
        let signer = self.signer()?;
        let zone = self.settings.zone.as_ref().unwrap_or(&record.zone);
        let (name, zone) = (record.target.clone(), zone.clone());
        let Some(mut message) = update(change, record, &zone)? else {
            return Err(Rfc2136Error::Outside { server, name, zone });
        };
        let now = self.now();
        let unsigned = |error: hickory_proto::ProtoError| Rfc2136Error::Sign(error.to_string());
        message.finalize(&signer, now).map_err(unsigned)?;
        let bytes = message.to_vec().map_err(unsigned)?;
        let limit = self.timeout;
        let reply = match timeout(limit, exchange::send_tcp(server, &bytes)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(source)) => return Err(Rfc2136Error::Unreachable { server, source }),
            Err(_) => return Err(Rfc2136Error::TimedOut { server, limit }),
        };
        match self.verified(&message, &reply, &signer)? {
            ResponseCode::NoError => Ok(()),
            ResponseCode::NotAuth => Err(Rfc2136Error::NoZone { server, name, zone }),
            ResponseCode::NotZone => Err(Rfc2136Error::Outside { server, name, zone }),
            code => Err(Rfc2136Error::Refused {
                server,
                name,
                zone,
                key: key_name(&signer),
                code,
            }),
        }
    }

    /// Read at each use: a key that was replaced is taken at once.
    fn signer(&self) -> Result<TSigner, Rfc2136Error> {
        let path = &self.settings.secret_file;
        let text = fs::read_to_string(path).map_err(|source| Rfc2136Error::ReadKey {
            path: path.clone(),
            source,
        })?;
        let (name, algorithm) = (self.settings.key_name.as_deref(), self.settings.algorithm);
        let key = TsigKey::parse(&text, name, algorithm).map_err(|source| Rfc2136Error::Key {
            path: path.clone(),
            source,
        })?;
        let name = absolute(&key.name)?;
        let algorithm = match key.algorithm {
            Algorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
            Algorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
            Algorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
        };
        TSigner::new(key.secret, algorithm, name, FUDGE)
            .map_err(|error| Rfc2136Error::Sign(error.to_string()))
    }

    /// What the server answers, once it is known to be the one that has the key (RFC 8945 §5.3).
    fn verified(
        &self,
        sent: &Message,
        reply: &[u8],
        signer: &TSigner,
    ) -> Result<ResponseCode, Rfc2136Error> {
        let server = self.settings.server;
        let unsigned = |reason: &str| Rfc2136Error::Unsigned {
            server,
            reason: reason.to_owned(),
        };
        let message = Message::from_vec(reply).map_err(|_| unsigned("it is no DNS message"))?;
        let ours = message.metadata.id == sent.metadata.id
            && message.metadata.message_type == MessageType::Response
            && message.metadata.op_code == OpCode::Update;
        if !ours {
            return Err(unsigned("it is to another message"));
        }
        if let Some(error) = self.refusal(&message, signer) {
            return Err(error);
        }
        let Some(signature) = message.signature() else {
            // an error that it does not sign is at least no success
            return match message.metadata.response_code {
                ResponseCode::NoError => Err(unsigned("it is not signed")),
                code => Ok(code),
            };
        };
        let mac = sent.signature().map(|signature| signature.data.mac.clone());
        let verified = signer.verify_message_byte(reply, mac.as_deref(), true);
        let (_, _, valid) = verified.map_err(|_| unsigned("its signature is wrong"))?;
        match valid.contains(&self.now()) {
            true => Ok(message.metadata.response_code),
            false => {
                tracing::debug!(at = signature.data.time, "signed at another time");
                Err(Rfc2136Error::BadTime { server })
            }
        }
    }

    /// What it says of our signature; of some it cannot sign that (RFC 8945 §5.2).
    fn refusal(&self, reply: &Message, signer: &TSigner) -> Option<Rfc2136Error> {
        let server = self.settings.server;
        let key = key_name(signer);
        Some(match reply.signature()?.data.error? {
            TsigError::BadKey => Rfc2136Error::BadKey { server, key },
            TsigError::BadSig | TsigError::BadTrunc => Rfc2136Error::BadSignature {
                server,
                key,
                file: self.settings.secret_file.clone(),
            },
            TsigError::BadTime => Rfc2136Error::BadTime { server },
            TsigError::Unknown(_) => return None,
        })
    }

    fn now(&self) -> u64 {
        let seconds = (self.clock)().unix_timestamp();
        u64::try_from(seconds).unwrap_or_default()
    }
}

impl DnsProvider for Rfc2136 {
    fn present<'a>(&'a self, record: &'a Record) -> Changing<'a> {
        Box::pin(async move {
            let changed = self.change(Change::Add, record).await;
            changed.map_err(ProviderError::Rfc2136)
        })
    }

    fn clean_up<'a>(&'a self, record: &'a Record) -> Changing<'a> {
        Box::pin(async move {
            let changed = self.change(Change::Delete, record).await;
            changed.map_err(ProviderError::Rfc2136)
        })
    }
}

/// This one value and no other: others may have theirs at the same name (RFC 2136 §2.5.1, §2.5.4).
/// `None`: it is outside of the zone.
fn update(change: Change, record: &Record, zone: &str) -> Result<Option<Message>, Rfc2136Error> {
    let (name, zone) = (absolute(&record.target)?, absolute(zone)?);
    if !zone.zone_of(&name) {
        return Ok(None);
    }
    let text = TXT::new(vec![record.value.clone()]);
    let rrset = DnsRecord::from_rdata(name, TTL, RData::TXT(text)).into();
    Ok(Some(match change {
        Change::Add => update_message::append(rrset, zone, false, false),
        Change::Delete => update_message::delete_by_rdata(rrset, zone, false),
    }))
}

fn absolute(name: &str) -> Result<Name, Rfc2136Error> {
    let parsed = Name::from_ascii(name);
    let mut parsed = parsed.map_err(|_| Rfc2136Error::BadName(name.to_owned()))?;
    parsed.set_fqdn(true);
    Ok(parsed)
}

fn key_name(signer: &TSigner) -> String {
    let name = signer.signer_name().to_ascii();
    name.trim_end_matches('.').to_owned()
}

/// Seconds that the two clocks may differ (RFC 8945 §10).
const FUDGE: u16 = 300;
/// It is gone a minute after it was taken out.
const TTL: u32 = 60;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::sync::Arc;

    use hickory_proto::rr::TSigResponseContext;
    use time::OffsetDateTime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const NOW: i64 = 1_764_000_000;

    fn signer(secret: &[u8]) -> TSigner {
        let name = Name::from_ascii("k.").unwrap();
        TSigner::new(secret.to_vec(), TsigAlgorithm::HmacSha256, name, FUDGE).unwrap()
    }

    /// What becomes of a change that a server answers with `code`, signed with `secret` at `at`.
    async fn said(code: ResponseCode, secret: Option<&[u8]>, at: i64) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        fs::write(&file, "c2VjcmV0\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Rfc2136::new(
            &Rfc2136Settings {
                server: listener.local_addr().unwrap(),
                zone: None,
                secret_file: file,
                key_name: Some("k".into()),
                algorithm: None,
            },
            Duration::from_secs(20),
            Arc::new(|| OffsetDateTime::from_unix_timestamp(NOW).unwrap()),
        );
        let record = Record {
            name: "_acme-challenge.a.example".into(),
            target: "_acme-challenge.a.example".into(),
            zone: "a.example".into(),
            value: "v".into(),
        };
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut asked).await.unwrap();
            let asked = Message::from_vec(&asked).unwrap();
            let mut reply = Message::response(asked.metadata.id, OpCode::Update);
            reply.metadata.response_code = code;
            if let Some(secret) = secret {
                let mac = asked.signature().unwrap().data.mac.clone();
                let at = u64::try_from(at).unwrap();
                let id = asked.metadata.id;
                let context = TSigResponseContext::new(id, at, signer(secret), mac, None);
                let signature = context.sign(&reply.to_vec().unwrap()).unwrap();
                reply.set_signature(signature);
            }
            let reply = reply.to_vec().unwrap();
            stream
                .write_u16(reply.len().try_into().unwrap())
                .await
                .unwrap();
            stream.write_all(&reply).await.unwrap();
        };
        let (changed, ()) = tokio::join!(provider.present(&record), answer);
        changed.map_or_else(|error| error.to_string(), |()| "changed".to_owned())
    }

    #[tokio::test]
    async fn only_who_has_the_key_is_believed_that_the_zone_was_changed() {
        use ResponseCode::{NoError, NotAuth, NotZone, Refused};
        assert_eq!(said(NoError, Some(b"secret"), NOW).await, "changed");
        for (code, secret, at, expected) in [
            (NoError, None, NOW, ": it is not signed"),
            (
                NoError,
                Some(&b"other"[..]),
                NOW,
                ": its signature is wrong",
            ),
            (
                NoError,
                Some(b"secret"),
                NOW - 301,
                "from this host's by more than 300 s",
            ),
            (
                NoError,
                Some(b"secret"),
                NOW + 301,
                "from this host's by more than 300 s",
            ),
            (
                Refused,
                Some(b"secret"),
                NOW,
                "with the key k: it answers Query Refused",
            ),
            (
                Refused,
                None,
                NOW,
                "with the key k: it answers Query Refused",
            ),
            (
                NotAuth,
                Some(b"secret"),
                NOW,
                "which does not have that zone",
            ),
            (
                NotZone,
                Some(b"secret"),
                NOW,
                ": it is outside of the zone a.example",
            ),
        ] {
            let said = said(code, secret, at).await;
            assert!(said.ends_with(expected), "{said}");
        }
    }

    #[test]
    fn an_update_names_one_value_and_stays_in_its_zone() {
        let record = |target: &str| Record {
            name: String::new(),
            target: target.into(),
            zone: "a.example".into(),
            value: "v".into(),
        };
        for (change, class, ttl) in [(Change::Add, 1, TTL), (Change::Delete, 254, 0)] {
            let message = update(change, &record("x.a.example"), "a.example");
            let message = message.unwrap().unwrap();
            let [change] = message.authorities.as_slice() else {
                panic!("{message:?}")
            };
            // RFC 2136 §2.5.1, §2.5.4
            assert_eq!((u16::from(change.dns_class), change.ttl), (class, ttl));
            assert!(matches!(&change.data, RData::TXT(_)), "{change:?}");
            assert!(message.answers.is_empty());
        }
        let outside = update(Change::Add, &record("x.b.example"), "a.example");
        assert!(outside.unwrap().is_none());
    }
}
