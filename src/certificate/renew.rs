//! W: lock → still due? → order → check → store: what the daemon and `vhostd renew` call.

mod allowance; // W what the CA allows, asked before an order and kept after it

use std::fmt;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::certificate::attempts::{Attempts, RetryAdvice};
use crate::certificate::budget::{Limits, Wait};
use crate::certificate::inquire::inquire;
use crate::certificate::internal::{InternalCa, InternalError};
use crate::certificate::ledger::{CertificateLock, Ledger, LedgerError};
use crate::certificate::order::{AcmeClient, OrderError};
use crate::certificate::renewal_info::Inquiry;
use crate::certificate::schedule::renew_at;
use crate::certificate::store::{CertificateStore, StoreError};
use crate::certificate::{
    CertificateRequest, Challenge, IssuedCertificate, Issuer, StoredCertificate,
};
use allowance::Allowance;

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
    let lock = match lock(request, tools.ledger).await {
        Ok(lock) => lock,
        Err(error) => return failed(request, tools, &error, None, false),
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
    match allowance.as_ref().map(Allowance::admit).transpose() {
        Ok(Some(Some(wait))) => return postponed(request, tools, &wait),
        Ok(_) => {}
        Err(error) => return failed(request, tools, &error.into(), None, true),
    }
    let attempt = Attempt {
        request,
        tools,
        lock,
    };
    let outcome = attempt.issue_and_store().await;
    let wait = allowance.and_then(|allowance| allowance.note(&outcome));
    match outcome {
        Ok(stored) => Obtained::Stored(stored),
        Err(error) => failed(request, tools, &error, wait.as_ref(), true),
    }
}

