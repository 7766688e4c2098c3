//! One loop, one closed enum of events. The daemon decides when to reconcile and what to order;
//! how is `reconcile`'s and `certificate`'s to know.
//!
//! There is no quiet period: the first hint starts a batch at once, and what arrives while it runs
//! forms the next one. A batch reads, starts the orders of new vhosts, waits for those at most
//! [`CERTIFICATE_WAIT`], and applies; in a flood of edits, not before nginx has had its rest.

mod batch; // P what has been asked for since the last batch began
mod early; // P which orders may begin before their vhosts are live
mod event; // P everything that can happen
mod orders; // N certificates that are being obtained, and who waits for them
mod pace; // P when nginx may be reloaded again
mod signals; // R what the service manager and the terminal say
mod steps; // from a batch to what became of it

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::certificate::CertificateName;
use crate::clock::Clock;
use crate::control::{Call, ControlSocket, ListenError, Request, View};
use crate::generation::manifest::Reason;
use crate::installation::{Installation, OpenError};
use crate::notice::herald::Herald;
use crate::reconcile::grace::Absences;
use crate::reconcile::intent::Intent;
use crate::reconcile::report::Report;
use crate::settings::Settings;
use crate::systemd;
use crate::watch::{Hint, Watch, WatchError};

use batch::{Batch, Pending, Told};
use event::Event;
use orders::Orders;
use pace::{Pace, Readings};
use signals::Signals;

/// A new vhost is first activated with its certificate or after this long, with a placeholder:
/// one reload instead of two when the CA is quick, and never a wait for a slow one.
pub const CERTIFICATE_WAIT: Duration = Duration::from_millis(150);
/// Of many that are ordered at once each that comes gives the others as long again, up to this:
/// fifty certificates of a quick CA are one reload, not ten.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// While a batch waits, files that change are read again, not at every event of a flood.
const READ_AGAIN: Duration = Duration::from_millis(50);
/// Events may be lost; the directory is the truth.
const RESCAN: Duration = Duration::from_secs(30);
/// As long as a directory that should be watched is missing, or nginx is down.
const RESCAN_SOON: Duration = Duration::from_secs(1);
/// An edit of nginx's files, or a package that brings some, may not be finished.
const HAND_WRITTEN_REST: Duration = Duration::from_secs(1);
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
    Awaiting(Waiting),
    /// A rollback, until nginx has had its rest.
    Spaced(Batch, Instant),
    Applying(Batch),
}

/// Read, and not yet to be applied.
struct Waiting {
    batch: Batch,
    intent: Box<Intent>,
    /// Of the certificates that are being ordered.
    names: Vec<CertificateName>,
    /// Nobody waits longer for those.
    until: Instant,
    /// nginx is not reloaded again before.
    not_before: Instant,
    read_at: Instant,
}

/// Since when a batch waits for certificates, and when the last of them came.
#[derive(Clone, Copy)]
struct Expecting {
    since: Instant,
    progress: Instant,
}

impl Expecting {
    fn from(now: Instant) -> Self {
        Self {
            since: now,
            progress: now,
        }
    }

    /// Nobody waits longer for certificates.
    fn ends(self) -> Instant {
        (self.progress + CERTIFICATE_WAIT).min(self.since + LONGEST_WAIT)
    }
}

