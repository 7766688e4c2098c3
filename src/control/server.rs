//! N: the daemon's end of the control socket.

use std::convert::Infallible;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::{Answer, Call, Failure, Line, Request};
use crate::atomic_file::{self, WriteError};

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("listen on {}: {source}", path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("listen on {}: another vhostd runs already", .0.display())]
    Taken(PathBuf),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// More than any request of ours.
const LARGEST: usize = 64 * 1024;
/// A peer that sends its request slower than this is cut off.
const HEADER_LIMIT: Duration = Duration::from_secs(10);

/// The socket, and the proof that no other daemon has it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    _lock: File,
}

impl ControlSocket {
    /// The socket is for root and the group `vhostd` (root alone where there is no such group).
    /// Fails where another daemon runs.
    pub async fn bind(path: &Path) -> Result<Self, ListenError> {
        if let Some(directory) = path.parent() {
            atomic_file::create_directory(directory, 0o755)?;
        }
        // two that start at once: only one of them may take what an earlier run has left
        let _lock = lock(path)?;
        let listener = bind(path).await?;
        Ok(Self { listener, _lock })
    }

    /// Accepts connections for ever; each request becomes a [`Call`].
    pub async fn serve(self, calls: mpsc::UnboundedSender<Call>) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, calls.clone()));
                }
                Err(error) => {
                    tracing::warn!("control connection: {error}");
                    // out of file handles: give them time to come back
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn lock(socket: &Path) -> Result<File, ListenError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file = atomic_file::lock_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ListenError::Taken(socket.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(ListenError::Bind { path, source }),
    }
}

async fn bind(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Bind {
        path: path.to_path_buf(),
        source,
    };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ListenError::Taken(path.to_path_buf()));
    }
    // nobody answers: what is left of an earlier run
    atomic_file::remove(path)?;
    let group = Group::from_name("vhostd").ok().flatten();
    let temporary = atomic_file::temporary_beside(path)?;
    atomic_file::remove(&temporary)?;
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    // it gets its name only when strangers are kept out
    let (mode, gid) = match group {
        Some(group) => (0o660, Some(group.gid.as_raw())),
        None => (0o600, None),
    };
    atomic_file::restrict(&temporary, mode, gid)?;
    atomic_file::rename(&temporary, path)?;
    Ok(listener)
}

/// Answers one peer until it goes away; each of its requests becomes a [`Call`].
pub async fn converse(stream: UnixStream, calls: mpsc::UnboundedSender<Call>) {
    let service = service_fn(|request| respond(request, calls.clone()));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!("control connection: {error}");
    }
}

async fn respond(
    request: hyper::Request<Incoming>,
    calls: mpsc::UnboundedSender<Call>,
) -> Result<Response<Lines>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if method == Method::GET && path == "/v1/daemon" {
        let line =
            serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "pid": std::process::id()});
        return Ok(response(StatusCode::OK, Lines::one(line.to_string())));
    }
    // before the body, which a newer command may write in ways that we do not know
    if method != Method::POST || !Request::PATHS.contains(&path.as_str()) {
        return Ok(refusal(StatusCode::NOT_FOUND, "find such a request"));
    }
    let body = Limited::new(request.into_body(), LARGEST).collect();
    let Ok(Ok(body)) = tokio::time::timeout(HEADER_LIMIT, body).await else {
        return Ok(refusal(
            StatusCode::BAD_REQUEST,
            "read the request: it is too large or too slow",
        ));
    };
    let parsed = serde_json::from_slice::<Request>(&body.to_bytes());
    Ok(match parsed {
        Ok(request) if request.path() == path => {
            let (sender, lines) = mpsc::unbounded_channel();
            let answer = Answer(sender);
            if calls.send(Call { request, answer }).is_err() {
                refusal(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "take the request: the daemon is stopping",
                )
            } else {
                response(StatusCode::OK, Lines::Stream(lines))
            }
        }
        Ok(_) => refusal(StatusCode::BAD_REQUEST, "take a request at another's path"),
        Err(error) => refusal(
            StatusCode::BAD_REQUEST,
            &format!("understand the request: {error}"),
        ),
    })
}

fn response(status: StatusCode, body: Lines) -> Response<Lines> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("application/x-ndjson");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}

fn refusal(status: StatusCode, message: &str) -> Response<Lines> {
    let failure = Failure {
        message: message.into(),
        hint: None,
        exit: 1,
    };
    response(status, Lines::one(to_json(&Line::Error(failure))))
}

fn to_json(line: &Line) -> String {
    serde_json::to_string(line).unwrap_or_default()
}

/// A body of JSON lines, sent as they come.
enum Lines {
    One(Option<String>),
    Stream(mpsc::UnboundedReceiver<Line>),
}

impl Lines {
    fn one(line: String) -> Self {
        Self::One(Some(line))
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::One(line) => Poll::Ready(line.take()),
            Self::Stream(lines) => lines
                .poll_recv(context)
                .map(|line| line.map(|line| to_json(&line))),
        };
        next.map(|line| line.map(|line| Ok(Frame::data(Bytes::from(line + "\n")))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn of_daemons_that_start_at_once_on_what_an_earlier_one_left_one_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vhostd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bind = || ControlSocket::bind(&path);
        let (a, b, c) = tokio::join!(bind(), bind(), bind());
        let bound = [&a, &b, &c].iter().filter(|it| it.is_ok()).count();
        assert_eq!(bound, 1, "{a:?} {b:?} {c:?}");
        assert!(UnixStream::connect(&path).await.is_ok());
        drop((a, b, c));
        assert!(bind().await.is_ok());
    }
}
