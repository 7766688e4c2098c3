//! N: the control socket that commands talk to: HTTP/1.1 over a unix socket, versioned by path,
//! each answer a stream of JSON lines.
//!
//! `POST /v1/reload`, `/v1/renew`, `/v1/rollback`, `/v1/rollback-apps`; `GET /v1/daemon`, `/v1/status`, `/v1/history`,
//! each one line of what the command prints with `--json`. An older daemon answers 404 to a newer
//! command's path, and unknown keys of a line are ignored: old and new understand each other.

pub mod client; // N what a command does with it
pub mod permission; // P which peer may ask for what

mod peer; // R whom it is for, and how long anybody may take
mod server; // N what the daemon does with it

pub use server::{ControlSocket, ListenError, converse};

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::peer::Work;
use crate::installation::Installation;
use crate::reconcile::pin::Requester;
use crate::reconcile::report::{Report, Step};
use crate::reconcile::rollback::Rollback;
use crate::vhost::AppName;

/// What a command asks of the daemon.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Reload {
        /// Also wait for the certificates.
        #[serde(default)]
        wait: bool,
        /// Apps, vhosts or server names whose rollback it ends; none: all.
        #[serde(default)]
        names: Vec<String>,
    },
    Renew {
        /// Vhosts, server names or certificates; none: all that are due.
        #[serde(default)]
        names: Vec<String>,
        /// Renew what is named even when it is not due.
        #[serde(default)]
        force: bool,
    },
    /// Of all apps.
    Rollback { generation: Option<u64> },
    /// A path of its own: a daemon that knows no rollback of single apps must not roll all back.
    RollbackApps {
        /// At least one.
        apps: Vec<AppName>,
        generation: Option<u64>,
    },
}

impl Request {
    /// Of every request that this version knows.
    const PATHS: [&'static str; 4] = [
        "/v1/reload",
        "/v1/renew",
        "/v1/rollback",
        "/v1/rollback-apps",
    ];

    fn path(&self) -> &'static str {
        match self {
            Self::Reload { .. } => "/v1/reload",
            Self::Renew { .. } => "/v1/renew",
            Self::Rollback { .. } => "/v1/rollback",
            Self::RollbackApps { .. } => "/v1/rollback-apps",
        }
    }

    /// `None`: it is no rollback.
    pub fn rollback(&self) -> Option<Rollback> {
        match self {
            Self::Rollback { generation } => Some(Rollback {
                generation: *generation,
                apps: Vec::new(),
            }),
            Self::RollbackApps { apps, generation } => Some(Rollback {
                generation: *generation,
                apps: apps.clone(),
            }),
            Self::Reload { .. } | Self::Renew { .. } => None,
        }
    }
}

impl From<Rollback> for Request {
    fn from(Rollback { generation, apps }: Rollback) -> Self {
        match apps.is_empty() {
            true => Self::Rollback { generation },
            false => Self::RollbackApps { apps, generation },
        }
    }
}

/// What a command wants to know of the daemon, and what changes nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    /// → [`crate::overview::Overview`]
    Status,
    /// → [`crate::overview::Past`]
    History,
}

impl Question {
    const ALL: [Self; 2] = [Self::Status, Self::History];

    fn path(self) -> &'static str {
        match self {
            Self::Status => "/v1/status",
            Self::History => "/v1/history",
        }
    }
}

/// What questions are answered from.
#[derive(Clone, Debug)]
pub struct View {
    pub installation: Arc<Installation>,
    /// What keeps the daemon from reconciling.
    pub failure: Option<String>,
}

/// One line of an answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Step(Step),
    /// What a renewal risks, before it begins.
    Warning(String),
    /// The last line of a reload or a rollback.
    Report(Box<Report>),
    /// The last line of a renewal.
    Renewed(Renewed),
    /// The last line of what could not be done.
    Error(Failure),
}

/// Why a request could not be carried out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    pub message: String,
    pub hint: Option<String>,
    /// Exit status for the command: 1 failed, 2 usage or settings.
    pub exit: u8,
}

/// What became of each certificate, as `vhostd renew --json` prints it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Renewed {
    pub certificates: Vec<RenewedCertificate>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RenewedCertificate {
    pub name: String,
    pub result: RenewalResult,
    /// RFC 3339.
    pub not_after: Option<String>,
    /// What is wanted and not in the certificate that is there.
    #[serde(default)]
    pub missing_identifiers: Vec<String>,
    /// Also of one that was renewed without some identifiers.
    pub error: Option<String>,
    /// When it is tried again, or next renewed. RFC 3339.
    pub next: Option<String>,
    /// What the CA will not do for it for a while, after what was done now.
    pub limit: Option<String>,
    /// What looked odd at the order.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Of the ACME CA that the stored certificate is from.
    #[serde(default)]
    pub directory: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RenewalResult {
    Renewed,
    NotDue,
    Failed,
    /// The staging CA issued one, which is not installed.
    Rehearsed,
}

/// A request on its way to the daemon's loop, and where its answer goes.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub by: Requester,
    pub answer: Answer,
}

/// Sends lines to whoever asked. A caller that has gone away is no error: the work goes on.
#[derive(Clone, Debug)]
pub struct Answer {
    lines: mpsc::UnboundedSender<Line>,
    /// Done when the last of these is dropped, read or not.
    _work: Arc<Work>,
}

impl Answer {
    pub fn send(&self, line: Line) {
        let _ = self.lines.send(line);
    }

    pub fn fail(&self, message: impl Into<String>, hint: Option<String>, exit: u8) {
        let message = message.into();
        self.send(Line::Error(Failure {
            message,
            hint,
            exit,
        }));
    }
}
