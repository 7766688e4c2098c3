//! P: what is due now, what to ask the CA about, and when to look again.

#[cfg(test)]
mod simulation; // P four hundred days, with a CA that fails and a clock that jumps
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use crate::certificate::attempts::Attempts;
use crate::certificate::preflight::Remarks;
use crate::certificate::renewal_info::{Inquiry, RenewalInfo, Suggestion};
use crate::certificate::subset::FailingIdentifier;
use crate::certificate::{
    CertificateInventory, CertificateName, CertificateRequest, Identifier, Issuer,
    StoredCertificate, Terms, Validity, WantedCertificate,
};

/// Which certificates to obtain, and when the answer changes next.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Schedule {
    /// In the order in which they were wanted.
    pub due: Vec<CertificateRequest>,
    /// Whom the CA has not been asked about for a while.
    pub inquiries: Vec<Inquiry>,
    /// When the next of the others becomes due, or to be asked about; `None` where nothing ever
    /// does.
    pub next: Option<OffsetDateTime>,
}

/// What is remembered of a certificate beside what is stored.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// `None`: the last attempt succeeded.
    pub attempts: Option<Attempts>,
    /// `None`: the CA was never asked.
    pub renewal_info: Option<RenewalInfo>,
    /// `None`: nothing looked odd at the last order.
    pub remarks: Option<Remarks>,
}

/// Where a certificate is in its life, with the time of the next step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CertificateState {
    /// To be obtained now.
    Due {
        reason: DueReason,
    },
    /// To be obtained, but the last attempts failed.
    Failing {
        next: OffsetDateTime,
        failures: u32,
        reason: DueReason,
    },
    /// Good for every identifier that can be proven; the others are tried again.
    Incomplete {
        renew_at: OffsetDateTime,
        retry_at: OffsetDateTime,
    },
    /// To be obtained for the first time, now.
    Missing,
    Valid {
        renew_at: OffsetDateTime,
    },
}

/// Why a stored certificate does not do any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DueReason {
    Expired,
    Missing,
    /// From another CA than the one that is configured now.
    OtherDirectory,
    /// From ACME, and now vhostd's own CA is wanted, or the reverse.
    OtherIssuer,
    /// Its key is of another type.
    OtherKeyType,
    OtherProfile,
    /// Past [`renew_at`].
    Renewal,
    /// It has a name that is not wanted any more.
    Superfluous,
    /// A wanted identifier is not in it.
    Uncovered,
}

/// When to renew: when the CA suggests (RFC 9773), else after 2/3 of the lifetime, or 1/2 of one of
/// 10 days or less.
///
/// Suggested is not ordered: near its end a certificate is renewed whatever the CA says, and a
/// young one is not, or a CA that always says "now" would be asked for one after the other.
pub fn renew_at(validity: Validity, suggestion: Option<&Suggestion>) -> OffsetDateTime {
    let Validity {
        not_before,
        not_after,
    } = validity;
    let lifetime = validity.lifetime();
    let short = lifetime <= SHORT_LIFETIME;
    let usual = match short {
        true => not_before + lifetime / 2,
        false => not_before + lifetime * 2 / 3,
    };
    let Some(suggestion) = suggestion else {
        return usual;
    };
    let young = not_before + (lifetime / 10_i32).min(Duration::DAY);
    let emergency = match short {
        true => not_after - lifetime / 4,
        false => not_after - lifetime / 6,
    };
    suggestion.renew_at.clamp(young, emergency)
}

