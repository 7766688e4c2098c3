//! W: certbot's own lock, so that none runs while its files are read or changed.
//!
//! `.certbot.lock` in its configuration directory: lockf(3) of a file that whoever is done removes,
//! so that the lock counts only while the file still has its name (certbot's `_internal/lock.py`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use super::patiently;
use crate::atomic_file::{self, WriteError};

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct CertbotLock {
    path: PathBuf,
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum CertbotLockError {
    #[error("lock {}: certbot is running", .0.display())]
    Busy(PathBuf),
    #[error("lock {}: {source}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl CertbotLockError {
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Busy(_) => {
                "try again when it has ended; its timer may wait for some minutes before it begins"
            }
            Self::Lock { .. } | Self::Write(_) => "run it as root: nothing was changed",
        }
    }
}

impl CertbotLock {
    pub(super) fn acquire(config_dir: &Path) -> Result<Self, CertbotLockError> {
        let path = config_dir.join(".certbot.lock");
        let acquired = patiently(|| Self::try_acquire(&path))?;
        acquired.ok_or(CertbotLockError::Busy(path))
    }

    fn try_acquire(path: &Path) -> Result<Option<Self>, CertbotLockError> {
        let failed = |source| CertbotLockError::Lock {
            path: path.to_path_buf(),
            source,
        };
        atomic_file::lock_file(path)?;
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(path);
        let file = match opened {
            // somebody was done with it
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_SETLK(&whole)) {
            Err(Errno::EACCES | Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
            Ok(_) => {}
        }
        let ours = file.metadata().map_err(failed)?.ino();
        let named = fs::symlink_metadata(path).is_ok_and(|it| it.ino() == ours);
        let path = path.to_path_buf();
        Ok(named.then_some(Self { path, _file: file }))
    }
}

impl Drop for CertbotLock {
    fn drop(&mut self) {
        // as certbot does; what stays locks nobody out
        let _ = atomic_file::remove(&self.path);
    }
}
