//! Back to an earlier generation: the vhosts of all apps, or of some.

use std::collections::{BTreeMap, BTreeSet};

use super::intent::Intent;
use super::pin::Pin;
use super::{Applied, Observer, Progress, ReconcileError, Request, run};
use crate::desired::Taken;
use crate::generation::LockedStore;
use crate::generation::manifest::{AppSource, Manifest};
use crate::generation::previous::PreviousVersions;
use crate::installation::Installation;
use crate::vhost::source::{self, VhostFile};
use crate::vhost::{AppName, ServerName};

/// What `vhostd rollback` asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rollback {
    /// `None`: the newest one that is kept and whose vhosts differ from those that serve.
    pub generation: Option<u64>,
    /// Empty: all of them.
    pub apps: Vec<AppName>,
}

/// Makes vhosts of an earlier generation serve again, with today's certificates, each app until its own
/// file changes or `vhostd reload` ends that.
pub fn roll_back_to<'a>(
    installation: &Installation,
    rollback: &Rollback,
    request: &Request,
    observer: &'a mut Observer<'a>,
) -> Result<Applied, ReconcileError> {
    let locked = installation.generations.lock(request.lock_limit)?;
    let mut progress = Progress::start(observer);
    let active = installation.generations.active()?.manifest;
    let target = target(installation, &locked, rollback, &active)?;
    let files = source::read(&installation.settings.vhosts_dir)?.files;
    let before = installation.pin(&files)?;
    let owners = installation.owners()?;
    let back = Return::of(rollback, &target, &active, &files, |name| {
        owners.owner(name).cloned()
    });
    let others = active
        .served()
        .filter(|(_, app)| !back.pinned.contains_key(app));
    let taken = Taken::new(&owners, others);
    let mut intent = Intent::of_sources(back.sources, &active.survey.user, &owners, installation);
    let others = before.clone().filter(|_| !rollback.apps.is_empty());
    let pin = Pin::with(others, target.number, back.pinned, &files);
    intent.leave_out(&pin.apps().map(|(app, _)| app.clone()).collect(), &taken);
    intent.pin = Some(pin.clone());
    intent.pin_before = before.clone();
    // before it serves: the next run after a crash must not undo it. While nginx is down
    // it holds, too: nginx will start with that generation.
    let state_dir = &installation.settings.state_dir;
    Pin::store(Some(&pin), state_dir)?;
    let applied = run(installation, &locked, intent, request, &mut progress);
    if !matches!(&applied, Ok(applied) if applied.report.is_on_disk()) {
        Pin::store(before.as_ref(), state_dir)?;
    }
    applied
}

fn target(
    installation: &Installation,
    locked: &LockedStore,
    rollback: &Rollback,
    active: &Manifest,
) -> Result<Manifest, ReconcileError> {
    let Some(number) = rollback.generation else {
        for number in locked.returnable()? {
            if let Some(manifest) = installation.generations.manifest_if_good(number)?
                && differs(&manifest, active, &rollback.apps)
            {
                return Ok(manifest);
            }
        }
        let previous = PreviousVersions::read(&installation.settings.state_dir);
        let not_kept = not_kept(&previous, active, &rollback.apps);
        return not_kept.ok_or_else(|| ReconcileError::NothingElse(rollback.apps.clone()));
    };
    if number == 0 || !installation.generations.numbers()?.contains(&number) {
        return Err(ReconcileError::NoSuchGeneration(number));
    }
    let manifest = installation.generations.earlier_manifest(number)?;
    let mut apps = rollback.apps.iter();
    match apps.find(|app| !manifest.apps.contains_key(*app)) {
        Some(app) => Err(ReconcileError::NoSuchApp(app.clone(), number)),
        None => Ok(manifest),
    }
}

/// What `apps` had before, as a generation, where the generations that had it are not kept.
fn not_kept(previous: &PreviousVersions, active: &Manifest, apps: &[AppName]) -> Option<Manifest> {
    // of all apps, only what served together is returned to
    if apps.is_empty() {
        return None;
    }
    let survey = active.survey.clone();
    let mut manifest = Manifest::draft(active.created_at, active.reason, survey);
    for app in apps {
        let version = previous.of(app)?;
        manifest.number = manifest.number.max(version.generation);
        manifest.apps.insert(app.clone(), version.source.clone());
    }
    differs(&manifest, active, apps).then_some(manifest)
}

/// Whether `manifest` has other vhosts than `active`: of `apps`, all of which it must have, or of
/// any app where these are none. Another certificate is no difference.
fn differs(manifest: &Manifest, active: &Manifest, apps: &[AppName]) -> bool {
    let text = |manifest: &Manifest, app: &AppName| {
        let source = manifest.apps.get(app);
        source.map(|source| source.text.clone())
    };
    let changed = |app: &AppName| text(manifest, app) != text(active, app);
    match apps {
        [] => manifest.apps.keys().chain(active.apps.keys()).any(changed),
        _ => {
            let mut present = apps.iter();
            present.all(|app| manifest.apps.contains_key(app)) && apps.iter().any(changed)
        }
    }
}

/// What serves after a rollback.
#[derive(Debug, Eq, PartialEq)]
struct Return {
    sources: BTreeMap<AppName, AppSource>,
    /// What was returned to; `None`: the generation has no such app, whose file waits.
    pinned: BTreeMap<AppName, Option<AppSource>>,
}

impl Return {
    /// Of all apps, those that `target` does not have go. Only an app that has got one of its names
    /// since, as by a rename of the file, serves on: nothing else would answer that name.
    fn of(
        rollback: &Rollback,
        target: &Manifest,
        active: &Manifest,
        files: &[VhostFile],
        owner: impl Fn(&ServerName) -> Option<AppName>,
    ) -> Self {
        let all = rollback.apps.is_empty();
        let returned: BTreeMap<AppName, AppSource> = target
            .apps
            .iter()
            .filter(|(app, _)| all || rollback.apps.contains(app))
            .map(|(app, source)| (app.clone(), source.clone()))
            .collect();
        let owners: BTreeSet<AppName> = target
            .served()
            .filter_map(|(name, _)| owner(&name))
            .collect();
        let stays = |app: &AppName| !all || owners.contains(app);
        let mut sources = active.apps.clone();
        sources.retain(|app, _| stays(app));
        sources.extend(returned.clone());
        let waiting = files.iter().map(|file| &file.app);
        let waiting = waiting.filter(|app| all && !sources.contains_key(*app));
        let mut pinned: BTreeMap<_, _> = waiting.map(|app| (app.clone(), None)).collect();
        pinned.extend(
            returned
                .into_iter()
                .map(|(app, source)| (app, Some(source))),
        );
        Self { sources, pinned }
    }
}

#[cfg(test)]
mod tests;
