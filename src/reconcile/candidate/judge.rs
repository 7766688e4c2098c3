//! X: attempts, until nginx accepts one: render, stage, test what changed alone and all together.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::alone::{self, Changed, Refused};
use super::lesson::Lesson;
use super::{Candidate, Judgement};
use crate::generation::manifest::Manifest;
use crate::generation::{GenerationError, LockedStore, StagedGeneration, TestedGeneration};
use crate::nginx::{Accepted, TestError};
use crate::reconcile::plan::{Plan, configs, plan};
use crate::reconcile::report::StepName;
use crate::reconcile::{Progress, ReconcileError, activation};
use crate::render::RenderedConfig;
use crate::vhost::AppName;

/// Each attempt withholds apps or learns what changed in the hand-written files.
const ATTEMPTS: usize = 12;

const SANDBOX_HINT: &str = "`sandbox: require` in the settings asks for one: let vhostd run as root with CAP_SYS_ADMIN, CAP_SETUID, \
     CAP_SETGID and CAP_SETPCAP, where namespaces are allowed, or set `sandbox: auto`";

/// Accepted, or back with the reason.
type WholeTest = Result<(TestedGeneration, Accepted), Box<(StagedGeneration, TestError)>>;

impl Candidate<'_> {
    pub(crate) fn judge(
        &mut self,
        locked: &LockedStore,
        progress: &mut Progress<'_>,
    ) -> Result<Judgement, ReconcileError> {
        // a person asked, or the hand-written files changed
        let blind = self.request.is_manual() || self.active.number == 0 || !self.knows_the_host();
        if blind && let Lesson::GiveUp { error, hint } = self.look(locked) {
            // what is accepted, and what certificates it needs, does not depend on the admin's files
            self.render()?;
            progress.finished(
                StepName::Test,
                "nginx does not take the configuration even without vhostd's files",
            );
            return Ok(Judgement::Refused { error, hint });
        }
        progress.ahead_of(StepName::Test);
        for _ in 0..ATTEMPTS {
            let (rendered, draft) = self.render()?;
            let count = self.apps.iter().map(|app| app.vhosts.len()).sum::<usize>();
            progress.finished(
                StepName::Render,
                format!("{count} {}", if count == 1 { "vhost" } else { "vhosts" }),
            );
            let plan = self.plan(&rendered.digest)?;
            if blind && plan != Plan::Activate {
                let words = "nginx accepts the hand-written configuration";
                progress.finished(StepName::Test, words);
            }
            match plan {
                Plan::Unchanged | Plan::Prove if self.refused_active.is_some() => {
                    let refused = self.refused_beside_the_hand_written_files();
                    return self.settled(refused);
                }
                Plan::Unchanged => return self.settled(Judgement::Unchanged),
                Plan::Prove => {
                    return self.settled(Judgement::Prove(Box::new(self.active.clone())));
                }
                Plan::Wait => match self.setback.take() {
                    Some(setback) => return self.settled(Judgement::Wait(setback)),
                    None => continue,
                },
                Plan::Activate => {}
            }
            if let Some(error) = self.installation.host_nginx.sandbox().refusal() {
                return Ok(Judgement::Refused {
                    error: format!("failed to {error}"),
                    hint: Some(SANDBOX_HINT.into()),
                });
            }
            let (tested, refused) = self.stage_and_test(locked, &rendered, draft)?;
            if let Some(judgement) = self.weigh(locked, &rendered, tested, refused, progress)? {
                return Ok(judgement);
            }
        }
        let last = self.refused.take().map(|words| format!(": {words}"));
        Ok(Judgement::Refused {
            error: format!(
                "no acceptable configuration was found in {ATTEMPTS} attempts{}",
                last.unwrap_or_default()
            ),
            hint: Some("run `vhostd reload` to try again".into()),
        })
    }

    /// Stages `draft`; what nginx says of the whole, and of what changed alone: beside each other, so
    /// that a good change hardly waits for the trial, and of a bad one everybody who is to blame is
    /// known at once.
    fn stage_and_test(
        &self,
        locked: &LockedStore,
        rendered: &RenderedConfig,
        draft: Manifest,
    ) -> Result<(WholeTest, Vec<Refused>), GenerationError> {
        let (installation, active) = (self.installation, self.active);
        let (tried, changed) = (draft.clone(), self.changed(rendered));
        let needed = AtomicBool::new(true);
        thread::scope(|scope| {
            let alone = scope.spawn(|| {
                alone::refused(installation, active, rendered, &tried, &changed, &needed)
            });
            let staged = locked.stage(rendered, draft);
            let tested = staged.map(|staged| locked.test(staged, active, installation.nginx()));
            let refused = matches!(tested, Ok(Err(_)));
            needed.store(refused, Ordering::Relaxed);
            let alone = alone.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok((tested?, alone))
        })
    }

    /// What an attempt came to; `None`: another one may succeed.
    fn weigh(
        &mut self,
        locked: &LockedStore,
        rendered: &RenderedConfig,
        tested: WholeTest,
        refused_alone: Vec<Refused>,
        progress: &mut Progress<'_>,
    ) -> Result<Option<Judgement>, ReconcileError> {
        let (staged, error) = match tested {
            Ok((tested, accepted)) if accepted.survey == self.survey => {
                let number = tested.manifest().number;
                progress.finished(StepName::Test, format!("nginx accepts generation {number}"));
                self.warnings.extend(accepted.warnings);
                self.remember_look();
                return self.settled(Judgement::Tested(Box::new(tested))).map(Some);
            }
            Ok((tested, accepted)) => {
                self.survey = accepted.survey;
                locked.discard_tested(tested)?;
                let words = "the hand-written files are not what they were: made again";
                progress.finished(StepName::Test, words);
                return Ok(None);
            }
            Err(refusal) => *refusal,
        };
        let draft = staged.manifest().clone();
        locked.discard(staged)?;
        self.refused = Some(error.to_string());
        let words = format!("nginx refuses generation {}", draft.number);
        progress.finished(StepName::Test, words);
        if self.withhold_certain(rendered, refused_alone) {
            return Ok(None);
        }
        Ok(match self.learn(locked, rendered, &draft, error)? {
            Lesson::TryAgain => None,
            Lesson::GiveUp { error, hint } => Some(Judgement::Refused { error, hint }),
        })
    }

    /// Whether the trial found an app to blame for what is wrong with the whole. Whom it only
    /// suspects is remembered.
    fn withhold_certain(&mut self, rendered: &RenderedConfig, refused: Vec<Refused>) -> bool {
        let (certain, suspected): (Vec<_>, Vec<_>) = refused
            .into_iter()
            .partition(|refused| refused.line.is_some());
        self.suspected = suspected;
        self.withhold_all(rendered, &certain)
    }

    /// The apps whose files are not those of the active generation.
    pub(super) fn changed<'r>(&self, rendered: &'r RenderedConfig) -> Vec<Changed<'r>> {
        let active = configs(self.active);
        let serves = |app: &AppName| {
            let version = self.versions.get(app).map(String::as_str);
            let mut known = active.get(app).into_iter().flatten();
            known.any(|config| Some(*config) == version)
        };
        let files = rendered
            .apps
            .iter()
            .map(|(path, app)| (app, path.as_path()));
        files.filter(|(app, _)| !serves(app)).collect()
    }

    fn plan(&mut self, digest: &str) -> Result<Plan, ReconcileError> {
        let generations = &self.installation.generations;
        let history = generations.history()?;
        let number = self.active.number;
        // an activation without an entry is one whose proof was interrupted
        let proof = history.last(number).map(|entry| entry.result);
        let held = !self.request.is_manual()
            && self.setback.as_ref().is_some_and(|setback| {
                let master = self.installation.master(&self.active.survey);
                setback.holds(digest, master, self.request.now)
            });
        if digest == self.active.digest
            && let Some(damage) = generations.damage(self.active)?
        {
            let warning = format!("{damage}: generation {number} is replaced");
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
            return Ok(if held { Plan::Wait } else { Plan::Activate });
        }
        Ok(plan(digest, self.active, proof, held, || {
            activation::serving(self.installation, self.active)
        }))
    }
}