/// Decides about every wanted certificate.
///
/// A name that is missing in `memories` has not failed, and nobody was asked about it.
pub fn due(
    wanted: &[WantedCertificate],
    inventory: &CertificateInventory,
    memories: &BTreeMap<CertificateName, Memory>,
    terms: &Terms,
    now: OffsetDateTime,
) -> Schedule {
    let nothing = Memory::default();
    let mut schedule = Schedule::default();
    let mut later = |at: OffsetDateTime| {
        schedule.next = Some(schedule.next.map_or(at, |earliest| earliest.min(at)));
    };
    // nobody is asked for what is in files
    let ordered = |wanted: &&WantedCertificate| wanted.issuer != Issuer::File;
    for wanted in wanted.iter().filter(ordered) {
        let stored = inventory.stored(wanted);
        let memory = memories.get(&wanted.name).unwrap_or(&nothing);
        let state = CertificateState::of(wanted, stored, memory, terms, now);
        let Some(next) = state.next() else {
            schedule.due.push(CertificateRequest {
                by_age: state.is_by_age(),
                ..request(wanted, stored, memory, now)
            });
            continue;
        };
        later(next);
        let (true, Some(stored)) = (state.is_stored(), stored) else {
            continue;
        };
        match memory.asked_about(&stored.serial) {
            Some(known) if known.ask_at(now) > now => later(known.ask_at(now)),
            _ => {
                let directory = terms.directory_of(stored);
                let inquiry = directory.and_then(|it| Inquiry::about(stored, it));
                schedule.inquiries.extend(inquiry);
            }
        }
    }
    schedule
}

/// What is ordered of it, now: without the identifiers that keep failing.
pub fn request(
    wanted: &WantedCertificate,
    stored: Option<&StoredCertificate>,
    memory: &Memory,
    now: OffsetDateTime,
) -> CertificateRequest {
    let omitted = memory.omitted(wanted, stored, now);
    let good = stored.filter(|it| omitted.is_empty() && it.validity.is_usable(now));
    let fresh =
        |it: &&StoredCertificate| now < renew_at(it.validity, memory.suggestion(&it.serial));
    let good = good.filter(fresh);
    let missing = good.map_or_else(Vec::new, |stored| stored.missing(&wanted.identifiers));
    let attempts = memory.attempts.as_ref();
    let failed = |missing: &Identifier| {
        let failing = attempts.into_iter().flat_map(|attempts| &attempts.failing);
        failing.map(|one| &one.identifier).any(|one| one == missing)
    };
    let is_retry = missing.iter().all(failed);
    let omitted: Vec<_> = omitted.iter().map(|one| one.identifier.clone()).collect();
    CertificateRequest {
        retried: if is_retry { missing } else { Vec::new() },
        ..CertificateRequest::new(wanted, stored, attempts).without(&omitted)
    }
}

impl Memory {
    /// The identifiers that an order now leaves out.
    fn omitted(
        &self,
        wanted: &WantedCertificate,
        stored: Option<&StoredCertificate>,
        now: OffsetDateTime,
    ) -> Vec<&FailingIdentifier> {
        let attempts = self.attempts.as_ref().filter(|it| it.is_for(wanted));
        let omitted = attempts.map(|it| it.omitted(&wanted.identifiers, stored, now));
        omitted.unwrap_or_default()
    }

    /// What the CA said of that version.
    fn asked_about(&self, serial: &str) -> Option<&RenewalInfo> {
        let known = self.renewal_info.as_ref();
        known.filter(|known| known.serial == serial)
    }

    /// What the CA suggests for that version.
    pub fn suggestion(&self, serial: &str) -> Option<&Suggestion> {
        self.asked_about(serial)?.suggestion.as_ref()
    }
}

impl CertificateState {
    pub fn of(
        wanted: &WantedCertificate,
        stored: Option<&StoredCertificate>,
        memory: &Memory,
        terms: &Terms,
        now: OffsetDateTime,
    ) -> Self {
        let omitted = memory.omitted(wanted, stored, now);
        let reason = match due_reason(wanted, &omitted, stored, memory, terms, now) {
            Err(renew_at) => {
                let incomplete = stored.is_some_and(|it| !it.covers(&wanted.identifiers));
                let retry_at = omitted.iter().filter_map(|one| one.next).min();
                return match retry_at.filter(|_| incomplete) {
                    Some(retry_at) => Self::Incomplete { renew_at, retry_at },
                    None => Self::Valid { renew_at },
                };
            }
            Ok(reason) => reason,
        };
        let blocked = memory.attempts.as_ref().and_then(|attempts| {
            // the last attempt failed because of an identifier that this order leaves out
            let other = omitted.iter().any(|it| it.failed_at == attempts.failed_at);
            let attempts = Some(attempts).filter(|it| it.is_for(wanted) && !other)?;
            Some((attempts, attempts.blocks(now)?))
        });
        match blocked {
            Some((attempts, next)) => Self::Failing {
                next,
                failures: attempts.failures,
                reason,
            },
            None if reason == DueReason::Missing => Self::Missing,
            None => Self::Due { reason },
        }
    }

