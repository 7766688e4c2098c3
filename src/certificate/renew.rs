//! W: lock → still due? → order → check → store: what the daemon and `vhostd renew` call.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::certificate::internal::{InternalCa, InternalError};
use crate::certificate::ledger::{CertificateLock, Ledger, LedgerError};
use crate::certificate::order::{AcmeClient, OrderError};
use crate::certificate::schedule::{Attempts, RetryAdvice, renew_at};
use crate::certificate::store::{CertificateStore, StoreError};
use crate::certificate::{CertificateRequest, IssuedCertificate, Issuer, StoredCertificate};

/// What became of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Obtained {
    /// Somebody else has stored a newer version since the request was made.
    AlreadyDone,
    Failed {
        /// A lowercase fragment that fits "failed to …".
        error: String,
        /// When it is due again.
        next: OffsetDateTime,
        retry: RetryAdvice,
    },
    Stored(StoredCertificate),
}

/// Why a certificate was not obtained.
#[derive(Debug, thiserror::Error)]
enum ObtainError {
    #[error("lock the certificate: another process has held it for {} s", LOCK_DEADLINE.as_secs())]
    Busy,
    #[error(transparent)]
    Internal(#[from] InternalError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("order the certificate: no ACME account could be opened")]
    NoAcme,
    #[error("order what only nginx's start needs: a placeholder")]
    Placeholder,
    /// Boxed: it is much larger than the others.
    #[error(transparent)]
    Order(#[from] Box<OrderError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("finish work in the background: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// One attempt, under the lock.
struct Attempt<'a> {
    request: &'a CertificateRequest,
    store: &'a CertificateStore,
    ledger: &'a Ledger,
    acme: Option<&'a AcmeClient>,
    internal: &'a InternalCa,
    clock: Clock<'a>,
    lock: CertificateLock,
}

/// The time, from whoever owns the clock.
pub type Clock<'a> = &'a (dyn Fn() -> OffsetDateTime + Send + Sync);

/// Obtains one certificate, exactly once however many callers and processes ask for it.
///
/// Failures are recorded in the ledger before it returns, so that the next attempt is scheduled
/// wherever it is looked for. Cancelling it is safe at any point: what is being written is finished
/// under the lock, which then is dropped, and the next call resumes the order.
pub async fn obtain(
    request: &CertificateRequest,
    store: &CertificateStore,
    ledger: &Ledger,
    acme: Option<&AcmeClient>,
    internal: &InternalCa,
    clock: Clock<'_>,
) -> Obtained {
    let lock = match lock(request, ledger).await {
        Ok(lock) => lock,
        Err(error) => return failed(request, ledger, &error, clock(), false),
    };
    match done_by_another(request, store, ledger, clock()) {
        Ok(Some(obtained)) => return obtained,
        Ok(None) => {}
        Err(error) => return failed(request, ledger, &error, clock(), true),
    }
    let attempt = Attempt {
        request,
        store,
        ledger,
        acme,
        internal,
        clock,
        lock,
    };
    match attempt.issue_and_store().await {
        Ok(stored) => Obtained::Stored(stored),
        Err(error) => failed(request, ledger, &error, clock(), true),
    }
}

/// Polled, not blocked on: a future can be cancelled, a thread in flock(2) cannot.
async fn lock(
    request: &CertificateRequest,
    ledger: &Ledger,
) -> Result<CertificateLock, ObtainError> {
    let deadline = Instant::now() + LOCK_DEADLINE;
    let mut delay = Duration::from_millis(5);
    while Instant::now() < deadline {
        if let Some(lock) = ledger.try_lock(&request.name)? {
            return Ok(lock);
        }
        sleep(delay).await;
        delay = (delay * 2).min(Duration::from_millis(200));
    }
    Err(ObtainError::Busy)
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
            let next = attempts.blocks(&request.identifiers, request.issuer, now)?;
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
        self.ledger.forget_failures(&self.request.name)?;
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
        let now = (self.clock)();
        if renew_at(stored.validity) > now {
            return;
        }
        let why =
            "get a certificate that is not due for renewal at once: is this host's clock right?";
        let attempts =
            Attempts::after_failure(None, self.request, why.into(), RetryAdvice::Useless, now);
        tracing::warn!(identifier = %self.request.name, "failed to {why}");
        if let Err(error) = self.ledger.record_failure(&self.request.name, &attempts) {
            tracing::error!(identifier = %self.request.name, "failed to {error}");
        }
    }

    async fn once(&self) -> Result<StoredCertificate, ObtainError> {
        let issued = self.issue().await?;
        let (store, request) = (self.store.clone(), self.request.clone());
        let (lock, now) = (self.lock.clone(), (self.clock)());
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
            self.ledger.forget_order(&self.request.name)?;
        }
        Ok(stored?)
    }

    async fn issue(&self) -> Result<IssuedCertificate, ObtainError> {
        match self.request.issuer {
            Issuer::Acme => {
                let acme = self.acme.ok_or(ObtainError::NoAcme)?;
                let issued = acme.order(self.request, self.ledger, &self.lock).await;
                Ok(issued.map_err(Box::new)?)
            }
            Issuer::Internal => {
                let (internal, request) = (self.internal.clone(), self.request.clone());
                let now = (self.clock)();
                Ok(spawn_blocking(move || internal.issue(&request, now)).await??)
            }
            Issuer::Placeholder => Err(ObtainError::Placeholder),
        }
    }
}

/// The schedule moves on, or an error that does not go away is met again and again without a pause.
/// `locked`: we have the lock, without which nothing is written.
fn failed(
    request: &CertificateRequest,
    ledger: &Ledger,
    error: &ObtainError,
    now: OffsetDateTime,
    locked: bool,
) -> Obtained {
    let retry = error.retry();
    let previous = ledger.attempts_of(&request.name).unwrap_or_else(|error| {
        tracing::warn!(identifier = %request.name, "failed to {error}");
        None
    });
    let attempts =
        Attempts::after_failure(previous.as_ref(), request, error.to_string(), retry, now);
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
        ObtainError::Busy => {}
        _ => ledger.remember_failure(&request.name, &attempts),
    }
    Obtained::Failed {
        error: error.to_string(),
        next,
        retry,
    }
}

impl ObtainError {
    fn retry(&self) -> RetryAdvice {
        match self {
            Self::Busy | Self::Ledger(_) | Self::NoAcme | Self::Task(_) => RetryAdvice::Retry,
            Self::Internal(error) => error.retry(),
            Self::Order(error) => error.retry(),
            Self::Placeholder => RetryAdvice::Useless,
            Self::Store(error) => error.retry(),
        }
    }
}

/// Longer than an order may take.
const LOCK_DEADLINE: Duration = Duration::from_secs(120);

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
        async fn obtain(&self, request: &CertificateRequest) -> Obtained {
            obtain(
                request,
                &self.store,
                &self.ledger,
                None,
                &self.internal,
                &now,
            )
            .await
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
            Attempts::after_failure(None, &request, "x".into(), RetryAdvice::Retry, now());
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
        let (store, ledger) = (&fixture.store, &fixture.ledger);
        let obtained = obtain(&request, store, ledger, None, &fixture.internal, &jumping).await;
        assert!(matches!(obtained, Obtained::Stored(_)), "{obtained:?}");
        let later = jumping();
        let attempts = ledger.attempts().unwrap();
        let identifiers = request.identifiers.clone();
        let wanted = WantedCertificate::new(identifiers, Issuer::Internal).unwrap();
        let (inventory, _) = store.inventory().unwrap();
        let schedule = crate::certificate::schedule::due(&[wanted], &inventory, &attempts, later);
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
