//! X: a complete private instance in a temporary directory: an nginx of its own on loopback ports,
//! vhostd's own CA, an example app, and the real daemon. It tells what happens as scenes, and
//! proves each of its claims by a request that a browser could make. Needs no root, no domain and
//! no network; whatever ends it, nothing is left.

mod app; // N the example app
mod browser; // N asks as a browser would
mod server; // X the demo's own nginx
mod stage; // W the temporary directory
mod story; // what is told, in order, with its proofs
mod watcher; // the real daemon, on a thread of its own

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::atomic_file::WriteError;
use crate::clock;
use crate::daemon::DaemonError;
use crate::installation::{Installation, OpenError};
use crate::preparation::{self, PreparationError};
use crate::reconcile::report::Report;

pub use stage::{NAME, Stage};

use server::Server;
use story::Story;
use watcher::Watcher;

/// What whoever watches is shown.
#[derive(Debug)]
pub enum Scene<'a> {
    /// Everything is in place and runs; nothing is served yet.
    Ready {
        stage: &'a Stage,
        /// As nginx says it: `1.22.1`.
        nginx_version: &'a str,
    },
    Chapter(Chapter),
    /// The vhost file was saved with this text.
    Saved {
        file: &'a Path,
        text: &'a str,
        /// The line, counted from 0, that is not as it was.
        changed: Option<usize>,
    },
    /// The daemon noticed, and did this.
    Reconciled(&'a Report),
    /// A claim holds, as a real request showed.
    Proved {
        claim: &'a str,
        /// Since the file was saved, where the claim is about that.
        after: Option<Duration>,
    },
    /// What the app answered through nginx: plain text, one line each.
    Page(&'a str),
    /// A moment at which `vhostd status` is worth a look.
    Status(&'a Stage),
    /// What can be tried from another terminal.
    Invitation(&'a Stage),
    /// All is told; it goes on until a signal.
    Staying(&'a Stage),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Chapter {
    /// A vhost file is dropped.
    Drop,
    /// The app moves to another port.
    Change,
    /// A broken file arrives.
    Break,
    /// The broken file is mended.
    Mend,
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Ctrl-C, SIGTERM, or the terminal is gone.
    #[error("go on: it was interrupted")]
    Interrupted,
    #[error("run an nginx of its own: {0}")]
    Nginx(#[source] io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("find a free port on 127.0.0.1: {0}")]
    Port(#[source] io::Error),
    #[error(transparent)]
    Prepare(#[from] PreparationError),
    #[error("handle signals: {0}")]
    Runtime(#[source] io::Error),
    #[error("use the demo's own settings: {0}")]
    Settings(String),
    #[error("trust the demo's root: {0}")]
    Trust(#[source] io::Error),
    #[error("prove that {claim}: {seen}")]
    Unproven { claim: String, seen: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Called with each scene.
pub type Audience<'a> = dyn FnMut(Scene<'_>) + 'a;

/// Plays the demo. With `once` it ends when everything is proven, else it stays until a signal,
/// showing what happens when the vhosts directory changes.
///
/// Errors: the first claim that did not hold, or what kept the demo from being set up. A signal is
/// [`DemoError::Interrupted`], except while it stays.
pub fn run(once: bool, nginx_binary: &Path, audience: &mut Audience<'_>) -> Result<(), DemoError> {
    // dropped in reverse: the daemon, then nginx, then the directory
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let mut signals = Signals::install().map_err(DemoError::Runtime)?;
    let stage = Stage::build(nginx_binary)?;
    preparation::directories(&stage.settings)?;
    let installation = Installation::open(stage.settings.clone(), clock::system()())?;
    preparation::prepare(&installation)?;
    let _server = Server::start(&installation.host_nginx.binary, &stage.directory)?;
    let mut story = Story {
        watcher: Watcher::start(&stage, self::runtime()?),
        stage: &stage,
        audience,
    };
    runtime.block_on(async {
        // cancel-safe: whichever arm is dropped, the demo is over
        tokio::select! {
            biased;
            () = signals.any() => Err(DemoError::Interrupted),
            told = story.tell(&installation.host_nginx.version) => told,
        }?;
        if once {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = signals.any() => Ok(()),
            stayed = story.stay() => match stayed {
                Err(DemoError::Interrupted) => Ok(()),
                stayed => stayed,
            },
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, DemoError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .map_err(DemoError::Runtime)
}

/// Those that would end the process and leave everything behind.
struct Signals {
    hang_up: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn any(&mut self) {
        // cancel-safe: a signal that is not taken now is delivered to the next call
        tokio::select! {
            _ = self.hang_up.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
