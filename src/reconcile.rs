//! The orchestration: read → render → test → activate → reload → verify, or roll back.
//!
//! The daemon and every command run this one function, under one lock.

pub mod grace; // P a removed file's vhost goes after a second
pub mod intent; // R files → candidates, each with its last good version
pub mod last_look; // W the hand-written configuration as nginx last accepted it
pub mod master; // R what is odd about nginx's running master
pub mod pin; // W a rollback holds until something changes
pub mod plan; // P what there is to do
pub mod proof; // N the new generation is seen to answer
pub mod quarantine; // W versions of apps that nginx does not take
pub mod report; // P what a reconcile did
pub mod rollback; // back to an earlier generation
pub mod setback; // W a candidate that did not serve is not tried again every few seconds

mod access_logs; // W access logs that only their group may read
mod activation;
pub(crate) mod candidate;
mod error; // P what kept a reconcile from deciding
pub(crate) mod neighbours; // P what the hand-written sites mean for us
mod remedy; // R what a person can do about a generation that does not serve

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::certificate::{CertificateInventory, WantedCertificate};
use crate::desired::Taken;
use crate::generation::LockedStore;
use crate::generation::manifest::{Manifest, Reason};
use crate::generation::previous::PreviousVersions;
use crate::installation::Installation;
use crate::status::{Served, StatusRecord, VhostStatus};
use crate::vhost::AppName;

use candidate::{Candidate, Judgement};
pub use error::ReconcileError;
use intent::Intent;
use pin::{Pin, Reload};
use plan::Serving;
use report::{CertificateSummary, Outcome, Report, Step, StepName};
use setback::Setback;

/// Why a reconcile is run, and when.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub reason: Reason,
    pub now: OffsetDateTime,
    /// How long to wait for another reconcile.
    pub lock_limit: Duration,
}

impl Request {
    /// A person asked: nothing that was remembered about the host is trusted.
    pub fn is_manual(&self) -> bool {
        matches!(self.reason, Reason::Reload | Reason::Rollback)
    }
}

/// What was done, and what it leaves to do.
#[derive(Clone, Debug)]
pub struct Applied {
    pub report: Report,
    /// The certificates that the accepted vhosts should have.
    pub wanted: Vec<WantedCertificate>,
    /// Whether a challenge for a name without a vhost is answered already.
    pub answers_early_challenges: bool,
    /// The apps that a rollback holds: of their files, `report.rejected` says nothing. `None`: no vhost
    /// file was read.
    pub held: Option<BTreeSet<AppName>>,
}

/// Called with each finished step.
pub type Observer<'a> = dyn FnMut(&Step) + Send + 'a;

/// Measures and announces the steps.
pub(crate) struct Progress<'a> {
    steps: Vec<Step>,
    begin: Instant,
    /// Spent for a step that comes later.
    ahead: Option<(StepName, f64)>,
    /// How many steps the observer knows. The last is told with its last words, when the next ends.
    told: usize,
    observer: &'a mut Observer<'a>,
}

impl<'a> Progress<'a> {
    fn start(observer: &'a mut Observer<'a>) -> Self {
        Self {
            steps: Vec::new(),
            begin: Instant::now(),
            ahead: None,
            told: 0,
            observer,
        }
    }

    /// What was done since the last step belongs to `step`, which has yet to come.
    pub(crate) fn ahead_of(&mut self, step: StepName) {
        self.ahead = Some((step, self.lap()));
    }

    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let ms = (now - self.begin).as_secs_f64() * 1000.0;
        self.begin = now;
        ms
    }

    /// How long `step` has taken so far.
    pub(crate) fn spent(&self, step: StepName) -> Duration {
        let known = self.steps.iter().find(|known| known.step == step);
        Duration::from_secs_f64(known.map_or(0.0, |known| known.ms) / 1000.0)
    }

    pub(crate) fn finished(&mut self, step: StepName, detail: impl Into<String>) {
        let mut ms = self.lap();
        if let Some((_, ahead)) = self.ahead.take_if(|(of, _)| *of == step) {
            ms += ahead;
        }
        let detail = detail.into();
        // a second attempt adds to the step that it repeats
        if let Some(known) = self.steps.iter_mut().find(|known| known.step == step) {
            known.ms += ms;
            known.detail = detail;
            return;
        }
        self.tell();
        self.steps.push(Step { step, ms, detail });
    }

    /// Tells the observer what it does not know yet.
    fn tell(&mut self) {
        for step in &self.steps[self.told..] {
            (self.observer)(step);
        }
        self.told = self.steps.len();
    }

    fn end(&mut self) -> Vec<Step> {
        self.tell();
        self.told = 0;
        std::mem::take(&mut self.steps)
    }
}

