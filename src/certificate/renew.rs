//! W: lock → still due? → order → check → store: what the daemon and `vhostd renew` call.

mod allowance; // W what the CA allows, asked before an order and kept after it
mod queue; // P which of many waiting certificates is next
mod remarks; // W what looked odd, told once
mod slot; // P how many are in which step at a time
mod turn; // W nobody else obtains it meanwhile, nor another of the same names

use std::fmt;
use std::fs;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::spawn_blocking;

use crate::certificate::attempts::{Attempts, RetryAdvice};
use crate::certificate::budget::{Limits, Wait};
use crate::certificate::inquire::inquire;
use crate::certificate::internal::{InternalCa, InternalError};
use crate::certificate::ledger::{CertificateLock, Ledger, LedgerError};
use crate::certificate::order::{AcmeClient, OrderError};
use crate::certificate::preflight::flight::{Ended, Preflight};
use crate::certificate::preflight::observe::Checks;
use crate::certificate::renewal_info::Inquiry;
use crate::certificate::schedule::renew_at;
use crate::certificate::store::{CertificateStore, StoreError};
use crate::certificate::subset::{IdentifierFailure, Without};
use crate::certificate::{
    CertificateRequest, Identifier, IssuedCertificate, Issuer, StoredCertificate,
};
use allowance::Allowance;
pub use slot::{Slot, Slots};
use turn::{lock, turn};

/// What became of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Obtained {
    /// Somebody else has stored a newer version since the request was made.
    AlreadyDone,
    /// It was time, and the CA says now that it is not.
    Postponed,
    Failed {
        /// A lowercase fragment that fits "failed to …".
        error: String,
        /// When it is due again.
        next: OffsetDateTime,
        retry: RetryAdvice,
    },
    Stored(StoredCertificate),
}

impl Obtained {
    /// Whether a version is there that was not there when it was asked for.
    pub fn is_stored(&self) -> bool {
        matches!(self, Self::Stored(_) | Self::AlreadyDone)
    }
}

/// Why a certificate was not obtained.
#[derive(Debug, thiserror::Error)]
enum ObtainError {
    #[error("lock the certificate: another process has held it for {} s", .0.as_secs())]
    Busy(Duration),
    #[error(transparent)]
    Internal(#[from] InternalError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("order the certificate: no ACME account could be opened")]
    NoAcme,
    /// Boxed: it is much larger than the others.
    #[error(transparent)]
    Order(#[from] Box<OrderError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("finish work in the background: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("order what is never ordered: a placeholder, or a certificate from files")]
    Unordered,
}

/// What certificates are obtained with.
#[derive(Clone, Copy)]
pub struct Tools<'a> {
    pub store: &'a CertificateStore,
    pub ledger: &'a Ledger,
    pub acme: Option<&'a AcmeClient>,
    pub internal: &'a InternalCa,
    /// What the CA is known to allow.
    pub limits: Option<&'a Limits>,
    /// What is looked at before an order; `None`: it is sent as it is.
    pub checks: Option<&'a Checks>,
    /// Its place among others; `None`: there are none.
    pub slot: Option<&'a Slot>,
    pub clock: Clock<'a>,
    pub chance: Chance<'a>,
}

impl fmt::Debug for Tools<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tools")
            .field("acme", &self.acme)
            .finish_non_exhaustive()
    }
}

/// One attempt, under the lock.
struct Attempt<'a> {
    request: &'a CertificateRequest,
    tools: Tools<'a>,
    lock: CertificateLock,
    preflight: Option<Preflight<'a>>,
}

/// The time, from whoever owns the clock.
pub type Clock<'a> = &'a (dyn Fn() -> OffsetDateTime + Send + Sync);
/// Lots from 0 up to 1, from whoever draws them.
pub type Chance<'a> = &'a (dyn Fn() -> f64 + Send + Sync);

