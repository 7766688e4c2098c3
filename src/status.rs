//! W: what the last reconcile found, per vhost; what `vhostd status` shows beside the live nginx.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::atomic_file::{self, WriteError};
use crate::certificate::{CertificateName, WantedCertificate};
use crate::desired::wanted;
use crate::generation::manifest::{AppSource, Manifest};
use crate::reconcile::candidate::Candidate;
use crate::reconcile::pin::Pin;
use crate::reconcile::report::{Rejected, Report, ReportedVhost, lossy};
use crate::vhost::AppName;

/// `status.json` in the state directory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StatusRecord {
    /// When that was first found.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub generation: u64,
    pub vhosts: Vec<VhostStatus>,
    /// The certificates that they should have.
    pub wanted: Vec<WantedCertificate>,
    pub warnings: Vec<String>,
    /// The generation that the latest rollback returned to, while an app is pinned.
    pub pinned: Option<u64>,
    /// Why the last reconcile did not make its candidate serve.
    pub error: Option<String>,
}

/// One vhost, in the contract's form.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VhostStatus {
    pub name: String,
    #[serde(serialize_with = "lossy")]
    pub file: PathBuf,
    pub server_names: Vec<String>,
    pub state: VhostState,
    pub reason: Option<String>,
    pub line: Option<usize>,
    pub column: Option<usize>,
    #[serde(default)]
    pub hint: Option<String>,
    /// What nginx said, word for word, where `reason` is a translation of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nginx: Option<String>,
    /// The name of its certificate; those of further types of key begin with it.
    pub certificate: Option<String>,
    /// Whether a rollback holds its app.
    #[serde(default)]
    pub pinned: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VhostState {
    Serving,
    /// Accepted, not served yet.
    Pending,
    /// The operator's fault, until the file changes.
    Rejected,
    /// The newest file was rejected; the last good version serves.
    Stale,
}

impl StatusRecord {
    /// `served`: what is seen to answer now.
    pub(crate) fn of(
        candidate: &Candidate<'_>,
        report: &Report,
        served: &Served,
        pin: Option<&Pin>,
        now: OffsetDateTime,
    ) -> Self {
        Self {
            at: now,
            generation: report.generation,
            vhosts: vhosts(candidate, report, served, pin),
            wanted: candidate.wanted.clone(),
            warnings: report.warnings.clone(),
            pinned: pin.map(Pin::generation),
            error: report.error.clone(),
        }
    }

    /// Each vhost with TLS, and the name of its certificate; of each type of key one.
    pub fn certificates_of_vhosts(&self) -> Vec<(String, CertificateName)> {
        let mut all = Vec::new();
        for vhost in &self.vhosts {
            let theirs = |wanted: &&WantedCertificate| {
                vhost.certificate.as_deref() == Some(wanted.name.base())
            };
            let names = self.wanted.iter().filter(theirs);
            all.extend(names.map(|wanted| (vhost.name.clone(), wanted.name.clone())));
        }
        all
    }

