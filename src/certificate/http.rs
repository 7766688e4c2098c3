//! N: how the CA is spoken to: one origin, short waits, small answers.
//!
//! instant-acme's own client waits for Nagle's algorithm (40 ms a request), has no timeout, drops
//! `Retry-After` and reports a load balancer's page as broken JSON. Every request of ours passes
//! here, so the limits hold for each URL that the CA names: order, authorization, challenge,
//! finalize, certificate.

mod problem; // P the CA's own words

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{DATE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::timeout;

use self::problem::one_line;
pub use self::problem::{Problem, Subproblem, SubproblemIdentifier};
use crate::certificate::schedule::RetryAdvice;

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
    client: Mutex<Option<HyperClient>>,
}

/// The requests of one order: [`AcmeHttp`], and the delay that the CA asked for last.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    http: AcmeHttp,
    retry_after: Arc<Mutex<Option<Duration>>>,
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
    #[error("the CA names {url}, which is not at the origin of {directory}")]
    ForeignOrigin { url: String, directory: String },
    #[error("{0}")]
    Problem(Problem),
    #[error("cannot read {}: {reason}", path.display())]
    Roots { path: PathBuf, reason: String },
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    #[error("an answer of more than {MAXIMUM_BYTES} bytes")]
    TooLarge,
    #[error("the CA is out of reach: {0}")]
    Transport(String),
    #[error("no TLS: {0}")]
    Trust(#[source] rustls::Error),
}

type HyperClient = Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>;

impl AcmeHttp {
    /// `ca_file`: PEM roots that are trusted beside the system's.
    pub fn new(directory: &str, ca_file: Option<&Path>) -> Result<Self, HttpError> {
        let uri: Uri = directory
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.scheme_str() == Some("https") && uri.host().is_some())
            .ok_or_else(|| HttpError::Directory(directory.to_owned()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                directory: uri,
                ca_file: ca_file.map(Path::to_path_buf),
                client: Mutex::default(),
            }),
        })
    }

    /// The directory object (RFC 8555 §7.1.1), as bytes of JSON.
    pub(super) async fn directory(&self) -> Result<Bytes, HttpError> {
        let mut request = Request::new(BodyWrapper::default());
        *request.uri_mut() = self.shared.directory.clone();
        Ok(self.send(request).await?.into_body())
    }

    pub(super) fn exchange(&self) -> Exchange {
        Exchange {
            http: self.clone(),
            retry_after: Arc::default(),
        }
    }

    /// Sends one request and reads the whole answer. A status from 400 is an error, but for a
    /// refused nonce, which instant-acme answers by itself.
    async fn send(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Bytes>, HttpError> {
        self.check_origin(request.uri())?;
        let agent = HeaderValue::from_static(USER_AGENT_VALUE);
        request.headers_mut().insert(USER_AGENT, agent);
        let bodiless = request.method() == Method::HEAD;
        let client = self.client()?;
        let answer = timeout(TIMEOUT, receive(&client, request))
            .await
            .map_err(|_| HttpError::TimedOut)??;
        if answer.status().as_u16() < 400 {
            return Ok(answer);
        }
        match failure(&answer, bodiless) {
            HttpError::Problem(problem)
                if problem.kind == BAD_NONCE && answer.status() == StatusCode::BAD_REQUEST =>
            {
                Ok(answer)
            }
            error => Err(error),
        }
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
        let made = connect(self.shared.ca_file.as_deref())?;
        *client = Some(made.clone());
        Ok(made)
    }
}

impl Exchange {
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
            let answer = exchange.http.send(request).await;
            let answer = answer.map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            let asked = retry_after(answer.headers());
            *exchange
                .retry_after
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = asked;
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}

impl HttpError {
    /// Will asking again help?
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::Answer { retry_after, .. } => {
                retry_after.map_or(RetryAdvice::Retry, RetryAdvice::After)
            }
            Self::Directory(_) | Self::ForeignOrigin { .. } => RetryAdvice::Useless,
            Self::Problem(problem) => problem.retry(),
            Self::Roots { .. }
            | Self::TimedOut
            | Self::TooLarge
            | Self::Transport(_)
            | Self::Trust(_) => RetryAdvice::Retry,
        }
    }
}

fn connect(ca_file: Option<&Path>) -> Result<HyperClient, HttpError> {
    // passed explicitly: nothing of ours depends on which provider another crate installs first
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new_with_extra_roots(extra_roots(ca_file)?, provider.clone())
        .map_err(HttpError::Trust)?;
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(HttpError::Trust)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector))
}

