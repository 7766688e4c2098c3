//! N: what is due → obtained, many at a time: for the daemon, `vhostd renew` and `reload --wait`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::certificate::internal::InternalCa;
use crate::certificate::ledger::{Ledger, LedgerError};
use crate::certificate::order::{AcmeClient, AcmeClientError};
use crate::certificate::renew::{Obtained, obtain};
use crate::certificate::schedule::{CertificateState, Schedule, due, renew_at};
use crate::certificate::store::{CertificateStore, StoreError};
use crate::certificate::{
    CertificateInventory, CertificateName, CertificateRequest, Issuer, StoredCertificate,
    WantedCertificate,
};
use crate::clock::Clock;
use crate::control::{RenewalResult, Renewed, RenewedCertificate};
use crate::installation::Installation;
use crate::reconcile::report::CertificateSummary;
use crate::settings::KeyType;

/// Everything that obtaining a certificate needs. Cheap to clone.
#[derive(Clone)]
pub struct Obtaining {
    store: CertificateStore,
    ledger: Ledger,
    internal: InternalCa,
    acme: Option<AcmeClient>,
    key_type: KeyType,
    clock: Clock,
    /// Shared by the clones.
    at_once: Arc<Semaphore>,
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

impl Obtaining {
    /// Asks no network.
    pub fn new(installation: &Installation, clock: Clock) -> Result<Self, ObtainingError> {
        let settings = &installation.settings;
        Ok(Self {
            store: installation.certificates.clone(),
            ledger: installation.ledger.clone(),
            internal: installation.internal_ca.clone(),
            acme: Some(AcmeClient::new(&settings.acme, &settings.state_dir)?),
            key_type: settings.acme.key_type,
            clock,
            at_once: Arc::new(Semaphore::new(ORDERS_AT_ONCE)),
        })
    }

    /// What is due of `wanted` now, and when to look again.
    pub fn schedule(&self, wanted: &[WantedCertificate]) -> Result<Schedule, ObtainingError> {
        let (inventory, _) = self.store.inventory()?;
        let schedule = due(wanted, &inventory, &self.ledger.attempts()?, self.now());
        // one root for all who have none, instead of one for each
        let internal = schedule
            .due
            .iter()
            .filter(|it| it.issuer == Issuer::Internal);
        let internal = internal.map(|request| request.identifiers.as_slice());
        if let Err(error) = self.internal.prepare(internal, self.now()) {
            // whoever needs the root meets the same error, and records it
            tracing::debug!("failed to {error}");
        }
        Ok(schedule)
    }

    pub fn inventory(&self) -> Result<CertificateInventory, ObtainingError> {
        Ok(self.store.inventory()?.0)
    }

    /// A request that does not ask whether it is due: an operator did.
    pub fn request_now(
        &self,
        wanted: &WantedCertificate,
    ) -> Result<CertificateRequest, ObtainingError> {
        self.ledger.forget_failures(&wanted.name)?;
        let newest = self.store.newest(&wanted.name)?;
        Ok(CertificateRequest::new(wanted, newest.as_ref(), None))
    }

    /// Waits for its turn, then obtains the certificate.
    pub async fn obtain(&self, mut request: CertificateRequest) -> Obtained {
        // never closed: an error cannot come
        let _turn = self.at_once.acquire().await;
        request.key_type.get_or_insert(self.key_type);
        let clock = self.clock.clone();
        let acme = self.acme.as_ref();
        obtain(
            &request,
            &self.store,
            &self.ledger,
            acme,
            &self.internal,
            &*clock,
        )
        .await
    }

    pub fn now(&self) -> OffsetDateTime {
        (self.clock)()
    }

    async fn obtain_all(
        &self,
        requests: Vec<CertificateRequest>,
    ) -> BTreeMap<CertificateName, Obtained> {
        let mut running = JoinSet::new();
        for request in requests {
            let me = self.clone();
            running.spawn(async move { (request.name.clone(), me.obtain(request).await) });
        }
        running.join_all().await.into_iter().collect()
    }
}

impl fmt::Debug for Obtaining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Obtaining")
            .field("acme", &self.acme)
            .finish_non_exhaustive()
    }
}

/// Obtains what is due of `wanted`: `reload --wait` without a daemon.
pub async fn obtain_due(
    obtaining: &Obtaining,
    wanted: &[WantedCertificate],
) -> Result<CertificateSummary, ObtainingError> {
    let schedule = obtaining.schedule(wanted)?;
    let mut summary = CertificateSummary::default();
    for (name, obtained) in obtaining.obtain_all(schedule.due).await {
        match obtained {
            Obtained::Stored(_) | Obtained::AlreadyDone => summary.ordered.push(name.to_string()),
            Obtained::Failed { .. } => summary.failed.push(name.to_string()),
        }
    }
    summary.add_failing(obtaining, wanted)?;
    Ok(summary)
}

