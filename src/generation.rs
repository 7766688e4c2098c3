//! W: immutable, numbered generations; owns `current` and the lock.
//!
//! `StagedGeneration` → `TestedGeneration` → [`Activation`] → `ActiveGeneration`: each is made only
//! from the one before, so activating an untested generation does not compile:
//!
//! ```compile_fail,E0308
//! # use vhostd::generation::{LockedStore, StagedGeneration};
//! fn activate(store: &LockedStore, staged: StagedGeneration) {
//!     let _ = store.activate(staged);
//! }
//! ```
//!
//! and a tested one does:
//!
//! ```
//! # use vhostd::generation::{LockedStore, TestedGeneration};
//! fn activate(store: &LockedStore, tested: TestedGeneration) {
//!     let _ = store.activate(tested);
//! }
//! ```

pub mod history; // W what was activated when, and whether it was proven
pub mod manifest; // P what a generation was made from

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::atomic_file::{self, WriteError};
use crate::nginx::{Accepted, Nginx, TestError};
use crate::render::{RenderError, RenderedConfig, entry};

use history::History;
use manifest::Manifest;

/// The state directory's generations.
#[derive(Clone, Debug)]
pub struct GenerationStore {
    state_dir: PathBuf,
}

/// The store while this process alone may change it. Dropping it unlocks.
#[derive(Debug)]
pub struct LockedStore {
    store: GenerationStore,
    _lock: File,
}

/// Complete on disk, durable, unseen by nginx.
#[derive(Debug)]
pub struct StagedGeneration {
    manifest: Manifest,
    directory: PathBuf,
}

/// nginx accepted it exactly where it will be read.
#[derive(Debug)]
pub struct TestedGeneration {
    manifest: Manifest,
}

/// `current` points at a new generation that is not yet proven to serve.
#[must_use = "an activation is committed or rolled back"]
#[derive(Debug)]
pub struct Activation {
    manifest: Manifest,
    previous: u64,
}

/// The generation that `current` points at.
#[derive(Clone, Debug)]
pub struct ActiveGeneration {
    pub manifest: Manifest,
}

#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("read generation {number}: {why}")]
    Damaged { number: u64, why: String },
    #[error("wait for the lock {}: another vhostd has held it for {} s", path.display(), waited.as_secs())]
    Locked { path: PathBuf, waited: Duration },
    #[error("find the active generation: {} is missing or leads nowhere", .0.display())]
    NoCurrent(PathBuf),
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl GenerationError {
    /// The next step.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoCurrent(_) => Some("run `vhostd setup` first"),
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root: what vhostd keeps is for root alone")
            }
            _ => None,
        }
    }
}

/// What `rollback` can return to, as the contract promises, and the generation 0 beside them.
pub const KEPT: usize = 20;

const CURRENT: &str = "current";
const MANIFEST: &str = "manifest.json";

