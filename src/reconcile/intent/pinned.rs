//! P: apps that a rollback holds: what an earlier generation has of them takes their files' place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::Intent;
use crate::desired::{Owners, Taken};
use crate::generation::manifest::{AppSource, Manifest};
use crate::installation::Installation;
use crate::policy::Policy;
use crate::reconcile::pin::Pin;
use crate::vhost::source::VhostFile;
use crate::vhost::{AppName, LocalUser};

impl Intent {
    /// What `pin` holds, instead of the `files` of those apps.
    pub(super) fn take_pinned(
        &mut self,
        pin: Pin,
        files: &[VhostFile],
        policy: &mut Policy<'_>,
        taken: &Taken,
    ) {
        let paths: BTreeMap<&AppName, &PathBuf> =
            files.iter().map(|file| (&file.app, &file.path)).collect();
        for (app, pinned) in pin.apps() {
            let path = paths.get(app).copied();
            let path = path.or(pinned.source.as_ref().map(|source| &source.file));
            self.held
                .extend(path.map(|path| (app.clone(), path.clone())));
            match &pinned.source {
                Some(source) => {
                    self.last_good.insert(app.clone(), source.clone());
                    self.keep(app, policy);
                }
                None => {
                    self.last_good.remove(app);
                }
            }
        }
        let pinned = pin.apps().map(|(app, _)| app.clone()).collect();
        self.pin = Some(pin);
        self.leave_out(&pinned, taken);
    }

    /// What generations hold of apps, as it was.
    pub fn of_sources(
        sources: BTreeMap<AppName, AppSource>,
        nginx_user: &[String],
        owners: &Owners,
        installation: &Installation,
    ) -> Self {
        let worker = LocalUser::named(nginx_user);
        let mut policy = Policy::new(&installation.settings, &worker, installation.has_ipv6);
        let mut intent = Self::empty();
        intent.claimed_by = owners.files().clone();
        intent.of_files = false;
        let apps: Vec<AppName> = sources.keys().cloned().collect();
        intent.last_good = sources;
        for app in apps {
            intent.keep(&app, &mut policy);
        }
        intent
    }

    /// As [`Self::of_sources`], of one generation.
    pub fn of_generation(
        manifest: &Manifest,
        owners: &Owners,
        installation: &Installation,
    ) -> Self {
        let sources = manifest.apps.clone();
        Self::of_sources(sources, &manifest.survey.user, owners, installation)
    }

    /// Takes names of other apps out of `apps`, whose texts are older than those apps' claims.
    pub fn leave_out(&mut self, apps: &BTreeSet<AppName>, taken: &Taken) {
        for mut candidate in std::mem::take(&mut self.candidates) {
            let name = candidate.app.name.clone();
            if !apps.contains(&name) {
                self.candidates.push(candidate);
                continue;
            }
            let (app, left_out) = taken.leave_out(candidate.app);
            for left_out in left_out {
                self.warnings.push(format!(
                    "`{}` is left out of {name}, which a rollback serves: it belongs to {} now",
                    left_out.name, left_out.owner
                ));
            }
            match app {
                Some(app) => {
                    candidate.app = app;
                    self.candidates.push(candidate);
                }
                None => {
                    self.sources.remove(&name);
                    let reason = format!("{name} is not served: the rollback leaves it no name");
                    self.warnings.push(reason);
                }
            }
        }
    }
}