/// Obtains one certificate, exactly once however many callers and processes ask for it.
///
/// Failures are recorded in the ledger before it returns, so that the next attempt is scheduled
/// wherever it is looked for. Cancelling it is safe at any point: what is being written is finished
/// under the lock, which then is dropped, and the next call resumes the order.
pub async fn obtain(request: &CertificateRequest, tools: Tools<'_>) -> Obtained {
    let lock = match lock(&request.name, &request.challenge, tools.ledger).await {
        Ok(lock) => lock,
        Err(error) => return failed(request, tools, &error, None, false),
    };
    let _turn = match turn(request, tools.ledger).await {
        Ok(turn) => turn,
        Err(error) => return failed(request, tools, &error, None, true),
    };
    let done = done_by_another(request, tools.store, tools.ledger, (tools.clock)());
    match done {
        Ok(Some(obtained)) => return obtained,
        Ok(None) => {}
        Err(error) => return failed(request, tools, &error, None, true),
    }
    if request.by_age && is_too_early(request, tools).await {
        return Obtained::Postponed;
    }
    let allowance = Allowance::of(request, tools);
    if let Err(error) = forget_finished(request, tools) {
        return failed(request, tools, &error, None, true);
    }
    match allowance.as_ref().map(Allowance::admit).transpose() {
        Ok(Some(Some(wait))) => return postponed(request, tools, &wait),
        Ok(_) => {}
        Err(error) => return failed(request, tools, &error.into(), None, true),
    }
    let attempt = Attempt {
        request,
        tools,
        lock,
        preflight: preflight(request, tools),
    };
    let outcome = attempt.issue_and_store().await;
    attempt.remark(&outcome).await;
    let wait = allowance.and_then(|allowance| allowance.note(&outcome));
    match outcome {
        Ok(stored) => Obtained::Stored(stored),
        Err(error) => failed(request, tools, &error, wait.as_ref(), true),
    }
}

fn preflight<'a>(request: &'a CertificateRequest, tools: Tools<'a>) -> Option<Preflight<'a>> {
    let (checks, acme) = (tools.checks?, tools.acme?);
    let (clock, chance) = (tools.clock, tools.chance);
    let of_acme = request.issuer == Issuer::Acme;
    of_acme.then(|| Preflight::new(request, checks, acme.thumbprint(), clock, chance))
}

/// What whoever insists on the request is told before it is carried out.
pub fn risk(request: &CertificateRequest, tools: Tools<'_>) -> Option<String> {
    let allowance = Allowance::of(request, tools).filter(|_| request.insisted)?;
    allowance.risk()
}

/// Nothing was tried: the CA would not allow it.
fn postponed(request: &CertificateRequest, tools: Tools<'_>, wait: &Wait) -> Obtained {
    let now = (tools.clock)();
    let previous = tools.ledger.attempts_of(&request.name).ok().flatten();
    let attempts = Attempts::postponed(previous.as_ref(), request, wait, now);
    let attempts = match tools.acme.filter(|_| !wait.of_failures) {
        Some(acme) => attempts.blaming(acme.directory(), false, now),
        None => attempts,
    };
    tracing::warn!(identifier = %request.name, next = %wait.until, "not tried: failed to {}", wait.why);
    if let Err(error) = tools.ledger.record_failure(&request.name, &attempts) {
        tracing::error!(identifier = %request.name, "failed to {error}");
    }
    Obtained::Failed {
        error: wait.why.clone(),
        next: wait.until,
        retry: attempts.retry,
    }
}

/// The CA is asked once more: its window may have moved since (RFC 9773 §4.2). Without an answer it
/// is as early as it was.
pub(crate) async fn is_too_early(request: &CertificateRequest, tools: Tools<'_>) -> bool {
    let stored = tools.store.newest(&request.name).ok().flatten();
    let stored = stored.filter(|stored| Some(&stored.serial) == request.replaces.as_ref());
    let (Some(stored), Some(acme)) = (stored, tools.acme) else {
        return false;
    };
    let Some(inquiry) = Inquiry::about(&stored, acme.directory()) else {
        return false;
    };
    let info = inquire(&inquiry, acme, tools.ledger, tools.clock, (tools.chance)()).await;
    let at = renew_at(stored.validity, info.suggestion.as_ref());
    let early = (tools.clock)() < at;
    if early {
        tracing::info!(identifier = %request.name, next = %at, "not renewed yet: the CA's suggestion has moved");
    }
    early
}

