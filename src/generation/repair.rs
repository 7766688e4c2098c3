//! W: what a state directory lacks or has wrong → something that served, or a refusal. Nothing is
//! removed for it, and what was damaged is set aside.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::history::{self, History};
use super::manifest::Manifest;
use super::{
    CURRENT, GenerationError, GenerationStore, LockedStore, MANIFEST, is_absence, read_failed,
};
use crate::atomic_file;
use crate::nginx::Nginx;
use crate::render;

impl GenerationStore {
    /// In what the files of a generation are not what was written; `None`: in nothing. A disk that
    /// cannot be read now says nothing about them: that is an error.
    pub fn damage(&self, manifest: &Manifest) -> Result<Option<String>, GenerationError> {
        let directory = self.path(manifest.number);
        let entry = Path::new(render::ENTRY);
        let Some(bytes) = read_file(&directory.join(entry))? else {
            return Ok(Some(changed(&directory, entry, false)));
        };
        let written = manifest.entry.as_ref();
        if written.is_some_and(|written| *written != render::digest_of(&bytes)) {
            return Ok(Some(changed(&directory, entry, true)));
        }
        // generation 0 is nothing but its entry
        let mut files = BTreeMap::new();
        let base = (manifest.number > 0).then(|| PathBuf::from(render::BASE));
        for name in base.into_iter().chain(manifest.files.keys().cloned()) {
            match read_file(&directory.join(&name))? {
                Some(bytes) => files.insert(name, bytes),
                None => return Ok(Some(changed(&directory, &name, false))),
            };
        }
        if manifest.number == 0 || render::digest(&files) == manifest.digest {
            return Ok(None);
        }
        let other = files.iter().find(|(name, bytes)| {
            let app = manifest.files.get(*name);
            let mut names = manifest.names.iter();
            let written = names.find(|served| Some(served.vhost.app()) == app);
            written.is_some_and(|served| served.config != render::digest_of(bytes))
        });
        let other = other.map_or(Path::new(render::BASE), |(name, _)| name);
        Ok(Some(changed(&directory, other, true)))
    }

    fn is_whole(&self, number: u64) -> Result<bool, GenerationError> {
        match self.manifest_if_good(number)? {
            Some(manifest) => Ok(self.damage(&manifest)?.is_none()),
            None => Ok(false),
        }
    }
}

fn changed(directory: &Path, name: &Path, is_there: bool) -> String {
    let what = match is_there {
        true => "was changed by somebody else",
        false => "is missing",
    };
    format!("{} {what}", directory.join(name).display())
}

/// Of a regular file; anything else is not what was written.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, GenerationError> {
    let read = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => fs::read(path).map(Some),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    };
    match read {
        Err(error) if is_absence(&error) => Ok(None),
        read => read.map_err(read_failed(path)),
    }
}

impl LockedStore {
    /// Makes generation 0, which serves nothing, a history and `current`, where they are missing or
    /// cannot be what we wrote. Says what was repaired.
    pub fn repair(
        &self,
        empty: &Manifest,
        nginx: &dyn Nginx,
    ) -> Result<Vec<String>, GenerationError> {
        self.found(empty)?;
        let mut repaired = Vec::new();
        if let Err(error @ GenerationError::History { .. }) = self.store.history() {
            repaired.push(self.rebuild_history(&error)?);
        }
        match self.store.active() {
            Ok(_) => {}
            Err(
                error @ (GenerationError::Damaged { .. }
                | GenerationError::LostCurrent { .. }
                | GenerationError::NoCurrent(_)),
            ) => {
                let number = self.newest_good(nginx)?;
                self.point_at(number)?;
                // where nothing was ever activated, it was simply not there yet
                if self.store.history()?.newest().is_some() {
                    repaired.push(format!(
                        "failed to {error}; `current` is generation {number} again, {}",
                        match number {
                            0 => "which serves nothing: no other is whole",
                            _ => "the newest that is whole and served",
                        }
                    ));
                }
            }
            Err(error) => return Err(error),
        }
        Ok(repaired)
    }

    /// What `current` returns to: the active generation, unless nobody knows how it came there, or it
    /// is not as it was written.
    pub(super) fn way_back(&self) -> Result<u64, GenerationError> {
        let active = self.store.active_number()?;
        let known = active == 0 || self.store.history()?.last(active).is_some();
        if known && self.store.is_whole(active)? {
            return Ok(active);
        }
        for number in self.served_before(active)? {
            if self.store.is_whole(number)? {
                return Ok(number);
            }
        }
        Ok(active)
    }

    /// The newest generation below `number` that once served and is there, else 0.
    pub fn newest_served_before(&self, number: u64) -> Result<u64, GenerationError> {
        for number in self.served_before(number)? {
            if self.store.manifest_if_good(number)?.is_some() {
                return Ok(number);
            }
        }
        Ok(0)
    }

