//! W: what is damaged or missing in the state directory is made again from what is known elsewhere, or
//! refused. What was damaged is kept aside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;

use super::{Installation, OwnersError};
use crate::atomic_file::{self, WriteError};
use crate::desired::Owners;
use crate::generation::manifest::{Manifest, Reason};
use crate::generation::repair::set_aside;
use crate::generation::{GenerationError, LockedStore};
use crate::nginx::dump::Survey;
use crate::notice;
use crate::reconcile::ReconcileError;
use crate::reconcile::pin::{Pin, PinError};
use crate::trust_store::TrustStore;
use crate::vhost::source::{self, SourceError, VhostFile};

/// What could not be repaired without a guess.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Owners(#[from] OwnersError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl RepairError {
    /// The next step.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Generation(error) => error.hint(),
            Self::Write(error) if error.source.kind() != std::io::ErrorKind::PermissionDenied => {
                None
            }
            _ => Some("run it as root, after `vhostd setup`"),
        }
    }
}

impl Installation {
    /// Looks at everything that has to be there and right before anything is decided, and makes
    /// good what it can. [`Self::repaired`] tells what that was.
    pub fn repair(&self, now: OffsetDateTime) -> Result<(), RepairError> {
        if self.is_whole() {
            return Ok(());
        }
        let locked = self.generations.lock(Duration::from_secs(60))?;
        let empty = Manifest::draft(now, Reason::Setup, Survey::default());
        let mut repaired = locked.repair(&empty, self.nginx())?;
        repaired.extend(self.repair_owners(&locked)?);
        repaired.extend(self.repair_pin()?);
        let mut told = self
            .repaired
            .lock()
            .unwrap_or_else(|held| held.into_inner());
        told.extend(repaired);
        Ok(())
    }

    /// What was repaired since the last call.
    pub fn repaired(&self) -> Vec<String> {
        let mut told = self
            .repaired
            .lock()
            .unwrap_or_else(|held| held.into_inner());
        std::mem::take(&mut *told)
    }

    fn unknown_admin_group(&self) -> Option<String> {
        let group = self.admin_group.as_ref().filter(|it| it.gid.is_none())?;
        let name = &group.name;
        Some(format!(
            "`admin_group`: there is no group `{name}`, so it gives rights to no user: `addgroup {name}`, then `vhostd reload`"
        ))
    }

    /// Who else can change what is in the state directory, and what is odd about the internal CA's
    /// roots.
    pub fn exposures(&self) -> Vec<String> {
        let directories = [
            self.settings.state_dir.clone(),
            self.generations.directory(),
        ];
        let found = directories.iter().filter_map(|path| exposed(path));
        let found = found.chain(renamable(&self.settings.vhosts_dir));
        let of_roots = self.internal_ca.advice().into_iter();
        let of_secrets = notice::secret::exposures(&self.settings.hooks).into_iter();
        let others = of_roots.chain(self.trust_advice()).chain(of_secrets);
        let others = others.chain(self.unknown_admin_group());
        found.chain(others).collect()
    }

    /// That this process has no sandbox for nginx's tests. Another one on this host may have it.
    pub fn lacks_sandbox(&self) -> Option<String> {
        let reason = self.host_nginx.sandbox().missing()?;
        Some(format!(
            "nginx's tests of changed vhosts and of certificates have no sandbox on this host: {reason}; \
             see `sandbox` in the settings"
        ))
    }

    fn trust_advice(&self) -> Option<String> {
        let roots = self.internal_ca.roots().ok()?;
        // most hosts have none
        roots.first()?;
        let former = self.internal_ca.retired().unwrap_or_default();
        let store = TrustStore::of_this_system().ok()?;
        store.advice(&roots, &former)
    }

    fn is_whole(&self) -> bool {
        self.generations.path(0).join("http.conf").is_file()
            && self.generations.active().is_ok()
            && self.generations.history().is_ok()
            && self.owners().is_ok()
            && Pin::read(&self.settings.state_dir).is_ok()
    }