/// What another caller has achieved, or failed to, since the request was made.
fn done_by_another(
    request: &CertificateRequest,
    store: &CertificateStore,
    ledger: &Ledger,
    now: OffsetDateTime,
) -> Result<Option<Obtained>, ObtainError> {
    let newest = store.newest(&request.name)?.filter(|newest| {
        Some(&newest.serial) != request.replaces.as_ref()
            && newest.issuer == request.issuer
            && newest.covers(&request.identifiers)
            && newest.validity.is_usable(now)
    });
    if newest.is_some() {
        // a crash between storing it and forgetting its order
        ledger.forget_order(&request.name)?;
        return Ok(Some(Obtained::AlreadyDone));
    }
    let attempts = ledger.attempts_of(&request.name)?;
    Ok(attempts
        .filter(|attempts| attempts.failures != request.failures && attempts.is_of(request))
        .and_then(|attempts| {
            let next = attempts.blocks(now)?;
            Some(Obtained::Failed {
                error: attempts.last_error.unwrap_or_default(),
                next,
                retry: attempts.retry,
            })
        }))
}

/// An order whose certificate is stored, and whose record a kill has left, would pass for one that
/// was counted. Where the key is kept, it says nothing of which order it is.
fn forget_finished(request: &CertificateRequest, tools: Tools<'_>) -> Result<(), ObtainError> {
    if request.reuse_key.is_some() {
        return Ok(());
    }
    let Some(pending) = tools.ledger.pending(&request.name)? else {
        return Ok(());
    };
    let Some(newest) = tools.store.newest(&request.name)? else {
        return Ok(());
    };
    let is_its_key = fs::read_to_string(&newest.key).is_ok_and(|key| key == pending.key.expose());
    if is_its_key {
        tools.ledger.forget_order(&request.name)?;
    }
    Ok(())
}

impl Attempt<'_> {
    async fn issue_and_store(&self) -> Result<StoredCertificate, ObtainError> {
        let stored = self.once().await?;
        // a crash after storing and before forgetting has left the order that was finished then
        let stored = match self.request.replaces.as_ref() == Some(&stored.serial) {
            true => self.once().await?,
            false => stored,
        };
        let omitted = self.request.omitted();
        match omitted.is_empty() {
            true => self.tools.ledger.forget_failures(&self.request.name)?,
            false => self.remember_omitted(&omitted)?,
        }
        self.pause_if_due_again(&stored);
        let without = Without(&omitted);
        tracing::info!(
            identifier = %self.request.name,
            serial = %stored.serial,
            not_after = %stored.validity.not_after,
            "stored a certificate{without}"
        );
        Ok(stored)
    }

    /// What the certificate lacks is tried again when its own time comes.
    fn remember_omitted(&self, omitted: &[Identifier]) -> Result<(), LedgerError> {
        let (ledger, name) = (self.tools.ledger, &self.request.name);
        match ledger.attempts_of(name)? {
            Some(known) => ledger.record_failure(name, &Attempts::after_subset(&known, omitted)),
            None => Ok(()),
        }
    }

    async fn remark<T>(&self, outcome: &Result<T, ObtainError>) {
        let ended = match outcome {
            Ok(_) => Ended::Issued,
            Err(ObtainError::Order(error)) if !error.problems().is_empty() => Ended::Doubted,
            Err(_) => Ended::Failed,
        };
        if let Some(preflight) = &self.preflight
            && let Some(verdict) = preflight.verdict(ended).await
        {
            remarks::remark(self.request, self.tools, verdict);
        }
    }

    /// A new certificate that is due at once (this host's clock is weeks ahead, or the CA's root is
    /// about to end) would be followed by the next one without a pause.
    fn pause_if_due_again(&self, stored: &StoredCertificate) {
        let now = (self.tools.clock)();
        if renew_at(stored.validity, None) > now {
            return;
        }
        let why =
            "get a certificate that is not due for renewal at once: is this host's clock right?";
        let (retry, chance) = (RetryAdvice::Useless, (self.tools.chance)());
        // none where the certificate has every identifier
        let known = self.tools.ledger.attempts_of(&self.request.name);
        let known = known.ok().flatten();
        let (known, error) = (known.as_ref(), why.to_owned());
        let attempts = Attempts::after_failure(known, self.request, error, retry, now, chance);
        tracing::warn!(identifier = %self.request.name, "failed to {why}");
        let recorded = self
            .tools
            .ledger
            .record_failure(&self.request.name, &attempts);
        if let Err(error) = recorded {
            tracing::error!(identifier = %self.request.name, "failed to {error}");
        }
    }

    async fn once(&self) -> Result<StoredCertificate, ObtainError> {
        let issued = match self.tools.slot {
            Some(slot) => {
                slot.to_order().await;
                let issued = slot.ordering(self.issue()).await?;
                slot.to_store().await;
                issued
            }
            None => self.issue().await?,
        };
        let (store, request) = (self.tools.store.clone(), self.request.clone());
        let (lock, now) = (self.lock.clone(), (self.tools.clock)());
        let stored = spawn_blocking(move || {
            let _lock = lock;
            store.store(&issued, &request, now)
        });
        let stored = stored.await?;
        // a chain that was refused would be refused again; one that could not be written is resumed
        if stored
            .as_ref()
            .err()
            .is_none_or(StoreError::is_about_the_answer)
        {
            self.tools.ledger.forget_order(&self.request.name)?;
        }
        Ok(stored?)
    }

    async fn issue(&self) -> Result<IssuedCertificate, ObtainError> {
        match self.request.issuer {
            Issuer::Acme => {
                let acme = self.tools.acme.ok_or(ObtainError::NoAcme)?;
                let (ledger, preflight) = (self.tools.ledger, self.preflight.as_ref());
                let issued = acme.order_checked(self.request, ledger, &self.lock, preflight);
                let issued = issued.await;
                Ok(issued.map_err(Box::new)?)
            }
            Issuer::Internal => {
                let (internal, request) = (self.tools.internal.clone(), self.request.clone());
                let now = (self.tools.clock)();
                Ok(spawn_blocking(move || internal.issue(&request, now)).await??)
            }
            Issuer::File | Issuer::Placeholder => Err(ObtainError::Unordered),
        }
    }
}

