//! N: what is due → obtained, many at a time: for the daemon, `vhostd renew` and `reload --wait`.

mod choice; // N one certificate from one of several CAs
mod selection; // W which certificates a `renew` is about

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::certificate::budget::{Planned, Renewing};
use crate::certificate::dns01::Dns01;
use crate::certificate::inquire::inquire;
use crate::certificate::internal::InternalCa;
use crate::certificate::ledger::{Ledger, LedgerError};
use crate::certificate::order::{AcmeClient, AcmeClientError};
use crate::certificate::preflight::observe::Checks;
use crate::certificate::renew::{Obtained, Slots};
use crate::certificate::renewal_info::Inquiry;
use crate::certificate::schedule::{CertificateState, Schedule, due, renew_at};
use crate::certificate::store::{CertificateStore, StoreError};
use crate::certificate::{
    CertificateInventory, CertificateName, CertificateRequest, Challenge, Issuer,
    StoredCertificate, Terms, WantedCertificate,
};
use crate::chance::{self, Chance};
use crate::clock::Clock;
use crate::control::{RenewalResult, Renewed, RenewedCertificate};
use crate::installation::Installation;
use crate::reconcile::report::CertificateSummary;
use crate::settings::Settings;
use choice::Ca;
pub use selection::Selection;

/// Everything that obtaining a certificate needs. Cheap to clone.
#[derive(Clone)]
pub struct Obtaining {
    store: CertificateStore,
    ledger: Ledger,
    internal: InternalCa,
    /// In the order in which they are tried.
    cas: Vec<Ca>,
    dns01: Dns01,
    terms: Terms,
    checks: Checks,
    reuse_key: bool,
    clock: Clock,
    chance: Chance,
    /// Shared by the clones.
    slots: Slots,
    /// Likewise: no order waits behind questions.
    asked_at_once: Arc<Semaphore>,
    /// Likewise: no order by http-01 waits until DNS shows something.
    dns_slots: Slots,
    /// Likewise: no order waits until keys of our own CA's certificates are computed.
    internal_slots: Slots,
}

#[derive(Debug, thiserror::Error)]
pub enum ObtainingError {
    #[error(transparent)]
    Acme(#[from] AcmeClientError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Orders at a time: more are no faster, and each holds a connection and a key.
pub const ORDERS_AT_ONCE: usize = 8;

/// A CA that validates by HTTP has usually issued by then.
const USUAL: Duration = Duration::from_secs(5);

const QUESTIONS_AT_ONCE: usize = 4;

/// Certificates of our own CA at a time: what they cost is computing.
const KEYS_AT_ONCE: usize = 2;

impl Obtaining {
    /// Asks no network.
    pub fn new(installation: &Installation, clock: Clock) -> Result<Self, ObtainingError> {
        let settings = &installation.settings;
        let dns01 = Dns01::new(&settings.dns, &installation.ledger, &clock);
        Ok(Self {
            store: installation.certificates.clone(),
            ledger: installation.ledger.clone(),
            internal: installation.internal_ca.clone(),
            cas: Ca::all(settings, &dns01)?,
            dns01,
            terms: Terms::from(&settings.acme),
            checks: Checks::new(settings),
            reuse_key: settings.acme.reuse_key,
            clock,
            chance: chance::system(),
            slots: Slots::new(ORDERS_AT_ONCE, USUAL),
            asked_at_once: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE)),
            dns_slots: Slots::new(ORDERS_AT_ONCE, Duration::MAX),
            internal_slots: Slots::new(KEYS_AT_ONCE, Duration::MAX),
        })
    }

