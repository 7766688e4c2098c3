//! P: what can be wrong with the generations, and the next step.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::atomic_file::WriteError;
use crate::nginx::TestError;
use crate::render::RenderError;

#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("read generation {number}: {why}")]
    Damaged { number: u64, why: String },
    #[error("find the active generation: {} is no symbolic link, and not vhostd's", .0.display())]
    ForeignCurrent(PathBuf),
    #[error("read the history in {}: {why}", path.display())]
    History { path: PathBuf, why: String },
    #[error("wait for the lock {}: another vhostd has held it for {} s", path.display(), waited.as_secs())]
    Locked { path: PathBuf, waited: Duration },
    #[error("find the active generation: {} {why}", path.display())]
    LostCurrent { path: PathBuf, why: String },
    #[error("read generation {0}: a newer vhostd wrote it")]
    Newer(u64),
    #[error("find the active generation: {} is missing", .0.display())]
    NoCurrent(PathBuf),
    #[error(
        "find the active generation: nothing tells which one served, and of generation {number}, the newest that is whole: {source}"
    )]
    NoneAccepted {
        number: u64,
        #[source]
        source: Box<TestError>,
    },
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error("{source}; nothing can return to it: remove {}", path.display())]
    Unreturnable {
        /// Of the generation.
        path: PathBuf,
        #[source]
        source: Box<GenerationError>,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl GenerationError {
    /// The next step.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::ForeignCurrent(_) => Some("move it away, then run `vhostd reload`"),
            Self::Damaged { .. } | Self::History { .. } | Self::LostCurrent { .. } => {
                Some("run `vhostd reload`, which repairs what it can")
            }
            Self::Newer(_) => Some("install the vhostd that wrote it"),
            Self::NoCurrent(_) => Some("run `vhostd setup` first"),
            Self::NoneAccepted { .. } => {
                Some("mend what nginx complains of, then run `vhostd reload`")
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root: what vhostd keeps is for root alone")
            }
            _ => None,
        }
    }
}
