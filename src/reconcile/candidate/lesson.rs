//! X: what a refusal of nginx's teaches: an app to leave out, or what the hand-written files say.

use std::path::Path;

use super::Candidate;
use crate::diagnostic::Diagnostic;
use crate::generation::{LockedStore, StagedGeneration};
use crate::nginx::TestError;
use crate::vhost::AppName;

/// What a refusal taught.
pub(super) enum Lesson {
    TryAgain,
    GiveUp { error: String, hint: Option<String> },
}

impl Candidate<'_> {
    pub(super) fn learn(
        &mut self,
        locked: &LockedStore,
        staged: &StagedGeneration,
        error: TestError,
    ) -> Lesson {
        let TestError::Refused { messages, place } = error else {
            return Lesson::GiveUp {
                error: error.to_string(),
                hint: None,
            };
        };
        let message = messages.first().cloned().unwrap_or_default();
        let named = place
            .as_ref()
            .and_then(|(path, _)| self.app_of(staged, path));
        if let Some(app) = named.filter(|app| !self.quarantined.contains_key(app)) {
            let file = self
                .intent
                .sources
                .get(&app)
                .map(|source| source.file.clone());
            let reason = format!("nginx refuses it: {message}");
            self.quarantined
                .insert(app, Diagnostic::new(file.unwrap_or_default(), reason));
            return Lesson::TryAgain;
        }
        let known = self.survey.clone();
        match self.survey_again(locked) {
            Lesson::TryAgain if self.survey != known => Lesson::TryAgain,
            Lesson::TryAgain => Lesson::GiveUp {
                error: format!("nginx refuses the configuration: {message}"),
                hint: match place {
                    Some((path, line)) => Some(whose(&path, line, locked)),
                    None => self.placeless_hint(&message),
                },
            },
            give_up => give_up,
        }
    }

    /// What to do about a message that names no line of a configuration file.
    fn placeless_hint(&self, message: &str) -> Option<String> {
        let logs = &self.installation.settings.log_dir;
        let about_logs = message.contains(&format!("{}/", logs.display()));
        about_logs.then(|| {
            format!(
                "create the directory {} for the access logs, or set `log_dir`",
                logs.display()
            )
        })
    }

    /// What the hand-written files say without us: generation 0 serves nothing.
    pub(super) fn survey_again(&mut self, locked: &LockedStore) -> Lesson {
        let store = locked.store();
        let active = store.path(self.active.number);
        match self.installation.nginx().test(&store.path(0), &active) {
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

    fn app_of(&self, staged: &StagedGeneration, path: &Path) -> Option<AppName> {
        let manifest = staged.manifest();
        let directory = self.installation.generations.path(manifest.number);
        let relative = path.strip_prefix(&directory).ok()?;
        manifest.files.get(relative).cloned()
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
