//! N: whom a client trusts, and one request with its whole answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use instant_acme::BodyWrapper;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;
use tokio::time::timeout;

use super::tunnel::{Connector, ProxyError};
use super::{HttpError, MAXIMUM_BYTES};
use crate::certificate::words::one_line;
use crate::settings::proxy::ProxySettings;

/// What requests with a body of that type are sent with.
pub(crate) type HyperClient<B = BodyWrapper<Bytes>> = Client<HttpsConnector<Connector>, B>;

/// Where a client goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Schemes {
    HttpsOnly,
    /// For URLs that `settings::origin` has let pass.
    PlainToo,
}

/// A client that trusts the system's roots and those in `ca_file`, goes through the proxy where there
/// is one, and follows nobody elsewhere.
pub(crate) fn connect<B>(
    ca_file: Option<&Path>,
    schemes: Schemes,
    proxy: &ProxySettings,
) -> Result<HyperClient<B>, HttpError>
where
    B: Body + Send,
    B::Data: Send,
{
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
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls);
    let connector = match schemes {
        Schemes::HttpsOnly => connector.https_only(),
        Schemes::PlainToo => connector.https_or_http(),
    };
    let tcp = Connector::new(tcp, proxy.clone());
    let connector = connector.enable_http1().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector))
}

pub(in crate::certificate) fn extra_roots(
    ca_file: Option<&Path>,
) -> Result<Vec<CertificateDer<'static>>, HttpError> {
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

/// Sends a request and reads the whole answer within `limit`, whatever its status. `proxy`: the
/// client's.
pub(crate) async fn receive<B>(
    client: &HyperClient<B>,
    proxy: &ProxySettings,
    request: Request<B>,
    limit: Duration,
) -> Result<Response<Bytes>, HttpError>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let via = match proxy.of(request.uri()) {
        Some(Ok(proxy)) => format!(" through the proxy {proxy}"),
        _ => String::new(),
    };
    let exchange = async {
        let answer = client
            .request(request)
            .await
            .map_err(|error| transport(&error, &via))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAXIMUM_BYTES)
            .collect()
            .await
            .map_err(|error| match error.is::<LengthLimitError>() {
                true => HttpError::TooLarge,
                false => transport(error.as_ref(), &via),
            })?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    let answer = timeout(limit, exchange).await;
    answer.map_err(|_| HttpError::TimedOut {
        limit,
        via: via.clone(),
    })?
}

fn transport(error: &(dyn std::error::Error + 'static), via: &str) -> HttpError {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    if let Some(proxy) = causes.find_map(|cause| cause.downcast_ref::<ProxyError>()) {
        return HttpError::Proxy(proxy.to_string());
    }
    HttpError::Transport {
        words: text_of(error),
        via: via.to_owned(),
    }
}

/// hyper's own words say only "client error (Connect)": the cause is at the end of the chain.
pub(super) fn text_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    // TLS errors quote the peer's certificate
    one_line(text.as_bytes())
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);