    /// When it has to be looked at again; `None`: it is due now.
    pub fn next(&self) -> Option<OffsetDateTime> {
        match self {
            Self::Due { .. } | Self::Missing => None,
            Self::Failing { next, .. } => Some(*next),
            Self::Incomplete { renew_at, retry_at } => Some(*renew_at.min(retry_at)),
            Self::Valid { renew_at } => Some(*renew_at),
        }
    }

    /// What is stored is good, as far as it goes, and not due.
    fn is_stored(&self) -> bool {
        matches!(self, Self::Incomplete { .. } | Self::Valid { .. })
    }

    fn is_by_age(&self) -> bool {
        matches!(
            self,
            Self::Due {
                reason: DueReason::Renewal
            }
        )
    }
}

/// `Err`: not due before that time. `omitted`: what an order leaves out.
fn due_reason(
    wanted: &WantedCertificate,
    omitted: &[&FailingIdentifier],
    stored: Option<&StoredCertificate>,
    memory: &Memory,
    terms: &Terms,
    now: OffsetDateTime,
) -> Result<DueReason, OffsetDateTime> {
    let Some(stored) = stored else {
        return Ok(DueReason::Missing);
    };
    let missing = stored.missing(&wanted.identifiers);
    let is_omitted = |one: &Identifier| omitted.iter().any(|it| it.identifier == *one);
    if !missing.iter().all(is_omitted) {
        return Ok(DueReason::Uncovered);
    }
    if stored.issuer != wanted.issuer {
        return Ok(DueReason::OtherIssuer);
    }
    if now > stored.validity.not_after {
        return Ok(DueReason::Expired);
    }
    if !stored.validity.is_usable(now) {
        // our clock is behind, and another one would be from its future, too
        return Err(stored.validity.not_before);
    }
    if let Some(reason) = other_terms(wanted, &missing, stored, terms) {
        return Ok(reason);
    }
    let renew_at = renew_at(stored.validity, memory.suggestion(&stored.serial));
    match renew_at <= now {
        true => Ok(DueReason::Renewal),
        false => Err(renew_at),
    }
}

/// What is good, and not what would be ordered now. What is not known of it is as it should be; and
/// so is what was adopted: whoever moves here wants no order before the next renewal.
fn other_terms(
    wanted: &WantedCertificate,
    missing: &[Identifier],
    stored: &StoredCertificate,
    terms: &Terms,
) -> Option<DueReason> {
    if stored.adopted {
        return None;
    }
    let mut identifiers = wanted.identifiers.clone();
    identifiers.retain(|wanted| !missing.contains(wanted));
    identifiers.sort();
    if stored.identifiers != identifiers {
        return Some(DueReason::Superfluous);
    }
    if stored
        .key_type
        .is_some_and(|known| known != wanted.key_type)
    {
        return Some(DueReason::OtherKeyType);
    }
    let origin = stored.origin.as_ref()?;
    if terms.directory_of(stored).is_none() {
        return Some(DueReason::OtherDirectory);
    }
    // a fallback has profiles of its own; it is renewed by the first when its time comes
    let first = origin.directory == terms.directory;
    (first && origin.profile != wanted.profile).then_some(DueReason::OtherProfile)
}

const SHORT_LIFETIME: Duration = Duration::days(10);