/// Nothing was tried: the CA would not allow it.
fn postponed(request: &CertificateRequest, tools: Tools<'_>, wait: &Wait) -> Obtained {
    let now = (tools.clock)();
    let previous = tools.ledger.attempts_of(&request.name).ok().flatten();
    let attempts = Attempts::postponed(previous.as_ref(), request, wait, now);
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
async fn is_too_early(request: &CertificateRequest, tools: Tools<'_>) -> bool {
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

/// Polled, not blocked on: a future can be cancelled, a thread in flock(2) cannot.
async fn lock(
    request: &CertificateRequest,
    ledger: &Ledger,
) -> Result<CertificateLock, ObtainError> {
    let limit = match request.challenge {
        Challenge::Http01 => LOCK_DEADLINE,
        Challenge::Dns01(_) => LOCK_DEADLINE_DNS,
    };
    let deadline = Instant::now() + limit;
    let mut delay = Duration::from_millis(5);
    while Instant::now() < deadline {
        if let Some(lock) = ledger.try_lock(&request.name)? {
            return Ok(lock);
        }
        sleep(delay).await;
        delay = (delay * 2).min(Duration::from_millis(200));
    }
    Err(ObtainError::Busy(limit))
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
        .filter(|attempts| attempts.failures != request.failures)
        .and_then(|attempts| {
            let next = attempts.blocks(
                &request.identifiers,
                request.issuer,
                &request.challenge,
                now,
            )?;
            Some(Obtained::Failed {
                error: attempts.last_error.unwrap_or_default(),
                next,
                retry: attempts.retry,
            })
        }))
}

impl Attempt<'_> {
    async fn issue_and_store(&self) -> Result<StoredCertificate, ObtainError> {
        let stored = self.once().await?;
        // a crash after storing and before forgetting has left the order that was finished then
        let stored = match self.request.replaces.as_ref() == Some(&stored.serial) {
            true => self.once().await?,
            false => stored,
        };
        self.tools.ledger.forget_failures(&self.request.name)?;
        self.pause_if_due_again(&stored);
        tracing::info!(
            identifier = %self.request.name,
            serial = %stored.serial,
            not_after = %stored.validity.not_after,
            "stored a certificate"
        );
        Ok(stored)
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
        let attempts = Attempts::after_failure(None, self.request, why.into(), retry, now, chance);
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
        let issued = self.issue().await?;
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
                let issued = acme.order(self.request, self.tools.ledger, &self.lock);
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
    let (words, chance) = (error.to_string(), (tools.chance)());
    let attempts = Attempts::after_failure(previous.as_ref(), request, words, retry, now, chance);
    let attempts = match wait {
        Some(wait) => attempts.not_before(wait),
        None => attempts,
    };
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

/// Longer than an order may take.
const LOCK_DEADLINE: Duration = Duration::from_secs(120);
/// DNS may take minutes until it shows what was put there.
const LOCK_DEADLINE_DNS: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{Identifier, WantedCertificate};

    struct Fixture {
        directory: tempfile::TempDir,
        store: CertificateStore,
        ledger: Ledger,
        internal: InternalCa,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        Fixture {
            store: CertificateStore::new(directory.path()),
            ledger: Ledger::new(directory.path()),
            internal: InternalCa::new(directory.path()),
            directory,
        }
    }

    impl Fixture {
        fn tools(&self) -> Tools<'_> {
            Tools {
                store: &self.store,
                ledger: &self.ledger,
                acme: None,
                internal: &self.internal,
                clock: &now,
                limits: None,
                chance: &|| 0.0,
            }
        }

        async fn obtain(&self, request: &CertificateRequest) -> Obtained {
            obtain(request, self.tools()).await
        }
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000)
    }

    fn request(issuer: Issuer) -> CertificateRequest {
        let identifiers = vec![Identifier::Dns("a.example".into())];
        let wanted = WantedCertificate::new(identifiers, issuer).unwrap();
        CertificateRequest::new(&wanted, None, None)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn two_callers_obtain_a_certificate_once() {
        let fixture = fixture();
        let request = request(Issuer::Internal);
        let (one, two) = tokio::join!(fixture.obtain(&request), fixture.obtain(&request));
        let stored = [&one, &two]
            .iter()
            .filter(|obtained| matches!(obtained, Obtained::Stored(_)))
            .count();
        assert_eq!(stored, 1, "{one:?} {two:?}");
        assert!([one, two].contains(&Obtained::AlreadyDone));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_failure_is_scheduled_and_not_repeated_by_the_caller_who_waited() {
        let fixture = fixture();
        let request = request(Issuer::Acme);
        let first = fixture.obtain(&request).await;
        let Obtained::Failed { next, .. } = &first else {
            panic!("{first:?}")
        };
        assert_eq!(*next, now() + time::Duration::MINUTE);
        assert_eq!(fixture.obtain(&request).await, first);
        let attempts = fixture.ledger.attempts_of(&request.name).unwrap().unwrap();
        assert_eq!(attempts.failures, 1);
    }

    #[tokio::test(flavor = "current_thread")]
    #[allow(clippy::disallowed_methods)]
    async fn a_lock_that_cannot_be_made_is_not_tried_again_at_once() {
        let fixture = fixture();
        // no directory: as on a disk that went read-only
        std::fs::write(fixture.directory.path().join("orders"), "").unwrap();
        let request = request(Issuer::Acme);
        let obtained = fixture.obtain(&request).await;
        assert!(matches!(obtained, Obtained::Failed { .. }));
        let attempts = fixture.ledger.attempts_of(&request.name).unwrap().unwrap();
        assert_eq!(attempts.next, Some(now() + time::Duration::MINUTE));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_success_ends_the_failures() {
        let fixture = fixture();
        let mut request = request(Issuer::Internal);
        let failure =
            Attempts::after_failure(None, &request, "x".into(), RetryAdvice::Retry, now(), 0.0);
        fixture
            .ledger
            .record_failure(&request.name, &failure)
            .unwrap();
        request.failures = 1;
        assert!(matches!(
            fixture.obtain(&request).await,
            Obtained::Stored(_)
        ));
        assert_eq!(fixture.ledger.attempts_of(&request.name).unwrap(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_new_certificate_that_is_due_at_once_is_followed_by_the_next_a_day_later() {
        let fixture = fixture();
        let request = request(Issuer::Internal);
        // the CA's clock is right, ours is four days ahead when the certificate is there
        let asked = std::sync::atomic::AtomicI64::new(0);
        let jumping = || match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 | 1 => now(),
            _ => now() + time::Duration::days(4),
        };
        let tools = Tools {
            clock: &jumping,
            ..fixture.tools()
        };
        let obtained = obtain(&request, tools).await;
        assert!(matches!(obtained, Obtained::Stored(_)), "{obtained:?}");
        let later = jumping();
        let memories = fixture.ledger.memories().unwrap();
        let identifiers = request.identifiers.clone();
        let wanted = WantedCertificate::new(identifiers, Issuer::Internal).unwrap();
        let (inventory, _) = fixture.store.inventory().unwrap();
        let terms = crate::certificate::Terms::from(&crate::settings::AcmeSettings::default());
        let schedule =
            crate::certificate::schedule::due(&[wanted], &inventory, &memories, &terms, later);
        assert_eq!(schedule.due, []);
        assert_eq!(schedule.next, Some(later + time::Duration::DAY));
    }

    #[test]
    fn obtaining_can_be_spawned() {
        fn is_send<T: Send>(_: &T) {}
        let fixture = fixture();
        let request = request(Issuer::Internal);
        is_send(&fixture.obtain(&request));
    }
}
