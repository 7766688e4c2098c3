//! W: the hand-written configuration as nginx last accepted it, with the files that it was read from:
//! while none of those changes, nginx is not asked again.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic_file::{self, WriteError};
use crate::nginx::dump::Survey;
use crate::nginx::included::IncludedFiles;

/// `hand_written.json` in the state directory. Without it nginx is asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LastLook {
    /// From before the test.
    pub files: IncludedFiles,
    pub survey: Survey,
}

impl LastLook {
    /// `None` where there is none that can be read.
    pub fn read(state_dir: &Path) -> Option<Self> {
        let bytes = fs::read(path(state_dir)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn write(&self, state_dir: &Path) -> Result<(), WriteError> {
        if Self::read(state_dir).as_ref() == Some(self) {
            return Ok(());
        }
        atomic_file::write_json(&path(state_dir), self, 0o600)
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("hand_written.json")
}
