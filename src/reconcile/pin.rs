//! W: a rollback holds until a vhost file changes or `vhostd reload` ends it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::{self, WriteError};
use crate::vhost::source::VhostFile;

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pin {
    /// The generation whose vhosts serve.
    pub generation: u64,
    /// Of all vhost files as they were at the rollback.
    files: String,
}

impl Pin {
    pub fn new(generation: u64, files: &[VhostFile]) -> Self {
        let files = digest(files);
        Self { generation, files }
    }

    pub fn read(state_dir: &Path) -> Option<Self> {
        let bytes = fs::read(path(state_dir)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Whether no file changed since.
    pub fn holds(&self, files: &[VhostFile]) -> bool {
        self.files == digest(files)
    }

    pub fn write(&self, state_dir: &Path) -> Result<(), WriteError> {
        atomic_file::write_json(&path(state_dir), self, 0o600)
    }

    pub fn remove(state_dir: &Path) -> Result<(), WriteError> {
        atomic_file::remove(&path(state_dir))
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("pin.json")
}

fn digest(files: &[VhostFile]) -> String {
    let mut hasher = Sha256::new();
    for file in files {
        let text = match &file.text {
            Ok(text) => text.clone(),
            Err(diagnostic) => diagnostic.to_string(),
        };
        for part in [file.path.to_string_lossy().as_ref(), &text] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
