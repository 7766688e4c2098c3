//! W: what was activated when, and how that ended; what `vhostd history` shows.
//!
//! It is written after the proof. A generation that `current` names and that is not in it was
//! activated by somebody who was killed: the next run proves it or rolls it back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::manifest::Reason;
use super::{GenerationError, read_failed};
use crate::atomic_file::{self, WriteError};

/// Oldest first.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct History {
    entries: Vec<HistoryEntry>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HistoryEntry {
    pub generation: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub reason: Reason,
    pub result: Proof,
    /// Apps that came, changed or went: `+shop ~hello -old`.
    pub changes: String,
    /// Why it was rolled back.
    pub why: Option<String>,
}

/// How an activation ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// It was seen to serve.
    Proven,
    /// nginx was down: it serves when nginx comes up.
    NginxDown,
    RolledBack,
}

const MOST: usize = 200;

impl History {
    /// A missing history is an empty one; so is one that is damaged, which the next entry replaces.
    /// One that cannot be read now is an error: what it protects would be pruned.
    pub fn read(state_dir: &Path) -> Result<Self, GenerationError> {
        let path = state_dir.join("history.json");
        let history = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Self>(&bytes).unwrap_or_else(|error| {
                tracing::warn!("{} is damaged and begun anew: {error}", path.display());
                Self::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(read_failed(&path)(error)),
        };
        Ok(Self { path, ..history })
    }

    pub fn record(&mut self, entry: HistoryEntry) -> Result<(), WriteError> {
        self.entries.push(entry);
        while self.entries.len() > MOST {
            // what served is what `rollback` can return to: repeated failures do not crowd it out
            let failed = |entry: &HistoryEntry| entry.result != Proof::Proven;
            let oldest = self.entries.iter().position(failed).unwrap_or(0);
            self.entries.remove(oldest);
        }
        atomic_file::write_json(&self.path, self, 0o600)
    }

    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    pub fn proven(&self) -> impl Iterator<Item = u64> {
        let proven = self
            .entries
            .iter()
            .filter(|entry| entry.result == Proof::Proven);
        proven.map(|entry| entry.generation)
    }

    /// The highest number that was ever activated.
    pub fn newest(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.generation).max()
    }

    /// The newest entry about `generation`.
    pub fn last(&self, generation: u64) -> Option<&HistoryEntry> {
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.generation == generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_an_error_and_only_what_is_missing_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            History::read(directory.path())
                .unwrap()
                .entries()
                .is_empty()
        );
        atomic_file::create_directory(&directory.path().join("history.json"), 0o700).unwrap();
        let error = History::read(directory.path()).unwrap_err();
        assert!(error.to_string().contains("history.json"), "{error}");
    }

    #[test]
    fn a_reload_that_fails_for_days_does_not_crowd_out_what_rollback_can_return_to() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::read(directory.path()).unwrap();
        let entry = |generation, result| HistoryEntry {
            generation,
            at: OffsetDateTime::UNIX_EPOCH,
            reason: Reason::File,
            result,
            changes: String::new(),
            why: None,
        };
        history.record(entry(1, Proof::Proven)).unwrap();
        for generation in 2..MOST as u64 + 50 {
            let failed = entry(generation, Proof::RolledBack);
            history.record(failed).unwrap();
        }
        let read = History::read(directory.path()).unwrap();
        assert_eq!(read.entries().len(), MOST);
        assert_eq!(read.proven().collect::<Vec<_>>(), [1]);
        assert_eq!(read.newest(), Some(MOST as u64 + 49));
    }
}
