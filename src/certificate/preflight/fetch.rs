//! N: a challenge, fetched as the CA does (RFC 8555 §8.3).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{HOST, LOCATION, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::finding::is_public;
use crate::certificate::words::one_line;
use crate::dns::Dns;

/// What came of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fetched {
    /// What our nginx answers.
    Ours,
    /// Somebody answers, but not with that.
    Other(String),
    Failed(String),
    /// It was redirected to this https URL, which is not followed: whose certificate that is does
    /// not matter to a CA, but would to us.
    Secured(String),
}

/// One question, the same at every address.
#[derive(Clone, Debug)]
pub struct Challenge {
    pub token: String,
    pub thumbprint: String,
    /// 80, but for a CA on this very host.
    pub port: u16,
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
    /// Asks for it under `name` at `address`. The caller limits the time.
    pub async fn fetch(&self, name: &str, address: IpAddr, around: &Surroundings<'_>) -> Fetched {
        let path = format!("/.well-known/acme-challenge/{}", self.token);
        let mut target = Target {
            host: name.to_owned(),
            path,
            address: SocketAddr::new(address, self.port),
        };
        for _ in 0..=MAXIMUM_REDIRECTS {
            let answer = match target.ask().await {
                Ok(answer) => answer,
                Err(why) => return Fetched::Failed(why),
            };
            let location = answer.headers().get(LOCATION);
            let location = location.filter(|_| answer.status().is_redirection());
            let Some(location) = location else {
                return self.read(&answer);
            };
            let location = one_line(location.as_bytes());
            match self.next(&target, &location, around).await {
                Ok(next) => target = next,
                Err(end) => return end,
            }
        }
        Fetched::Other("more than ten redirects".to_owned())
    }

    fn read(&self, answer: &Response<Bytes>) -> Fetched {
        let wanted = format!("{}.{}", self.token, self.thumbprint);
        // RFC 8555 §8.3: white space at the end does not count
        let body = answer.body().trim_ascii_end();
        match (answer.status().as_u16(), body == wanted.as_bytes()) {
            (200, true) => Fetched::Ours,
            (200, false) => Fetched::Other("another text".to_owned()),
            (status, _) => Fetched::Other(format!("HTTP {status}")),
        }
    }

    /// Only where a CA would follow, and to nothing that only we can reach.
    async fn next(
        &self,
        from: &Target,
        location: &str,
        around: &Surroundings<'_>,
    ) -> Result<Target, Fetched> {
        let odd = || Fetched::Other(format!("a redirect to {location}"));
        let url: Uri = location.parse().map_err(|_| odd())?;
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let Some(host) = url.host() else {
            return match path.starts_with('/') {
                true => Ok(Target {
                    path: path.to_owned(),
                    ..from.clone()
                }),
                false => Err(odd()),
            };
        };
        match (url.scheme_str(), url.port_u16()) {
            (Some("https"), None | Some(443)) => return Err(Fetched::Secured(location.into())),
            (Some("http"), None) => {}
            (Some("http"), Some(port)) if port == self.port || port == 80 => {}
            _ => return Err(odd()),
        }
        if host.eq_ignore_ascii_case(&from.host) {
            return Ok(Target {
                path: path.to_owned(),
                ..from.clone()
            });
        }
        let addresses = around.dns.addresses(host).await.all();
        let reachable = |address: &IpAddr| is_public(address) || around.host.contains(address);
        let address = addresses.into_iter().find(reachable).ok_or_else(odd)?;
        Ok(Target {
            host: host.to_owned(),
            path: path.to_owned(),
            address: SocketAddr::new(address, self.port),
        })
    }
}

/// One request.
#[derive(Clone)]
struct Target {
    host: String,
    path: String,
    address: SocketAddr,
}

impl Target {
    async fn ask(&self) -> Result<Response<Bytes>, String> {
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let words = |error: hyper::Error| format!("no HTTP: {error}");
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(words)?;
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        let request = Request::get(&self.path)
            .header(HOST, host)
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
}

/// As Let's Encrypt follows.
const MAXIMUM_REDIRECTS: usize = 10;
const MAXIMUM_BYTES: usize = 128;
