//! N: connections to CAs and webhooks: straight there, or through an HTTP proxy (RFC 9110 §9.3.6).
//!
//! hyper-util's tunnel forgets the proxy's status, which decides what is to be done.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use super::connection::text_of;
use crate::certificate::words::one_line;
use crate::settings::proxy::{ProxySettings, ProxyUrl, ProxyUrlError};

/// TCP to a URL's host, or to what the proxy connects to it. With a proxy only that one's name is
/// looked up here.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    proxy: Arc<ProxySettings>,
}

/// Why a host is not reached through a proxy. Retrying helps once the proxy does.
#[derive(Debug, thiserror::Error)]
#[error("{target} is out of reach through the proxy {proxy}: {failure}")]
pub struct ProxyError {
    /// `HOST:PORT`
    target: String,
    /// Without its login; or the variable that names it.
    proxy: String,
    failure: ProxyFailure,
}

/// What went wrong with it, and what to do.
#[derive(Debug, thiserror::Error)]
enum ProxyFailure {
    #[error("it closes the connection instead of answering; does it permit CONNECT to that port?")]
    Closed,
    #[error("{0}; is it running, and is `acme.proxy` (or HTTPS_PROXY) right?")]
    Connect(String),
    #[error("{0}; set `acme.proxy`, as in http://proxy.internal:3128, or `acme.proxy: off`")]
    Environment(ProxyUrlError),
    #[error("the connection to it broke: {0}")]
    Io(#[source] io::Error),
    #[error(
        "it does not speak HTTP; is `acme.proxy` (or HTTPS_PROXY) the port of an http:// proxy?"
    )]
    NotHttp,
    #[error("it answers HTTP {status}; {}", remedy(*status, *with_login))]
    Refused {
        status: StatusCode,
        with_login: bool,
    },
    #[error("no answer within {} s; is it one, and not overloaded?", .0.as_secs())]
    Silent(Duration),
}

fn remedy(status: StatusCode, with_login: bool) -> &'static str {
    match (status.as_u16(), with_login) {
        (407, false) => {
            "it wants a login: write it into `acme.proxy` (or HTTPS_PROXY), as in \
             http://USER:PASSWORD@HOST:PORT"
        }
        (407, true) => "it refuses the login in `acme.proxy` (or HTTPS_PROXY): correct that",
        (400..500, _) => "let it permit CONNECT to that host and port",
        (500.., _) => "it cannot get there itself: ask who runs it",
        _ => "is it a proxy?",
    }
}

impl Connector {
    pub(super) fn new(tcp: HttpConnector, proxy: ProxySettings) -> Self {
        Self {
            tcp,
            proxy: Arc::new(proxy),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let error = |proxy: &dyn fmt::Display, failure| ProxyError {
            target: authority(&target),
            proxy: proxy.to_string(),
            failure,
        };
        let proxy = match self.proxy.of(&target) {
            None => {
                let connecting = self.tcp.call(target);
                return Box::pin(async move { Ok(connecting.await?) });
            }
            Some(Err((variable, why))) => {
                let error = error(&variable, ProxyFailure::Environment(why));
                return Box::pin(async move { Err(error.into()) });
            }
            Some(Ok(proxy)) => proxy.clone(),
        };
        let connecting = self.tcp.call(proxy.uri().clone());
        Box::pin(async move {
            let connected = connecting.await;
            let connected = connected.map_err(|it| ProxyFailure::Connect(text_of(&it)));
            let tunnelled = match connected {
                Ok(stream) => tunnel(stream.into_inner(), &target, &proxy).await,
                Err(failure) => Err(failure),
            };
            let error = |failure| ProxyError {
                target: authority(&target),
                proxy: proxy.to_string(),
                failure,
            };
            Ok(TokioIo::new(tunnelled.map_err(error)?))
        })
    }
}

/// `HOST:PORT`, as CONNECT names it.
fn authority(target: &Uri) -> String {
    let host = one_line(target.host().unwrap_or_default().as_bytes());
    format!("{host}:{}", target.port_u16().unwrap_or(443))
}

async fn tunnel(
    mut stream: TcpStream,
    target: &Uri,
    proxy: &ProxyUrl,
) -> Result<TcpStream, ProxyFailure> {
    let authority = authority(target);
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
    if let Some(login) = proxy.login() {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(login.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let exchange = async {
        stream.write_all(&request).await?;
        head(&mut stream).await
    };
    let head = timeout(ANSWER_TIMEOUT, exchange).await;
    let head = head.map_err(|_| ProxyFailure::Silent(ANSWER_TIMEOUT))?;
    let head = head.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ProxyFailure::Closed,
        _ => ProxyFailure::Io(error),
    })?;
    if head.is_empty() {
        return Err(ProxyFailure::Closed);
    }
    let status = status(&head).ok_or(ProxyFailure::NotHttp)?;
    match status.is_success() {
        true => Ok(stream),
        false => Err(ProxyFailure::Refused {
            status,
            with_login: proxy.login().is_some(),
        }),
    }
}

/// Up to its empty line, or to where the answer ends or is too long. A TLS server behind the tunnel
/// says nothing before the client does, so nothing of the tunnel is read with it.
async fn head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAXIMUM_HEAD {
        match stream.read(&mut part).await? {
            0 => break,
            count => head.extend_from_slice(&part[..count]),
        }
    }
    Ok(head)
}

/// Of a status line (RFC 9112 §4).
fn status(head: &[u8]) -> Option<StatusCode> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    let code = rest.get(2..5)?;
    let is_apart = |byte: Option<&u8>| byte.is_none_or(|byte| b" \r\n".contains(byte));
    let is_one = rest.get(1) == Some(&b' ') && is_apart(rest.get(5));
    StatusCode::from_bytes(code).ok().filter(|_| is_one)
}

/// For the proxy's answer to CONNECT, in which it connects to the target.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const MAXIMUM_HEAD: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_line_of_http_1_has_a_status() {
        for (head, code) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(200)),
            ("HTTP/1.0 200\r\n\r\n", Some(200)),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n", Some(407)),
            ("HTTP/1.1 2000 OK\r\n\r\n", None),
            ("HTTP/1.1 20", None),
            ("HTTP/2 200\r\n\r\n", None),
            ("SSH-2.0-OpenSSH_9.2\r\n", None),
            ("\x05\x00", None),
            ("", None),
        ] {
            let found = status(head.as_bytes()).map(|it| it.as_u16());
            assert_eq!(found, code, "{head:?}");
        }
    }
}
