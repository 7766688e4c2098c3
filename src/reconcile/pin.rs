//! W: which apps a rollback holds, each until its own file changes or a reload ends that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::{self, WriteError};
use crate::generation::manifest::{AppSource, Manifest};
use crate::vhost::AppName;
use crate::vhost::source::{VhostFile, owner};

/// `pin.json` in the state directory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pin {
    /// The generation that the latest rollback returned to.
    generation: u64,
    /// SHA-256 of all vhost files at a rollback of every app, hex; empty where not every app is
    /// pinned. Only a vhostd that pinned all apps together reads it: it ends the rollback where the
    /// digest differs, instead of returning all apps to one generation.
    files: String,
    /// `None`: such a vhostd wrote the file; see [`Pin::upgraded`].
    #[serde(default)]
    apps: Option<BTreeMap<AppName, PinnedApp>>,
}

/// What a rollback returned one app to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PinnedApp {
    generation: u64,
    /// SHA-256 of its file at the rollback, hex; `None`: there was no file.
    file: Option<String>,
    /// What serves; `None`: that generation has no such app, and its file waits.
    pub source: Option<AppSource>,
}

/// With whose rights something is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Requester {
    /// Root, the daemon's own user, or a member of `admin_group`.
    Admin,
    /// Another user, by the numeric id.
    User(u32),
}

/// One `vhostd reload`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reload {
    pub by: Requester,
    /// Apps, vhosts or server names; empty: all.
    pub names: Vec<String>,
}

impl Reload {
    /// Of every app, by root: also SIGHUP.
    pub const OF_ALL: Self = Self {
        by: Requester::Admin,
        names: Vec::new(),
    };

    /// Whether it ends the pin of `app`, whose file `owner` owns (`None`: there is no file).
    fn ends_pin_of(&self, app: &AppName, owner: Option<u32>, active: &Manifest) -> bool {
        let permitted = match self.by {
            Requester::Admin => true,
            Requester::User(uid) => owner == Some(uid),
        };
        let mut names = self.names.iter();
        permitted && (self.names.is_empty() || names.any(|name| active.calls(app, name)))
    }
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
    /// `before`, and `apps` as `generation` has them, while `files` are as they are.
    pub fn with(
        before: Option<Self>,
        generation: u64,
        apps: BTreeMap<AppName, Option<AppSource>>,
        files: &[VhostFile],
    ) -> Self {
        let digests = digests(files);
        let mut pinned = before.and_then(|pin| pin.apps).unwrap_or_default();
        pinned.extend(apps.into_iter().map(|(app, source)| {
            let file = digests.get(&app).cloned();
            let pinned = PinnedApp {
                generation,
                file,
                source,
            };
            (app, pinned)
        }));
        let whole = pinned.values().all(|app| app.generation == generation)
            && files.iter().all(|file| pinned.contains_key(&file.app));
        Self {
            generation,
            files: match whole {
                true => digest(files),
                false => String::new(),
            },
            apps: Some(pinned),
        }
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

    /// The generation that `status` shows: of the latest rollback, while it holds an app.
    pub fn generation(&self) -> u64 {
        let held = self.generations();
        match held.contains(&self.generation) {
            true => self.generation,
            false => held.last().copied().unwrap_or(self.generation),
        }
    }

    /// The generations that some app is pinned to.
    pub fn generations(&self) -> BTreeSet<u64> {
        match &self.apps {
            Some(apps) => apps.values().map(|app| app.generation).collect(),
            None => BTreeSet::from([self.generation]),
        }
    }

    pub fn apps(&self) -> impl Iterator<Item = (&AppName, &PinnedApp)> {
        self.apps.iter().flatten()
    }

    /// Whether `app` is pinned.
    pub fn has(&self, app: &AppName) -> bool {
        match &self.apps {
            Some(apps) => apps.contains_key(app),
            None => true,
        }
    }

    /// Pinned apps that had no file at the rollback: they do not miss it.
    pub fn without_file(&self) -> impl Iterator<Item = &AppName> {
        let absent = self.apps().filter(|(_, pinned)| pinned.file.is_none());
        absent.map(|(app, _)| app)
    }

    /// Where an older vhostd wrote it, the generation whose manifest [`Self::upgraded`] needs.
    pub fn of_all_apps(&self) -> Option<u64> {
        self.apps.is_none().then_some(self.generation)
    }

    /// As an older vhostd meant it, which ended the rollback of all apps where any file changed.
    pub fn upgraded(self, returned_to: &Manifest, files: &[VhostFile]) -> Option<Self> {
        let of_files = files.iter().map(|file| (file.app.clone(), None));
        let of_generation = returned_to.apps.iter();
        let of_generation = of_generation.map(|(app, source)| (app.clone(), Some(source.clone())));
        let apps = of_files.chain(of_generation).collect();
        (self.files == digest(files)).then(|| Self::with(None, self.generation, apps, files))
    }

    /// Without the apps whose own file changed, and those that one of `reloads` ends; `None` where
    /// none is left. A file that is missing for less than a second (`kept`) has not changed.
    pub fn remaining(
        self,
        files: &[VhostFile],
        kept: &BTreeSet<AppName>,
        reloads: &[Reload],
        active: &Manifest,
    ) -> Option<Self> {
        let digests = digests(files);
        let mut apps = self.apps.unwrap_or_default();
        let before = apps.len();
        apps.retain(|app, pinned| {
            let file = digests.get(app);
            let unchanged = file == pinned.file.as_ref() || (file.is_none() && kept.contains(app));
            let owner = owner(files, app);
            let mut reloads = reloads.iter();
            unchanged && !reloads.any(|reload| reload.ends_pin_of(app, owner, active))
        });
        let files = match apps.len() == before {
            true => self.files,
            false => String::new(),
        };
        (!apps.is_empty()).then_some(Self {
            generation: self.generation,
            files,
            apps: Some(apps),
        })
    }

    /// Makes `pin` what the state directory has; writes nothing where it has that already.
    pub fn store(pin: Option<&Self>, state_dir: &Path) -> Result<(), WriteError> {
        match pin {
            None => atomic_file::remove(&path(state_dir)),
            Some(pin) if Self::read(state_dir).is_ok_and(|it| it.as_ref() == Some(pin)) => Ok(()),
            Some(pin) => atomic_file::write_json(&path(state_dir), pin, 0o600),
        }
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("pin.json")
}

/// Of each app's file, or both of them where two claim to be it. A file that another user owns is
/// another file.
fn digests(files: &[VhostFile]) -> BTreeMap<AppName, String> {
    let mut hashers: BTreeMap<&AppName, Sha256> = BTreeMap::new();
    for file in files {
        let hasher = hashers.entry(&file.app).or_default();
        add(hasher, file);
        hasher.update(file.identity.uid.to_be_bytes());
    }
    let hex = |(app, hasher): (&AppName, Sha256)| (app.clone(), hex(hasher));
    hashers.into_iter().map(hex).collect()
}

fn digest(files: &[VhostFile]) -> String {
    let mut hasher = Sha256::new();
    files.iter().for_each(|file| add(&mut hasher, file));
    hex(hasher)
}

fn add(hasher: &mut Sha256, file: &VhostFile) {
    let text = match &file.text {
        Ok(text) => text.clone(),
        Err(diagnostic) => diagnostic.to_string(),
    };
    for part in [file.path.to_string_lossy().as_ref(), &text] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
}

fn hex(hasher: Sha256) -> String {
    let bytes = hasher.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
