//! W: challenges that nginx cannot answer by itself.
//!
//! nginx answers `token.thumbprint` for one account key. Where there is another one (a fallback CA's,
//! or that of a key change), its answer is a file, which nginx looks for first. It is no secret, so
//! it lies where nginx's workers may read: `runtime_dir/challenges`, which may be missing.

use std::fs;
use std::path::{Path, PathBuf};

use time::{Duration, OffsetDateTime};

use crate::atomic_file::{self, WriteError};

/// `runtime_dir/challenges`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChallengeFiles {
    directory: PathBuf,
}

/// One answer; it is gone when this is dropped.
#[must_use = "the answer is removed with this value"]
#[derive(Debug)]
pub struct Answered {
    path: PathBuf,
}

impl ChallengeFiles {
    pub fn below(runtime_dir: &Path) -> Self {
        let directory = runtime_dir.join("challenges");
        Self { directory }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `token`: base64url (RFC 8555 §8.3), which the caller has checked: it is a file name here.
    pub fn answer(&self, token: &str, thumbprint: &str) -> Result<Answered, WriteError> {
        // after a restart of the host it is missing
        atomic_file::create_directory(&self.directory, 0o755)?;
        let path = self.directory.join(token);
        atomic_file::write(&path, format!("{token}.{thumbprint}").as_bytes(), 0o644)?;
        Ok(Answered { path })
    }

    /// Removes what a crash has left. An order that is under way is younger.
    pub fn sweep(&self, now: OffsetDateTime) -> Result<(), WriteError> {
        atomic_file::sweep_dead(&self.directory)?;
        for entry in fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            let age = written.map(|written| now - OffsetDateTime::from(written));
            if age.is_ok_and(|age| age > LONGEST_ORDER) {
                atomic_file::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if let Err(error) = atomic_file::remove(&self.path) {
            tracing::warn!("failed to {error}");
        }
    }
}

const LONGEST_ORDER: Duration = Duration::HOUR;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_answer_is_there_for_everybody_as_long_as_its_order_and_what_a_crash_left_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let files = ChallengeFiles::below(directory.path());
        let answered = files.answer("token", "thumb").unwrap();
        let path = files.directory().join("token");
        assert_eq!(fs::read_to_string(&path).unwrap(), "token.thumb");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(files.directory()), mode(&path)), (0o755, 0o644));
        drop(answered);
        assert!(!path.exists());
        std::mem::forget(files.answer("token", "thumb").unwrap());
        let now = OffsetDateTime::now_utc();
        files.sweep(now).unwrap();
        assert!(path.exists(), "it may be under way");
        files.sweep(now + Duration::hours(2)).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nothing_to_sweep_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let files = ChallengeFiles::below(directory.path());
        files.sweep(OffsetDateTime::now_utc()).unwrap();
    }
}
