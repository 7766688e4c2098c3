//! N: the daemon's end of the control socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use super::peer::Peers;
use super::permission::{self, Asked, Facts, Peer, Refused};
use super::{Answer, Call, Failure, Line, Question, Request, View};
use crate::atomic_file::{self, WriteError};
use crate::installation::Installation;
use crate::overview::{overview, past};
use crate::reconcile::pin::Requester;
use crate::vhost::source;

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
/// Of a request's head: hyper's own buffer may take fifty times as much.
const LARGEST_HEAD: usize = 16 * 1024;

/// The socket, and the proof that no other daemon has it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    /// Whose members may talk, beside root.
    group: Option<u32>,
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
        let group = Group::from_name("vhostd").ok().flatten();
        let group = group.map(|group| group.gid.as_raw());
        let listener = bind(path, group).await?;
        Ok(Self {
            listener,
            group,
            _lock,
        })
    }

    /// Accepts connections for ever; each request becomes a [`Call`], and questions are answered
    /// from `view`.
    pub async fn serve(
        self,
        calls: mpsc::UnboundedSender<Call>,
        view: watch::Receiver<View>,
    ) -> Infallible {
        let group = self.group;
        let (seen, known) = (view.clone(), view);
        let desk = Desk::new(
            calls,
            move |question| look(question, &seen.borrow().clone()),
            move || Known::of(&known.borrow().installation, group),
        );
        let desk = Arc::new(desk);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let peer = Peer::of(&stream);
                    tokio::spawn(serve(stream, peer, Arc::clone(&desk)));
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

async fn bind(path: &Path, group: Option<u32>) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Bind {
        path: path.to_path_buf(),
        source,
    };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ListenError::Taken(path.to_path_buf()));
    }
    // nobody answers: what is left of an earlier run
    atomic_file::remove(path)?;
    let temporary = atomic_file::temporary_beside(path)?;
    atomic_file::remove(&temporary)?;
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    // it gets its name only when strangers are kept out
    let mode = match group {
        Some(_) => 0o660,
        None => 0o600,
    };
    atomic_file::restrict(&temporary, mode, group)?;
    atomic_file::rename(&temporary, path)?;
    Ok(listener)
}

type Look = dyn Fn(Question) -> Result<String, String> + Send + Sync;

/// Answers one peer with the rights of root; each of its requests becomes a [`Call`], and `look`
/// answers its questions.
pub async fn converse(
    stream: UnixStream,
    calls: mpsc::UnboundedSender<Call>,
    look: impl Fn(Question) -> Result<String, String> + Send + Sync + 'static,
) {
    let root = Peer {
        uid: Some(0),
        ..Peer::default()
    };
    serve(
        stream,
        root,
        Arc::new(Desk::new(calls, look, Known::default)),
    )
    .await;
}

/// What the daemon knows of who may ask for what, and where it finds the rest.
#[derive(Clone, Default)]
struct Known {
    facts: Facts,
    vhosts_dir: PathBuf,
}

impl Known {
    fn of(installation: &Installation, socket_group: Option<u32>) -> Self {
        Self {
            facts: Facts {
                daemon_uid: nix::unistd::geteuid().as_raw(),
                socket_group,
                admin_group: installation.admin_group.clone(),
                owners: BTreeMap::new(),
            },
            vhosts_dir: installation.settings.vhosts_dir.clone(),
        }
    }

    /// With the owners of the vhost files as they are now; none where they cannot be read.
    fn with_owners(self) -> Facts {
        let files = source::read(&self.vhosts_dir).unwrap_or_default().files;
        let owners = files.iter().filter_map(|file| {
            let owner = source::owner(&files, &file.app)?;
            Some((file.app.clone(), owner))
        });
        Facts {
            owners: owners.collect(),
            ..self.facts
        }
    }
}

fn look(question: Question, view: &View) -> Result<String, String> {
    let json = match question {
        Question::Status => {
            serde_json::to_string(&overview(&view.installation, view.failure.as_deref())?)
        }
        Question::History => serde_json::to_string(
            &past(&view.installation.generations).map_err(|error| error.to_string())?,
        ),
    };
    json.map_err(|error| error.to_string())
}

/// What requests and questions go to.
struct Desk {
    calls: mpsc::UnboundedSender<Call>,
    /// The answer to a question: what the command prints with `--json`.
    look: Arc<Look>,
    peers: Arc<Peers>,
    /// One looks at a time: the threads are there for the daemon's own work.
    looking: tokio::sync::Mutex<()>,
    known: Arc<dyn Fn() -> Known + Send + Sync>,
}

