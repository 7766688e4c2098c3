//! N: a challenge, fetched as the CA does (RFC 8555 §8.3).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, LOCATION, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::askable::may_ask;
pub use super::redirect::Ports;
use super::redirect::{Target, WELL_KNOWN, is_followed};
use crate::certificate::words::one_line;
use crate::dns::Dns;
use crate::nginx::probe::{Knows, accepting_any_certificate};

/// What came of it. The words say what was the last answer, and over which URL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fetched {
    /// What our nginx answers.
    Ours,
    /// Somebody answers, but not with that.
    Other(String),
    Failed(String),
    /// No request was sent, because of the kind of the address.
    NotAsked(&'static str),
}

/// One question, the same at every address.
#[derive(Clone, Debug)]
pub struct Challenge {
    pub token: String,
    pub thumbprint: String,
    pub ports: Ports,
}

/// Where a redirect may lead beside the public addresses.
pub struct Surroundings<'a> {
    pub dns: &'a dyn Dns,
    pub host: &'a [IpAddr],
}

impl fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Challenge {
    /// Asks for it under `name` at `address`, and wherever that redirects to. The caller limits the
    /// time, and knows that the address [may be asked](may_ask).
    pub async fn fetch(&self, name: &str, address: IpAddr, around: &Surroundings<'_>) -> Fetched {
        let first = Target {
            secure: false,
            host: name.to_ascii_lowercase(),
            port: self.ports.http,
            path: format!("{WELL_KNOWN}{}", self.token),
        };
        let (mut target, mut address) = (first.clone(), address);
        for _ in 0..=MAXIMUM_REDIRECTS {
            let over = |what: String| match target == first {
                true => what,
                false => format!("{what}, after a redirect to {}", shown(&target)),
            };
            let answer = match ask(&target, address).await {
                Ok(answer) => answer,
                Err(why) => return Fetched::Failed(over(why)),
            };
            let location = answer.headers().get(LOCATION);
            let Some(location) = location.filter(|_| is_followed(answer.status())) else {
                return match self.strangers_words(&answer) {
                    None => Fetched::Ours,
                    Some(what) => Fetched::Other(over(what)),
                };
            };
            match self
                .next(&target, address, location.as_bytes(), around)
                .await
            {
                Ok(next) => (target, address) = next,
                Err(why) => return Fetched::Other(over(why)),
            }
        }
        Fetched::Other(format!(
            "more than ten redirects, the last to {}",
            shown(&target)
        ))
    }

    /// What is answered instead of the text that our nginx has.
    fn strangers_words(&self, answer: &Response<Bytes>) -> Option<String> {
        let wanted = format!("{}.{}", self.token, self.thumbprint);
        // RFC 8555 §8.3: white space at the end does not count
        let body = answer.body().trim_ascii_end();
        match (answer.status().as_u16(), body == wanted.as_bytes()) {
            (200, true) => None,
            (200, false) => Some("another text".to_owned()),
            (status, _) => Some(format!("HTTP {status}")),
        }
    }

    /// Only where a CA would follow, and to nothing that only we can reach.
    async fn next(
        &self,
        from: &Target,
        address: IpAddr,
        location: &[u8],
        around: &Surroundings<'_>,
    ) -> Result<(Target, IpAddr), String> {
        let refused = |why: &dyn fmt::Display| {
            let location = one_line(location);
            format!("a redirect to {location} ({why})")
        };
        let text = std::str::from_utf8(location).map_err(|error| refused(&error))?;
        let target = from
            .follow(text, self.ports)
            .map_err(|error| refused(&error))?;
        if target.host == from.host {
            return Ok((target, address));
        }
        let addresses = around.dns.addresses(&target.host).await.all();
        // what is connected to is what DNS says here, once
        let reachable = |address: &IpAddr| may_ask(*address, around.host).is_ok();
        match addresses.into_iter().find(reachable) {
            Some(address) => Ok((target, address)),
            None => Err(refused(&"its host has no public address")),
        }
    }
}

fn shown(target: &Target) -> String {
    one_line(target.to_string().as_bytes())
}

/// One request to the target's host at `address`.
async fn ask(target: &Target, address: IpAddr) -> Result<Response<Bytes>, String> {
    let stream = TcpStream::connect(SocketAddr::new(address, target.port)).await;
    let stream = stream.map_err(|error| error.to_string())?;
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    if !target.secure {
        return exchange(stream, target).await;
    }
    let no_tls = |error: &dyn fmt::Display| format!("no TLS: {error}");
    // a CA ignores the certificate, as the first one is ordered where there is none yet; what is
    // sent is no secret, and what is answered proves itself
    let tls = accepting_any_certificate(Knows::All).map_err(|error| no_tls(&error))?;
    let name = ServerName::try_from(target.host.clone()).map_err(|error| no_tls(&error))?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await;
    exchange(stream.map_err(|error| no_tls(&error))?, target).await
}

async fn exchange<S>(stream: S, target: &Target) -> Result<Response<Bytes>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let words = |error: hyper::Error| format!("no HTTP: {error}");
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(words)?;
    let request = Request::get(&target.path)
        .header(HOST, target.bracketed_host())
        .header(USER_AGENT, concat!("vhostd/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(words)?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAXIMUM_BYTES).collect().await;
        // longer than any answer of ours: not one
        let body = body.map_or_else(|_| Bytes::new(), |body| body.to_bytes());
        Ok(Response::from_parts(parts, body))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // it may end together with the answer
        _ = connection => exchange.await,
    }
}

/// As Let's Encrypt follows.
const MAXIMUM_REDIRECTS: usize = 10;
const MAXIMUM_BYTES: usize = 128;