    /// Asks the CA's staging area with `directory`, and keeps everything below `scratch`, which is
    /// the caller's to remove: what is obtained is checked as ever, and nobody serves it.
    pub fn rehearsal(
        settings: &Settings,
        directory: &str,
        scratch: &Path,
        clock: Clock,
    ) -> Result<Self, ObtainingError> {
        let acme = AcmeClient::staging(&settings.acme, &settings.state_dir, directory)?;
        // what is put into DNS is noted where the next run finds it
        let ledger = Ledger::new(&settings.state_dir);
        let dns01 = Dns01::new(&settings.dns, &ledger, &clock).rehearsal();
        Ok(Self {
            store: CertificateStore::new(scratch),
            ledger: Ledger::new(scratch),
            internal: InternalCa::new(scratch),
            cas: Ca::alone(acme.with_dns01(dns01.clone())),
            dns01,
            terms: Terms {
                directory: directory.to_owned(),
                fallbacks: Vec::new(),
            },
            checks: Checks::new(settings),
            reuse_key: false,
            clock,
            chance: chance::system(),
            slots: Slots::new(ORDERS_AT_ONCE, USUAL),
            asked_at_once: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE)),
            dns_slots: Slots::new(ORDERS_AT_ONCE, Duration::MAX),
            internal_slots: Slots::new(KEYS_AT_ONCE, Duration::MAX),
        })
    }

    /// Orders each of `wanted`, whatever is stored of it: what became of each.
    pub async fn rehearse(
        &self,
        wanted: &[WantedCertificate],
    ) -> BTreeMap<CertificateName, Obtained> {
        let requests = wanted.iter();
        let requests = requests.map(|wanted| CertificateRequest::new(wanted, None, None));
        self.obtain_all(requests.collect()).await
    }

    /// What is due of `wanted` now, and when to look again.
    pub fn schedule(&self, wanted: &[WantedCertificate]) -> Result<Schedule, ObtainingError> {
        let (inventory, _) = self.store.inventory()?;
        let memories = self.ledger.memories()?;
        let mut schedule = due(wanted, &inventory, &memories, &self.terms, self.now());
        // unanswered, one that cannot be asked would be due again at once
        let can_be_asked = |it: &Inquiry| self.ca(&it.directory).is_some();
        schedule.inquiries.retain(can_be_asked);
        Ok(schedule)
    }

    /// Makes one root of our own CA for all of `due` that have none, instead of one for each.
    pub fn prepare(&self, due: &[CertificateRequest]) {
        let internal = due.iter().filter(|it| it.issuer == Issuer::Internal);
        let internal = internal.map(|request| request.identifiers.as_slice());
        if let Err(error) = self.internal.prepare(internal, self.now()) {
            // each request that needs the root meets the same error, and records it
            tracing::debug!("failed to {error}");
        }
    }

    pub fn inventory(&self) -> Result<CertificateInventory, ObtainingError> {
        Ok(self.store.inventory()?.0)
    }

    /// Whether what is stored does what is wanted; what cannot be read does not.
    pub fn has_good(&self, wanted: &WantedCertificate) -> bool {
        let stored = self.store.newest(&wanted.name).ok().flatten();
        is_good(wanted, stored.as_ref(), self.now())
    }

    /// A request that does not ask whether it is due: an operator did.
    pub fn request_now(
        &self,
        wanted: &WantedCertificate,
    ) -> Result<CertificateRequest, ObtainingError> {
        self.ledger.retry_now(&wanted.name)?;
        let newest = self.store.newest(&wanted.name)?;
        Ok(CertificateRequest {
            insisted: true,
            forced: true,
            ..CertificateRequest::new(wanted, newest.as_ref(), None)
        })
    }

    /// Waits for its turn, then obtains the certificate.
    pub async fn obtain(&self, mut request: CertificateRequest) -> Obtained {
        let slots = match (request.issuer, &request.challenge) {
            (Issuer::Internal, _) => &self.internal_slots,
            (_, Challenge::Http01) => &self.slots,
            (_, Challenge::Dns01(_)) => &self.dns_slots,
        };
        let slot = slots.slot(request.app.clone());
        slot.to_order().await;
        if self.reuse_key
            && let Ok(Some(stored)) = self.store.newest(&request.name)
        {
            request.reuse_key = Some(stored.key);
        }
        self.obtain_from_a_ca(request, &slot).await
    }

    /// Takes out of DNS what orders that were killed have left there. What cannot be taken out is
    /// tried again by the next call.
    pub async fn clean_up_leftovers(&self) {
        match self.dns01.clean_up_leftovers().await {
            Ok(left) => tracing::trace!(left, "looked for texts that were left in DNS"),
            Err(error) => tracing::warn!("failed to {error}"),
        }
    }

    /// Waits for its turn, then asks the CA, and remembers what it answers.
    pub async fn inquire(&self, inquiry: &Inquiry) {
        // never closed: an error cannot come
        let _turn = self.asked_at_once.acquire().await;
        if let Some(ca) = self.ca(&inquiry.directory) {
            let acme = &ca.client;
            inquire(inquiry, acme, &self.ledger, &*self.clock, (self.chance)()).await;
        }
    }

    async fn inquire_all(&self, inquiries: Vec<Inquiry>) {
        let mut running = JoinSet::new();
        for inquiry in inquiries {
            let me = self.clone();
            running.spawn(async move { me.inquire(&inquiry).await });
        }
        running.join_all().await;
    }

    /// What looked odd at the last order; what cannot be read is as none.
    pub fn warnings(&self, name: &CertificateName) -> Vec<String> {
        let remarks = self.ledger.remarks_of(name).ok().flatten();
        remarks.map_or_else(Vec::new, |remarks| remarks.warnings())
    }

    /// What one more order for the same names would meet.
    fn limit(&self, wanted: &WantedCertificate) -> Result<Option<String>, ObtainingError> {
        let stored = self.store.newest(&wanted.name)?;
        let Some(ca) = stored.and_then(|stored| self.ca_of(&stored)) else {
            return Ok(None);
        };
        let budget = self.ledger.budget(ca.client.directory())?;
        let planned = Planned {
            identifiers: &wanted.identifiers,
            renewing: Renewing::SameNames,
        };
        let wait = match wanted.issuer {
            Issuer::Acme => budget.wait(&planned, ca.limits.as_ref(), self.now()),
            _ => None,
        };
        Ok(wait.map(|wait| wait.told()))
    }

    /// When a stored certificate is renewed, as far as is known now.
    fn renew_at(&self, stored: &StoredCertificate) -> Result<OffsetDateTime, ObtainingError> {
        let memory = self.ledger.memory_of(&stored.name)?;
        Ok(renew_at(stored.validity, memory.suggestion(&stored.serial)))
    }

    pub fn now(&self) -> OffsetDateTime {
        (self.clock)()
    }

    async fn obtain_all(
        &self,
        requests: Vec<CertificateRequest>,
    ) -> BTreeMap<CertificateName, Obtained> {
        self.prepare(&requests);
        let mut running = JoinSet::new();
        for request in requests {
            let me = self.clone();
            running.spawn(async move { (request.name.clone(), me.obtain(request).await) });
        }
        let obtained = running.join_all().await.into_iter().collect();
        // a command ends with it, and would cut it short
        self.dns01.tidied().await;
        obtained
    }
}