/// One request and its answer. Whoever takes too long over either is cut off.
async fn serve(stream: UnixStream, who: Peer, desk: Arc<Desk>) {
    let mut peer = desk.peers.arrived();
    let id = peer.id();
    let service = service_fn(|request| {
        let (desk, who) = (Arc::clone(&desk), who.clone());
        async move {
            let answer = desk.respond(id, &who, request).await;
            let answer = answer.unwrap_or_else(|refused| forbidden(&refused));
            if matches!(answer.body(), Lines::One(_)) {
                desk.peers.is_answered(id);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!("control connection: {error}");
        },
        () = peer.overdue() => tracing::debug!("control connection: cut off, it took too long"),
    }
}

impl Desk {
    fn new(
        calls: mpsc::UnboundedSender<Call>,
        look: impl Fn(Question) -> Result<String, String> + Send + Sync + 'static,
        known: impl Fn() -> Known + Send + Sync + 'static,
    ) -> Self {
        Self {
            calls,
            look: Arc::new(look),
            known: Arc::new(known),
            peers: Arc::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    async fn respond(
        &self,
        id: u64,
        peer: &Peer,
        request: hyper::Request<Incoming>,
    ) -> Result<Response<Lines>, Refused> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        // a stranger is told nothing else, whatever he asks for
        permission::may(Asked::Daemon, peer, &(self.known)().facts)?;
        if method == Method::GET && path == "/v1/daemon" {
            let line = serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "pid": std::process::id()});
            return Ok(response(StatusCode::OK, Lines::one(line.to_string())));
        }
        let asked = Question::ALL.into_iter().find(|asked| asked.path() == path);
        if let Some(question) = asked.filter(|_| method == Method::GET) {
            permission::may(Asked::Question(question), peer, &(self.known)().facts)?;
            return Ok(match self.peers.has_asked(id) {
                true => self.answer(question).await,
                false => crowded(),
            });
        }
        let request = match read(method, &path, request).await {
            Ok(request) => request,
            Err(refused) => return Ok(refused),
        };
        if !self.peers.has_asked(id) {
            return Ok(crowded());
        }
        let by = self.permitted(&request, peer).await?;
        Ok(self.call(id, request, by))
    }

    /// With whose rights the request is carried out.
    async fn permitted(&self, request: &Request, peer: &Peer) -> Result<Requester, Refused> {
        let (known, asked) = ((self.known)(), Asked::Request(request));
        let requester = permission::requester(peer, &known.facts);
        let facts = match requester {
            Some(requester) if permission::needs_owners(asked, requester) => {
                let _one = self.looking.lock().await;
                let read = tokio::task::spawn_blocking(|| known.with_owners()).await;
                read.unwrap_or_default()
            }
            _ => known.facts,
        };
        permission::may(asked, peer, &facts)
    }

    fn call(&self, id: u64, request: Request, by: Requester) -> Response<Lines> {
        let (sender, lines) = mpsc::unbounded_channel();
        let answer = Answer {
            lines: sender,
            _work: Arc::new(self.peers.work(id)),
        };
        match self.calls.send(Call {
            request,
            by,
            answer,
        }) {
            Ok(()) => response(StatusCode::OK, Lines::Stream(lines)),
            Err(_) => refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "take the request: the daemon is stopping",
            ),
        }
    }

    /// One line: what the command prints with `--json`.
    async fn answer(&self, question: Question) -> Response<Lines> {
        let _one = self.looking.lock().await;
        let look = Arc::clone(&self.look);
        let looked = tokio::task::spawn_blocking(move || look(question));
        let looked = looked.await.map_err(|error| error.to_string());
        match looked.and_then(|looked| looked) {
            Ok(line) => response(StatusCode::OK, Lines::one(line)),
            Err(why) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &why),
        }
    }
}

fn crowded() -> Response<Lines> {
    let message = "take the request: too many others are being answered";
    refusal(StatusCode::SERVICE_UNAVAILABLE, message)
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

/// The request of a POST, or what is wrong with it.
async fn read(
    method: Method,
    path: &str,
    request: hyper::Request<Incoming>,
) -> Result<Request, Response<Lines>> {
    // before the body, which a newer command may write in ways that we do not know
    if method != Method::POST || !Request::PATHS.contains(&path) {
        return Err(refusal(StatusCode::NOT_FOUND, "find such a request"));
    }
    let bad = |message: &str| refusal(StatusCode::BAD_REQUEST, message);
    let body = Limited::new(request.into_body(), LARGEST).collect().await;
    let body = body.map_err(|_| bad("read the request: it is too large, or was cut off"))?;
    match serde_json::from_slice::<Request>(&body.to_bytes()) {
        Ok(request) if request.path() == path => Ok(request),
        Ok(_) => Err(bad("take a request at another's path")),
        Err(error) => Err(bad(&format!("understand the request: {error}"))),
    }
}

fn forbidden(refused: &Refused) -> Response<Lines> {
    let failure = Failure {
        message: refused.message.clone(),
        hint: Some(refused.hint.clone()),
        exit: 1,
    };
    let line = to_json(&Line::Error(failure));
    response(StatusCode::FORBIDDEN, Lines::one(line))
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
mod tests;