impl Waiting {
    fn ready_at(&self) -> Instant {
        match self.names.is_empty() {
            true => self.not_before,
            false => self.not_before.max(self.until),
        }
    }
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
    pace: Pace,
    readings: Readings,
    /// Of the batch that waits, from its first reading on.
    expecting: Option<Expecting>,
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
    view: watch::Sender<View>,
    /// `None` where it could not be started: nobody is told, everything else goes on.
    herald: Option<Herald>,
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
    let watch = Watch::start(&installation.settings.vhosts_dir, move |changed| {
        let _ = hint.send(match changed {
            Hint::HandWritten => Event::HandWritten,
            Hint::Vhosts => Event::Files,
        });
    })?;
    let (calls, mut called) = mpsc::unbounded_channel();
    let (view, viewed) = watch::channel(View {
        installation: installation.clone(),
        failure: None,
    });
    let herald = Herald::start(installation.clone(), clock.clone());
    let herald = herald
        .inspect_err(|error| tracing::error!("failed to start whoever tells you: {error}"))
        .ok();
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
        pace: Pace::default(),
        readings: Readings::default(),
        expecting: None,
        next_rescan: Instant::now() + RESCAN,
        next_removal: None,
        next_alive: systemd::watchdog_interval().map(|interval| Instant::now() + interval),
        waiting_for_restart: Vec::new(),
        last_failure: None,
        told: Told::default(),
        early: Vec::new(),
        ready: false,
        witness,
        view,
        herald,
    };
    let mut signals = Signals::install().map_err(DaemonError::Signal)?;
    let control = socket.serve(calls, viewed);
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
            Event::HandWritten => {
                self.next_rescan = self.next_rescan.min(Instant::now() + HAND_WRITTEN_REST);
            }
            Event::Read(done) => self.on_read(*done),
            Event::Applied(applied) => self.on_applied(applied),
            Event::Asked(name) => self.orders.answered(&name),
            Event::CleanedUp => self.orders.cleaned_up(),
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
        self.apply_when_ready(now);
        self.roll_back_when_ready(now);
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
            Phase::Awaiting(waiting) if self.pending.files && waiting.batch.calls.is_empty() => {
                Some(waiting.ready_at().min(waiting.read_at + READ_AGAIN))
            }
            Phase::Awaiting(waiting) => Some(waiting.ready_at()),
            Phase::Spaced(_, not_before) => Some(*not_before),
            _ => None,
        };
        let all = [
            awaiting,
            self.reads_at(),
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
            Request::Reload { .. } | Request::Rollback { .. } | Request::RollbackApps { .. } => {
                self.pending.calls.push(call);
            }
            Request::Renew { .. } if !self.ready => self.early.push(call),
            Request::Renew { names, force } => {
                self.orders
                    .renew(&names, force, call.answer, &self.installation, &self.events);
                self.orders
                    .answer_waiters(self.is_settled(), &self.installation);
            }
        }
    }

    /// What was asked for while a batch waits is done with it, or instead of it.
    fn reconsider(&mut self, now: Instant) {
        self.roll_back_when_ready(now);
        let Phase::Awaiting(waiting) = &mut self.phase else {
            return;
        };
        if std::mem::take(&mut self.pending.certificate) {
            let not_before =
                self.pace
                    .not_before(Reason::Certificate, self.orders.is_signing(), now);
            waiting.not_before = waiting.not_before.min(not_before);
        }
        // what users may ask for keeps root from nothing
        if waiting.batch.is_by_users() && self.pending.is_by_admin() {
            waiting.not_before = now;
        }
        let changed = self.pending.files && waiting.read_at + READ_AGAIN <= now;
        let overtaken = waiting.ready_at() <= now && self.is_overtaken(now);
        let Phase::Awaiting(waiting) = &self.phase else {
            return;
        };
        // nobody asked for a batch that waits, so nobody misses it
        if waiting.batch.calls.is_empty() && (changed || overtaken || self.pending.is_urgent()) {
            self.pending.files = true;
            self.phase = Phase::Idle;
            return;
        }
        self.apply_when_ready(now);
    }

    /// Whether more was dropped since the batch that waits was read, a moment ago: it is read first,
    /// and goes along. (Nobody asked for such a batch.)
    fn is_overtaken(&self, now: Instant) -> bool {
        let Phase::Awaiting(waiting) = &self.phase else {
            return false;
        };
        let since = self.expecting.map(|expecting| expecting.since);
        let recent = since.is_some_and(|since| now < since + CERTIFICATE_WAIT);
        self.pending.files && waiting.batch.calls.is_empty() && recent
    }

    /// When files are read that were as before the last time; `None`: nothing waits for that.
    fn reads_at(&self) -> Option<Instant> {
        let waits = matches!(self.phase, Phase::Idle) && self.pending.is_files_alone();
        self.readings.not_before().filter(|_| waits)
    }

    /// Starts the next batch where none runs and something was asked for.
    fn begin_batch(&mut self) {
        let now = Instant::now();
        self.reconsider(now);
        let waits = self.reads_at().is_some_and(|at| now < at);
        if waits || !matches!(self.phase, Phase::Idle) {
            return;
        }
        let Some(batch) = self.pending.take() else {
            self.orders.answer_waiters(true, &self.installation);
            return;
        };
        // a manual reload reads the settings again, too
        if batch.is_manual() {
            self.reopen(batch);
        } else {
            self.read(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_certificate_that_comes_gives_the_others_as_long_again_up_to_three_seconds() {
        let now = Instant::now();
        let mut expecting = Expecting::from(now);
        assert_eq!(expecting.ends(), now + Duration::from_millis(150));
        expecting.progress = now + Duration::from_millis(140);
        assert_eq!(expecting.ends(), expecting.progress + CERTIFICATE_WAIT);
        expecting.progress = now + Duration::from_millis(2990);
        assert_eq!(expecting.ends(), now + LONGEST_WAIT);
    }
}