/// Reads everything anew and makes it serve: what `vhostd reload` does. `reloads` end pins.
pub fn reconcile<'a>(
    installation: &Installation,
    request: &Request,
    reloads: Vec<Reload>,
    observer: &'a mut Observer<'a>,
) -> Result<Applied, ReconcileError> {
    let locked = installation.generations.lock(request.lock_limit)?;
    // whoever held the lock is no step of ours
    let mut progress = Progress::start(observer);
    let reading = intent::Reading {
        absences: None,
        reloads,
    };
    let intent = intent::read(installation, reading)?;
    run(installation, &locked, intent, request, &mut progress)
}

/// Makes the active generation's vhosts serve with today's certificates: what `vhostd renew` does.
/// The vhost files are not read: an edit that is not finished is none of a timer's business.
pub fn refresh<'a>(
    installation: &Installation,
    request: &Request,
    observer: &'a mut Observer<'a>,
) -> Result<Applied, ReconcileError> {
    let locked = installation.generations.lock(request.lock_limit)?;
    let mut progress = Progress::start(observer);
    let active = installation.generations.active()?.manifest;
    let owners = installation.owners()?;
    let mut intent = Intent::of_generation(&active, &owners, installation);
    // one that is in force stays so
    intent.pin = Pin::read(&installation.settings.state_dir)?;
    let pinned = intent.pin.iter().flat_map(Pin::apps);
    let pinned = pinned.map(|(app, _)| app.clone()).collect();
    let taken = Taken::new(&owners, active.served());
    intent.leave_out(&pinned, &taken);
    run(installation, &locked, intent, request, &mut progress)
}

/// Makes what was read serve.
pub fn apply<'a>(
    installation: &Installation,
    intent: Intent,
    request: &Request,
    observer: &'a mut Observer<'a>,
) -> Result<Applied, ReconcileError> {
    let locked = installation.generations.lock(request.lock_limit)?;
    let mut progress = Progress::start(observer);
    // it was read before
    progress.begin -= intent.took;
    run(installation, &locked, intent, request, &mut progress)
}

fn run(
    installation: &Installation,
    locked: &LockedStore,
    intent: Intent,
    request: &Request,
    progress: &mut Progress<'_>,
) -> Result<Applied, ReconcileError> {
    let active = installation.generations.active()?.manifest;
    progress.finished(StepName::Read, read_detail(&intent));
    let state_dir = &installation.settings.state_dir;
    let of_files = intent.of_files;
    let held_apps = intent.held.keys().cloned().collect();
    let (pin, pin_before) = (intent.pin.clone(), intent.pin_before.clone());
    let misnamed: Vec<_> = report::misnamed(&intent.misnamed).collect();
    let mut candidate = Candidate::new(installation, intent, request, &active)?;
    let mut refused;
    let (mut report, attempted) = loop {
        let judgement = candidate.judge(locked, progress)?;
        refused = matches!(judgement, Judgement::Refused { .. });
        let attempted = judgement.attempted().cloned();
        let tested = matches!(judgement, Judgement::Tested(_));
        let report = carry_out(installation, locked, &active, judgement, request, progress)?;
        // the others are served in the same pass
        if !tested || !candidate.withhold_unserved(&report) {
            break (report, attempted);
        }
    };
    report.steps = progress.end();
    report.rejected = report::rejected(&candidate.rejections);
    report.rejected.extend(misnamed);
    report.warnings.append(&mut candidate.warnings);
    report.warnings.append(&mut candidate.shared);
    let newest = attempted
        .as_ref()
        .filter(|it| it.number == report.generation);
    let newest = newest.unwrap_or(&active);
    let survey = newest.survey.clone();
    let advice = installation.advice(candidate.survey(), newest, request.now);
    report.warnings.extend(advice);
    master::observe(installation, &survey, &mut report);
    report.warnings.extend(installation.repaired());
    report.warnings.extend(installation.exposures());
    report.warnings.extend(installation.lacks_sandbox());
    let replaced = (report.outcome == Outcome::Activated).then_some((&active, newest));
    let previous = replaced
        .map(|(old, new)| PreviousVersions::record(&installation.settings.state_dir, old, new));
    // it is done, whatever becomes of the record of it
    let mut unrecorded = Vec::new();
    let mut note = |done: Result<(), ReconcileError>| {
        unrecorded.extend(done.err().map(|error| format!("failed to {error}")));
    };
    note(previous.unwrap_or(Ok(())).map_err(Into::into));
    note(candidate.remember(refused));
    if let Some(attempted) = attempted {
        let previous = candidate.setback.take();
        let noted = note_setback(installation, previous, &attempted, &report, request);
        note(noted);
    }
    let held = request.reason != Reason::Rollback || report.is_on_disk();
    let pin = if held { pin } else { pin_before };
    note(Pin::store(pin.as_ref(), state_dir).map_err(Into::into));
    let served = served(installation, &report).unwrap_or_else(|error| {
        note(Err(error));
        Served::Nothing
    });
    let record = StatusRecord::of(&candidate, &report, &served, pin.as_ref(), request.now);
    // nobody has looked at the files
    if of_files || request.reason == Reason::Rollback {
        note(record.write(state_dir).map_err(Into::into));
    }
    report.vhosts = record.vhosts.iter().map(VhostStatus::reported).collect();
    let tidied = tidy_up(
        installation,
        locked,
        pin.as_ref(),
        &candidate.wanted,
        &candidate.inventory,
        request,
    );
    note(tidied);
    report.warnings.append(&mut unrecorded);
    Ok(Applied {
        report,
        answers_early_challenges: candidate.answers_early_challenges(),
        held: of_files.then_some(held_apps),
        wanted: candidate.wanted,
    })
}

