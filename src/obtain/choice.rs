//! N: one certificate from one of several CAs.

use std::collections::BTreeSet;

use super::Obtaining;
use crate::certificate::budget::{Budget, Limits};
use crate::certificate::dns01::Dns01;
use crate::certificate::fallback::{Candidate, Need, candidate, choose, is_usable};
use crate::certificate::order::{AcmeClient, AcmeClientError};
use crate::certificate::renew::{Obtained, Slot, Tools, is_too_early, obtain, risk};
use crate::certificate::schedule::{self, CertificateState};
use crate::certificate::subset::Without;
use crate::certificate::{CertificateRequest, Issuer, StoredCertificate};
use crate::settings::Settings;

/// A CA that certificates may come from. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ca {
    pub(super) client: AcmeClient,
    /// What it is known to allow.
    pub(super) limits: Option<Limits>,
    /// A fallback's own; the first one's is the vhosts'.
    profile: Option<String>,
}

impl Ca {
    pub(super) fn alone(client: AcmeClient) -> Vec<Self> {
        vec![Self {
            client,
            limits: None,
            profile: None,
        }]
    }

    /// The first, and those fallbacks whose account can be opened.
    pub(super) fn all(settings: &Settings, dns01: &Dns01) -> Result<Vec<Self>, AcmeClientError> {
        let mut cas: Vec<Self> = Vec::new();
        for (client, ca) in AcmeClient::each(settings)
            .into_iter()
            .zip(settings.acme.cas())
        {
            let client = match client {
                Err(error) if !cas.is_empty() => {
                    let directory = ca.directory;
                    tracing::error!(
                        "{directory} will not be asked where the first CA keeps failing: failed to {error}; put a backup of it there or remove it, then `systemctl restart vhostd`"
                    );
                    continue;
                }
                client => client?,
            };
            cas.push(Self {
                client: client.with_dns01(dns01.clone()),
                limits: Limits::of(&ca.directory),
                profile: ca.profile,
            });
        }
        Ok(cas)
    }
}

impl Obtaining {
    /// The CA with that directory.
    pub(super) fn ca(&self, directory: &str) -> Option<&Ca> {
        self.cas
            .iter()
            .find(|ca| ca.client.directory() == directory)
    }

    /// The CA that it is from, if that is still asked.
    pub(super) fn ca_of(&self, stored: &StoredCertificate) -> Option<&Ca> {
        self.ca(self.terms.directory_of(stored)?)
    }

    pub(super) fn tools<'a>(&'a self, ca: Option<&'a Ca>) -> Tools<'a> {
        Tools {
            store: &self.store,
            ledger: &self.ledger,
            acme: ca.map(|ca| &ca.client),
            internal: &self.internal,
            limits: ca.and_then(|ca| ca.limits.as_ref()),
            checks: Some(&self.checks),
            slot: None,
            clock: &*self.clock,
            chance: &*self.chance,
        }
    }

    /// From the first CA that is not given up; where that makes it one that is given up, from the
    /// next at once.
    pub(super) async fn obtain_from_a_ca(
        &self,
        mut request: CertificateRequest,
        slot: &Slot,
    ) -> Obtained {
        let tools = |ca| Tools {
            slot: Some(slot),
            ..self.tools(ca)
        };
        if request.issuer != Issuer::Acme {
            return obtain(&request, tools(None)).await;
        }
        let stored = self.store.newest(&request.name).ok().flatten();
        if self.is_too_early_elsewhere(&request, stored.as_ref()).await {
            return Obtained::Postponed;
        }
        let mut tried = BTreeSet::new();
        loop {
            let nth = self.next_ca(&request, stored.as_ref(), &tried);
            let ca = nth.and_then(|nth| self.cas.get(nth));
            if let Some(nth) = nth.filter(|nth| *nth > 0 && tried.contains(&(nth - 1))) {
                let (failing, next) = (&self.cas[nth - 1].client, &self.cas[nth].client);
                let (failing, next) = (failing.directory(), next.directory());
                tracing::warn!(identifier = %request.name, "{failing} keeps failing: asking {next}");
            }
            let asked = self.asked_of(&request, nth.unwrap_or_default(), stored.as_ref());
            slot.to_order().await;
            let obtained = obtain(&asked, tools(ca)).await;
            tried.extend(nth);
            if !matches!(obtained, Obtained::Failed { .. }) {
                return obtained;
            }
            let attempts = self.ledger.attempts_of(&request.name).ok().flatten();
            request.failures = attempts.map_or(0, |attempts| attempts.failures);
            if self.next_ca(&request, stored.as_ref(), &tried).is_none() {
                let Some(others) = self.others(&request, stored.as_ref()) else {
                    return obtained;
                };
                let without = Without(&others.omitted());
                tracing::warn!(identifier = %request.name, "ordering{without}: what is left out has failed for a while");
                request = others;
                tried.clear();
            }
        }
    }

