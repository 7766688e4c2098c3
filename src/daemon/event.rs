//! P: everything that can happen to the daemon.

use crate::certificate::CertificateName;
use crate::certificate::renew::Obtained;
use crate::control::Call;
use crate::diagnostic::Diagnostic;
use crate::installation::{Installation, OpenError};
use crate::reconcile::grace::Absences;
use crate::reconcile::intent::Intent;
use crate::reconcile::{Applied, ReconcileError};
use crate::watch::Watch;

/// Everything that can happen.
pub(super) enum Event {
    /// A hint: something in the vhosts directory may have changed.
    Files,
    /// A hint: something in nginx's hand-written configuration may have changed.
    HandWritten,
    Read(Box<ReadDone>),
    Applied(Result<Applied, ReconcileError>),
    /// The CA was asked when to renew it.
    Asked(CertificateName),
    /// What was left in DNS was looked for.
    CleanedUp,
    Obtained(CertificateName, Obtained),
    Call(Call),
    /// SIGHUP.
    Reconfigure,
    /// With what new settings ask for and only a restart can give.
    Reopened(Result<(Box<Installation>, Vec<String>), Reopen>),
    Stop,
}

pub(super) struct ReadDone {
    pub(super) intent: Result<Intent, ReconcileError>,
    pub(super) absences: Absences,
    pub(super) watch: Watch,
    pub(super) armed: bool,
}

/// Why new settings were not taken.
pub(super) enum Reopen {
    Settings(Vec<Diagnostic>),
    Open(OpenError),
}

impl Reopen {
    /// In words, and as the exit status of who asked.
    pub(super) fn told(&self) -> (String, u8) {
        match self {
            Self::Settings(errors) => {
                let first = errors.first().map(ToString::to_string);
                (first.unwrap_or_default(), 2)
            }
            Self::Open(error) => (error.to_string(), 1),
        }
    }
}
