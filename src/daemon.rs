//! One loop, one closed enum of events. The daemon decides when to reconcile and what to order;
//! how is `reconcile`'s and `certificate`'s to know.
//!
//! There is no quiet period: the first hint starts a batch at once, and what arrives while it runs
//! forms the next one. A batch reads, starts the orders of new vhosts, waits for those at most
//! [`CERTIFICATE_WAIT`], and applies.

mod batch; // P what has been asked for since the last batch began
mod event; // P everything that can happen
mod orders; // N certificates that are being obtained, and who waits for them
mod signals; // R what the service manager and the terminal say

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::certificate::CertificateName;
use crate::certificate::renew::Obtained;
use crate::clock::Clock;
use crate::control::{Call, ControlSocket, ListenError, Request};
use crate::generation::manifest::Reason;
use crate::installation::{Installation, OpenError};
use crate::reconcile::grace::Absences;
use crate::reconcile::intent::{Intent, Reading};
use crate::reconcile::report::Report;
use crate::reconcile::{self, Applied, ReconcileError};
use crate::settings::Settings;
use crate::status::StatusRecord;
use crate::systemd;
use crate::watch::{Watch, WatchError};

use batch::{Batch, Pending, Told};
use event::{Event, ReadDone, Reopen};
use orders::Orders;
use signals::Signals;

/// A new vhost is first activated with its certificate or after this long, with a placeholder:
/// one reload instead of two when the CA is quick, and never a wait for a slow one.
pub const CERTIFICATE_WAIT: Duration = Duration::from_millis(150);

