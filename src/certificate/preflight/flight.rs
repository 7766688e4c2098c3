//! N: one order's checks: what decides before it is sent, the rest beside it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::fetch::Challenge;
use super::observe::{Checks, Fetch, host_addresses};
use super::{
    Ca, Finding, Method, Observations, Verdict, decide, holds_back, holds_back_retry, unreached,
};
use crate::certificate::CertificateRequest;
use crate::certificate::renew::{Chance, Clock};

/// The checks of one attempt.
pub struct Preflight<'a> {
    request: &'a CertificateRequest,
    checks: &'a Checks,
    clock: Clock<'a>,
    challenge: Challenge,
    begun: Mutex<Option<Begun>>,
}

/// How an order ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The CA did not believe us.
    Doubted,
    Failed,
    Issued,
}

struct Begun {
    ca: Ca,
    /// `None`: nobody looks, unless the CA does not believe us.
    looking: Option<Looking>,
}

struct Looking {
    seen: Observations,
    fetches: JoinSet<Fetch>,
}

impl<'a> Preflight<'a> {
    pub fn new(
        request: &'a CertificateRequest,
        checks: &'a Checks,
        thumbprint: &str,
        clock: Clock<'a>,
        chance: Chance<'a>,
    ) -> Self {
        Self {
            request,
            checks,
            clock,
            challenge: checks.challenge(thumbprint, chance),
            begun: Mutex::default(),
        }
    }

    /// Right before a new order: what keeps it from being sent. `ca_now`: what the CA's clock says.
    ///
    /// Only DNS is waited for. A CA that does not say that DNS binds it is not kept waiting at all.
    pub async fn admit(&self, ca: Ca, ca_now: Option<OffsetDateTime>) -> Result<(), Vec<Finding>> {
        let ca = self.checks.in_view(ca);
        if !ca.obeys_dns() {
            self.begin(ca, None);
            return Ok(());
        }
        let now = (self.clock)();
        let seen = Observations {
            names: self.checks.look_up(&self.request.identifiers).await,
            host: host_addresses(),
            ca: ca.clone(),
            ahead: ca_now.map(|ca_now| now - ca_now),
            method: Method::of(&self.request.challenge),
            issued: false,
        };
        let certain = decide(&seen).certain;
        let retries = holds_back_retry(self.request);
        if !certain.is_empty() && (retries || holds_back(self.request, now)) {
            return Err(certain);
        }
        let fetches = self.checks.fetch_all(&seen, &self.challenge);
        let mut looking = Looking { seen, fetches };
        if retries {
            looking.fetch_all().await;
            let unreached = unreached(&looking.seen, &self.request.retried);
            if !unreached.is_empty() {
                return Err(unreached);
            }
        }
        self.begin(ca, Some(looking));
        Ok(())
    }

    /// After the order: what is to be told of it. `None`: nobody has looked.
    pub async fn verdict(&self, ended: Ended) -> Option<Verdict> {
        let Begun { ca, looking } = self.lock().take()?;
        let mut seen = match (looking, ended) {
            (Some(looking), _) => looking.end().await,
            (None, Ended::Doubted) => {
                let names = &self.request.identifiers;
                let method = Method::of(&self.request.challenge);
                self.checks
                    .observe(names, ca, &self.challenge, method, None)
                    .await
            }
            // a CA of one's own that issues sees what it needs
            (None, _) => return Some(Verdict::default()),
        };
        seen.issued = ended == Ended::Issued;
        Some(decide(&seen))
    }

    fn begin(&self, ca: Ca, looking: Option<Looking>) {
        *self.lock() = Some(Begun { ca, looking });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looking {
    /// Waits for all; each fetch has a limit of its own.
    async fn fetch_all(&mut self) {
        while let Some(fetch) = self.fetches.join_next().await {
            if let Ok(fetch) = fetch {
                self.seen.note(fetch);
            }
        }
    }

    /// What has been fetched. The rest is not waited for: the certificate is to be served.
    async fn end(mut self) -> Observations {
        let deadline = Instant::now() + REST;
        while let Ok(Some(fetch)) = timeout_at(deadline, self.fetches.join_next()).await {
            if let Ok(fetch) = fetch {
                self.seen.note(fetch);
            }
        }
        self.seen
    }
}

impl fmt::Debug for Preflight<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preflight")
            .field("request", &self.request.name)
            .finish_non_exhaustive()
    }
}

/// A CA far away takes longer than the fetches, so that they have ended.
const REST: Duration = Duration::from_millis(300);