impl GenerationStore {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_path_buf(),
        }
    }

    pub fn directory(&self) -> PathBuf {
        self.state_dir.join("generations")
    }

    pub fn path(&self, number: u64) -> PathBuf {
        self.directory().join(number.to_string())
    }

    /// Waits at most `limit` for whoever reconciles now; two reloads at once are one after the
    /// other.
    pub fn lock(&self, limit: Duration) -> Result<LockedStore, GenerationError> {
        let path = self.state_dir.join("lock");
        let begin = Instant::now();
        let file = atomic_file::lock_file(&path)?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::Error(source)) => {
                    return Err(GenerationError::Read { path, source });
                }
                Err(fs::TryLockError::WouldBlock) if begin.elapsed() >= limit => {
                    let waited = limit;
                    return Err(GenerationError::Locked { path, waited });
                }
                Err(fs::TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(2)),
            }
        }
        let locked = LockedStore {
            store: self.clone(),
            _lock: file,
        };
        locked.sweep()?;
        Ok(locked)
    }

    /// The number that `current` names, without reading the generation.
    pub fn active_number(&self) -> Result<u64, GenerationError> {
        let current = self.state_dir.join(CURRENT);
        let target = fs::read_link(&current);
        if let Err(error) = &target
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return Err(read_failed(&current)(
                io::ErrorKind::PermissionDenied.into(),
            ));
        }
        target
            .ok()
            .filter(|_| current.join("http.conf").is_file())
            .and_then(|target| target.file_name()?.to_str()?.parse().ok())
            .ok_or(GenerationError::NoCurrent(current))
    }

    pub fn active(&self) -> Result<ActiveGeneration, GenerationError> {
        let manifest = self.manifest(self.active_number()?)?;
        Ok(ActiveGeneration { manifest })
    }

    pub fn manifest(&self, number: u64) -> Result<Manifest, GenerationError> {
        let path = self.path(number).join(MANIFEST);
        let bytes = fs::read(&path).map_err(read_failed(&path))?;
        serde_json::from_slice(&bytes).map_err(|error| GenerationError::Damaged {
            number,
            why: error.to_string(),
        })
    }

    /// One of its files, by its relative name.
    pub fn read(&self, number: u64, name: &Path) -> Result<Vec<u8>, GenerationError> {
        let path = self.path(number).join(name);
        fs::read(&path).map_err(read_failed(&path))
    }

    /// The generations on disk, oldest first.
    pub fn numbers(&self) -> Result<Vec<u64>, GenerationError> {
        let directory = self.directory();
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&directory).map_err(read_failed(&directory))? {
            let entry = entry.map_err(read_failed(&directory))?;
            numbers.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<u64>().ok()),
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    pub fn history(&self) -> Result<History, GenerationError> {
        History::read(&self.state_dir)
    }
}

impl LockedStore {
    pub fn store(&self) -> &GenerationStore {
        &self.store
    }

    /// Writes a new generation, durably, under the next number. `draft` becomes its manifest; files
    /// whose bytes the active generation already holds become second names of those.
    pub fn stage(
        &self,
        rendered: &RenderedConfig,
        draft: Manifest,
    ) -> Result<StagedGeneration, GenerationError> {
        // a number that once was `current` is never given to other bytes
        let used = self.store.history()?.newest();
        let number = self
            .store
            .numbers()?
            .last()
            .copied()
            .max(used)
            .map_or(0, |last| last + 1);
        let directory = self.store.path(number);
        let manifest = Manifest {
            number,
            digest: rendered.digest.clone(),
            files: rendered.apps.clone(),
            ..draft
        };
        let temporary = atomic_file::temporary_beside(&directory)?;
        atomic_file::remove(&temporary)?;
        let entry = entry(rendered, number, &directory)?;
        let bytes =
            serde_json::to_vec_pretty(&manifest).map_err(|error| GenerationError::Damaged {
                number,
                why: error.to_string(),
            })?;
        let mut files: Vec<(&Path, &[u8])> = vec![
            (Path::new("http.conf"), &entry),
            (Path::new(MANIFEST), &bytes),
        ];
        files.extend(
            rendered
                .files
                .iter()
                .map(|(path, bytes)| (path.as_path(), bytes.as_slice())),
        );
        let reusable = self
            .store
            .active_number()
            .ok()
            .map(|active| self.store.path(active));
        atomic_file::write_tree(&temporary, &files, reusable.as_deref())?;
        atomic_file::rename(&temporary, &directory)?;
        Ok(StagedGeneration {
            manifest,
            directory,
        })
    }

    /// Has nginx judge the staged generation where the active one is read now.
    pub fn test(
        &self,
        staged: StagedGeneration,
        nginx: &dyn Nginx,
    ) -> Result<(TestedGeneration, Accepted), Box<(StagedGeneration, TestError)>> {
        let active = match self.store.active_number() {
            Ok(number) => self.store.path(number),
            Err(_) => staged.directory.clone(),
        };
        match nginx.test(&staged.directory, &active, &staged.manifest.logs) {
            Ok(accepted) => {
                let manifest = staged.manifest;
                Ok((TestedGeneration { manifest }, accepted))
            }
            Err(error) => Err(Box::new((staged, error))),
        }
    }

    /// Points `current` at the tested generation, by one rename.
    pub fn activate(&self, tested: TestedGeneration) -> Result<Activation, GenerationError> {
        let previous = self.store.active_number()?;
        self.point_at(tested.manifest.number)?;
        Ok(Activation {
            manifest: tested.manifest,
            previous,
        })
    }

