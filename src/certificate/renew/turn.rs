//! W: nobody else obtains a certificate meanwhile, nor another one of the same names.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::ObtainError;
use crate::certificate::ledger::{CertificateLock, Ledger};
use crate::certificate::{CertificateName, CertificateRequest, Challenge};

/// A CA may give the same order to two who ask for the same names (Boulder does), and each would
/// finish it with a key of its own: a further type waits for the first one's. Nobody waits in the
/// other direction.
pub(super) async fn turn(
    request: &CertificateRequest,
    ledger: &Ledger,
) -> Result<Option<CertificateLock>, ObtainError> {
    let first = request.name.further();
    let first = first.and_then(|_| CertificateName::from_file_name(request.name.base()));
    match first {
        Some(first) => lock(&first, &request.challenge, ledger).await.map(Some),
        None => Ok(None),
    }
}

/// Polled, not blocked on: a future can be cancelled, a thread in flock(2) cannot.
pub(super) async fn lock(
    name: &CertificateName,
    challenge: &Challenge,
    ledger: &Ledger,
) -> Result<CertificateLock, ObtainError> {
    let limit = match challenge {
        Challenge::Http01 => LOCK_DEADLINE,
        Challenge::Dns01(_) => LOCK_DEADLINE_DNS,
    };
    let deadline = Instant::now() + limit;
    let mut delay = Duration::from_millis(5);
    while Instant::now() < deadline {
        if let Some(lock) = ledger.try_lock(name)? {
            return Ok(lock);
        }
        sleep(delay).await;
        delay = (delay * 2).min(Duration::from_millis(200));
    }
    Err(ObtainError::Busy(limit))
}

/// Longer than an order may take.
const LOCK_DEADLINE: Duration = Duration::from_secs(120);
/// DNS may take minutes until it shows what was put there.
const LOCK_DEADLINE_DNS: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{Identifier, Issuer, WantedCertificate};
    use crate::settings::KeyType;

    #[tokio::test(flavor = "current_thread")]
    async fn a_further_type_waits_for_the_first_and_the_first_for_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(directory.path());
        let identifiers = vec![Identifier::Dns("a.example".into())];
        let first = WantedCertificate::new(identifiers, Issuer::Acme).unwrap();
        let request = |wanted: &WantedCertificate| CertificateRequest::new(wanted, None, None);
        let further = request(&first.further(KeyType::Rsa2048));
        let ordering = ledger.try_lock(&first.name).unwrap().unwrap();
        let waiting =
            tokio::time::timeout(Duration::from_millis(50), turn(&further, &ledger)).await;
        assert!(waiting.is_err());
        drop(ordering);
        let turn_of_further = turn(&further, &ledger).await.unwrap();
        assert!(turn_of_further.is_some());
        let _lock = ledger.try_lock(&further.name).unwrap().unwrap();
        assert!(turn(&request(&first), &ledger).await.unwrap().is_none());
        drop(turn_of_further);
        assert!(ledger.try_lock(&first.name).unwrap().is_some());
    }
}