    /// The generations that a rollback can return to, the newest first, without the active one.
    pub fn returnable(&self) -> Result<Vec<u64>, GenerationError> {
        let active = self.store.active_number()?;
        let history = self.store.history()?;
        let served: Vec<u64> = history.returnable().collect();
        let kept = self.store.numbers()?.into_iter().rev();
        let kept = kept.filter(|it| *it > 0 && *it != active && served.contains(it));
        Ok(kept.collect())
    }

    /// The newest first.
    fn served_before(&self, number: u64) -> Result<Vec<u64>, GenerationError> {
        let history = self.store.history()?;
        let served: Vec<u64> = history.returnable().collect();
        let below = self.store.numbers()?.into_iter().rev();
        let below = below.filter(|it| *it < number && served.contains(it));
        Ok(below.collect())
    }

    fn found(&self, empty: &Manifest) -> Result<(), GenerationError> {
        let zero = self.store.path(0);
        if !self.store.is_whole(0)? {
            let bytes =
                serde_json::to_vec_pretty(empty).map_err(|error| GenerationError::Damaged {
                    number: 0,
                    why: error.to_string(),
                })?;
            let entry: &[u8] = b"# Managed by vhostd: nothing is served yet.\n";
            let files = [
                (Path::new(render::ENTRY), entry),
                (Path::new(MANIFEST), &bytes),
            ];
            atomic_file::remove(&zero)?;
            atomic_file::build(&zero, |temporary| {
                atomic_file::write_tree(temporary, &files, None)
            })?;
        }
        if !self.store.has_history() && self.store.numbers()? == [0] {
            History::empty(&self.store.state_dir).write()?;
        }
        Ok(())
    }

    /// The newest generation that served and is as it was written; of those that nobody knows any
    /// more whether they did, nginx must accept it now. Only where none is whole it is 0, which would
    /// take down what serves.
    fn newest_good(&self, nginx: &dyn Nginx) -> Result<u64, GenerationError> {
        let (history, numbers) = (self.store.history()?, self.store.numbers()?);
        let newest_first = || numbers.iter().rev().copied().filter(|number| *number > 0);
        let proven: Vec<u64> = history.proven().collect();
        for number in newest_first().filter(|number| proven.contains(number)) {
            if self.store.is_whole(number)? {
                return Ok(number);
            }
        }
        let known = |number: &u64| history.returnable().any(|known| known == *number);
        let mut refusal = None;
        for number in newest_first().filter(known) {
            if self.store.is_whole(number)? {
                let path = self.store.path(number);
                let manifest = self.store.manifest(number)?;
                let logs = manifest.logs_beside(&manifest);
                match nginx.test(&path, &path, &logs) {
                    Ok(_) => return Ok(number),
                    Err(source) => refusal.get_or_insert(GenerationError::NoneAccepted {
                        number,
                        source: Box::new(source),
                    }),
                };
            }
        }
        refusal.map_or(Ok(0), Err)
    }

    /// Every generation that is there may have served: each is kept, and none is called proven.
    fn rebuild_history(&self, error: &GenerationError) -> Result<String, GenerationError> {
        let numbers = self.store.numbers()?;
        let mut manifests = Vec::new();
        for number in numbers.iter().filter(|number| **number > 0) {
            manifests.extend(self.store.manifest_if_good(*number)?);
        }
        let beyond = numbers.last().copied().unwrap_or(0) + history::UNKNOWN_NUMBERS;
        let aside = set_aside(&self.store.state_dir.join(history::FILE))?;
        let rebuilt = History::rebuilt(&self.store.state_dir, &manifests, beyond);
        rebuilt.write()?;
        let kept = aside.map_or_else(String::new, |aside| {
            format!(" (kept as {})", aside.display())
        });
        Ok(format!(
            "failed to {error}{kept}; it was begun anew with the {} generations that are there, \
             the next one is {}",
            manifests.len(),
            beyond + 1
        ))
    }
}

/// Gives a damaged file a name under which nobody reads it. `None` where there is none.
pub fn set_aside(path: &Path) -> Result<Option<PathBuf>, GenerationError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        _ => {
            atomic_file::rename(path, &aside)?;
            Ok(Some(aside))
        }
    }
}

/// What `current` is, where it is no link to a generation of ours.
pub(super) fn lost(current: &Path, store: &GenerationStore) -> GenerationError {
    let path = current.to_path_buf();
    debug_assert!(current.ends_with(CURRENT));
    match fs::symlink_metadata(current) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => GenerationError::NoCurrent(path),
        Err(source) => GenerationError::Read { path, source },
        Ok(metadata) if !metadata.is_symlink() => GenerationError::ForeignCurrent(path),
        Ok(_) => match fs::read_link(current) {
            Ok(target) => GenerationError::LostCurrent {
                path,
                why: match fs::canonicalize(current) {
                    Ok(real) if !real.starts_with(store.directory()) => {
                        format!("leads to {}, which is no generation", target.display())
                    }
                    _ => format!("leads to {}, which is not whole", target.display()),
                },
            },
            Err(source) => GenerationError::Read { path, source },
        },
    }
}
