//! P: what has been asked for since the last batch began.

use std::collections::BTreeSet;

use crate::control::{Call, Line, Request};
use crate::generation::manifest::Reason;
use crate::reconcile::pin::{Reload, Requester};
use crate::reconcile::report::{Outcome, Rejected, Report, Step};
use crate::reconcile::rollback::Rollback;
use crate::settings::Settings;

/// What the next batch will be about.
#[derive(Default)]
pub(super) struct Pending {
    pub start: bool,
    pub files: bool,
    pub rescan: bool,
    pub certificate: bool,
    pub reopen: bool,
    pub calls: Vec<Call>,
}

/// What one reconcile is about, and who asked for it.
pub(super) struct Batch {
    reason: Reason,
    /// SIGHUP asked for it.
    reopens: bool,
    pub calls: Vec<Call>,
}

impl Pending {
    pub(super) fn at_start() -> Self {
        Self {
            start: true,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !(self.start || self.files || self.rescan || self.certificate || self.reopen)
            && self.calls.is_empty()
    }

    /// Whether root asked for something, or who may do the same.
    pub(super) fn is_by_admin(&self) -> bool {
        let mut calls = self.calls.iter();
        self.reopen || calls.any(|call| call.by == Requester::Admin)
    }

    /// Nothing is asked for but that files be read, which may be as they were.
    pub(super) fn is_files_alone(&self) -> bool {
        let more = self.rescan || self.certificate || self.is_urgent();
        self.files && !more
    }

    /// Somebody waits for it.
    pub(super) fn is_urgent(&self) -> bool {
        self.start || self.reopen || !self.calls.is_empty()
    }

    /// Takes all that one reconcile can do. A rollback is a batch of its own, in its turn.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.is_empty() {
            return None;
        }
        if self.calls.first().is_some_and(is_rollback) {
            let calls = vec![self.calls.remove(0)];
            return Some(Batch {
                reason: Reason::Rollback,
                reopens: false,
                calls,
            });
        }
        let next_rollback = self
            .calls
            .iter()
            .position(is_rollback)
            .unwrap_or(self.calls.len());
        let calls: Vec<Call> = self.calls.drain(..next_rollback).collect();
        let rest = std::mem::take(&mut self.calls);
        let asked = std::mem::take(self);
        self.calls = rest;
        let reason = match asked {
            _ if !calls.is_empty() || asked.reopen => Reason::Reload,
            _ if asked.start => Reason::Start,
            _ if asked.files => Reason::File,
            _ if asked.certificate => Reason::Certificate,
            _ => Reason::File,
        };
        Some(Batch {
            reopens: asked.reopen,
            reason,
            calls,
        })
    }
}

impl Batch {
    pub(super) fn reason(&self) -> Reason {
        self.reason
    }

    pub(super) fn is_manual(&self) -> bool {
        self.reason == Reason::Reload
    }

    /// The manual reloads: they end pins.
    pub(super) fn reloads(&self) -> Vec<Reload> {
        let called = self.calls.iter().filter_map(|call| match &call.request {
            Request::Reload { names, .. } => Some(Reload {
                by: call.by,
                names: names.clone(),
            }),
            _ => None,
        });
        called
            .chain(self.reopens.then_some(Reload::OF_ALL))
            .collect()
    }

    pub(super) fn rollback(&self) -> Option<Rollback> {
        self.calls.first()?.request.rollback()
    }

    /// Whether it is done for users alone who may not do what root may.
    pub(super) fn is_by_users(&self) -> bool {
        let mut calls = self.calls.iter();
        let by_users = calls.all(|call| matches!(call.by, Requester::User(_)));
        by_users && !self.calls.is_empty() && !self.reopens
    }

    /// Sends each step to everyone who asked.
    pub(super) fn observer(&self) -> impl FnMut(&Step) + Send + 'static {
        let calls: Vec<_> = self
            .calls
            .iter()
            .map(|call| Call {
                request: call.request.clone(),
                by: call.by,
                answer: call.answer.clone(),
            })
            .collect();
        move |step| {
            let line = |call: &Call| call.answer.send(Line::Step(step.clone()));
            calls.iter().for_each(line);
        }
    }

    pub(super) fn fail(self, message: &str, hint: Option<String>, exit: u8) {
        for call in self.calls {
            call.answer.fail(message, hint.clone(), exit);
        }
    }
}

