//! N: the certificates that are being obtained, and who waits for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::Event;
use super::batch::Batch;
use super::early::{is_answered_already, is_made_when_applied};
use crate::certificate::renew::Obtained;
use crate::certificate::renewal_info::Inquiry;
use crate::certificate::{CertificateName, CertificateRequest, Issuer, WantedCertificate};
use crate::clock::Clock;
use crate::control::{Answer, Line, RenewalResult, Renewed, Request};
use crate::desired;
use crate::installation::Installation;
use crate::obtain::{Obtaining, ObtainingError, Selection, outcome};
use crate::reconcile::intent::Intent;
use crate::reconcile::neighbours;
use crate::reconcile::report::{CertificateSummary, Outcome, Report};
use crate::status::StatusRecord;

/// A clock may jump: however far away the next renewal is, it is looked for this often.
const LOOK_AGAIN: Duration = CLEAN_UP_AGAIN;

/// What could not be taken out of DNS.
const CLEAN_UP_AGAIN: Duration = Duration::from_secs(30 * 60);

/// As long as others are being asked about, an answer waits for theirs.
const ANSWERS_TOGETHER: Duration = Duration::from_secs(1);

pub(super) struct Orders {
    clock: Clock,
    obtaining: Option<Obtaining>,
    wanted: Vec<WantedCertificate>,
    in_flight: BTreeSet<CertificateName>,
    /// Those of them that our own CA signs.
    being_signed: BTreeSet<CertificateName>,
    /// About which the CA is being asked.
    asked: BTreeSet<CertificateName>,
    /// Of vhosts that do not serve yet.
    early: Option<Early>,
    /// What ended since somebody began to wait.
    ended: BTreeMap<CertificateName, Obtained>,
    next_due: Option<Instant>,
    /// When to look next for what was left in DNS; `None`: nobody has looked.
    next_cleanup: Option<Instant>,
    /// What was left in DNS is being taken out.
    cleaning_up: bool,
    waiters: Vec<Waiter>,
    /// Of the last reconcile: what was stored may not be served.
    last: Option<Report>,
}

/// What was found due of vhosts that do not serve yet: once it is there they are looked at again,
/// and the store need not be read for that.
struct Early {
    wanted: Vec<WantedCertificate>,
    lacking: Vec<CertificateName>,
}

/// A command that waits for certificates, and for what they bring to be served.
struct Waiter {
    answer: Answer,
    names: BTreeSet<CertificateName>,
    purpose: Purpose,
}

enum Purpose {
    Reload(Box<Report>),
    Renew(Selection),
}