    /// After a failure: the order without what keeps failing, where that is not what has just failed
    /// and is due by itself.
    fn others(
        &self,
        request: &CertificateRequest,
        stored: Option<&StoredCertificate>,
    ) -> Option<CertificateRequest> {
        let memory = self.ledger.memory_of(&request.name).ok()?;
        let (wanted, now) = (request.to_wanted(), self.now());
        let others = schedule::request(&wanted, stored, &memory, now);
        let state = CertificateState::of(&wanted, stored, &memory, &self.terms, now);
        let is_due = request.forced || state.next().is_none();
        let is_smaller = others.identifiers.len() < request.identifiers.len();
        (is_due && is_smaller).then(|| CertificateRequest {
            by_age: false,
            reuse_key: request.reuse_key.clone(),
            insisted: request.insisted,
            forced: request.forced,
            ..others
        })
    }

    /// What whoever insists on the request should know before, with its certificate's name.
    pub fn risk(&self, request: &CertificateRequest) -> Option<String> {
        let stored = self.store.newest(&request.name).ok().flatten();
        let nth = self.next_ca(request, stored.as_ref(), &BTreeSet::new())?;
        let risk = risk(request, self.tools(self.cas.get(nth)))?;
        Some(format!("{}: {risk}", request.name))
    }

    /// The first time, always one; then only one that was not tried and is not given up.
    fn next_ca(
        &self,
        request: &CertificateRequest,
        stored: Option<&StoredCertificate>,
        tried: &BTreeSet<usize>,
    ) -> Option<usize> {
        let attempts = self.ledger.attempts_of(&request.name).ok().flatten();
        let about = attempts.filter(|it| it.is_of(request));
        let (need, now) = (self.need(request, stored), self.now());
        let budget = |ca: &Ca| self.ledger.budget(ca.client.directory());
        let budgets: Vec<_> = self.cas.iter().map(|ca| budget(ca).ok()).collect();
        let candidates: Vec<Candidate<'_>> = (self.cas.iter().zip(&budgets))
            .map(|(ca, budget)| {
                let own = about.as_ref();
                let own = own.and_then(|it| it.troubles.get(ca.client.directory()));
                let outage = budget.as_ref().and_then(Budget::outage);
                candidate(own, outage, need, now)
            })
            .collect();
        let chosen = choose(&candidates, need, now)?;
        let usable = !tried.contains(&chosen) && is_usable(candidates[chosen], need, now);
        (tried.is_empty() || usable).then_some(chosen)
    }

    fn need(&self, request: &CertificateRequest, stored: Option<&StoredCertificate>) -> Need {
        let good = stored.filter(|stored| {
            stored.issuer == request.issuer
                && stored.covers(&request.identifiers)
                && stored.validity.is_usable(self.now())
        });
        match good {
            Some(stored) => Need::Within(stored.validity.not_after - self.now()),
            None if request.insisted => Need::Insisted,
            None => Need::Now,
        }
    }

    /// The request as the CA understands it: a profile is one CA's own, and only the CA that a
    /// certificate is from knows what is replaced (RFC 9773 §5).
    fn asked_of(
        &self,
        request: &CertificateRequest,
        nth: usize,
        stored: Option<&StoredCertificate>,
    ) -> CertificateRequest {
        let mut asked = request.clone();
        let Some(ca) = self.cas.get(nth) else {
            return asked;
        };
        if nth > 0 {
            asked.profile.clone_from(&ca.profile);
        }
        let from = stored.and_then(|stored| self.terms.directory_of(stored));
        if from != Some(ca.client.directory()) {
            asked.renewal_id = None;
        }
        asked
    }

    /// Of a certificate that is from another CA than the first, that one is asked whether it is time:
    /// the first would not know it.
    async fn is_too_early_elsewhere(
        &self,
        request: &CertificateRequest,
        stored: Option<&StoredCertificate>,
    ) -> bool {
        let from = stored.and_then(|stored| self.ca_of(stored));
        let first = self.cas.first().map(|ca| ca.client.directory());
        match from {
            Some(ca) if request.by_age && Some(ca.client.directory()) != first => {
                is_too_early(request, self.tools(Some(ca))).await
            }
            _ => false,
        }
    }
}