/// Renews what is due, or what `names` says: `vhostd renew` without a daemon.
pub async fn renew(
    obtaining: &Obtaining,
    wanted: &[WantedCertificate],
    selection: &Selection,
) -> Result<Renewed, ObtainingError> {
    let requests = selection.requests(obtaining, wanted)?;
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

/// Which certificates a `renew` is about.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selection {
    /// None: all.
    certificates: Option<Vec<CertificateName>>,
    force: bool,
}

impl Selection {
    /// `names` are identifiers or certificates; `vhosts` says which certificates a vhost has. The
    /// error is the name that nothing has.
    pub fn new(
        names: &[String],
        force: bool,
        wanted: &[WantedCertificate],
        vhosts: &[(String, CertificateName)],
    ) -> Result<Self, String> {
        if names.is_empty() {
            return Ok(Self {
                certificates: None,
                force,
            });
        }
        let mut certificates = Vec::new();
        for name in names {
            let before = certificates.len();
            certificates.extend(
                wanted
                    .iter()
                    .filter(|wanted| {
                        wanted.name.as_str() == name
                            || wanted
                                .identifiers
                                .iter()
                                .any(|one| one.to_string() == *name)
                    })
                    .map(|wanted| wanted.name.clone()),
            );
            let of_vhost = |vhost: &str| vhost == name || vhost.split('#').next() == Some(name);
            certificates.extend(
                vhosts
                    .iter()
                    .filter(|(vhost, _)| of_vhost(vhost))
                    .map(|(_, name)| name.clone()),
            );
            if certificates.len() == before {
                return Err(name.clone());
            }
        }
        Ok(Self {
            certificates: Some(certificates),
            force,
        })
    }

    pub fn includes(&self, wanted: &WantedCertificate) -> bool {
        self.certificates
            .as_ref()
            .is_none_or(|names| names.contains(&wanted.name))
    }

    /// What is due of it; with `force`, all of it. A certificate that was named and keeps failing
    /// is tried now: the operator says so.
    pub fn requests(
        &self,
        obtaining: &Obtaining,
        wanted: &[WantedCertificate],
    ) -> Result<Vec<CertificateRequest>, ObtainingError> {
        let mine: Vec<WantedCertificate> = wanted
            .iter()
            .filter(|wanted| self.includes(wanted))
            .cloned()
            .collect();
        if self.force {
            return mine
                .iter()
                .map(|wanted| obtaining.request_now(wanted))
                .collect();
        }
        if self.certificates.is_some() {
            for wanted in &mine {
                obtaining.ledger.forget_failures(&wanted.name)?;
            }
        }
        Ok(obtaining.schedule(&mine)?.due)
    }
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
    let base = RenewedCertificate {
        name: wanted.name.to_string(),
        result: RenewalResult::NotDue,
        not_after: stored
            .as_ref()
            .and_then(|stored| words(stored.validity.not_after)),
        error: None,
        next: stored
            .as_ref()
            .and_then(|stored| words(renew_at(stored.validity))),
    };
    let failed = |error: &str, next: Option<OffsetDateTime>| RenewedCertificate {
        result: RenewalResult::Failed,
        error: Some(error.to_owned()),
        next: next.and_then(words),
        ..base.clone()
    };
    Ok(match obtained {
        Some(Obtained::Stored(_)) => RenewedCertificate {
            result: RenewalResult::Renewed,
            ..base
        },
        Some(Obtained::Failed { error, next, .. }) => failed(error, Some(*next)),
        // nothing was tried: either all is well, or the next attempt is not due yet
        Some(Obtained::AlreadyDone) | None => match obtaining.ledger.attempts_of(&wanted.name)? {
            Some(attempts) if !is_good(wanted, stored.as_ref(), obtaining.now()) => failed(
                attempts.last_error.as_deref().unwrap_or("failed before"),
                attempts.next,
            ),
            // a renewal that failed is not tried again before its time
            attempts => {
                let (stored, now) = (stored.as_ref(), obtaining.now());
                let state = CertificateState::of(wanted, stored, attempts.as_ref(), now);
                RenewedCertificate {
                    next: state.next().and_then(words).or(base.next.clone()),
                    ..base
                }
            }
        },
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
        let attempts = obtaining.ledger.attempts()?;
        for wanted in wanted {
            let name = wanted.name.to_string();
            let stored = inventory.certificates.get(&wanted.name);
            let known = [&self.ordered, &self.pending, &self.failed]
                .iter()
                .any(|names| names.contains(&name));
            if known || is_good(wanted, stored, obtaining.now()) {
                continue;
            }
            match attempts.contains_key(&wanted.name) {
                true => self.failed.push(name),
                false => self.pending.push(name),
            }
        }
        Ok(())
    }
}
