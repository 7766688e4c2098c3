//! A tested generation → served and proven, or rolled back.

use std::time::{Duration, Instant};

use super::access_logs;
use super::plan::{Serving, changes, names_to_prove};
use super::proof::{ForeignName, ProofError, answering, prove};
use super::report::{Outcome, Report, StepName};
use super::{Progress, ReconcileError, Request, base_report, remedy};
use crate::generation::history::{HistoryEntry, Proof};
use crate::generation::manifest::Manifest;
use crate::generation::{Activation, LockedStore, TestedGeneration};
use crate::installation::Installation;
use crate::nginx::ReloadError;
use crate::nginx::process::NoMaster;

/// What `prove` may take beyond twice the time of the test: nginx retries a taken port for 2.5 s.
const PROOF_LIMIT: Duration = Duration::from_secs(5);
/// Beyond that, for each name: nginx reads thousands of vhosts for seconds (measured: 13 s for 5,000).
const PROOF_LIMIT_PER_NAME: Duration = Duration::from_millis(4);

/// One question without an answer says that nginx is busy, and another reload would not help it.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Who answers on the listeners of the active generation.
pub(crate) fn serving(installation: &Installation, active: &Manifest) -> Serving {
    // a worker may outlive its master and answer: it never reads anything again
    if installation.nginx_is_down(&active.survey) {
        return Serving::NginxDown;
    }
    for _ in 0..LOOKS {
        if let Some(number) = answering(installation.nginx(), active) {
            return Serving::Generation(number);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Serving::Unknown
}

/// `current` moves, nginx is told, the effect is seen; or all of it is taken back.
pub(crate) fn activate(
    installation: &Installation,
    locked: &LockedStore,
    tested: TestedGeneration,
    request: &Request,
    progress: &mut Progress<'_>,
) -> Result<Report, ReconcileError> {
    let test_time = progress.spent(StepName::Test);
    let old = installation.generations.active()?.manifest;
    let warnings = access_logs::create(installation, tested.manifest());
    let activation = locked.activate(tested)?;
    let step = format!("{} → {}", old.number, activation.manifest().number);
    progress.finished(StepName::Activate, step);
    let settling = Settling {
        installation,
        locked,
        old: &old,
        request,
        test_time,
        progress,
    };
    let mut report = settling.settle(activation)?;
    report.warnings.extend(warnings);
    Ok(report)
}

/// `current` is right already, but who answers is not, or nobody ever looked.
pub(crate) fn prove_again(
    installation: &Installation,
    locked: &LockedStore,
    active: Manifest,
    request: &Request,
    progress: &mut Progress<'_>,
) -> Result<Report, ReconcileError> {
    let history = installation.generations.history()?;
    let last = history.last(active.number).map(|entry| entry.result);
    let fallback = match last {
        // it served, as far as is known: an older generation would serve no better, and is not what
        // was asked for
        Some(Proof::Proven | Proof::Unknown) => active.number,
        _ => locked.newest_served_before(active.number)?,
    };
    let old = installation.generations.manifest(fallback)?;
    let warnings = access_logs::create(installation, &active);
    let activation = locked.resume(installation.generations.active()?, fallback);
    let settling = Settling {
        installation,
        locked,
        old: &old,
        request,
        test_time: Duration::ZERO,
        progress,
    };
    let mut report = settling.settle(activation)?;
    report.warnings.extend(warnings);
    Ok(report)
}

/// From the moved `current` to what was seen to answer.
struct Settling<'a, 'p> {
    installation: &'a Installation,
    locked: &'a LockedStore,
    /// What answers if the new one does not.
    old: &'a Manifest,
    request: &'a Request,
    test_time: Duration,
    progress: &'a mut Progress<'p>,
}

/// Why the new generation does not serve.
struct Failure {
    why: String,
    hint: Option<String>,
    /// nginx's master may be reading it yet.
    may_still_take: bool,
    foreign: Vec<ForeignName>,
}

impl Settling<'_, '_> {
    fn settle(mut self, activation: Activation) -> Result<Report, ReconcileError> {
        let new = activation.manifest().clone();
        let nginx = self.installation.nginx();
        let reloading = match nginx.reload(&new.survey) {
            Ok(reloading) => reloading,
            Err(ReloadError::NoMaster(NoMaster::NotRunning { .. })) => {
                self.finished(StepName::Reload, "nginx is not running");
                return self.keep_for_later(activation);
            }
            Err(error) => {
                self.finished(StepName::Reload, "nothing was signalled");
                let failure = Failure {
                    hint: remedy::of_reload(&error),
                    why: error.to_string(),
                    may_still_take: false,
                    foreign: Vec::new(),
                };
                return self.back(activation, failure);
            }
        };
        self.finished(StepName::Reload, "nginx's master was told");
        let names = names_to_prove(&new, self.old);
        let count = u32::try_from(new.names.len()).unwrap_or(u32::MAX);
        let limit = PROOF_LIMIT + (self.test_time * 2).max(PROOF_LIMIT_PER_NAME * count);
        match prove(nginx, reloading.as_ref(), &new, &names, limit) {
            Ok(()) => {
                self.finished(StepName::Verify, proven(&new, names.len()));
                self.commit(activation)
            }
            Err(_) if self.installation.nginx_is_down(&new.survey) => {
                self.finished(StepName::Verify, "nginx ended meanwhile");
                self.keep_for_later(activation)
            }
            Err(error) => {
                self.finished(StepName::Verify, "the new generation does not serve");
                let failure = Failure {
                    hint: remedy::of(self.installation, &error, &new),
                    why: error.to_string(),
                    may_still_take: matches!(error, ProofError::TimedOut { .. }),
                    foreign: match error {
                        ProofError::NotOurs(names) => names,
                        ProofError::Refused { .. } | ProofError::TimedOut { .. } => Vec::new(),
                    },
                };
                self.back(activation, failure)
            }
        }
    }

    fn commit(self, activation: Activation) -> Result<Report, ReconcileError> {
        let new = activation.commit().manifest;
        let mut report = base_report(new.number);
        report.outcome = Outcome::Activated;
        self.record(&mut report, &new, Proof::Proven, None);
        Ok(report)
    }

    fn back(mut self, activation: Activation, failure: Failure) -> Result<Report, ReconcileError> {
        let failed = activation.manifest().clone();
        let Failure {
            why,
            hint,
            may_still_take,
            foreign,
        } = failure;
        if activation.previous() == failed.number {
            return Ok(Report {
                error: Some(why),
                hint,
                ..base_report(failed.number)
            });
        }
        let active = activation.roll_back(self.locked)?.manifest;
        let number = active.number;
        let error = match restore(self.installation, &active, may_still_take) {
            Ok(()) => why.clone(),
            Err(still) => format!("{why}; generation {number} is back on disk, but {still}"),
        };
        let step = format!("{} → {number}", failed.number);
        self.finished(StepName::Activate, step);
        let mut report = Report {
            outcome: Outcome::RolledBack,
            error: Some(error),
            hint,
            foreign,
            ..base_report(number)
        };
        self.record(&mut report, &failed, Proof::RolledBack, Some(why));
        Ok(report)
    }

    /// There is nobody to tell: what nginx accepted in its test is what it will start with.
    fn keep_for_later(self, activation: Activation) -> Result<Report, ReconcileError> {
        let new = activation.commit().manifest;
        let mut report = base_report(new.number);
        report.outcome = Outcome::Activated;
        self.record(&mut report, &new, Proof::NginxDown, None);
        say_nginx_is_down(self.installation, &mut report, self.old);
        Ok(report)
    }

    /// It is as it is, whatever becomes of the record: the next run proves it once more.
    fn record(&self, report: &mut Report, new: &Manifest, result: Proof, why: Option<String>) {
        let entry = HistoryEntry {
            generation: new.number,
            at: self.request.now,
            reason: self.request.reason,
            result,
            changes: changes(new, self.old),
            why,
        };
        let history = self.installation.generations.history();
        let recorded = history.and_then(|mut history| Ok(history.record(entry)?));
        if let Err(error) = recorded {
            report.warnings.push(format!("failed to {error}"));
        }
    }

    fn finished(&mut self, step: StepName, detail: impl Into<String>) {
        self.progress.finished(step, detail);
    }
}

/// What the proof saw.
fn proven(new: &Manifest, names: usize) -> String {
    let counted = |count: usize, noun: &str| match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    };
    let sockets = counted(new.http.len() + new.https.len(), "socket");
    let names = counted(names, "name");
    format!(
        "generation {} answers on {sockets}, {names} by our blocks",
        new.number
    )
}

/// After a refused reload the old workers never stopped; only where the failed generation did
/// answer, or may yet, is nginx told once more.
fn restore(
    installation: &Installation,
    active: &Manifest,
    may_still_take: bool,
) -> Result<(), String> {
    let nginx = installation.nginx();
    if active.http.is_empty() {
        // generation 0 has no listeners that could tell; reading it again drops ours
        return match nginx.reload(&active.survey) {
            Ok(_) | Err(ReloadError::NoMaster(NoMaster::NotRunning { .. })) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
    }
    let settled = Instant::now() + Duration::from_millis(300);
    while !may_still_take && Instant::now() < settled {
        if answering(nginx, active) == Some(active.number) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match nginx.reload(&active.survey) {
        Ok(reloading) => prove(nginx, reloading.as_ref(), active, &[], PROOF_LIMIT)
            .map_err(|error| error.to_string()),
        Err(ReloadError::NoMaster(NoMaster::NotRunning { .. })) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// `before`: what may still be answered by workers that outlived their master.
pub(crate) fn say_nginx_is_down(
    installation: &Installation,
    report: &mut Report,
    before: &Manifest,
) {
    report.nginx_running = false;
    report.error = Some(format!(
        "nginx is not running; generation {} is on disk and valid, and serves when nginx starts",
        report.generation
    ));
    let orphans = answering(installation.nginx(), before).is_some();
    report.hint = Some(match orphans {
        true => "a worker that outlived its master still answers, and keeps a new nginx from its ports: \
                 end it (`ss -ltnp` shows it), then start nginx"
            .into(),
        false => "start nginx, for example with `systemctl start nginx`".into(),
    });
}
