//! N: a command's end of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{Failure, Line, Question, Request};

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "hear the daemon out: it ended the conversation before the last line; look at `journalctl -u vhostd`"
    )]
    Cut,
    #[error("talk to the daemon at {}: permission denied", .0.display())]
    Denied(PathBuf),
    #[error(
        "be understood by the daemon: it is of another version; restart it with `systemctl restart vhostd`"
    )]
    OtherVersion,
    #[error("{}", .0.message)]
    Refused(Failure),
    #[error("talk to the daemon at {}: {why}", path.display())]
    Talk { path: PathBuf, why: String },
}

impl ControlError {
    /// The next step.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Denied(_) => {
                Some("run it as root, or add yourself to the group: `adduser $USER vhostd`")
            }
            Self::Refused(failure) => failure.hint.as_deref(),
            Self::Cut | Self::OtherVersion | Self::Talk { .. } => None,
        }
    }
}

/// Whether a daemon listens there. A socket file that nobody serves is none.
pub async fn connect(path: &Path) -> Result<Option<UnixStream>, ControlError> {
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            io::ErrorKind::PermissionDenied => Err(ControlError::Denied(path.to_path_buf())),
            _ => Err(ControlError::Talk {
                path: path.to_path_buf(),
                why: error.to_string(),
            }),
        },
    }
}

/// What the daemon knows; `None` where it is too old to be asked, or busy with worse: what is on
/// disk tells nearly the same.
pub async fn look<T: DeserializeOwned>(
    stream: UnixStream,
    path: &Path,
    question: Question,
) -> Result<Option<Result<T, Failure>>, ControlError> {
    let message = hyper::Request::get(question.path())
        .header("host", "vhostd")
        .body(Full::new(Bytes::new()));
    let message = message.map_err(|error| talk_failed(path)(error.to_string()))?;
    let answered = tokio::time::timeout(PATIENCE, async {
        let response = send(stream, path, message).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        Ok((status, body.map_err(|_| ControlError::Cut)?.to_bytes()))
    });
    let Ok(answered) = answered.await else {
        return Ok(None);
    };
    let (status, body) = answered?;
    if status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    Ok(match serde_json::from_slice(&body) {
        Ok(Line::Error(failure)) => Some(Err(failure)),
        _ => serde_json::from_slice(&body).ok().map(Ok),
    })
}

/// A daemon that is stopped or overwhelmed.
const PATIENCE: Duration = Duration::from_secs(5);

type Message = hyper::Request<Full<Bytes>>;

/// Where too many others are being answered, or the daemon is stopping, again and again for a
/// while.
const CROWDED: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

async fn send(
    mut stream: UnixStream,
    path: &Path,
    message: Message,
) -> Result<Response<Incoming>, ControlError> {
    let begin = Instant::now();
    loop {
        let response = send_once(stream, path, message.clone()).await?;
        let crowded = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        if !crowded || begin.elapsed() > CROWDED {
            return Ok(response);
        }
        tokio::time::sleep(PAUSE).await;
        stream = match connect(path).await {
            Ok(Some(stream)) => stream,
            _ => return Ok(response),
        };
    }
}

async fn send_once(
    stream: UnixStream,
    path: &Path,
    message: Message,
) -> Result<Response<Incoming>, ControlError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| talk_failed(path)(error.to_string()))?;
    tokio::spawn(connection);
    let answered = sender.send_request(message).await;
    answered.map_err(|_| ControlError::Cut)
}

fn talk_failed(path: &Path) -> impl Fn(String) -> ControlError + '_ {
    |why| ControlError::Talk {
        path: path.to_path_buf(),
        why,
    }
}

/// Sends `request` and calls `each` with every line up to the last.
pub async fn ask(
    stream: UnixStream,
    path: &Path,
    request: &Request,
    mut each: impl FnMut(Line),
) -> Result<(), ControlError> {
    let failed = talk_failed(path);
    let body = serde_json::to_vec(request).map_err(|error| failed(error.to_string()))?;
    let message = hyper::Request::post(request.path())
        .header("host", "vhostd")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(error.to_string()))?;
    let response = send(stream, path, message).await?;
    if response.status() == StatusCode::NOT_FOUND {
        return Err(ControlError::OtherVersion);
    }
    let forbidden = response.status() == StatusCode::FORBIDDEN;
    let (mut body, mut text, mut ended) = (response.into_body(), Vec::new(), false);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ControlError::Cut)?;
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            // a line of a newer daemon that we do not know is skipped
            if let Ok(line) = serde_json::from_slice::<Line>(&line) {
                ended |= !matches!(line, Line::Step(_) | Line::Warning(_));
                match line {
                    Line::Error(failure) if forbidden => {
                        return Err(ControlError::Refused(failure));
                    }
                    line => each(line),
                }
            }
        }
    }
    if ended {
        Ok(())
    } else {
        Err(ControlError::Cut)
    }
}
