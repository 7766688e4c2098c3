//! From a batch to what became of it: settings, a reading, an application, each in a thread of its
//! own that answers with an event.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;

use super::batch::{self, Batch};
use super::event::{Event, ReadDone, Reopen};
use super::{Daemon, Expecting, LOCK_LIMIT, Phase, RESCAN, RESCAN_SOON, Waiting};
use crate::certificate::CertificateName;
use crate::certificate::renew::Obtained;
use crate::generation::manifest::Reason;
use crate::installation::Installation;
use crate::reconcile::intent::{Intent, Reading};
use crate::reconcile::last_look::LastLook;
use crate::reconcile::report::Outcome;
use crate::reconcile::rollback::{Rollback, roll_back_to};
use crate::reconcile::{self, Applied, ReconcileError};
use crate::settings::Settings;
use crate::status::StatusRecord;
use crate::systemd;
use crate::watch::Followed;

impl Daemon {
    pub(super) fn reopen(&mut self, batch: Batch) {
        let (config, now, events) = (self.config.clone(), (self.clock)(), self.events.clone());
        let installation = self.installation.clone();
        self.phase = Phase::Reopening(batch);
        spawn_blocking(move || {
            let opened = Settings::load(config.as_deref())
                .map_err(Reopen::Settings)
                .map(|settings| batch::keep_directories(&installation.settings, settings))
                .and_then(|(settings, waiting)| {
                    let opened = Installation::open(settings, now).map_err(Reopen::Open)?;
                    Ok((Box::new(opened), waiting))
                });
            let _ = events.send(Event::Reopened(opened));
        });
    }

    pub(super) fn on_reopened(&mut self, opened: Result<(Box<Installation>, Vec<String>), Reopen>) {
        let Phase::Reopening(batch) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        match opened {
            Ok((installation, waiting)) => {
                self.installation = Arc::new(*installation);
                if let Some(herald) = &self.herald {
                    herald.reopened(&self.installation);
                }
                self.view
                    .send_modify(|view| view.installation.clone_from(&self.installation));
                self.waiting_for_restart = waiting;
                self.orders.forget_client();
                self.read(batch);
            }
            Err(reopen) => {
                let (message, exit) = reopen.told();
                tracing::error!("failed to read the settings again, the old ones hold: {message}");
                systemd::ready();
                // the files may have changed as well
                self.pending.rescan = true;
                batch.fail(
                    &message,
                    Some("correct the settings, then run `vhostd reload`".into()),
                    exit,
                );
            }
        }
    }

    pub(super) fn read(&mut self, batch: Batch) {
        let Some(mut watch) = self.watch.take() else {
            return;
        };
        if batch.rollback().is_some() {
            self.watch = Some(watch);
            let now = Instant::now();
            let not_before = self.not_before(batch.reason(), batch.is_by_users(), now);
            self.phase = Phase::Spaced(batch, not_before);
            self.roll_back_when_ready(now);
            return;
        }
        let reloads = batch.reloads();
        let mut absences = match batch.is_manual() {
            true => None,
            false => Some(std::mem::take(&mut self.absences)),
        };
        self.phase = Phase::Reading(batch);
        let (installation, events) = (self.installation.clone(), self.events.clone());
        let (failed, now) = (self.last_failure.is_some(), (self.clock)());
        spawn_blocking(move || {
            // first armed, then read: no change falls between
            let armed = watch.rearm();
            let reading = Reading {
                absences: absences.as_mut(),
                reloads,
            };
            // what kept us from it may be something that can be made good
            let intent = match failed {
                true => installation.repair(now).map_err(ReconcileError::from),
                false => Ok(()),
            }
            .and_then(|()| reconcile::intent::read(&installation, reading));
            if let Ok(intent) = &intent {
                // they are read when the intent is applied
                watch.follow(followed(intent, &installation));
            }
            let _ = events.send(Event::Read(Box::new(ReadDone {
                intent,
                absences: absences.unwrap_or_default(),
                watch,
                armed,
            })));
        });
    }

