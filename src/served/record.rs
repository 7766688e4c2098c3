//! W: what the last looks found, for `vhostd status` and for whoever tells the operator.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Expected, Looked};
use crate::atomic_file::{self, WriteError};
use crate::notice::change::Difference;
use crate::notice::memory;

/// What was seen last: `notices/served.json` in the state directory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ServedRecord {
    /// When every name had been asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub checked_at: OffsetDateTime,
    pub differences: Vec<Difference>,
}

impl ServedRecord {
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(state_dir)).ok()?).ok()
    }

    pub fn write(&self, state_dir: &Path) -> Result<(), WriteError> {
        memory::directory(state_dir)?;
        atomic_file::write_json(&path(state_dir), self, 0o600)
    }

    /// Takes in what a look at some names found. Names that are served no more are forgotten.
    pub fn learn(&mut self, looked: &Looked, expected: &Expected) {
        self.differences
            .retain(|it| !looked.asked.contains_key(&it.host) && expected.contains_key(&it.host));
        self.differences.extend(looked.differences.iter().cloned());
        self.differences.sort_by(|a, b| a.host.cmp(&b.host));
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(memory::DIRECTORY).join("served.json")
}