/// What is no longer needed, and what interrupted writes left. Last: it is not on the way to nginx.
fn tidy_up(
    installation: &Installation,
    locked: &LockedStore,
    pin: Option<&Pin>,
    wanted: &[WantedCertificate],
    inventory: &CertificateInventory,
    request: &Request,
) -> Result<(), ReconcileError> {
    installation.sweep(request.now)?;
    if let Err(error) = installation.abandon_files(inventory, wanted) {
        tracing::warn!("failed to tidy up certificates from files: {error}");
    }
    let pinned: Vec<u64> = pin.iter().flat_map(|pin| pin.generations()).collect();
    locked.prune(&pinned)?;
    if matches!(request.reason, Reason::Start | Reason::Certificate)
        && let Err(error) = installation.prune_certificates(wanted, request.now)
    {
        tracing::warn!("failed to tidy up certificates: {error}");
    }
    Ok(())
}

fn carry_out(
    installation: &Installation,
    locked: &LockedStore,
    active: &Manifest,
    judgement: Judgement,
    request: &Request,
    progress: &mut Progress<'_>,
) -> Result<Report, ReconcileError> {
    match judgement {
        Judgement::Unchanged => {
            Setback::remove(&installation.settings.state_dir)?;
            Ok(unchanged(installation, active))
        }
        Judgement::Prove(manifest) => {
            activation::prove_again(installation, locked, *manifest, request, progress)
        }
        Judgement::Tested(tested) => {
            activation::activate(installation, locked, *tested, request, progress)
        }
        Judgement::Wait(setback) => {
            let mut report = base_report(active.number);
            setback.tell(&mut report);
            Ok(report)
        }
        Judgement::Refused { error, hint } => Ok(Report {
            error: Some(error),
            hint,
            outcome: Outcome::Rejected,
            ..base_report(active.number)
        }),
    }
}

/// Whatever became of `attempted`, the next run knows.
fn note_setback(
    installation: &Installation,
    previous: Option<Setback>,
    attempted: &Manifest,
    report: &Report,
    request: &Request,
) -> Result<(), ReconcileError> {
    let state_dir = &installation.settings.state_dir;
    let (digest, master) = (&attempted.digest, installation.master(&attempted.survey));
    match Setback::after(previous.as_ref(), digest, master, report, request.now) {
        Some(setback) => setback.write(state_dir)?,
        None => Setback::remove(state_dir)?,
    }
    Ok(())
}

/// After a failure, the active generation is asked: it may not answer either.
fn served(installation: &Installation, report: &Report) -> Result<Served, ReconcileError> {
    if report.succeeded() {
        return Ok(Served::Accepted);
    }
    let active = installation.generations.active()?.manifest;
    let answering = proof::answering(installation.nginx(), &active) == Some(active.number);
    Ok(match answering && report.nginx_running {
        true => Served::Generation(Box::new(active)),
        false => Served::Nothing,
    })
}

fn unchanged(installation: &Installation, active: &Manifest) -> Report {
    let down = activation::serving(installation, active) == Serving::NginxDown;
    let mut report = base_report(active.number);
    if down {
        activation::say_nginx_is_down(installation, &mut report, active);
    }
    report
}

pub(crate) fn base_report(generation: u64) -> Report {
    Report {
        outcome: Outcome::Unchanged,
        generation,
        steps: Vec::new(),
        rejected: Vec::new(),
        warnings: Vec::new(),
        certificates: CertificateSummary::default(),
        error: None,
        hint: None,
        nginx_running: true,
        nginx_upgrading: false,
        vhosts: Vec::new(),
        foreign: Vec::new(),
    }
}

fn read_detail(intent: &Intent) -> String {
    let changed = intent
        .sources
        .iter()
        .filter(|(app, source)| {
            intent
                .last_good
                .get(*app)
                .is_none_or(|good| good.text != source.text)
        })
        .count();
    let all = intent.sources.len();
    let refused = intent.refused.len() + intent.misnamed.len();
    let mut words = format!(
        "{all} {}, {changed} changed",
        if all == 1 { "app" } else { "apps" }
    );
    if refused > 0 {
        words.push_str(&format!(", {refused} refused"));
    }
    words
}