    pub(super) fn on_read(&mut self, done: ReadDone) {
        self.watch = Some(done.watch);
        self.absences = done.absences;
        let soon = if done.armed { RESCAN } else { RESCAN_SOON };
        self.next_rescan = Instant::now() + soon;
        let Phase::Reading(batch) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        let intent = match done.intent {
            Ok(intent) => intent,
            Err(error) => return self.failed(batch, &error),
        };
        self.next_removal = intent.next_removal;
        let names = match self.answers_early_challenges {
            true => self
                .orders
                .start_early(&intent, &self.installation, &self.events),
            false => Vec::new(),
        };
        let now = Instant::now();
        // what changes nothing reloads nothing
        let by_users = batch.is_by_users() && intent.changes_files();
        self.phase = Phase::Awaiting(Waiting {
            until: self.expecting.get_or_insert(Expecting::from(now)).ends(),
            not_before: self.not_before(batch.reason(), by_users, now),
            read_at: now,
            intent: Box::new(intent),
            batch,
            names,
        });
        self.apply_when_ready(now);
    }

    /// `by_users`: users of the host ask, and not root.
    pub(super) fn not_before(&self, reason: Reason, by_users: bool, now: Instant) -> Instant {
        let spaced = match reason {
            Reason::Certificate => self.orders.is_signing(),
            _ => by_users,
        };
        self.pace.not_before(reason, spaced, now)
    }

    pub(super) fn apply_when_ready(&mut self, now: Instant) {
        let Phase::Awaiting(waiting) = &self.phase else {
            return;
        };
        if waiting.ready_at() <= now && !self.is_overtaken(now) {
            self.apply();
        }
    }

    fn apply(&mut self) {
        let Phase::Awaiting(Waiting { batch, intent, .. }) =
            std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        self.expecting = None;
        let request = self.request(batch.reason());
        let mut observer = batch.observer();
        self.phase = Phase::Applying(batch);
        let (installation, events) = (self.installation.clone(), self.events.clone());
        spawn_blocking(move || {
            let applied = reconcile::apply(&installation, *intent, &request, &mut observer);
            let _ = events.send(Event::Applied(applied));
        });
    }

    /// Begins the rollback that waits, when it may. Where root asks for something meanwhile, a user's
    /// rollback is not waited for.
    pub(super) fn roll_back_when_ready(&mut self, now: Instant) {
        let Phase::Spaced(batch, not_before) = &self.phase else {
            return;
        };
        let overtaken = batch.is_by_users() && self.pending.is_by_admin();
        if now < *not_before && !overtaken {
            return;
        }
        let Phase::Spaced(batch, _) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        if let Some(rollback) = batch.rollback() {
            self.roll_back(batch, rollback);
        }
    }

    fn roll_back(&mut self, batch: Batch, rollback: Rollback) {
        let request = self.request(Reason::Rollback);
        let mut observer = batch.observer();
        self.phase = Phase::Applying(batch);
        let (installation, events) = (self.installation.clone(), self.events.clone());
        spawn_blocking(move || {
            let applied = roll_back_to(&installation, &rollback, &request, &mut observer);
            let _ = events.send(Event::Applied(applied));
        });
    }

    fn request(&self, reason: Reason) -> reconcile::Request {
        reconcile::Request {
            reason,
            now: (self.clock)(),
            lock_limit: LOCK_LIMIT,
        }
    }