impl Orders {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            obtaining: None,
            wanted: Vec::new(),
            in_flight: BTreeSet::new(),
            being_signed: BTreeSet::new(),
            asked: BTreeSet::new(),
            early: None,
            ended: BTreeMap::new(),
            next_due: None,
            next_cleanup: None,
            cleaning_up: false,
            waiters: Vec::new(),
            last: None,
        }
    }

    /// The settings changed: the next order is made by a new client.
    pub(super) fn forget_client(&mut self) {
        self.obtaining = None;
        self.early = None;
        self.next_cleanup = None;
    }

    pub(super) fn want(&mut self, wanted: Vec<WantedCertificate>) {
        self.wanted = wanted;
        self.early = None;
        self.next_due = Some(Instant::now());
    }

    /// Whether our own CA has yet to sign a certificate.
    pub(super) fn is_signing(&self) -> bool {
        !self.being_signed.is_empty()
    }

    pub(super) fn signs(&self, name: &CertificateName) -> bool {
        self.being_signed.contains(name)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next_due
    }

    /// Starts what is due now, unless it is not time to look yet.
    pub(super) fn start_due(
        &mut self,
        installation: &Installation,
        events: &UnboundedSender<Event>,
    ) {
        let now = Instant::now();
        if self.next_due.is_none_or(|next| next > now) {
            return;
        }
        self.next_due = Some(now + LOOK_AGAIN);
        let obtaining = match self.obtaining(installation) {
            Ok(obtaining) => obtaining,
            Err(error) => return tracing::error!("failed to prepare for orders: {error}"),
        };
        self.clean_up_leftovers(&obtaining, events, now);
        match obtaining.schedule(&self.wanted) {
            Ok(schedule) => {
                if let Some(next) = schedule.next {
                    let wait = (next - obtaining.now())
                        .try_into()
                        .unwrap_or(Duration::ZERO);
                    self.next_due = Some(now + wait.clamp(Duration::from_millis(100), LOOK_AGAIN));
                }
                self.ask(&obtaining, schedule.inquiries, events);
                self.start(&obtaining, schedule.due, events);
            }
            Err(error) => tracing::error!("failed to find what is due: {error}"),
        }
    }

    /// Starts the orders of vhosts that do not serve yet. Returns what a new vhost lacks.
    pub(super) fn start_early(
        &mut self,
        intent: &Intent,
        installation: &Installation,
        events: &UnboundedSender<Event>,
    ) -> Vec<CertificateName> {
        let early = installation
            .owners()
            .map_err(|error| error.to_string())
            .and_then(|owners| {
                let candidates = intent.candidates.clone();
                let active = installation.generations.active();
                let active = active.map_err(|error| error.to_string())?.manifest;
                let survey = installation.survey().map_err(|error| error.to_string())?;
                let taken = neighbours::names(&survey, &installation.settings.nginx);
                let mut given = intent.given(owners, taken, (self.clock)());
                let (settings, has_ipv6) = (&installation.settings, installation.has_ipv6);
                given.patterns = neighbours::name_patterns(&survey, &settings.nginx);
                given.entrances = Some(neighbours::entrances(settings, &survey, has_ipv6));
                let apps = desired::accept(candidates, &given).apps;
                let default = installation.settings.tls_defaults();
                let wanted: Vec<_> = apps
                    .iter()
                    .flat_map(|app| desired::wanted(app, &default))
                    .flatten()
                    .collect();
                if wanted.iter().all(|wanted| self.wanted.contains(wanted)) {
                    return Ok(Vec::new());
                }
                if let Some(early) = self.early.as_ref().filter(|it| it.wanted == wanted) {
                    let still = early.lacking.iter();
                    let still = still.filter(|name| self.in_flight.contains(*name));
                    return Ok(still.cloned().collect());
                }
                let obtaining = self
                    .obtaining(installation)
                    .map_err(|error| error.to_string())?;
                let mut schedule = obtaining
                    .schedule(&wanted)
                    .map_err(|error| error.to_string())?;
                schedule.due.retain(|request| {
                    let mut wanted = wanted.iter().filter(|it| it.name == request.name);
                    wanted.all(|it| is_answered_already(it, &active.names, &self.wanted))
                        && !is_made_when_applied(request)
                });
                let due: BTreeSet<_> = schedule.due.iter().map(|request| &request.name).collect();
                let due = wanted.iter().filter(|wanted| due.contains(&wanted.name));
                // keys take their time, and others do not wait for that
                let due = due.filter(|wanted| wanted.issuer != Issuer::Internal);
                let lacking = due.filter(|wanted| !obtaining.has_good(wanted));
                let lacking: Vec<_> = lacking.map(|wanted| wanted.name.clone()).collect();
                self.start(&obtaining, schedule.due, events);
                self.early = Some(Early {
                    wanted,
                    lacking: lacking.clone(),
                });
                Ok(lacking)
            });
        early.unwrap_or_else(|error| {
            tracing::warn!("orders start only after the vhosts are served: {error}");
            Vec::new()
        })
    }

    /// Notes that the CA has been asked: the next step may come at another time. Of a thousand
    /// answers the schedule is not made a thousand times.
    pub(super) fn answered(&mut self, name: &CertificateName) {
        self.asked.remove(name);
        let now = Instant::now();
        let soon = match self.asked.is_empty() {
            true => now,
            false => now + ANSWERS_TOGETHER,
        };
        self.next_due = Some(self.next_due.map_or(soon, |next| next.min(soon)));
    }

    /// Notes the end of an order. Returns whether there is something new to serve.
    pub(super) fn finished(&mut self, name: &CertificateName, obtained: &Obtained) -> bool {
        self.in_flight.remove(name);
        self.being_signed.remove(name);
        let stored = obtained.is_stored();
        if !stored {
            // what was stored is looked at once it is served
            self.next_due = Some(Instant::now());
        }
        if !self.waiters.is_empty() {
            self.ended.insert(name.clone(), obtained.clone());
        }
        stored
    }

    /// `vhostd renew`.
    pub(super) fn renew(
        &mut self,
        names: &[String],
        force: bool,
        answer: Answer,
        installation: &Installation,
        events: &UnboundedSender<Event>,
    ) {
        let record = StatusRecord::read(&installation.settings.state_dir);
        let vhosts = record
            .map(|record| record.certificates_of_vhosts())
            .unwrap_or_default();
        let selection = match Selection::new(names, force, &self.wanted, &vhosts) {
            Ok(selection) => selection,
            Err(name) => {
                return answer.fail(
                    format!("there is no vhost or certificate `{name}`"),
                    None,
                    2,
                );
            }
        };
        let started = self.obtaining(installation).and_then(|obtaining| {
            self.next_cleanup = None;
            self.clean_up_leftovers(&obtaining, events, Instant::now());
            let requests = selection.requests(&obtaining, &self.wanted)?;
            let risks = requests.iter().filter_map(|it| obtaining.risk(it));
            risks.for_each(|risk| answer.send(Line::Warning(risk)));
            self.start(&obtaining, requests, events);
            Ok(())
        });
        if let Err(error) = started {
            return answer.fail(format!("failed to {error}"), None, 1);
        }
        let names = self
            .wanted
            .iter()
            .filter(|wanted| selection.includes(wanted));
        self.waiters.push(Waiter {
            answer,
            names: names.map(|wanted| wanted.name.clone()).collect(),
            purpose: Purpose::Renew(selection),
        });
    }

    /// Answers everyone of a finished batch, or lets them wait for the certificates.
    pub(super) fn answer_batch(
        &mut self,
        batch: Batch,
        report: Report,
        installation: &Installation,
    ) {
        self.last = Some(report.clone());
        for call in batch.calls {
            let waits = matches!(call.request, Request::Reload { wait: true, .. });
            if waits && report.succeeded() {
                self.waiters.push(Waiter {
                    answer: call.answer,
                    names: self
                        .wanted
                        .iter()
                        .map(|wanted| wanted.name.clone())
                        .collect(),
                    purpose: Purpose::Reload(Box::new(report.clone())),
                });
            } else {
                let mut report = report.clone();
                report.certificates = self.summary(installation);
                call.answer.send(Line::Report(Box::new(report)));
            }
        }
    }

    /// Notes that nothing was reconciled: what was obtained meanwhile is not served.
    pub(super) fn not_served(&mut self, error: &str, hint: Option<&str>) {
        if let Some(last) = &mut self.last {
            last.outcome = Outcome::Unchanged;
            last.error = Some(format!("failed to {error}"));
            last.hint = hint.map(str::to_owned);
        }
    }

    /// Answers those for whom nothing is under way any more. `settled`: what was obtained is served.
    pub(super) fn answer_waiters(&mut self, settled: bool, installation: &Installation) {
        if !settled || self.waiters.is_empty() {
            return;
        }
        let (in_flight, cleaning_up) = (&self.in_flight, self.cleaning_up);
        let waits = |waiter: &Waiter| {
            let renews = matches!(waiter.purpose, Purpose::Renew(_));
            waiter.names.iter().any(|name| in_flight.contains(name)) || (renews && cleaning_up)
        };
        let (waiting, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(waits);
        self.waiters = waiting;
        for waiter in done {
            self.answer(waiter, installation);
        }
        if self.waiters.is_empty() {
            self.ended.clear();
        }
    }

    fn answer(&mut self, waiter: Waiter, installation: &Installation) {
        match waiter.purpose {
            Purpose::Reload(mut report) => {
                if let Some(failed) = self.unserved() {
                    let steps = std::mem::take(&mut report.steps);
                    *report = failed.clone();
                    report.steps = steps;
                }
                report.certificates = self.summary(installation);
                let served = installation.generations.active_number();
                report.generation = served.unwrap_or(report.generation);
                waiter.answer.send(Line::Report(report));
            }
            Purpose::Renew(selection) => match self.renewed(&selection, installation) {
                Ok(renewed) => self.answer_renewal(&waiter.answer, renewed),
                Err(error) => waiter.answer.fail(format!("failed to {error}"), None, 1),
            },
        }
    }

    /// The last reconcile, if what it was to serve is not served.
    fn unserved(&self) -> Option<&Report> {
        self.last.as_ref().filter(|report| !report.succeeded())
    }

    fn answer_renewal(&self, answer: &Answer, renewed: Renewed) {
        let any = renewed
            .certificates
            .iter()
            .any(|one| one.result == RenewalResult::Renewed);
        let failed = self.last.as_ref().filter(|_| any);
        match failed.and_then(|report| Some((report, report.unserved()?))) {
            Some((report, unserved)) => answer.fail(unserved, report.hint.clone(), 1),
            None => answer.send(Line::Renewed(renewed)),
        }
    }

    fn renewed(
        &mut self,
        selection: &Selection,
        installation: &Installation,
    ) -> Result<Renewed, ObtainingError> {
        let obtaining = self.obtaining(installation)?;
        let mine = self
            .wanted
            .iter()
            .filter(|wanted| selection.includes(wanted));
        let certificates =
            mine.map(|wanted| outcome(&obtaining, wanted, self.ended.get(&wanted.name)));
        Ok(Renewed {
            certificates: certificates.collect::<Result<_, _>>()?,
        })
    }

    fn summary(&mut self, installation: &Installation) -> CertificateSummary {
        let mut summary = CertificateSummary::default();
        let ended = self.ended.iter();
        let ended = ended.filter(|(_, obtained)| obtained.is_stored());
        summary
            .ordered
            .extend(ended.map(|(name, _)| name.to_string()));
        summary
            .pending
            .extend(self.in_flight.iter().map(ToString::to_string));
        let added = self
            .obtaining(installation)
            .and_then(|obtaining| summary.add_failing(&obtaining, &self.wanted));
        if let Err(error) = added {
            tracing::warn!("failed to {error}");
        }
        summary
    }

    fn ask(
        &mut self,
        obtaining: &Obtaining,
        inquiries: Vec<Inquiry>,
        events: &UnboundedSender<Event>,
    ) {
        for inquiry in inquiries {
            if !self.asked.insert(inquiry.name.clone()) {
                continue;
            }
            let (obtaining, events) = (obtaining.clone(), events.clone());
            tokio::spawn(async move {
                obtaining.inquire(&inquiry).await;
                let _ = events.send(Event::Asked(inquiry.name));
            });
        }
    }

    fn start(
        &mut self,
        obtaining: &Obtaining,
        requests: Vec<CertificateRequest>,
        events: &UnboundedSender<Event>,
    ) {
        obtaining.prepare(&requests);
        for request in requests {
            if !self.in_flight.insert(request.name.clone()) {
                continue;
            }
            if request.issuer == Issuer::Internal {
                self.being_signed.insert(request.name.clone());
            }
            tracing::info!(identifier = %request.name, "obtaining a certificate");
            let (obtaining, events) = (obtaining.clone(), events.clone());
            tokio::spawn(async move {
                let name = request.name.clone();
                let obtained = obtaining.obtain(request).await;
                let _ = events.send(Event::Obtained(name, obtained));
            });
        }
    }

    fn clean_up_leftovers(
        &mut self,
        obtaining: &Obtaining,
        events: &UnboundedSender<Event>,
        now: Instant,
    ) {
        if self.cleaning_up || self.next_cleanup.is_some_and(|next| next > now) {
            return;
        }
        self.next_cleanup = Some(now + CLEAN_UP_AGAIN);
        self.cleaning_up = true;
        let (obtaining, events) = (obtaining.clone(), events.clone());
        tokio::spawn(async move {
            obtaining.clean_up_leftovers().await;
            let _ = events.send(Event::CleanedUp);
        });
    }

    pub(super) fn cleaned_up(&mut self) {
        self.cleaning_up = false;
    }

    fn obtaining(&mut self, installation: &Installation) -> Result<Obtaining, ObtainingError> {
        if let Some(obtaining) = &self.obtaining {
            return Ok(obtaining.clone());
        }
        let obtaining = Obtaining::new(installation, self.clock.clone())?;
        Ok(self.obtaining.insert(obtaining).clone())
    }
}
