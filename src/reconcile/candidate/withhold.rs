//! P: versions of apps that are not served, and why.

use std::path::Path;

use super::Candidate;
use super::alone::Refused;
use super::blame::Blame;
use crate::desired;
use crate::diagnostic::Diagnostic;
use crate::generation::GenerationError;
use crate::generation::manifest::{AppSource, ServedName};
use crate::reconcile::ReconcileError;
use crate::reconcile::proof::ForeignName;
use crate::reconcile::quarantine::{Again, Refusal};
use crate::reconcile::report::{Outcome, Report};
use crate::render::{RenderError, RenderedConfig};
use crate::vhost::{App, AppName};

/// An app whose newest version is not served.
#[derive(Clone, Debug)]
pub(super) struct Withheld {
    /// Why not.
    pub(super) diagnostic: Diagnostic,
    /// How many versions down.
    steps: u8,
}

/// What of an app is served, from best to worst.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    Newest,
    /// The last good source, rendered for today.
    LastGood,
    /// The very bytes that serve now: no certificate reaches them any more, but what a template,
    /// the settings or nginx itself has spoilt takes no site away.
    Frozen,
    Nothing,
}

impl Candidate<'_> {
    /// What of `candidate` competes for its names; `None`: nothing.
    pub(super) fn served_version(
        &self,
        candidate: &desired::Candidate,
    ) -> Option<desired::Candidate> {
        match self.version(candidate) {
            Version::Newest => Some(candidate.clone()),
            Version::LastGood | Version::Frozen => Some(desired::Candidate {
                app: candidate
                    .fallback
                    .as_ref()
                    .unwrap_or(&candidate.app)
                    .clone(),
                modified: candidate.modified,
                fallback: None,
            }),
            Version::Nothing => None,
        }
    }

    /// Apps that fell back to the bytes that serve, mostly none, whether or not they got their names.
    pub(super) fn fallen_to_bytes(&self) -> impl Iterator<Item = &AppName> {
        let candidates = self.intent.candidates.iter();
        candidates
            .filter(|candidate| self.version(candidate) == Version::Frozen)
            .map(|candidate| &candidate.app.name)
    }

    fn version(&self, candidate: &desired::Candidate) -> Version {
        let name = &candidate.app.name;
        let withheld = self.withheld.get(name).map_or(0, |withheld| withheld.steps);
        let steps = withheld + u8::from(self.left_out.contains(name));
        (0..steps).fold(Version::Newest, |version, _| self.below(candidate, version))
    }

    fn below(&self, candidate: &desired::Candidate, version: Version) -> Version {
        let serves = self.active.apps.contains_key(&candidate.app.name);
        match version {
            Version::Newest if candidate.fallback.is_some() => Version::LastGood,
            Version::Newest | Version::LastGood if serves => Version::Frozen,
            Version::Newest | Version::LastGood | Version::Frozen | Version::Nothing => {
                Version::Nothing
            }
        }
    }

    /// Whether earlier runs know of a rendered version that is not to be tried now.
    pub(super) fn withhold_known(&mut self) -> bool {
        let (nginx, now) = (
            self.installation.nginx_build(&self.survey),
            self.request.now,
        );
        let held = |(app, version): (&AppName, &String)| {
            let refusal = self.known.holds(app, version, &nginx, now)?;
            Some((app.clone(), refusal.clone()))
        };
        let held: Vec<_> = self.versions.iter().filter_map(held).collect();
        let mut any = false;
        for (app, refusal) in held {
            any |= self.withhold(&app, refusal.diagnostic.clone());
            self.found.add(app, refusal);
        }
        any
    }

    /// Whether one app alone is to blame, which was not yet.
    pub(super) fn withhold_unrendered(&mut self, error: &RenderError) -> bool {
        let Some(app) = error.app().cloned() else {
            return false;
        };
        let Some(source) = self.source(&app) else {
            return false;
        };
        let diagnostic = Diagnostic::new(source.file, format!("failed to {error}"))
            .hint("this is a mistake in a template or in vhostd itself, not in the file");
        self.withhold(&app, diagnostic)
    }

    /// The bytes that served are not there any more.
    pub(super) fn withhold_spoilt(
        &mut self,
        app: &AppName,
        path: &Path,
    ) -> Result<(), ReconcileError> {
        let active = self.active.number;
        let path = self.installation.generations.path(active).join(path);
        let why = format!("{} was removed or changed by somebody else", path.display());
        match self.withhold(app, Diagnostic::new(&path, why.clone())) {
            true => Ok(()),
            false => Err(GenerationError::Damaged {
                number: active,
                why,
            }
            .into()),
        }
    }

    /// nginx refuses the app's file. Only what it blames a line of the file for is certain to stay
    /// so.
    pub(super) fn withhold_refused(
        &mut self,
        rendered: &RenderedConfig,
        refused: &Refused,
    ) -> bool {
        let Some((app, source)) = self.as_served(&refused.app) else {
            return false;
        };
        let bytes = rendered.apps.iter().find(|(_, app)| **app == refused.app);
        let bytes = bytes.and_then(|(path, _)| rendered.files.get(path));
        let blame = Blame {
            app: &app,
            text: &source.text,
            rendered: bytes.map_or(&[], Vec::as_slice),
            message: &refused.message,
            line: refused.line,
        };
        let diagnostic = blame.diagnostic();
        let lasting = refused.line.is_some();
        self.withhold_and_remember(&refused.app, diagnostic, lasting)
    }

    /// Whether any of them was not withheld before.
    pub(super) fn withhold_all(&mut self, rendered: &RenderedConfig, all: &[Refused]) -> bool {
        let mut any = false;
        for refused in all {
            any |= self.withhold_refused(rendered, refused);
        }
        any
    }

    /// Whether a rolled back activation failed for some apps only, which are withheld now.
    pub(in crate::reconcile) fn withhold_unserved(&mut self, report: &Report) -> bool {
        if report.outcome != Outcome::RolledBack {
            return false;
        }
        let apps: Option<Vec<&AppName>> = report
            .foreign
            .iter()
            .map(|name| name.vhost.as_ref().map(|vhost| vhost.app()))
            .collect();
        // the reserved name is everybody's
        let Some(apps) = apps else { return false };
        let mut any = false;
        for (name, app) in report.foreign.iter().zip(apps) {
            any |= self.withhold_foreign(name, app, report.hint.clone());
        }
        any
    }

    fn withhold_foreign(
        &mut self,
        name: &ForeignName,
        app: &AppName,
        hint: Option<String>,
    ) -> bool {
        let Some((served, _)) = self.as_served(app) else {
            return false;
        };
        let reason = format!("it does not answer as it should: {name}");
        let mut diagnostic = Diagnostic::new(&served.file, reason);
        diagnostic.at = served
            .vhosts
            .iter()
            .flat_map(|vhost| vhost.all_names())
            .find(|named| ServedName::host(&named.value) == name.host)
            .map(|named| named.at);
        diagnostic.hint = hint;
        self.withhold_and_remember(app, diagnostic, false)
    }

    /// For the next run. Where the whole was `refused`, only what an app itself was blamed for is
    /// certain.
    pub(in crate::reconcile) fn remember(&mut self, refused: bool) -> Result<(), ReconcileError> {
        if refused {
            self.found.keep_lasting();
        }
        // a rollback and a renewal have not looked at the newest versions
        if self.intent.of_files {
            self.found.write(&self.installation.settings.state_dir)?;
        }
        Ok(())
    }

    fn withhold_and_remember(
        &mut self,
        app: &AppName,
        diagnostic: Diagnostic,
        lasting: bool,
    ) -> bool {
        let version = self.versions.get(app).cloned().unwrap_or_default();
        let before = self.known.about(app, &version);
        let again = (!lasting)
            .then(|| Again::after(before.and_then(|known| known.again), self.request.now));
        let refusal = Refusal {
            version,
            nginx: self.installation.nginx_build(&self.survey),
            diagnostic: diagnostic.clone(),
            again,
        };
        self.found.add(app.clone(), refusal);
        self.withhold(app, diagnostic)
    }

    /// One version further back; `false` where there is none left.
    fn withhold(&mut self, app: &AppName, diagnostic: Diagnostic) -> bool {
        let mut candidates = self.intent.candidates.iter();
        let candidate = candidates.find(|candidate| candidate.app.name == *app);
        if candidate.is_none_or(|candidate| self.version(candidate) == Version::Nothing) {
            return false;
        }
        let first = Withheld {
            diagnostic,
            steps: 0,
        };
        self.withheld.entry(app.clone()).or_insert(first).steps += 1;
        true
    }

    fn as_served(&self, name: &AppName) -> Option<(App, AppSource)> {
        let app = self.apps.iter().find(|app| app.name == *name)?;
        Some((app.clone(), self.source(name)?))
    }
}