    pub(super) fn on_applied(&mut self, applied: Result<Applied, ReconcileError>) {
        let Phase::Applying(batch) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        let mut applied = match applied {
            Ok(applied) => applied,
            Err(error) if error.is_about_the_request() => {
                tracing::debug!("failed to {error}");
                return batch.fail(&error.to_string(), error.hint().map(str::to_owned), 1);
            }
            Err(error) => return self.failed(batch, &error),
        };
        if self.last_failure.take().is_some() {
            self.view.send_modify(|view| view.failure = None);
            tracing::info!("reconciles again");
        }
        if let Some(herald) = &self.herald {
            herald.applied(&applied);
            // what was told may be mended by it, or have been before
            if batch.is_manual() {
                herald.asked();
            }
        }
        let waiting = self.waiting_for_restart.iter().cloned();
        applied.report.warnings.extend(waiting);
        self.told.log(&applied.report, batch.reason());
        let _ = self.witness.send(applied.report.clone());
        let now = Instant::now();
        self.pace.note(&applied.report, batch.reason(), now);
        if batch.reason() == Reason::File {
            let anything = applied.report.outcome != Outcome::Unchanged;
            self.readings.note(anything, now);
        }
        if !applied.report.nginx_running || applied.report.nginx_upgrading {
            self.next_rescan = Instant::now() + RESCAN_SOON;
        }
        // a rollback has not looked at the files
        self.pending.rescan |= batch.rollback().is_some();
        self.answers_early_challenges =
            applied.answers_early_challenges && applied.report.generation > 0;
        self.orders.want(applied.wanted);
        if applied.report.nginx_running {
            self.orders.start_due(&self.installation, &self.events);
        }
        systemd::status(&batch::status_line(&applied.report));
        self.say_ready();
        self.orders
            .answer_batch(batch, applied.report, &self.installation);
    }

    fn failed(&mut self, batch: Batch, error: &ReconcileError) {
        self.expecting = None;
        if let Some(herald) = &self.herald {
            herald.failed(error);
        }
        let message = error.to_string();
        // it is tried again every few seconds: one line says it
        if self.last_failure.as_ref() == Some(&message) {
            tracing::debug!("still failed to {message}");
        } else {
            tracing::error!("failed to {message}; what served before still serves");
        }
        systemd::status(&format!("failed to {message}"));
        let state_dir = &self.installation.settings.state_dir;
        if let Err(error) = StatusRecord::note_failure(state_dir, &message) {
            tracing::debug!("failed to {error}");
        }
        self.view
            .send_modify(|view| view.failure = Some(message.clone()));
        self.orders.not_served(&message, error.hint());
        self.last_failure = Some(message);
        self.next_rescan = Instant::now() + RESCAN_SOON.max(RESCAN / 10);
        self.say_ready();
        batch.fail(&error.to_string(), error.hint().map(str::to_owned), 1);
    }

    fn say_ready(&mut self) {
        systemd::ready();
        if !self.ready {
            self.ready = true;
            tracing::info!(
                "watching {}",
                self.installation.settings.vhosts_dir.display()
            );
            let early = std::mem::take(&mut self.early);
            early.into_iter().for_each(|call| self.on_call(call));
        }
    }

    pub(super) fn on_obtained(&mut self, name: &CertificateName, obtained: &Obtained) {
        let signed = self.orders.signs(name);
        let stored = self.orders.finished(name, obtained);
        if let Some(herald) = &self.herald {
            herald.stir();
        }
        // no batch waits for our own CA
        if stored
            && !signed
            && let Some(expecting) = &mut self.expecting
        {
            expecting.progress = Instant::now();
        }
        let ends = self.expecting.map(Expecting::ends);
        if let Phase::Awaiting(Waiting { names, until, .. }) = &mut self.phase
            && names.contains(name)
        {
            // the waiting batch will find it in the store
            names.retain(|waiting| waiting != name);
            *until = ends.unwrap_or(*until);
            return self.apply_when_ready(Instant::now());
        }
        self.pending.certificate |= stored;
    }

    /// Nothing runs and nothing is asked for: what waiters wait for is as done as it gets.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.pending.is_empty()
    }
}

/// What is watched beside the vhosts directory.
fn followed(intent: &Intent, installation: &Installation) -> Followed {
    let look = LastLook::read(&installation.settings.state_dir);
    let (hand_written, hand_written_directories) =
        look.map(|look| look.files.paths()).unwrap_or_default();
    Followed {
        files: intent.files(),
        hand_written,
        hand_written_directories,
    }
}
