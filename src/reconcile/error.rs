//! P: what kept a reconcile from deciding, and the next step.

use super::pin::PinError;
use crate::atomic_file::WriteError;
use crate::generation::GenerationError;
use crate::nginx::features::ProbeFeaturesError;
use crate::render::RenderError;
use crate::vhost::AppName;
use crate::vhost::source::SourceError;

/// What kept a reconcile from even deciding; what served before still serves.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Certificate(#[from] crate::certificate::store::StoreError),
    #[error(transparent)]
    Desired(#[from] crate::desired::DesiredError),
    #[error(transparent)]
    Features(#[from] ProbeFeaturesError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Internal(#[from] crate::certificate::internal::InternalError),
    #[error(transparent)]
    Ledger(#[from] crate::certificate::ledger::LedgerError),
    #[error("roll back {0}: generation {1} has no such app")]
    NoSuchApp(AppName, u64),
    #[error("{}", no_such_generation(*.0))]
    NoSuchGeneration(u64),
    #[error("{}", nothing_else(.0))]
    NothingElse(Vec<AppName>),
    #[error(transparent)]
    Owners(#[from] crate::installation::OwnersError),
    #[error(transparent)]
    PemFiles(#[from] crate::certificate::pem_files::PemFilesError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error(transparent)]
    Repair(#[from] crate::installation::RepairError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Sweep(#[from] crate::installation::SweepError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl ReconcileError {
    /// Whether it says only that what was asked for is not there.
    pub fn is_about_the_request(&self) -> bool {
        matches!(
            self,
            Self::NoSuchApp(..) | Self::NoSuchGeneration(_) | Self::NothingElse(_)
        )
    }

    /// The next step.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Generation(error) => error.hint(),
            Self::NoSuchApp(..) => Some(
                "an app is called as its file is, without `.yml`; to take it down, remove its file",
            ),
            Self::NoSuchGeneration(_) => Some("`vhostd history` lists them"),
            Self::NothingElse(_) => Some("`vhostd history` lists the generations that are kept"),
            Self::Repair(error) => error.hint(),
            _ => None,
        }
    }
}

/// 0 is what serves before anything does: nothing to return to.
fn no_such_generation(number: u64) -> String {
    match number {
        0 => "roll back: there is no earlier generation to return to".into(),
        _ => format!("roll back: there is no generation {number} to return to"),
    }
}

fn nothing_else(apps: &[AppName]) -> String {
    match apps {
        [] => "roll back: no generation that is kept has other vhosts than those that serve".into(),
        [app] => format!("roll back {app}: no generation that is kept has another version of it"),
        apps => {
            let apps: Vec<&str> = apps.iter().map(AppName::as_str).collect();
            let apps = apps.join(", ");
            format!("roll back {apps}: no generation that is kept has them all, and other versions")
        }
    }
}
