//! W: what the CA allows, asked before an order and kept after it.

use time::{Duration, OffsetDateTime};

use super::{ObtainError, Tools};
use crate::certificate::budget::{Budget, Limits, Planned, Refusal, Renewing, Wait};
use crate::certificate::ledger::LedgerError;
use crate::certificate::order::OrderError;
use crate::certificate::schedule::Memory;
use crate::certificate::{CertificateRequest, Issuer, StoredCertificate};

/// One order's place in the budget of its CA.
pub(super) struct Allowance<'a> {
    request: &'a CertificateRequest,
    tools: Tools<'a>,
    renewing: Renewing,
}

impl<'a> Allowance<'a> {
    /// `None`: nobody counts what our own CA issues.
    pub(super) fn of(request: &'a CertificateRequest, tools: Tools<'a>) -> Option<Self> {
        if request.issuer != Issuer::Acme || tools.acme.is_none() {
            return None;
        }
        // another CA has not issued it: there it is no renewal
        let theirs = |stored: &StoredCertificate| {
            let known = stored.origin.as_ref().zip(tools.acme);
            known.is_none_or(|(origin, acme)| origin.directory == acme.directory())
        };
        let stored = tools.store.newest(&request.name).ok().flatten();
        let stored = stored.filter(theirs);
        let memory = tools.ledger.memory_of(&request.name).unwrap_or_default();
        let now = (tools.clock)();
        Some(Self {
            request,
            tools,
            renewing: renewing(request, stored.as_ref(), &memory, now),
        })
    }

    fn planned(&self) -> Planned<'a> {
        Planned {
            identifiers: &self.request.identifiers,
            renewing: self.renewing,
        }
    }

    /// Counts the order, or says until when it has to wait. Who insists does not wait; an order that
    /// is under way was counted.
    pub(super) fn admit(&self) -> Result<Option<Wait>, LedgerError> {
        let (planned, now) = (self.planned(), (self.tools.clock)());
        self.give_up_endless_order(now)?;
        let pending = self.tools.ledger.pending(&self.request.name)?;
        let open = pending.is_some_and(|pending| pending.directory == self.directory());
        let limits = self.tools.limits.filter(|_| !open);
        let mut counted = false;
        let admitted = self.update(|budget| {
            if self.request.insisted {
                budget.forgive(&planned);
                budget.count(&planned, limits, now);
                counted = true;
                return None;
            }
            let wait = budget.admit(&planned, limits, now).err();
            counted = wait.is_none();
            wait
        });
        if admitted.is_err() && counted {
            // it is remembered, and no order follows: on a full disk they would soon be used up
            let _ = self.update(|budget| budget.returned(&planned, limits, false));
        }
        admitted
    }

    /// One that the CA never finishes would be resumed until the certificate has ended.
    fn give_up_endless_order(&self, now: OffsetDateTime) -> Result<(), LedgerError> {
        let (ledger, name) = (self.tools.ledger, &self.request.name);
        let left = self.request.expires.map(|expires| expires - now);
        let patience = left.map_or(3 * Duration::DAY, |left| {
            (left / 4_i32).clamp(Duration::DAY, Duration::WEEK)
        });
        match ledger.order_written_at(name) {
            Some(begun) if now - begun > patience => {
                tracing::warn!(identifier = %name, "giving up the order of {begun}, which the CA does not finish: making another");
                ledger.forget_order(name)
            }
            _ => Ok(()),
        }
    }

    /// What whoever insists on it is told before it is made; `None` too where nothing is known.
    pub(super) fn risk(&self) -> Option<String> {
        let open = self.tools.ledger.pending(&self.request.name);
        if open.is_ok_and(|open| open.is_some()) {
            return None;
        }
        let directory = self.tools.acme?.directory();
        let budget = self.tools.ledger.budget(directory).ok()?;
        budget.risk(&self.planned(), self.tools.limits, (self.tools.clock)())
    }

    /// What became of the order. What cannot be written is told, and no reason to fail.
    pub(super) fn note<T>(&self, outcome: &Result<T, ObtainError>) -> Option<Wait> {
        let (planned, now) = (self.planned(), (self.tools.clock)());
        let limits = self.tools.limits;
        let error = match outcome {
            Ok(_) => None,
            Err(ObtainError::Order(error)) => Some(&**error),
            // the CA has issued it
            Err(_) => return None,
        };
        let open = self.tools.ledger.pending(&self.request.name);
        let open = open.ok().flatten();
        let open = open.is_some_and(|pending| pending.directory == self.directory());
        let reached = error.map_or(Some(true), OrderError::has_reached_the_ca);
        let noted = self.update(|budget| {
            if let Some(reached) = reached {
                budget.reached(reached, now);
            }
            let Some(error) = error else {
                budget.forgive(&planned);
                return None;
            };
            // one that stays open may yet become a certificate
            if !open {
                budget.returned(&planned, limits, error.ends_order());
            }
            note_failure(budget, error, &planned, limits, now);
            budget.wait(&planned, limits, now)
        });
        noted.unwrap_or_else(|error| {
            tracing::error!(identifier = %self.request.name, "failed to {error}");
            None
        })
    }

    fn update<T>(&self, change: impl FnOnce(&mut Budget) -> T) -> Result<T, LedgerError> {
        self.tools.ledger.update_budget(self.directory(), change)
    }

    fn directory(&self) -> &str {
        self.tools.acme.map_or("", |acme| acme.directory())
    }
}

fn note_failure(
    budget: &mut Budget,
    error: &OrderError,
    planned: &Planned<'_>,
    limits: Option<&Limits>,
    now: OffsetDateTime,
) {
    for problem in error.problems() {
        budget.failed(&problem.identifier, limits, now);
    }
    if let Some(refusal) = error.http().and_then(|error| Refusal::of(error, now)) {
        budget.refused(&refusal, planned);
    }
}

/// RFC 9773 §5: the CA exempts an order that names what it replaces, within the window that it
/// suggested itself.
fn renewing(
    request: &CertificateRequest,
    stored: Option<&StoredCertificate>,
    memory: &Memory,
    now: OffsetDateTime,
) -> Renewing {
    let Some(stored) = stored.filter(|stored| stored.issuer == Issuer::Acme) else {
        return Renewing::Nothing;
    };
    let suggestion = memory.suggestion(&stored.serial);
    let within = suggestion.is_some_and(|it| it.start <= now && now < it.end);
    if within && request.renewal_id.is_some() {
        return Renewing::Suggested;
    }
    let mut names = request.identifiers.clone();
    names.sort();
    match names == stored.identifiers {
        true => Renewing::SameNames,
        false => Renewing::Nothing,
    }
}