fn extra_roots(ca_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let Some(path) = ca_file else {
        return Ok(Vec::new());
    };
    let unread = |reason: String| HttpError::Roots {
        path: path.to_path_buf(),
        reason,
    };
    let roots = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unread(error.to_string()))?;
    match roots.is_empty() {
        true => Err(unread("no certificate in it".to_owned())),
        false => Ok(roots),
    }
}

async fn receive(
    client: &HyperClient,
    request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Bytes>, HttpError> {
    let answer = client
        .request(request)
        .await
        .map_err(|error| transport(&error))?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAXIMUM_BYTES)
        .collect()
        .await
        .map_err(|error| match error.is::<LengthLimitError>() {
            true => HttpError::TooLarge,
            false => transport(error.as_ref()),
        })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// hyper's own words say only "client error (Connect)": the cause is at the end of the chain.
fn transport(error: &(dyn std::error::Error + 'static)) -> HttpError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    HttpError::Transport(text)
}

fn failure(answer: &Response<Bytes>, bodiless: bool) -> HttpError {
    let status = answer.status().as_u16();
    let retry_after = retry_after(answer.headers());
    match serde_json::from_slice::<Problem>(answer.body()) {
        Ok(problem) if !problem.kind.is_empty() || !problem.detail.is_empty() => {
            HttpError::Problem(Problem {
                status,
                retry_after,
                ..problem
            })
        }
        _ => HttpError::Answer {
            status,
            words: match bodiless || answer.body().is_empty() {
                true => answer
                    .status()
                    .canonical_reason()
                    .unwrap_or("no text")
                    .to_owned(),
                false => one_line(answer.body()),
            },
            retry_after,
        },
    }
}

/// RFC 9110 §10.2.3: seconds, or a date, which is compared with the server's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| OffsetDateTime::parse(text, &Rfc2822).ok();
    let at = date(value)?;
    let now = date(headers.get(DATE)?.to_str().ok()?.trim())?;
    Some(Duration::try_from(at - now).unwrap_or_default())
}

pub(super) const BAD_NONCE: &str = "urn:ietf:params:acme:error:badNonce";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);
/// More than the largest certificate chain; a directory has 1 KiB.
const MAXIMUM_BYTES: usize = 256 * 1024;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Names the project's page once Cargo.toml does, so that a CA's staff know whom to ask.
const USER_AGENT_VALUE: &str = if env!("CARGO_PKG_REPOSITORY").is_empty() {
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

    fn answer(
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &'static str,
    ) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            answer
                .headers_mut()
                .insert(*name, HeaderValue::from_static(value));
        }
        answer
    }

    #[test]
    fn only_the_directorys_own_origin_is_spoken_to() {
        let http = AcmeHttp::new("https://CA.example/directory", None).unwrap();
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
        let http = AcmeHttp::new("https://ca.invalid/directory", None).unwrap();
        let mut request = Request::new(BodyWrapper::default());
        *request.uri_mut() = "https://127.0.0.1:9/order/1".parse().unwrap();
        let error = http.send(request).await.unwrap_err();
        assert!(matches!(error, HttpError::ForeignOrigin { .. }), "{error}");
    }

    #[test]
    fn a_directory_without_tls_is_refused() {
        assert!(AcmeHttp::new("http://ca.example/directory", None).is_err());
        assert!(AcmeHttp::new("ca.example", None).is_err());
    }

    #[test]
    fn a_rate_limit_keeps_the_cas_words_and_its_delay() {
        let body = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many","future":[1],
            "subproblems":[{"type":"x","detail":"d","identifier":{"type":"novel","value":"v"}}]}"#;
        let error = failure(&answer(429, &[("retry-after", "120")], body), false);
        let HttpError::Problem(problem) = error else {
            panic!("{error}")
        };
        assert_eq!(problem.retry_after, Some(Duration::from_secs(120)));
        assert_eq!(problem.to_string(), "too many (rateLimited); v: d");
    }

    #[test]
    fn a_load_balancers_page_is_shown_as_what_it_is() {
        let page = "<html>\n<h1>Service\tbusy</h1>\u{1b}[31m";
        let error = failure(&answer(503, &[("retry-after", "5")], page), false);
        assert_eq!(
            error.to_string(),
            "HTTP 503 without an ACME problem: <html> <h1>Service busy</h1> [31m"
        );
        let HttpError::Answer { retry_after, .. } = error else {
            panic!()
        };
        assert_eq!(retry_after, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_retry_date_is_measured_on_the_servers_clock() {
        let headers = [
            ("date", "Tue, 24 Nov 2026 13:40:01 GMT"),
            ("retry-after", "Tue, 24 Nov 2026 13:41:31 GMT"),
        ];
        let wait = retry_after(answer(429, &headers, "").headers());
        assert_eq!(wait, Some(Duration::from_secs(90)));
        assert_eq!(retry_after(answer(429, &headers[1..], "").headers()), None);
    }
}