fn is_rollback(call: &Call) -> bool {
    call.request.rollback().is_some()
}

/// What the log has said and what still holds: it is looked at again every few seconds.
#[derive(Default)]
pub(super) struct Told {
    rejected: Vec<Rejected>,
    warnings: Vec<String>,
    error: Option<String>,
}

impl Told {
    /// One line for each thing that is new.
    pub(super) fn log(&mut self, report: &Report, reason: Reason) {
        for rejected in report
            .rejected
            .iter()
            .filter(|it| !self.rejected.contains(it))
        {
            reject(rejected);
        }
        let mut named = BTreeSet::new();
        for known in &self.rejected {
            let gone = report.rejected.iter().all(|it| it.name != known.name);
            if gone && named.insert(&known.name) {
                tracing::info!(app = %known.name, "no longer rejected");
            }
        }
        let mut warnings = report.warnings.iter();
        while let Some(warning) = warnings.find(|it| !self.warnings.contains(it)) {
            tracing::warn!("{warning}");
        }
        let known = self.error == report.error;
        self.rejected.clone_from(&report.rejected);
        self.warnings.clone_from(&report.warnings);
        self.error.clone_from(&report.error);
        log(report, reason, known);
    }
}

fn reject(rejected: &Rejected) {
    let at = rejected
        .line
        .map_or_else(String::new, |line| format!(":{line}"));
    let serves = match rejected.stale {
        true => "its last good version keeps serving",
        false => "it is not served",
    };
    let (file, reason) = (rejected.file.display(), &rejected.reason);
    tracing::warn!(app = %rejected.name, "rejected: {file}{at}: {reason}; {serves}");
}

/// One line per reconcile that did something. `known`: its error has been told.
fn log(report: &Report, reason: Reason, known: bool) {
    let ms: f64 = report.steps.iter().map(|step| step.ms).sum();
    let generation = report.generation;
    for step in &report.steps {
        tracing::debug!(generation, "{}: {:.1} ms", step.step, step.ms);
    }
    match (&report.error, report.outcome) {
        (Some(error), _) if known => tracing::debug!(generation, "still: {error}"),
        (Some(error), Outcome::Activated) => tracing::warn!(generation, "{error}"),
        (Some(error), Outcome::Unchanged) => tracing::warn!(generation, "{error}"),
        (Some(error), _) => tracing::error!(generation, "nothing changed for visitors: {error}"),
        (None, outcome) if outcome != Outcome::Unchanged => {
            tracing::info!(
                generation,
                "generation {generation} serves after {ms:.0} ms ({reason})"
            );
        }
        (None, _) => tracing::debug!(generation, "nothing to change ({reason})"),
    }
}

/// `systemctl status` shows it.
pub(super) fn status_line(report: &Report) -> String {
    let rejected = match report.rejected.len() {
        0 => String::new(),
        count => format!(", {count} rejected"),
    };
    match &report.error {
        Some(error) => format!("generation {}{rejected}: {error}", report.generation),
        None => format!("generation {} serves{rejected}", report.generation),
    }
}

/// The directories and the socket are opened once: a change of theirs waits for a restart, which
/// the sentences say.
pub(super) fn keep_directories(old: &Settings, mut new: Settings) -> (Settings, Vec<String>) {
    let pairs = [
        ("vhosts_dir", &old.vhosts_dir, &mut new.vhosts_dir),
        ("state_dir", &old.state_dir, &mut new.state_dir),
        ("runtime_dir", &old.runtime_dir, &mut new.runtime_dir),
    ];
    let mut sentences = Vec::new();
    for (key, old, new) in pairs {
        if old != new {
            sentences.push(format!(
                "`{key}` changed to {}: that needs `systemctl restart vhostd`",
                new.display()
            ));
            new.clone_from(old);
        }
    }
    (new, sentences)
}
