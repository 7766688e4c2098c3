//! X: what a refusal of nginx's teaches: an app to leave out, or what the hand-written files say.

use std::path::{Path, PathBuf};

use super::alone::Refused;
use super::{Candidate, Judgement};
use crate::generation::LockedStore;
use crate::generation::manifest::Manifest;
use crate::nginx::{Logs, TestError};
use crate::reconcile::ReconcileError;
use crate::reconcile::last_look::LastLook;
use crate::render::RenderedConfig;
use crate::vhost::AppName;

/// What a refusal taught.
pub(super) enum Lesson {
    TryAgain,
    GiveUp { error: String, hint: Option<String> },
}

impl Candidate<'_> {
    /// `draft`: what nginx was given, and refused with `error`.
    pub(super) fn learn(
        &mut self,
        locked: &LockedStore,
        rendered: &RenderedConfig,
        draft: &Manifest,
        error: TestError,
    ) -> Result<Lesson, ReconcileError> {
        let TestError::Refused { messages, place } = error else {
            return Ok(Lesson::GiveUp {
                error: error.to_string(),
                hint: None,
            });
        };
        let message = messages.first().cloned().unwrap_or_default();
        if self.withhold_named(rendered, draft, &message, place.as_ref())
            || self.withhold_suspected(rendered)
        {
            return Ok(Lesson::TryAgain);
        }
        let known = self.survey.clone();
        match self.survey_again(locked) {
            Lesson::TryAgain if self.survey == known => {}
            other => return Ok(other),
        }
        // nothing is wrong without us, and nginx does not say with whom it is
        let hint = self.placeless_hint(&message);
        if place.is_none() && hint.is_none() && self.withhold_culprit(locked, rendered, &message)? {
            return Ok(Lesson::TryAgain);
        }
        Ok(Lesson::GiveUp {
            error: format!("nginx refuses the configuration: {message}"),
            hint: match place {
                Some((path, line)) => Some(whose(&path, line, locked)),
                None => hint,
            },
        })
    }

    /// The app in whose file nginx found a fault.
    fn withhold_named(
        &mut self,
        rendered: &RenderedConfig,
        draft: &Manifest,
        message: &str,
        place: Option<&(PathBuf, usize)>,
    ) -> bool {
        let Some((path, line)) = place else {
            return false;
        };
        let directory = self.installation.generations.path(draft.number);
        let relative = path.strip_prefix(&directory).ok();
        let Some(app) = relative.and_then(|relative| draft.files.get(relative)) else {
            return false;
        };
        let refused = Refused {
            app: app.clone(),
            message: message.to_owned(),
            line: Some(*line),
        };
        self.withhold_refused(rendered, &refused)
    }

    /// Apps that nginx did not take alone either.
    fn withhold_suspected(&mut self, rendered: &RenderedConfig) -> bool {
        let suspected = std::mem::take(&mut self.suspected);
        self.withhold_all(rendered, &suspected)
    }

    /// Finds one changed app without which nginx takes the others, by halves.
    fn withhold_culprit(
        &mut self,
        locked: &LockedStore,
        rendered: &RenderedConfig,
        message: &str,
    ) -> Result<bool, ReconcileError> {
        let changed = self.changed(rendered);
        let mut suspects: Vec<AppName> = changed.into_iter().map(|(app, _)| app.clone()).collect();
        let mut acquitted = Vec::new();
        if suspects.is_empty() || !self.is_accepted_without(locked, &suspects)? {
            return Ok(false);
        }
        // without `suspects` and `acquitted` nginx accepts it, with one of the two it does not
        while suspects.len() > 1 {
            let half = suspects.split_off(suspects.len() / 2);
            let without: Vec<AppName> = half.iter().chain(&acquitted).cloned().collect();
            match self.is_accepted_without(locked, &without)? {
                true => suspects = half,
                false => acquitted.extend(half),
            }
        }
        let Some(app) = suspects.pop() else {
            return Ok(false);
        };
        let refused = Refused {
            app,
            message: message.to_owned(),
            line: None,
        };
        // as it was when it was refused
        self.render()?;
        Ok(self.withhold_refused(rendered, &refused))
    }

    fn is_accepted_without(
        &mut self,
        locked: &LockedStore,
        apps: &[AppName],
    ) -> Result<bool, ReconcileError> {
        self.left_out = apps.iter().cloned().collect();
        let rendered = self.render();
        self.left_out.clear();
        let (rendered, draft) = rendered?;
        let staged = locked.stage(&rendered, draft)?;
        match locked.test(staged, self.active, self.installation.nginx()) {
            Ok((tested, _)) => {
                locked.discard_tested(tested)?;
                Ok(true)
            }
            Err(refused) => {
                locked.discard(refused.0)?;
                Ok(false)
            }
        }
    }

    /// What to do about a fault of the host's.
    fn placeless_hint(&self, message: &str) -> Option<String> {
        let logs = &self.installation.settings.log_dir;
        let about_logs = message.contains(&format!("{}/", logs.display()));
        (about_logs && !logs.is_dir()).then(|| {
            format!(
                "create the directory {} for the access logs, or set `log_dir`",
                logs.display()
            )
        })
    }

    /// Whether no hand-written file has changed since nginx was last asked about them.
    pub(super) fn knows_the_host(&self) -> bool {
        let look = LastLook::read(&self.installation.settings.state_dir);
        look.is_some_and(|look| look.files.is_current())
    }

    /// What nginx says of the configuration as it is on disk, and, where it refuses that, of the
    /// hand-written files alone. While those are as they were, they alone are asked about, which is
    /// cheaper: nginx accepted them beside the active generation.
    pub(super) fn look(&mut self, locked: &LockedStore) -> Lesson {
        if self.knows_the_host() {
            return self.survey_again(locked);
        }
        let installation = self.installation;
        // before the test: what changes meanwhile is seen by the next look
        let files = installation.host_nginx.included_files();
        let active = locked.store().path(self.active.number);
        let logs = Logs {
            all: self.active.logs.clone(),
            new: Vec::new(),
        };
        match installation.nginx().test(&active, &active, &logs) {
            Ok(accepted) => {
                self.survey = accepted.survey;
                self.looked_at = Some(files);
                self.remember_look();
                Lesson::TryAgain
            }
            Err(error) => {
                self.refused_active = Some(error);
                self.looked_at = Some(files);
                self.survey_again(locked)
            }
        }
    }

    /// Once nginx has accepted a generation beside those files: until then it is asked again.
    pub(super) fn remember_look(&mut self) {
        let Some(files) = self.looked_at.take() else {
            return;
        };
        let survey = self.survey.clone();
        let look = LastLook { files, survey };
        if let Err(error) = look.write(&self.installation.settings.state_dir) {
            self.warnings.push(format!("failed to {error}"));
        }
    }

    /// The active generation cannot stand beside a hand-written change, and would be made again as it is.
    pub(super) fn refused_beside_the_hand_written_files(&mut self) -> Judgement {
        let error = self.refused_active.take();
        let why = error.map_or_else(String::new, |error| format!(": {error}"));
        let number = self.active.number;
        Judgement::Refused {
            error: format!("nginx refuses generation {number} beside the hand-written files{why}"),
            hint: Some("run `nginx -t`, fix what it names, then run `vhostd reload`".into()),
        }
    }

    /// What the hand-written files say without us: generation 0 serves nothing.
    pub(super) fn survey_again(&mut self, locked: &LockedStore) -> Lesson {
        let store = locked.store();
        let active = store.path(self.active.number);
        match self
            .installation
            .nginx()
            .test(&store.path(0), &active, &Logs::default())
        {
            Ok(accepted) => {
                self.survey = accepted.survey;
                Lesson::TryAgain
            }
            Err(TestError::Refused { messages, place }) => Lesson::GiveUp {
                error: format!(
                    "nginx refuses the hand-written configuration, without any of vhostd's files: {}",
                    messages.first().map_or("no reason given", String::as_str)
                ),
                hint: Some(match place {
                    Some((path, line)) => {
                        format!("fix {}:{line}, then run `vhostd reload`", path.display())
                    }
                    None => "run `nginx -t`, fix what it names, then run `vhostd reload`".into(),
                }),
            },
            Err(error @ TestError::NotIncluded { .. }) => Lesson::GiveUp {
                error: error.to_string(),
                hint: Some("run `vhostd setup`".into()),
            },
            Err(error) => Lesson::GiveUp {
                error: error.to_string(),
                hint: None,
            },
        }
    }
}

fn whose(path: &Path, line: usize, locked: &LockedStore) -> String {
    let at = format!("{}:{line}", path.display());
    if path.starts_with(locked.store().directory()) {
        format!("{at} is vhostd's own file: please report this")
    } else {
        format!("{at} is a hand-written file: fix it, then run `vhostd reload`")
    }
}
