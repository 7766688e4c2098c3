//! W: what was activated when, and how that ended; what `vhostd history` shows.
//!
//! It is written after the proof. A generation that `current` names and that is not in it was
//! activated by somebody who was killed: the next run proves it or rolls it back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::manifest::{Manifest, Reason};
use super::{GenerationError, read_failed};
use crate::atomic_file::{self, WriteError};

/// Oldest first.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct History {
    entries: Vec<HistoryEntry>,
    /// Up to here, numbers may have been activated that no entry tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beyond: Option<u64>,
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

impl HistoryEntry {
    fn may_have_served(&self) -> bool {
        matches!(self.result, Proof::Proven | Proof::Unknown)
    }
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
    /// The history was lost. What is kept may have served.
    Unknown,
}

pub(super) const FILE: &str = "history.json";
const MOST: usize = 200;
/// What was activated and rolled back since the newest generation that is kept leaves no trace but
/// the history: so many numbers are left out when that was lost.
pub(super) const UNKNOWN_NUMBERS: u64 = 100;

impl History {
    /// One that cannot be read, or that is damaged, is an error: what it protects would be pruned.
    pub(super) fn read(state_dir: &Path) -> Result<Self, GenerationError> {
        let path = state_dir.join(FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::empty(state_dir));
            }
            read => read.map_err(read_failed(&path))?,
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(history) => Ok(Self { path, ..history }),
            Err(error) => Err(GenerationError::History {
                path,
                why: error.to_string(),
            }),
        }
    }

    pub(super) fn empty(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(FILE),
            ..Self::default()
        }
    }

    /// Of what is there, oldest first; numbers up to `beyond` are not used again.
    pub(super) fn rebuilt(state_dir: &Path, manifests: &[Manifest], beyond: u64) -> Self {
        let entries = manifests.iter().map(|manifest| HistoryEntry {
            generation: manifest.number,
            at: manifest.created_at,
            reason: manifest.reason,
            result: Proof::Unknown,
            changes: String::new(),
            why: None,
        });
        Self {
            entries: entries.collect(),
            beyond: Some(beyond),
            ..Self::empty(state_dir)
        }
    }

    pub(super) fn write(&self) -> Result<(), WriteError> {
        atomic_file::write_json(&self.path, self, 0o600)
    }

    pub fn record(&mut self, entry: HistoryEntry) -> Result<(), WriteError> {
        self.entries.push(entry);
        while self.entries.len() > MOST {
            // what served is what `rollback` can return to: repeated failures do not crowd it out
            let failed = |entry: &HistoryEntry| !entry.may_have_served();
            let oldest = self.entries.iter().position(failed).unwrap_or(0);
            self.entries.remove(oldest);
        }
        self.write()
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

    /// What a rollback can return to: what served, or may have.
    pub fn returnable(&self) -> impl Iterator<Item = u64> {
        let served = self.entries.iter().filter(|entry| entry.may_have_served());
        served.map(|entry| entry.generation)
    }

    /// The highest number that was ever activated, or may have been.
    pub fn newest(&self) -> Option<u64> {
        let entries = self.entries.iter().map(|entry| entry.generation);
        entries.chain(self.beyond).max()
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
    fn what_cannot_be_read_or_is_damaged_is_an_error_and_only_what_is_missing_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            History::read(directory.path())
                .unwrap()
                .entries()
                .is_empty()
        );
        let path = directory.path().join(FILE);
        atomic_file::write(&path, b"{\"entries\": [{\"gen", 0o600).unwrap();
        let error = History::read(directory.path()).unwrap_err();
        assert!(matches!(error, GenerationError::History { .. }), "{error}");
        atomic_file::remove(&path).unwrap();
        atomic_file::create_directory(&path, 0o700).unwrap();
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
