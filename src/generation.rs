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

mod error; // P what can be wrong with them, and the next step
pub mod history; // W what was activated when, and whether it was proven
pub mod manifest; // P what a generation was made from
pub mod previous; // W the version of each app before the one that serves
pub mod repair; // W what is missing or damaged → what served, or a refusal

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::atomic_file::{self, WriteError};
use crate::nginx::{Accepted, Nginx, TestError};
use crate::render::{self, RenderedConfig, entry};

pub use error::GenerationError;

use history::History;
use manifest::{FORMAT, Manifest};

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

    /// The number that `current` names, without reading the generation. Only a link to one of ours
    /// counts: whatever else it leads to was never tested.
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
        let number = target.ok().and_then(|target| {
            let number = number(target.file_name()?.to_str()?)?;
            (self.state_dir.join(&target) == self.path(number)).then_some(number)
        });
        match number {
            Some(number) if is_file(&self.path(number).join(render::ENTRY))? => Ok(number),
            _ => Err(repair::lost(&current, self)),
        }
    }

    pub fn active(&self) -> Result<ActiveGeneration, GenerationError> {
        let manifest = self.manifest(self.active_number()?)?;
        Ok(ActiveGeneration { manifest })
    }

    pub fn manifest(&self, number: u64) -> Result<Manifest, GenerationError> {
        let damaged = |why: String| GenerationError::Damaged { number, why };
        let path = self.path(number).join(MANIFEST);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(format!("{} is missing", path.display())));
            }
            read => read.map_err(read_failed(&path))?,
        };
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(format!("{}: {error}", path.display())))?;
        match (manifest.format, manifest.number) {
            (FORMAT, of) if of == number => Ok(manifest),
            (FORMAT, of) => Err(damaged(format!("{} is of {of}", path.display()))),
            _ => Err(GenerationError::Newer(number)),
        }
    }

    /// As [`Self::manifest`], of a generation that is not active: nothing repairs it.
    pub fn earlier_manifest(&self, number: u64) -> Result<Manifest, GenerationError> {
        self.manifest(number).map_err(|error| match error {
            GenerationError::Damaged { .. } | GenerationError::Newer(_) => {
                GenerationError::Unreturnable {
                    path: self.path(number),
                    source: Box::new(error),
                }
            }
            error => error,
        })
    }

    /// As [`Self::manifest`]; `None` where it is not what was written.
    pub fn manifest_if_good(&self, number: u64) -> Result<Option<Manifest>, GenerationError> {
        match self.manifest(number) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(GenerationError::Damaged { .. } | GenerationError::Newer(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One of its files, by its relative name; `None` where there is none.
    pub fn read(&self, number: u64, name: &Path) -> Result<Option<Vec<u8>>, GenerationError> {
        repair::read_file(&self.path(number).join(name))
    }

    /// The generations on disk, oldest first. What else somebody put beside them is not ours: it
    /// is neither used nor removed.
    pub fn numbers(&self) -> Result<Vec<u64>, GenerationError> {
        let directory = self.directory();
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&directory).map_err(read_failed(&directory))? {
            let entry = entry.map_err(read_failed(&directory))?;
            let number = entry.file_name().to_str().and_then(number);
            if let Some(number) = number
                && is_file(&entry.path().join(MANIFEST))?
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Where it is missing although there are generations, it was lost.
    pub fn history(&self) -> Result<History, GenerationError> {
        if !self.has_history() && self.numbers()?.iter().any(|number| *number > 0) {
            let path = self.state_dir.join(history::FILE);
            let why = "it is missing, and there are generations".into();
            return Err(GenerationError::History { path, why });
        }
        History::read(&self.state_dir)
    }

    fn has_history(&self) -> bool {
        // what cannot be looked at is not missing
        let path = self.state_dir.join(history::FILE);
        !fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

/// As we write it, and far below where counting ends.
fn number(name: &str) -> Option<u64> {
    let number: u64 = name.parse().ok().filter(|number| *number < 1 << 53)?;
    (name == number.to_string()).then_some(number)
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
        let numbers = self.store.numbers()?;
        let last = numbers.last().copied().max(used);
        let mut number = last.map_or(0, |last| last + 1);
        // what is no generation has its name all the same
        while fs::symlink_metadata(self.store.path(number)).is_ok() {
            number += 1;
        }
        let directory = self.store.path(number);
        let entry = entry(rendered, number, &directory)?;
        let manifest = Manifest {
            entry: Some(render::digest_of(&entry)),
            number,
            digest: rendered.digest.clone(),
            files: rendered.apps.clone(),
            ..draft
        };
        let bytes =
            serde_json::to_vec_pretty(&manifest).map_err(|error| GenerationError::Damaged {
                number,
                why: error.to_string(),
            })?;
        let mut files: Vec<(&Path, &[u8])> = vec![
            (Path::new(render::ENTRY), &entry),
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
        atomic_file::build(&directory, |temporary| {
            atomic_file::write_tree(temporary, &files, reusable.as_deref())
        })?;
        Ok(StagedGeneration {
            manifest,
            directory,
        })
    }

    /// Has nginx judge the staged generation where the active one, of the manifest `serving`, is
    /// read now.
    pub fn test(
        &self,
        staged: StagedGeneration,
        serving: &Manifest,
        nginx: &dyn Nginx,
    ) -> Result<(TestedGeneration, Accepted), Box<(StagedGeneration, TestError)>> {
        let active = match self.store.active_number() {
            Ok(number) => self.store.path(number),
            Err(_) => staged.directory.clone(),
        };
        match nginx.test(
            &staged.directory,
            &active,
            &staged.manifest.logs_beside(serving),
        ) {
            Ok(accepted) => {
                let manifest = staged.manifest;
                Ok((TestedGeneration { manifest }, accepted))
            }
            Err(error) => Err(Box::new((staged, error))),
        }
    }

    /// Points `current` at the tested generation, by one rename.
    pub fn activate(&self, tested: TestedGeneration) -> Result<Activation, GenerationError> {
        let previous = self.way_back()?;
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

    /// Removes a generation that will not be activated.
    pub fn discard(&self, staged: StagedGeneration) -> Result<(), GenerationError> {
        Ok(atomic_file::remove(&staged.directory)?)
    }

    /// As [`Self::discard`], for one that passed its test and is outdated all the same.
    pub fn discard_tested(&self, tested: TestedGeneration) -> Result<(), GenerationError> {
        let path = self.store.path(tested.manifest.number);
        Ok(atomic_file::remove(&path)?)
    }

    /// Removes all but the newest [`KEPT`] generations that served, 0, the active one and `also`. What
    /// is neither in the history nor whole enough to be one of ours stays.
    pub fn prune(&self, also: &[u64]) -> Result<(), GenerationError> {
        let active = self.store.active_number()?;
        let history = self.store.history()?;
        let mut served: Vec<u64> = history.returnable().collect();
        served.sort_unstable_by(|a, b| b.cmp(a));
        served.dedup();
        served.truncate(KEPT);
        for number in self.store.numbers()? {
            let kept = number == 0
                || number == active
                || also.contains(&number)
                || served.contains(&number);
            let ours = || history.last(number).is_some() || self.store.manifest(number).is_ok();
            if !kept && ours() {
                atomic_file::remove(&self.store.path(number))?;
            }
        }
        Ok(())
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

/// Whether a regular file is there. What cannot be looked at now is not missing: that is an error.
fn is_file(path: &Path) -> Result<bool, GenerationError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(read_failed(path)(error)),
    }
}

fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    // a symbolic link to itself leads nowhere, too
    let is_loop = error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32);
    is_loop || matches!(error.kind(), NotADirectory | NotFound)
}

fn read_failed(path: &Path) -> impl Fn(io::Error) -> GenerationError + '_ {
    move |source| GenerationError::Read {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests;