/// Events may be lost; the directory is the truth.
const RESCAN: Duration = Duration::from_secs(30);
/// As long as a directory that should be watched is missing, or nginx is down.
const RESCAN_SOON: Duration = Duration::from_secs(1);
const LOCK_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("handle signals: {0}")]
    Signal(#[source] std::io::Error),
    #[error(transparent)]
    Watch(#[from] WatchError),
}

enum Phase {
    Idle,
    /// Settings are read again; a reading follows.
    Reopening(Batch),
    Reading(Batch),
    /// Orders of new vhosts are under way.
    Awaiting {
        batch: Batch,
        intent: Box<Intent>,
        names: Vec<CertificateName>,
        until: Instant,
    },
    Applying(Batch),
}

struct Daemon {
    config: Option<PathBuf>,
    installation: Arc<Installation>,
    clock: Clock,
    events: mpsc::UnboundedSender<Event>,
    phase: Phase,
    pending: Pending,
    orders: Orders,
    /// `None` while a reading has them.
    watch: Option<Watch>,
    absences: Absences,
    answers_early_challenges: bool,
    next_rescan: Instant,
    next_removal: Option<Instant>,
    /// When the watchdog wants a sign of life; `None` without one.
    next_alive: Option<Instant>,
    /// What new settings ask for and only a restart can give.
    waiting_for_restart: Vec<String>,
    /// What kept the last batch from being applied.
    last_failure: Option<String>,
    told: Told,
    /// Renewals that were asked for before the first batch told what is wanted.
    early: Vec<Call>,
    ready: bool,
    witness: mpsc::UnboundedSender<Report>,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(
    config: Option<PathBuf>,
    settings: Settings,
    clock: Clock,
) -> Result<(), DaemonError> {
    let (nobody, _) = mpsc::unbounded_channel();
    run_witnessed(config, settings, clock, nobody).await
}

/// As [`run`], and `witness` gets the report of every reconcile. A witness that has gone is no
/// error.
pub async fn run_witnessed(
    config: Option<PathBuf>,
    settings: Settings,
    clock: Clock,
    witness: mpsc::UnboundedSender<Report>,
) -> Result<(), DaemonError> {
    let (events, mut queue) = mpsc::unbounded_channel();
    let now = clock();
    let installation = Arc::new(Installation::open(settings, now)?);
    let socket = ControlSocket::bind(&installation.settings.control_socket()).await?;
    let hint = events.clone();
    let watch = Watch::start(&installation.settings.vhosts_dir, move || {
        let _ = hint.send(Event::Files);
    })?;
    let (calls, mut called) = mpsc::unbounded_channel();
    let mut daemon = Daemon {
        config,
        orders: Orders::new(clock.clone()),
        installation,
        clock,
        events,
        phase: Phase::Idle,
        pending: Pending::at_start(),
        watch: Some(watch),
        absences: Absences::default(),
        answers_early_challenges: false,
        next_rescan: Instant::now() + RESCAN,
        next_removal: None,
        next_alive: systemd::watchdog_interval().map(|interval| Instant::now() + interval),
        waiting_for_restart: Vec::new(),
        last_failure: None,
        told: Told::default(),
        early: Vec::new(),
        ready: false,
        witness,
    };
    let mut signals = Signals::install().map_err(DaemonError::Signal)?;
    let control = socket.serve(calls);
    tokio::pin!(control);
    daemon.begin_batch();
    loop {
        let wake = daemon.next_wake();
        // every arm is cancel-safe: a channel's recv, a signal's recv and a sleep lose nothing when
        // dropped, and `control` is polled in place, never dropped
        let event = tokio::select! {
            Some(event) = queue.recv() => event,
            Some(call) = called.recv() => Event::Call(call),
            event = signals.next() => event,
            never = &mut control => match never {},
            () = tokio::time::sleep_until(wake.into()) => {
                daemon.on_time();
                continue;
            }
        };
        if matches!(event, Event::Stop) {
            systemd::stopping();
            tracing::info!("stopping; nginx keeps serving");
            return Ok(());
        }
        daemon.on_event(event);
    }
}

impl Daemon {
    fn on_event(&mut self, event: Event) {
        match event {
            Event::Files => self.pending.files = true,
            Event::Read(done) => self.on_read(*done),
            Event::Applied(applied) => self.on_applied(applied),
            Event::Obtained(name, obtained) => self.on_obtained(&name, &obtained),
            Event::Call(call) => self.on_call(call),
            Event::Reconfigure => {
                systemd::reloading();
                self.pending.reopen = true;
            }
            Event::Reopened(opened) => self.on_reopened(opened),
            Event::Stop => {}
        }
        self.begin_batch();
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.show_life(now);
        if let Phase::Awaiting { until, .. } = &self.phase
            && *until <= now
        {
            self.apply();
        }
        if self.next_rescan <= now || self.next_removal.is_some_and(|removal| removal <= now) {
            self.next_rescan = now + RESCAN;
            self.next_removal = None;
            self.pending.rescan = true;
        }
        self.orders.start_due(&self.installation, &self.events);
        self.begin_batch();
    }

    fn next_wake(&self) -> Instant {
        let awaiting = match &self.phase {
            Phase::Awaiting { until, .. } => Some(*until),
            _ => None,
        };
        let all = [
            awaiting,
            self.next_removal,
            self.orders.next_due(),
            self.next_alive,
        ];
        all.into_iter()
            .flatten()
            .fold(self.next_rescan, Instant::min)
    }

    fn show_life(&mut self, now: Instant) {
        if self.next_alive.is_some_and(|alive| alive <= now) {
            systemd::alive();
            self.next_alive = systemd::watchdog_interval().map(|interval| now + interval);
        }
    }

    fn on_call(&mut self, call: Call) {
        match call.request {
            Request::Reload { .. } | Request::Rollback { .. } => self.pending.calls.push(call),
            Request::Renew { .. } if !self.ready => self.early.push(call),
            Request::Renew { names, force } => {
                self.orders
                    .renew(&names, force, call.answer, &self.installation, &self.events);
                self.orders
                    .answer_waiters(self.is_settled(), &self.installation);
            }
        }
    }

    /// Starts the next batch where none runs and something was asked for.
    fn begin_batch(&mut self) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        let Some(batch) = self.pending.take() else {
            self.orders.answer_waiters(true, &self.installation);
            return;
        };
        if batch.reopens() {
            self.reopen(batch);
        } else {
            self.read(batch);
        }
    }

    fn reopen(&mut self, batch: Batch) {
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

    fn on_reopened(&mut self, opened: Result<(Box<Installation>, Vec<String>), Reopen>) {
        let Phase::Reopening(batch) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        match opened {
            Ok((installation, waiting)) => {
                self.installation = Arc::new(*installation);
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

    fn read(&mut self, batch: Batch) {
        let Some(mut watch) = self.watch.take() else {
            return;
        };
        if let Some(generation) = batch.rollback() {
            self.watch = Some(watch);
            self.roll_back(batch, generation);
            return;
        }
        let manual = batch.is_manual();
        let mut absences = match manual {
            true => None,
            false => Some(std::mem::take(&mut self.absences)),
        };
        self.phase = Phase::Reading(batch);
        let (installation, events) = (self.installation.clone(), self.events.clone());
        spawn_blocking(move || {
            // first armed, then read: no change falls between
            let armed = watch.rearm();
            let reading = Reading {
                absences: absences.as_mut(),
                manual,
            };
            let intent = reconcile::intent::read(&installation, reading);
            let _ = events.send(Event::Read(Box::new(ReadDone {
                intent,
                absences: absences.unwrap_or_default(),
                watch,
                armed,
            })));
        });
    }

    fn on_read(&mut self, done: ReadDone) {
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
        self.phase = Phase::Awaiting {
            batch,
            intent: Box::new(intent),
            until: Instant::now() + CERTIFICATE_WAIT,
            names,
        };
        self.apply_when_ready();
    }

    fn apply_when_ready(&mut self) {
        if let Phase::Awaiting { names, .. } = &self.phase
            && names.is_empty()
        {
            self.apply();
        }
    }

    fn apply(&mut self) {
        let Phase::Awaiting { batch, intent, .. } = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        let request = self.request(batch.reason());
        let mut observer = batch.observer();
        self.phase = Phase::Applying(batch);
        let (installation, events) = (self.installation.clone(), self.events.clone());
        spawn_blocking(move || {
            let applied = reconcile::apply(&installation, *intent, &request, &mut observer);
            let _ = events.send(Event::Applied(applied));
        });
    }

    fn roll_back(&mut self, batch: Batch, generation: Option<u64>) {
        let request = self.request(Reason::Rollback);
        let mut observer = batch.observer();
        self.phase = Phase::Applying(batch);
        let (installation, events) = (self.installation.clone(), self.events.clone());
        spawn_blocking(move || {
            let applied =
                reconcile::roll_back_to(&installation, generation, &request, &mut observer);
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

    fn on_applied(&mut self, applied: Result<Applied, ReconcileError>) {
        let Phase::Applying(batch) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        let mut applied = match applied {
            Ok(applied) => applied,
            Err(error @ ReconcileError::NoSuchGeneration(_)) => {
                tracing::debug!("failed to {error}");
                return batch.fail(
                    &error.to_string(),
                    Some("`vhostd history` lists them".into()),
                    1,
                );
            }
            Err(error) => return self.failed(batch, &error),
        };
        if self.last_failure.take().is_some() {
            tracing::info!("reconciles again");
        }
        let waiting = self.waiting_for_restart.iter().cloned();
        applied.report.warnings.extend(waiting);
        self.told.log(&applied.report, batch.reason());
        let _ = self.witness.send(applied.report.clone());
        if !applied.report.nginx_running {
            self.next_rescan = Instant::now() + RESCAN_SOON;
        }
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
        self.last_failure = Some(message);
        self.next_rescan = Instant::now() + RESCAN_SOON.max(RESCAN / 10);
        self.say_ready();
        batch.fail(&error.to_string(), None, 1);
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

    fn on_obtained(&mut self, name: &CertificateName, obtained: &Obtained) {
        let stored = self.orders.finished(name, obtained);
        if let Phase::Awaiting { names, .. } = &mut self.phase
            && names.contains(name)
        {
            // the waiting batch will find it in the store
            names.retain(|waiting| waiting != name);
            return self.apply_when_ready();
        }
        self.pending.certificate |= stored;
    }

    /// Nothing runs and nothing is asked for: what waiters wait for is as done as it gets.
    fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.pending.is_empty()
    }
}