/// The schedule moves on, or an error that does not go away is met again and again without a pause.
/// `locked`: we have the lock, without which nothing is written.
fn failed(
    request: &CertificateRequest,
    tools: Tools<'_>,
    error: &ObtainError,
    wait: Option<&Wait>,
    locked: bool,
) -> Obtained {
    let (ledger, now) = (tools.ledger, (tools.clock)());
    let retry = error.retry();
    let previous = ledger.attempts_of(&request.name).unwrap_or_else(|error| {
        tracing::warn!(identifier = %request.name, "failed to {error}");
        None
    });
    let of_ca = tools.acme.filter(|_| error.is_about_the_ca());
    let words = format!(
        "{error}{}",
        of_ca.map(AcmeClient::named).unwrap_or_default()
    );
    let chance = (tools.chance)();
    let attempts = Attempts::after_failure(previous.as_ref(), request, words, retry, now, chance);
    let attempts = match wait {
        Some(wait) => attempts.not_before(wait),
        None => attempts,
    };
    let attempts = match of_ca {
        Some(acme) => attempts.blaming(acme.directory(), true, now),
        None => attempts,
    };
    let attempts = attempts.naming(&error.of_identifiers(request));
    let next = attempts.next.unwrap_or(now);
    let words = next.replace_nanosecond(0).unwrap_or(next).format(&Rfc3339);
    let words = words.unwrap_or_default();
    tracing::warn!(identifier = %request.name, next = %words, "failed to {error}");
    match error {
        _ if locked => {
            if let Err(error) = ledger.record_failure(&request.name, &attempts) {
                tracing::error!(identifier = %request.name, "failed to {error}");
            }
        }
        // we have waited long, and whoever has the lock records how it ends
        ObtainError::Busy(_) => {}
        _ => ledger.remember_failure(&request.name, &attempts),
    }
    Obtained::Failed {
        error: attempts.last_error.unwrap_or_default(),
        next,
        retry: attempts.retry,
    }
}

impl ObtainError {
    /// Whether another CA may do better.
    fn is_about_the_ca(&self) -> bool {
        match self {
            Self::Order(error) => error.is_the_cas(),
            Self::Store(error) => error.is_about_the_answer(),
            _ => false,
        }
    }

    /// What it says of single identifiers.
    fn of_identifiers(&self, request: &CertificateRequest) -> Vec<IdentifierFailure> {
        match self {
            Self::Order(error) => error.of_identifiers(&request.identifiers),
            _ => Vec::new(),
        }
    }

    fn retry(&self) -> RetryAdvice {
        match self {
            Self::Busy(_) | Self::Ledger(_) | Self::NoAcme | Self::Task(_) => RetryAdvice::Retry,
            Self::Internal(error) => error.retry(),
            Self::Order(error) => error.retry(),
            Self::Store(error) => error.retry(),
            Self::Unordered => RetryAdvice::Useless,
        }
    }
}

#[cfg(test)]
mod tests;
