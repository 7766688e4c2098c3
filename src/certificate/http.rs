//! N: how the CA is spoken to: one origin, short waits, small answers.
//!
//! instant-acme's own client waits for Nagle's algorithm (40 ms a request), has no timeout, drops
//! `Retry-After` and reports a load balancer's page as broken JSON. Every request of ours passes
//! here, so the limits hold for each URL that the CA names: order, authorization, challenge,
//! finalize, certificate.

mod answer; // P what an answer must look like before anything reads it
mod connection; // N whom a client trusts, and one request with its whole answer
mod nonces; // P those that nobody has sent back
mod problem; // P the CA's own words
mod tunnel; // N connections: straight there, or through an HTTP proxy

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use time::OffsetDateTime;

pub(crate) use self::answer::retry_after;
pub(super) use self::connection::extra_roots;
pub(crate) use self::connection::{HyperClient, Schemes, connect, receive};
use self::nonces::Nonces;
pub use self::problem::{Problem, Subproblem, SubproblemIdentifier};
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::preflight::finding::is_private_host;
use crate::certificate::words::one_line;
use crate::settings::proxy::ProxySettings;

/// HTTPS to the origin of one ACME directory. Cheap to clone; clones share the connections.
///
/// Nothing is opened or read before the first request.
#[derive(Clone, Debug)]
pub struct AcmeHttp {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: Uri,
    ca_file: Option<PathBuf>,
    proxy: ProxySettings,
    /// For the whole answer to one request.
    limit: Duration,
    client: Mutex<Option<HyperClient>>,
    /// What the CA's last answer called now, and when that was.
    heard: Mutex<Option<(OffsetDateTime, Instant)>>,
    nonces: Nonces,
}

/// The requests of one order: [`AcmeHttp`], and the delay that the CA asked for last.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    http: AcmeHttp,
    retry_after: Arc<Mutex<Option<Duration>>>,
    /// Of the last answer (RFC 8555 §7.4.2).
    alternates: Arc<Mutex<Vec<String>>>,
    unsent: Arc<Unsent>,
}

/// The nonce of an exchange's last answer, which is nobody's when the exchange ends.
#[derive(Debug)]
struct Unsent {
    http: AcmeHttp,
    nonce: Mutex<Option<HeaderValue>>,
}

/// Why a request to the CA had no usable answer; a reason, which the step that asked goes before.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("HTTP {status} without an ACME problem: {words}")]
    Answer {
        status: u16,
        /// The first words of the body, on one line.
        words: String,
        retry_after: Option<Duration>,
    },
    #[error("use `{0}` as an ACME directory: not an https URL")]
    Directory(String),
    #[error("use the CA's directory: {0}")]
    DirectoryObject(String),
    #[error("an answer in the encoding `{0}`, which was not asked for")]
    Encoded(String),
    #[error("the CA names {}, which is not at the origin of {directory}", one_line(url.as_bytes()))]
    ForeignOrigin { url: String, directory: String },
    #[error("the CA gives no nonce")]
    NoNonce,
    #[error("{0}")]
    Problem(Problem),
    /// A sentence; it names the proxy without its login, and what to do.
    #[error("{0}")]
    Proxy(String),
    #[error("cannot read {}: {reason}", path.display())]
    Roots { path: PathBuf, reason: String },
    /// `via`: ` through the proxy …`, where there is one.
    #[error("no whole answer within {} s{via}", limit.as_secs())]
    TimedOut { limit: Duration, via: String },
    #[error("an answer of more than {MAXIMUM_BYTES} bytes")]
    TooLarge,
    /// `via`: as above.
    #[error("the CA is out of reach{via}: {words}")]
    Transport { words: String, via: String },
    #[error("no TLS: {0}")]
    Trust(#[source] rustls::Error),
}