    /// The names that were served have their owners by that: the active generation's first, then,
    /// for what those do not have, the older ones'.
    fn repair_owners(&self, _locked: &LockedStore) -> Result<Option<String>, RepairError> {
        let error = match self.owners() {
            Ok(_) => return Ok(None),
            Err(error @ (OwnersError::Damaged { .. } | OwnersError::Missing(_))) => error,
            Err(error) => return Err(error.into()),
        };
        let mut owners = BTreeMap::new();
        for number in self.generations.numbers()?.into_iter().rev() {
            let Some(manifest) = self.generations.manifest_if_good(number)? else {
                continue;
            };
            // what a rollback serves says nothing about who owns it
            if manifest.reason != Reason::Rollback {
                for (name, app) in manifest.owned() {
                    owners.entry(name).or_insert_with(|| app.clone());
                }
            }
        }
        let count = owners.len();
        set_aside(&self.owners_path())?;
        atomic_file::write_json(&self.owners_path(), &Owners::from(owners), 0o600)?;
        Ok(Some(format!(
            "failed to {error}; {count} names are their owners' again, by the generations that are there"
        )))
    }

    /// What a rollback holds, while `files` are as they are.
    pub fn pin(&self, files: &[VhostFile]) -> Result<Option<Pin>, ReconcileError> {
        let Some(pin) = Pin::read(&self.settings.state_dir)? else {
            return Ok(None);
        };
        match pin.of_all_apps() {
            Some(number) => {
                let returned_to = self.generations.manifest(number)?;
                Ok(pin.upgraded(&returned_to, files))
            }
            None => Ok(Some(pin)),
        }
    }

    /// A rollback holds until a file changes or somebody reloads. Of which generation it was is what
    /// is active; what the files were then is what they are now.
    fn repair_pin(&self) -> Result<Option<String>, RepairError> {
        let state_dir = &self.settings.state_dir;
        let error = match Pin::read(state_dir) {
            Ok(_) => return Ok(None),
            Err(error) if error.is_passing() => return Err(error.into()),
            Err(error) => error,
        };
        let files = source::read(&self.settings.vhosts_dir)?.files;
        let active = self.generations.active()?.manifest;
        let waiting = files.iter().map(|file| (file.app.clone(), None));
        let served = active.apps.iter();
        let served = served.map(|(app, source)| (app.clone(), Some(source.clone())));
        let apps = waiting.chain(served).collect();
        let pin = Pin::with(None, active.number, apps, &files);
        Pin::store(Some(&pin), state_dir)?;
        Ok(Some(format!(
            "failed to {error}; what serves now is held, until a vhost file changes (for that app) or `vhostd reload`"
        )))
    }
}

/// Whoever can write there decides what nginx reads as root.
fn exposed(directory: &Path) -> Option<String> {
    let metadata = fs::metadata(directory).ok()?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let shown = directory.display();
    let me = nix::unistd::geteuid().as_raw();
    if owner != me && owner != 0 {
        return Some(format!(
            "{shown} belongs to user {owner}, who can replace what nginx reads: `chown {me} {shown}`"
        ));
    }
    (mode & 0o022 != 0).then(|| {
        format!("{shown} can be written by others (mode {mode:04o}), who can replace what nginx reads: `chmod 700 {shown}`")
    })
}

/// Where several users may write, the sticky bit keeps each from the others' files (unlink(2)).
fn renamable(vhosts_dir: &Path) -> Option<String> {
    let mode = fs::metadata(vhosts_dir).ok()?.mode() & 0o7777;
    let shown = vhosts_dir.display();
    (mode & 0o022 != 0 && mode & 0o1000 == 0).then(|| {
        format!("in {shown} (mode {mode:04o}) users can rename and remove each other's vhost files: `chmod +t {shown}`")
    })
}