impl fmt::Debug for Obtaining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Obtaining")
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

/// Obtains what vhostd's own CA has yet to sign of `wanted`, which asks no network: what a command
/// without a daemon does before it ends. Whether anything was stored.
pub async fn obtain_internal(
    obtaining: &Obtaining,
    wanted: &[WantedCertificate],
) -> Result<bool, ObtainingError> {
    let mut due = obtaining.schedule(wanted)?.due;
    due.retain(|request| request.issuer == Issuer::Internal);
    let obtained = obtaining.obtain_all(due).await;
    Ok(obtained.values().any(Obtained::is_stored))
}

/// Obtains what is due of `wanted`: `reload --wait` without a daemon.
pub async fn obtain_due(
    obtaining: &Obtaining,
    wanted: &[WantedCertificate],
) -> Result<CertificateSummary, ObtainingError> {
    obtaining.clean_up_leftovers().await;
    let schedule = obtaining.schedule(wanted)?;
    let mut summary = CertificateSummary::default();
    for (name, obtained) in obtaining.obtain_all(schedule.due).await {
        match obtained {
            Obtained::Stored(_) | Obtained::AlreadyDone => summary.ordered.push(name.to_string()),
            Obtained::Failed { .. } => summary.failed.push(name.to_string()),
            Obtained::Postponed => {}
        }
    }
    summary.add_failing(obtaining, wanted)?;
    Ok(summary)
}

/// Renews what is due, or what `names` says: `vhostd renew` without a daemon. `warn` hears before an
/// order what it risks.
pub async fn renew(
    obtaining: &Obtaining,
    wanted: &[WantedCertificate],
    selection: &Selection,
    warn: impl FnMut(String),
) -> Result<Renewed, ObtainingError> {
    obtaining.clean_up_leftovers().await;
    let inquiries = obtaining.schedule(&selection.of(wanted))?.inquiries;
    obtaining.inquire_all(inquiries).await;
    let requests = selection.requests(obtaining, wanted)?;
    let risks = requests.iter();
    risks
        .filter_map(|request| obtaining.risk(request))
        .for_each(warn);
    let mut ended = obtaining.obtain_all(requests).await;
    let mut renewed = Renewed::default();
    for wanted in wanted.iter().filter(|wanted| selection.includes(wanted)) {
        let obtained = ended.remove(&wanted.name);
        renewed
            .certificates
            .push(outcome(obtaining, wanted, obtained.as_ref())?);
    }
    Ok(renewed)
}