impl AcmeHttp {
    /// `ca_file`: PEM roots that are trusted beside the system's; `limit`: for the whole answer to
    /// one request.
    pub fn new(
        directory: &str,
        ca_file: Option<&Path>,
        proxy: &ProxySettings,
        limit: Duration,
    ) -> Result<Self, HttpError> {
        let uri: Uri = directory
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.scheme_str() == Some("https") && uri.host().is_some())
            .ok_or_else(|| HttpError::Directory(directory.to_owned()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                directory: uri,
                ca_file: ca_file.map(Path::to_path_buf),
                proxy: proxy.clone(),
                limit,
                client: Mutex::default(),
                heard: Mutex::default(),
                nonces: Nonces::default(),
            }),
        })
    }

    /// The directory object (RFC 8555 §7.1.1), as bytes of JSON: what we use of it, and at its own
    /// origin.
    pub(super) async fn directory(&self) -> Result<Bytes, HttpError> {
        let mut request = Request::new(BodyWrapper::default());
        *request.uri_mut() = self.shared.directory.clone();
        Ok(self.send(request).await?.into_body())
    }

    /// What is at `url` for everybody, and the delay that the CA asks for before the next look.
    pub(super) async fn get(&self, url: &str) -> Result<(Bytes, Option<Duration>), HttpError> {
        self.check_url(url)?;
        let mut request = Request::new(BodyWrapper::default());
        *request.uri_mut() = url.parse().map_err(|_| HttpError::Directory(url.into()))?;
        let answer = self.send(request).await?;
        let retry_after = answer::retry_after(answer.headers());
        Ok((answer.into_body(), retry_after))
    }

    /// A nonce for the next signed request (RFC 8555 §7.2). `url`: of newNonce.
    pub(super) async fn nonce(&self, url: &str) -> Result<String, HttpError> {
        self.check_url(url)?;
        let mut request = Request::new(BodyWrapper::default());
        *request.method_mut() = Method::HEAD;
        *request.uri_mut() = url.parse().map_err(|_| HttpError::Directory(url.into()))?;
        let mut answer = self.send(request).await?;
        answer::disarm(answer.headers_mut());
        let nonce = answer.headers().get(answer::REPLAY_NONCE);
        let nonce = nonce.and_then(|nonce| nonce.to_str().ok());
        nonce.map(str::to_owned).ok_or(HttpError::NoNonce)
    }

    /// Sends a signed request (RFC 8555 §6.2). `Ok` with a status that is no success: the nonce was
    /// refused.
    pub(super) async fn post(
        &self,
        url: &str,
        body: Vec<u8>,
    ) -> Result<Response<Bytes>, HttpError> {
        self.check_url(url)?;
        let mut request = Request::new(BodyWrapper::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.parse().map_err(|_| HttpError::Directory(url.into()))?;
        let kind = HeaderValue::from_static("application/jose+json");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        self.send(request).await
    }

    pub(super) fn exchange(&self) -> Exchange {
        Exchange {
            http: self.clone(),
            retry_after: Arc::default(),
            alternates: Arc::default(),
            unsent: Arc::new(Unsent {
                http: self.clone(),
                nonce: Mutex::default(),
            }),
        }
    }

    /// Sends one request and reads the whole answer. What is no success is an error (nothing is
    /// followed elsewhere), but for a refused nonce, which instant-acme answers by itself.
    async fn send(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Bytes>, HttpError> {
        self.check_origin(request.uri())?;
        let agent = HeaderValue::from_static(USER_AGENT_VALUE);
        request.headers_mut().insert(USER_AGENT, agent);
        let bodiless = request.method() == Method::HEAD;
        let is_directory = *request.uri() == self.shared.directory;
        let client = self.client()?;
        let answer = receive(&client, &self.shared.proxy, request, self.shared.limit).await?;
        if let Some(date) = answer::date(answer.headers()) {
            let heard = self.shared.heard.lock();
            *heard.unwrap_or_else(PoisonError::into_inner) = Some((date, Instant::now()));
        }
        if answer.status().is_success() {
            answer::check_encoding(answer.headers())?;
            return match is_directory {
                true => self.reduced(answer),
                false => Ok(answer),
            };
        }
        match answer::failure(&answer, bodiless) {
            HttpError::Problem(problem)
                if problem.kind == BAD_NONCE && answer.status() == StatusCode::BAD_REQUEST =>
            {
                Ok(answer)
            }
            error => Err(error),
        }
    }

    /// The library panics over a URL in the directory that is none, and refuses all of it for
    /// metadata that nobody reads.
    fn reduced(&self, answer: Response<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let object = answer::DirectoryObject::parse(answer.body())?;
        for url in object.urls() {
            self.check_url(url)?;
        }
        let object = object.without_strange_urls(|url| self.check_url(url));
        let body = Bytes::from(object.to_json()?);
        Ok(answer.map(|_| body))
    }

    /// What the CA's clock says, where it has answered a moment ago: this host may have slept since.
    pub(super) fn ca_now(&self) -> Option<OffsetDateTime> {
        let heard = self.shared.heard.lock();
        let (date, at) = (*heard.unwrap_or_else(PoisonError::into_inner))?;
        let since = at.elapsed();
        (since < LATELY).then(|| date + since)
    }

    /// The host of the directory.
    pub(super) fn host(&self) -> &str {
        self.shared.directory.host().unwrap_or_default()
    }

    /// Whether the CA is one of a network: nobody else would trust it, or find it.
    pub(super) fn is_private(&self) -> bool {
        self.shared.ca_file.is_some() || is_private_host(self.host())
    }

    /// Whether the CA may name this URL.
    pub(super) fn check_url(&self, url: &str) -> Result<(), HttpError> {
        let foreign = || HttpError::ForeignOrigin {
            url: url.to_owned(),
            directory: self.shared.directory.to_string(),
        };
        self.check_origin(&url.parse().map_err(|_| foreign())?)
    }

    /// A CA, or somebody between, must not send us to our own services.
    fn check_origin(&self, url: &Uri) -> Result<(), HttpError> {
        let directory = &self.shared.directory;
        let port = |uri: &Uri| uri.port_u16().unwrap_or(443);
        let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
        let same = url.scheme_str() == Some("https")
            && host(url) == host(directory)
            && port(url) == port(directory)
            && !url
                .authority()
                .is_some_and(|authority| authority.as_str().contains('@'));
        match same {
            true => Ok(()),
            false => Err(HttpError::ForeignOrigin {
                url: url.to_string(),
                directory: directory.to_string(),
            }),
        }
    }

    /// Made at the first request: reading the system's roots takes a while, and an unreadable file
    /// of roots is to keep nobody from starting.
    fn client(&self) -> Result<HyperClient, HttpError> {
        let mut client = self
            .shared
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let shared = &self.shared;
        let made = connect(shared.ca_file.as_deref(), Schemes::HttpsOnly, &shared.proxy)?;
        *client = Some(made.clone());
        Ok(made)
    }
}

impl Exchange {
    /// Where the last answer says that other forms of it are.
    pub(super) fn take_alternates(&self) -> Vec<String> {
        let alternates = self.alternates.lock();
        std::mem::take(&mut *alternates.unwrap_or_else(PoisonError::into_inner))
    }

    /// The delay that the last answer asked for.
    pub(super) fn take_retry_after(&self) -> Option<Duration> {
        self.retry_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl HttpClient for Exchange {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let exchange = self.clone();
        Box::pin(async move {
            // of the library's requests, only that for a nonce is one for nothing else
            let kept = (request.method() == Method::HEAD)
                .then(|| exchange.http.shared.nonces.take(Instant::now()))
                .flatten();
            if let Some(nonce) = kept {
                let mut answer = Response::new(Full::<Bytes>::default());
                answer.headers_mut().insert(answer::REPLAY_NONCE, nonce);
                return Ok(BytesResponse::from(answer));
            }
            exchange.unsent.set(None);
            let answer = exchange.http.send(request).await;
            let mut answer = answer.map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            *exchange
                .retry_after
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = answer::retry_after(answer.headers());
            *exchange
                .alternates
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = answer::alternates(answer.headers());
            answer::disarm(answer.headers_mut());
            let nonce = answer.headers().get(answer::REPLAY_NONCE);
            exchange.unsent.set(nonce.cloned());
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}

impl Unsent {
    fn set(&self, nonce: Option<HeaderValue>) {
        *self.nonce.lock().unwrap_or_else(PoisonError::into_inner) = nonce;
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        let nonce = self.nonce.lock();
        if let Some(nonce) = nonce.unwrap_or_else(PoisonError::into_inner).take() {
            self.http.shared.nonces.keep(nonce, Instant::now());
        }
    }
}

impl HttpError {
    /// The delay that the CA asked for with it.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            Self::Problem(problem) => problem.retry_after,
            _ => None,
        }
    }

    /// Whether it was there, and able to answer; `None`: that was not seen.
    pub(super) fn has_reached_the_ca(&self) -> Option<bool> {
        match self {
            Self::Answer { status, .. } => Some(*status < 500),
            Self::Problem(problem) => Some(problem.status < 500),
            Self::Proxy(_) | Self::TimedOut { .. } | Self::Transport { .. } => Some(false),
            _ => None,
        }
    }

    /// Will asking again help?
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::Answer { retry_after, .. } => {
                retry_after.map_or(RetryAdvice::Retry, RetryAdvice::After)
            }
            Self::Directory(_) | Self::ForeignOrigin { .. } => RetryAdvice::Useless,
            Self::Problem(problem) => problem.retry(),
            Self::DirectoryObject(_)
            | Self::Encoded(_)
            | Self::NoNonce
            | Self::Proxy(_)
            | Self::Roots { .. }
            | Self::TimedOut { .. }
            | Self::TooLarge
            | Self::Transport { .. }
            | Self::Trust(_) => RetryAdvice::Retry,
        }
    }
}

/// The nonce that comes with a refusal (RFC 8555 §6.5), where it may be sent back.
pub(super) fn refused_nonce(answer: &Response<Bytes>) -> Option<String> {
    let mut headers = answer.headers().clone();
    answer::disarm(&mut headers);
    let nonce = headers.get(answer::REPLAY_NONCE)?;
    nonce.to_str().ok().map(str::to_owned)
}

pub(super) const BAD_NONCE: &str = "urn:ietf:params:acme:error:badNonce";

const LATELY: Duration = Duration::from_secs(60);
/// More than the largest certificate chain; a directory has 1 KiB.
const MAXIMUM_BYTES: usize = 256 * 1024;
/// Names the project's page once Cargo.toml does, so that a CA's staff know whom to ask.
pub(crate) const USER_AGENT_VALUE: &str = if env!("CARGO_PKG_REPOSITORY").is_empty() {
    concat!("vhostd/", env!("CARGO_PKG_VERSION"))
} else {
    concat!(
        "vhostd/",
        env!("CARGO_PKG_VERSION"),
        " (+",
        env!("CARGO_PKG_REPOSITORY"),
        ")"
    )
};

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &str) -> Result<AcmeHttp, HttpError> {
        AcmeHttp::new(
            directory,
            None,
            &ProxySettings::default(),
            Duration::from_secs(1),
        )
    }

    #[test]
    fn only_the_directorys_own_origin_is_spoken_to() {
        let http = open("https://CA.example/directory").unwrap();
        let allowed = |url: &str| http.check_origin(&url.parse().unwrap()).is_ok();
        assert!(allowed("https://ca.example/order/1"));
        assert!(allowed("https://ca.example:443/order/1"));
        for url in [
            "http://ca.example/order/1",
            "https://ca.example:8443/order/1",
            "https://ca.example.evil/order/1",
            "https://ca.example@evil.example/",
            "https://user@ca.example/",
            "https://127.0.0.1/",
            "/order/1",
        ] {
            assert!(!allowed(url), "{url}");
        }
    }

    #[tokio::test]
    async fn a_request_to_another_origin_is_not_sent() {
        let http = open("https://ca.invalid/directory").unwrap();
        let mut request = Request::new(BodyWrapper::default());
        *request.uri_mut() = "https://127.0.0.1:9/order/1".parse().unwrap();
        let error = http.send(request).await.unwrap_err();
        assert!(matches!(error, HttpError::ForeignOrigin { .. }), "{error}");
    }

    #[test]
    fn a_directory_without_tls_is_refused() {
        assert!(open("http://ca.example/directory").is_err());
        assert!(open("ca.example").is_err());
    }
}
