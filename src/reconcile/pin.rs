//! W: a rollback holds until a vhost file changes or `vhostd reload` ends it.

use std::fs;
use std::io;
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

/// `vhostd reload` ends the rollback, whatever it was.
#[derive(Debug, thiserror::Error)]
#[error("read what a rollback holds in {}: {source}", path.display())]
pub struct PinError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl PinError {
    /// Not what is written there: only that it cannot be read now.
    pub fn is_passing(&self) -> bool {
        self.source.kind() != io::ErrorKind::UnexpectedEof
            && self.source.kind() != io::ErrorKind::InvalidData
    }
}

impl Pin {
    pub fn new(generation: u64, files: &[VhostFile]) -> Self {
        let files = digest(files);
        Self { generation, files }
    }

    /// A rollback that holds, and of what nobody knows, is an error: it is not ended on a guess.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, PinError> {
        let path = path(state_dir);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(PinError { path, source }),
            Ok(bytes) => bytes,
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| PinError {
                path,
                source: error.into(),
            })
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