/// One line of `vhostd renew`: what became of a certificate, or why nothing had to.
pub fn outcome(
    obtaining: &Obtaining,
    wanted: &WantedCertificate,
    obtained: Option<&Obtained>,
) -> Result<RenewedCertificate, ObtainingError> {
    let stored = obtaining.store.newest(&wanted.name)?;
    let words = |at: OffsetDateTime| {
        at.replace_nanosecond(0)
            .ok()
            .and_then(|at| at.format(&Rfc3339).ok())
    };
    let next = stored.as_ref().map(|stored| obtaining.renew_at(stored));
    let missing = stored.as_ref();
    let missing = missing.map_or_else(Vec::new, |stored| stored.missing(&wanted.identifiers));
    let base = RenewedCertificate {
        name: wanted.name.to_string(),
        result: RenewalResult::NotDue,
        not_after: stored
            .as_ref()
            .and_then(|stored| words(stored.validity.not_after)),
        missing_identifiers: missing.iter().map(ToString::to_string).collect(),
        error: None,
        next: next.transpose()?.and_then(words),
        limit: match obtained {
            Some(Obtained::Stored(_)) => obtaining.limit(wanted)?,
            _ => None,
        },
        warnings: match obtained {
            Some(_) => obtaining.warnings(&wanted.name),
            None => Vec::new(),
        },
        directory: stored
            .as_ref()
            .and_then(|stored| stored.origin.as_ref())
            .map(|origin| origin.directory.clone()),
    };
    let failed = |error: &str, next: Option<OffsetDateTime>| RenewedCertificate {
        result: RenewalResult::Failed,
        error: Some(error.to_owned()),
        next: next.and_then(words),
        ..base.clone()
    };
    Ok(match obtained {
        Some(Obtained::Stored(_)) if missing.is_empty() => RenewedCertificate {
            result: RenewalResult::Renewed,
            ..base
        },
        Some(Obtained::Stored(_)) => {
            let attempts = obtaining.ledger.attempts_of(&wanted.name)?;
            RenewedCertificate {
                result: RenewalResult::Renewed,
                error: attempts.and_then(|attempts| attempts.last_error),
                ..base
            }
        }
        Some(Obtained::Failed { error, next, .. }) => failed(error, Some(*next)),
        // nothing was tried: either all is well, or the next attempt is not due yet
        Some(Obtained::AlreadyDone | Obtained::Postponed) | None => {
            let memory = obtaining.ledger.memory_of(&wanted.name)?;
            let (stored, now, terms) = (stored.as_ref(), obtaining.now(), &obtaining.terms);
            let next = CertificateState::of(wanted, stored, &memory, terms, now).next();
            match &memory.attempts {
                Some(attempts) if !is_good(wanted, stored, now) => failed(
                    attempts.last_error.as_deref().unwrap_or("failed before"),
                    next.or(attempts.next),
                ),
                // a renewal that failed is not tried again before its time
                _ => RenewedCertificate {
                    next: next.and_then(words).or(base.next.clone()),
                    ..base
                },
            }
        }
    })
}

/// Whether the stored certificate does what is wanted.
pub fn is_good(
    wanted: &WantedCertificate,
    stored: Option<&StoredCertificate>,
    now: OffsetDateTime,
) -> bool {
    stored.is_some_and(|stored| {
        stored.issuer != Issuer::Placeholder
            && stored.covers(&wanted.identifiers)
            && stored.validity.is_usable(now)
    })
}

impl CertificateSummary {
    /// Adds what is not there and not due either: a retry is scheduled.
    pub fn add_failing(
        &mut self,
        obtaining: &Obtaining,
        wanted: &[WantedCertificate],
    ) -> Result<(), ObtainingError> {
        let inventory = obtaining.inventory()?;
        let memories = obtaining.ledger.memories()?;
        for wanted in wanted {
            let name = wanted.name.to_string();
            let stored = inventory.stored(wanted);
            let known = [&self.pending, &self.failed];
            let known = known.iter().any(|names| names.contains(&name));
            if known || is_good(wanted, stored, obtaining.now()) {
                continue;
            }
            let memory = memories.get(&wanted.name);
            match memory.is_some_and(|memory| memory.attempts.is_some()) {
                // also of what was ordered without a name
                true => self.failed.push(name),
                false if self.ordered.contains(&name) => {}
                false => self.pending.push(name),
            }
        }
        Ok(())
    }
}