    /// `None` where no reconcile has ended yet.
    pub fn read(state_dir: &Path) -> Option<Self> {
        let bytes = fs::read(path(state_dir)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// What is known stays, and says that it may be outdated.
    pub(crate) fn note_failure(state_dir: &Path, message: &str) -> Result<(), WriteError> {
        let error = Some(format!("failed to {message}"));
        match Self::read(state_dir) {
            Some(mut record) if record.error != error => {
                record.error = error;
                record.write(state_dir)
            }
            _ => Ok(()),
        }
    }

    /// Not where it is known: the daemon looks every few seconds, and finds the same.
    pub(crate) fn write(&self, state_dir: &Path) -> Result<(), WriteError> {
        let known = Self::read(state_dir).map(|known| Self {
            at: self.at,
            ..known
        });
        if known.as_ref() == Some(self) {
            return Ok(());
        }
        atomic_file::write_json(&path(state_dir), self, 0o600)
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("status.json")
}

/// What answers after a reconcile.
pub(crate) enum Served {
    /// All that was accepted.
    Accepted,
    /// What this generation holds: what was accepted did not take.
    Generation(Box<Manifest>),
    Nothing,
}

impl Served {
    fn has(&self, app: &AppName, source: Option<&AppSource>) -> bool {
        match self {
            Self::Accepted => true,
            Self::Generation(manifest) => {
                let text = |source: &AppSource| source.text.clone();
                manifest.apps.get(app).map(text) == source.map(text)
            }
            Self::Nothing => false,
        }
    }
}

fn vhosts(
    candidate: &Candidate<'_>,
    report: &Report,
    served: &Served,
    pin: Option<&Pin>,
) -> Vec<VhostStatus> {
    let mut all = Vec::new();
    for app in &candidate.apps {
        let fault = report
            .rejected
            .iter()
            .find(|rejected| rejected.name == app.name.as_str());
        let source = candidate.source(&app.name);
        let state = match (fault, served.has(&app.name, source.as_ref())) {
            (Some(_), _) => VhostState::Stale,
            (None, true) => VhostState::Serving,
            (None, false) => VhostState::Pending,
        };
        let wanted = wanted(app, &candidate.default_tls());
        for (spec, wanted) in app.vhosts.iter().zip(wanted) {
            let pending = (state == VhostState::Pending).then(|| report.error.clone());
            let status = VhostStatus::of(&app.name, &app.file, state, fault);
            all.push(VhostStatus {
                reason: status.reason.or(pending.flatten()),
                name: spec.name.to_string(),
                server_names: spec
                    .server_names
                    .iter()
                    .map(|name| name.value.to_string())
                    .collect(),
                certificate: wanted.first().map(|wanted| wanted.name.to_string()),
                pinned: pin.is_some_and(|pin| pin.has(&app.name)),
                ..status
            });
        }
    }
    // nothing can be read any more of those whose very bytes are kept
    let is_kept = |fault: &Rejected| {
        let mut apps = candidate.apps.iter();
        fault.stale && !apps.any(|app| app.name.as_str() == fault.name)
    };
    let others = report.rejected.iter();
    let others = others.filter(|fault| !fault.stale || is_kept(fault));
    let mut named = std::collections::BTreeSet::new();
    for fault in others.filter(|fault| named.insert(&fault.name)) {
        let state = match fault.stale {
            true => VhostState::Stale,
            false => VhostState::Rejected,
        };
        all.push(VhostStatus {
            name: fault.name.clone(),
            certificate: match state {
                VhostState::Stale => candidate.kept_certificate(&fault.name),
                _ => None,
            },
            pinned: pin.is_some_and(|pin| pin.apps().any(|(app, _)| app.as_str() == fault.name)),
            ..VhostStatus::blank(fault.file.clone(), state, Some(fault))
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

impl VhostStatus {
    pub(crate) fn reported(&self) -> ReportedVhost {
        ReportedVhost {
            name: self.name.clone(),
            server_names: self.server_names.clone(),
            certificate: self.certificate.clone(),
        }
    }

    fn of(app: &AppName, file: &Path, state: VhostState, fault: Option<&Rejected>) -> Self {
        Self {
            name: app.to_string(),
            ..Self::blank(file.to_path_buf(), state, fault)
        }
    }

    fn blank(file: PathBuf, state: VhostState, fault: Option<&Rejected>) -> Self {
        Self {
            name: String::new(),
            file,
            server_names: Vec::new(),
            state,
            reason: fault.map(|fault| fault.reason.clone()),
            line: fault.and_then(|fault| fault.line),
            column: fault.and_then(|fault| fault.column),
            hint: fault.and_then(|fault| fault.hint.clone()),
            nginx: fault.and_then(|fault| fault.nginx.clone()),
            certificate: None,
            pinned: false,
        }
    }
}
