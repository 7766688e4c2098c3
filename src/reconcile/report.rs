//! P: what a reconcile did, as `vhostd reload --json` prints it and as the control socket sends it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::proof::ForeignName;
use crate::desired::Rejection;
use crate::diagnostic::Diagnostic;

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// What should serve serves already; nothing was reloaded.
    Unchanged,
    /// A new generation serves (or will, as soon as nginx runs: see `error`).
    Activated,
    /// nginx refused the whole; nothing was activated.
    Rejected,
    /// It was activated, did not serve, and the previous generation is back.
    RolledBack,
}

/// One finished step, in the order read, render, test, activate, reload, verify.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Step {
    pub step: StepName,
    pub ms: f64,
    /// For people: `4 apps, 1 changed`.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    Read,
    Render,
    Test,
    Activate,
    Reload,
    Verify,
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Render => "render",
            Self::Test => "test",
            Self::Activate => "activate",
            Self::Reload => "reload",
            Self::Verify => "verify",
        })
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    pub outcome: Outcome,
    /// The active generation.
    pub generation: u64,
    pub steps: Vec<Step>,
    pub rejected: Vec<Rejected>,
    pub warnings: Vec<String>,
    pub certificates: CertificateSummary,
    /// Why the outcome is bad, in whole sentences without a final full stop.
    pub error: Option<String>,
    pub hint: Option<String>,
    pub nginx_running: bool,
    /// Its binary is being upgraded: nobody was told to reload.
    #[serde(default)]
    pub nginx_upgrading: bool,
    /// What the accepted and the rejected files ask for: a command's NAMEs are looked up in it.
    #[serde(default)]
    pub vhosts: Vec<ReportedVhost>,
    /// Names for which an activation was rolled back.
    #[serde(skip)]
    pub foreign: Vec<ForeignName>,
}

/// One vhost, by all that it may be called.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReportedVhost {
    pub name: String,
    pub server_names: Vec<String>,
    /// The name of its certificate.
    pub certificate: Option<String>,
}

/// A vhost file that is not served as it is now.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rejected {
    pub name: String,
    #[serde(serialize_with = "lossy")]
    pub file: PathBuf,
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub reason: String,
    pub hint: Option<String>,
    /// What nginx said, word for word, where `reason` is a translation of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nginx: Option<String>,
    /// Whether its last good version serves.
    pub stale: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub length: Option<usize>,
}

/// Names of certificates.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CertificateSummary {
    pub ordered: Vec<String>,
    pub pending: Vec<String>,
    pub failed: Vec<String>,
}

impl Report {
    /// Whether the active generation is the one that was asked for, even if nobody answers for it.
    pub fn is_on_disk(&self) -> bool {
        matches!(self.outcome, Outcome::Unchanged | Outcome::Activated)
    }

    /// Said of a certificate that this reconcile was to serve; `None` where it does.
    pub fn unserved(&self) -> Option<String> {
        let why = self.error.as_deref().unwrap_or("nginx did not take it");
        (!self.succeeded()).then(|| format!("stored, but not served yet: {why}"))
    }

    /// Whether what should serve does, as far as it was accepted.
    pub fn succeeded(&self) -> bool {
        self.is_on_disk() && self.error.is_none()
    }
}

/// A file's name may be any bytes, and JSON has only text: one such name must not keep the whole from
/// being told.
pub(crate) fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// One entry per diagnostic: a file may have several errors, and all are shown.
pub fn rejected(rejections: &[Rejection]) -> Vec<Rejected> {
    let one = |rejection: &Rejection| {
        let (name, stale) = (rejection.app.to_string(), rejection.stale);
        let rejected = |diagnostic| Rejected::of(name.clone(), diagnostic, stale);
        rejection
            .diagnostics
            .iter()
            .map(rejected)
            .collect::<Vec<_>>()
    };
    rejections.iter().flat_map(one).collect()
}

/// Files whose names no app can have are rejected under what they are called.
pub fn misnamed(diagnostics: &[Diagnostic]) -> impl Iterator<Item = Rejected> {
    diagnostics.iter().map(|diagnostic| {
        let stem = diagnostic.file.file_stem().unwrap_or_default();
        Rejected::of(stem.to_string_lossy().into_owned(), diagnostic, false)
    })
}

impl Rejected {
    fn of(name: String, diagnostic: &Diagnostic, stale: bool) -> Self {
        Self {
            name,
            file: diagnostic.file.clone(),
            line: diagnostic.at.map(|at| at.line),
            column: diagnostic.at.map(|at| at.column),
            reason: diagnostic.reason.clone(),
            hint: diagnostic.hint.clone(),
            nginx: diagnostic.nginx.as_deref().cloned(),
            stale,
            offset: diagnostic.at.map(|at| at.offset),
            length: diagnostic.at.map(|at| at.length),
        }
    }
}