    /// An earlier activation that was never proven (we were killed): to be proven now.
    pub fn resume(&self, active: ActiveGeneration, previous: u64) -> Activation {
        Activation {
            manifest: active.manifest,
            previous,
        }
    }

    /// Makes generation 0, which serves nothing, and `current`, where they are missing.
    pub fn found(&self, empty: &Manifest) -> Result<(), GenerationError> {
        let zero = self.store.path(0);
        if !zero.join("http.conf").is_file() {
            let bytes =
                serde_json::to_vec_pretty(empty).map_err(|error| GenerationError::Damaged {
                    number: 0,
                    why: error.to_string(),
                })?;
            let entry: &[u8] = b"# Managed by vhostd: nothing is served yet.\n";
            let files = [
                (Path::new("http.conf"), entry),
                (Path::new(MANIFEST), &bytes),
            ];
            let temporary = atomic_file::temporary_beside(&zero)?;
            atomic_file::remove(&temporary)?;
            atomic_file::remove(&zero)?;
            atomic_file::write_tree(&temporary, &files, None)?;
            atomic_file::rename(&temporary, &zero)?;
        }
        if self.store.active_number().is_err() {
            self.point_at(self.newest_proven_before(u64::MAX)?)?;
        }
        Ok(())
    }

    /// Removes a generation that will not be activated.
    pub fn discard(&self, staged: StagedGeneration) -> Result<(), GenerationError> {
        Ok(atomic_file::remove(&staged.directory)?)
    }

    /// As [`Self::discard`], for one that passed its test and is outdated all the same.
    pub fn discard_tested(&self, tested: TestedGeneration) -> Result<(), GenerationError> {
        Ok(atomic_file::remove(
            &self.store.path(tested.manifest.number),
        )?)
    }

    /// Removes all but the newest [`KEPT`] proven generations, 0, the active one and `also`.
    pub fn prune(&self, also: &[u64]) -> Result<(), GenerationError> {
        let active = self.store.active_number()?;
        let history = self.store.history()?;
        let mut proven: Vec<u64> = history.proven().collect();
        proven.sort_unstable_by(|a, b| b.cmp(a));
        proven.truncate(KEPT);
        for number in self.store.numbers()? {
            let kept = number == 0
                || number == active
                || also.contains(&number)
                || proven.contains(&number);
            if !kept {
                atomic_file::remove(&self.store.path(number))?;
            }
        }
        Ok(())
    }

    /// The newest generation below `number` that once served, else 0.
    pub fn newest_proven_before(&self, number: u64) -> Result<u64, GenerationError> {
        let numbers = self.store.numbers()?;
        let history = self.store.history()?;
        let proven = history
            .proven()
            .filter(|proven| *proven < number && numbers.contains(proven));
        Ok(proven.max().unwrap_or(0))
    }

    fn point_at(&self, number: u64) -> Result<(), WriteError> {
        let target = Path::new("generations").join(number.to_string());
        atomic_file::symlink(&self.store.state_dir.join(CURRENT), &target)
    }

    fn sweep(&self) -> Result<(), WriteError> {
        atomic_file::sweep(&self.store.state_dir)?;
        atomic_file::sweep(&self.store.directory())
    }
}

impl TestedGeneration {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl StagedGeneration {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Activation {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn previous(&self) -> u64 {
        self.previous
    }

    /// It serves.
    pub fn commit(self) -> ActiveGeneration {
        ActiveGeneration {
            manifest: self.manifest,
        }
    }

    /// It does not serve: `current` goes back to what did.
    pub fn roll_back(self, locked: &LockedStore) -> Result<ActiveGeneration, GenerationError> {
        locked.point_at(self.previous)?;
        locked.store.active()
    }
}

fn read_failed(path: &Path) -> impl Fn(io::Error) -> GenerationError + '_ {
    move |source| GenerationError::Read {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_that_lock_at_once_lock_the_same_file() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let store = GenerationStore::new(directory.path());
            atomic_file::create_directory(&store.directory(), 0o700).unwrap();
            let inside = std::sync::atomic::AtomicUsize::new(0);
            let start = std::sync::Barrier::new(4);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        start.wait();
                        let _locked = store.lock(Duration::from_secs(10)).unwrap();
                        let others = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(others, 0);
                        thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    });
                }
            });
        }
    }
}
