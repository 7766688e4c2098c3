//! P: what is due now, and when to look again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::certificate::{
    CLOCK_SKEW, CertificateInventory, CertificateName, CertificateRequest, Identifier, Issuer,
    StoredCertificate, Validity, WantedCertificate,
};

/// Which certificates to obtain, and when the answer changes next.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Schedule {
    /// In the order in which they were wanted.
    pub due: Vec<CertificateRequest>,
    /// When the next of the others becomes due; `None` where nothing ever does.
    pub next: Option<OffsetDateTime>,
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
    /// From ACME, and now vhostd's own CA is wanted, or the reverse.
    OtherIssuer,
    /// Past [`renew_at`].
    Renewal,
    /// A wanted identifier is not in it.
    Uncovered,
}

/// What went wrong since a certificate was last obtained; stored, so that a restart asks no sooner.
///
/// It speaks of one set of identifiers and one issuer: once the operator changes those, the new
/// wish is tried at once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attempts {
    pub identifiers: Vec<Identifier>,
    pub issuer: Issuer,
    /// In a row, at least 1.
    pub failures: u32,
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
    /// Not before this time; `None`: at once.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next: Option<OffsetDateTime>,
    /// A lowercase fragment for the operator: the CA's own words where there are any.
    pub last_error: Option<String>,
    pub retry: RetryAdvice,
}

/// Will retrying help?
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RetryAdvice {
    /// Yes, but not sooner than the CA said.
    After(std::time::Duration),
    /// Yes: the schedule's time.
    #[default]
    Retry,
    /// Not until something is changed. It is still tried once a day: nobody has to tell us that
    /// the CA's policy or its fault was mended.
    Useless,
}

/// When to renew: after 2/3 of the lifetime, or 1/2 of one of 10 days or less (the CA's own
/// suggestion, RFC 9773, comes before this where it is known).
pub fn renew_at(validity: Validity) -> OffsetDateTime {
    let lifetime = validity.lifetime();
    match lifetime <= SHORT_LIFETIME {
        true => validity.not_before + lifetime / 2,
        false => validity.not_before + lifetime * 2 / 3,
    }
}

/// Decides about every wanted certificate.
///
/// `attempts` are those of the ledger; a name that is missing there has not failed.
pub fn due(
    wanted: &[WantedCertificate],
    inventory: &CertificateInventory,
    attempts: &BTreeMap<CertificateName, Attempts>,
    now: OffsetDateTime,
) -> Schedule {
    let mut schedule = Schedule::default();
    for wanted in wanted {
        let stored = inventory.certificates.get(&wanted.name);
        let attempts = attempts.get(&wanted.name);
        let state = CertificateState::of(wanted, stored, attempts, now);
        match state.next() {
            None => schedule
                .due
                .push(CertificateRequest::new(wanted, stored, attempts)),
            Some(next) => {
                schedule.next = Some(schedule.next.map_or(next, |earliest| earliest.min(next)));
            }
        }
    }
    schedule
}

impl CertificateState {
    pub fn of(
        wanted: &WantedCertificate,
        stored: Option<&StoredCertificate>,
        attempts: Option<&Attempts>,
        now: OffsetDateTime,
    ) -> Self {
        let reason = match due_reason(wanted, stored, now) {
            Err(renew_at) => return Self::Valid { renew_at },
            Ok(reason) => reason,
        };
        let blocked = attempts.and_then(|attempts| {
            let next = attempts.blocks(&wanted.identifiers, wanted.issuer, now)?;
            Some((attempts, next))
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
            Self::Valid { renew_at } => Some(*renew_at),
        }
    }
}

impl Attempts {
    /// What to remember after one more failure: 1, 10, 100 minutes, then a day between attempts.
    pub fn after_failure(
        previous: Option<&Self>,
        request: &CertificateRequest,
        error: String,
        retry: RetryAdvice,
        now: OffsetDateTime,
    ) -> Self {
        let earlier = previous
            .filter(|previous| previous.is_about(&request.identifiers, request.issuer))
            .map_or(0, |previous| previous.failures);
        let failures = earlier.saturating_add(1);
        Self {
            identifiers: request.identifiers.clone(),
            issuer: request.issuer,
            failures,
            failed_at: now,
            next: Some(now + delay(failures, retry)),
            last_error: Some(error),
            retry,
        }
    }

    /// Until when these failures forbid another attempt.
    ///
    /// A record from the future was written under a wrong clock: it forbids nothing, or a renewal
    /// could wait for years.
    pub(super) fn blocks(
        &self,
        identifiers: &[Identifier],
        issuer: Issuer,
        now: OffsetDateTime,
    ) -> Option<OffsetDateTime> {
        let believable = self.failed_at <= now + CLOCK_SKEW;
        self.next
            .filter(|next| believable && now < *next && self.is_about(identifiers, issuer))
    }

    /// Whether these failures are of what is wanted now.
    pub fn is_about(&self, identifiers: &[Identifier], issuer: Issuer) -> bool {
        self.identifiers == identifiers && self.issuer == issuer
    }
}

/// `Err`: not due before that time.
fn due_reason(
    wanted: &WantedCertificate,
    stored: Option<&StoredCertificate>,
    now: OffsetDateTime,
) -> Result<DueReason, OffsetDateTime> {
    let Some(stored) = stored else {
        return Ok(DueReason::Missing);
    };
    if !stored.covers(&wanted.identifiers) {
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
    let renew_at = renew_at(stored.validity);
    match renew_at <= now {
        true => Ok(DueReason::Renewal),
        false => Err(renew_at),
    }
}

/// After that many failures in a row.
fn delay(failures: u32, retry: RetryAdvice) -> Duration {
    let scheduled = match failures {
        0 | 1 => Duration::MINUTE,
        2 => 10 * Duration::MINUTE,
        3 => 100 * Duration::MINUTE,
        _ => Duration::DAY,
    };
    match retry {
        RetryAdvice::After(wait) => {
            let wait = Duration::try_from(wait).unwrap_or(LONGEST_WAIT);
            scheduled.max(wait.min(LONGEST_WAIT))
        }
        RetryAdvice::Retry => scheduled,
        RetryAdvice::Useless => Duration::DAY,
    }
}

const SHORT_LIFETIME: Duration = Duration::days(10);

/// The longest window of a known rate limit; a CA that asks for more is asked again anyway.
const LONGEST_WAIT: Duration = Duration::WEEK;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn start() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn wanted(name: &str) -> WantedCertificate {
        WantedCertificate::new(vec![Identifier::Dns(name.into())], Issuer::Acme).unwrap()
    }

    fn stored(wanted: &WantedCertificate, from: OffsetDateTime, days: i64) -> StoredCertificate {
        StoredCertificate {
            name: wanted.name.clone(),
            serial: format!("{:x}", from.unix_timestamp()),
            issuer: wanted.issuer,
            identifiers: wanted.identifiers.clone(),
            validity: Validity {
                not_before: from,
                not_after: from + Duration::days(days),
            },
            chain: PathBuf::from("/c"),
            key: PathBuf::from("/k"),
            leaf: Vec::new(),
        }
    }

    fn state_of(
        wanted: &WantedCertificate,
        stored: &StoredCertificate,
        now: OffsetDateTime,
    ) -> CertificateState {
        CertificateState::of(wanted, Some(stored), None, now)
    }

    fn failed(previous: Option<&Attempts>, retry: RetryAdvice, now: OffsetDateTime) -> Attempts {
        let request = CertificateRequest::new(&wanted("a.example"), None, previous);
        Attempts::after_failure(previous, &request, "no route".into(), retry, now)
    }

    #[test]
    fn a_long_certificate_is_renewed_after_two_thirds_and_a_short_one_after_half() {
        let after = |days: i64| {
            let certificate = stored(&wanted("a.example"), start(), days);
            renew_at(certificate.validity) - start()
        };
        assert_eq!(after(90), Duration::days(60));
        assert_eq!(after(45), Duration::days(30));
        assert_eq!(after(10), Duration::days(5));
        assert_eq!(after(6), Duration::days(3));
    }

    #[test]
    fn a_missing_certificate_is_due() {
        let schedule = due(
            &[wanted("a.example")],
            &Default::default(),
            &BTreeMap::new(),
            start(),
        );
        assert_eq!(schedule.due.len(), 1);
        assert_eq!(schedule.due[0].replaces, None);
        assert_eq!(schedule.next, None);
    }

    #[test]
    fn a_certificate_is_due_for_each_reason_and_only_then() {
        let wanted = wanted("a.example");
        let good = stored(&wanted, start(), 90);
        let due = |reason| CertificateState::Due { reason };
        let renew_at = start() + Duration::days(60);
        let day = |days| start() + Duration::days(days);
        assert_eq!(
            state_of(&wanted, &good, day(59)),
            CertificateState::Valid { renew_at }
        );
        assert_eq!(state_of(&wanted, &good, day(60)), due(DueReason::Renewal));
        assert_eq!(state_of(&wanted, &good, day(91)), due(DueReason::Expired));
        assert_eq!(
            state_of(&wanted, &good, day(-1)),
            CertificateState::Valid { renew_at: day(0) }
        );
        let internal = WantedCertificate {
            issuer: Issuer::Internal,
            ..wanted.clone()
        };
        assert_eq!(
            state_of(&internal, &good, day(1)),
            due(DueReason::OtherIssuer)
        );
        let mut more = wanted.clone();
        more.identifiers.push(Identifier::Dns("b.example".into()));
        assert_eq!(state_of(&more, &good, day(1)), due(DueReason::Uncovered));
    }

    #[test]
    fn a_failed_certificate_waits_1_10_and_100_minutes_then_a_day() {
        let mut attempts = None;
        let mut waits = Vec::new();
        for _ in 0..5 {
            let failed = failed(attempts.as_ref(), RetryAdvice::Retry, start());
            waits.push((failed.next.unwrap() - start()).whole_minutes());
            attempts = Some(failed);
        }
        assert_eq!(waits, [1, 10, 100, 1440, 1440]);
    }

    #[test]
    fn the_cas_own_delay_is_kept_but_never_for_more_than_a_week() {
        let wait = |seconds| {
            let advice = RetryAdvice::After(std::time::Duration::from_secs(seconds));
            failed(None, advice, start()).next.unwrap() - start()
        };
        assert_eq!(wait(1), Duration::MINUTE);
        assert_eq!(wait(7200), Duration::hours(2));
        assert_eq!(wait(u64::MAX), Duration::WEEK);
    }

    #[test]
    fn a_failure_is_not_retried_before_its_time() {
        let failed = failed(None, RetryAdvice::Retry, start());
        let attempts = BTreeMap::from([(wanted("a.example").name, failed)]);
        let inventory = CertificateInventory::default();
        let at = |seconds| {
            let now = start() + Duration::seconds(seconds);
            due(&[wanted("a.example")], &inventory, &attempts, now)
        };
        assert_eq!(at(59).due, []);
        assert_eq!(at(59).next, Some(start() + Duration::MINUTE));
        assert_eq!(at(60).due[0].failures, 1);
    }

    #[test]
    fn a_changed_wish_is_tried_at_once() {
        let failed = failed(None, RetryAdvice::Useless, start());
        let mut corrected = wanted("a.example");
        corrected
            .identifiers
            .push(Identifier::Dns("b.example".into()));
        let attempts = BTreeMap::from([(corrected.name.clone(), failed)]);
        let schedule = due(&[corrected], &Default::default(), &attempts, start());
        assert_eq!(schedule.due.len(), 1);
    }

    #[test]
    fn a_failure_that_a_wrong_clock_put_in_the_future_blocks_nothing() {
        let failed = failed(None, RetryAdvice::Retry, start() + Duration::days(1000));
        let attempts = BTreeMap::from([(wanted("a.example").name, failed)]);
        let schedule = due(
            &[wanted("a.example")],
            &Default::default(),
            &attempts,
            start(),
        );
        assert_eq!(schedule.due.len(), 1);
    }

    #[test]
    fn four_hundred_days_with_a_failing_ca_are_one_attempt_a_day() {
        let names: Vec<_> = (0..100).map(|n| wanted(&format!("n{n}.example"))).collect();
        let mut attempts: BTreeMap<CertificateName, Attempts> = BTreeMap::new();
        let inventory = CertificateInventory::default();
        let (mut now, mut tried) = (start(), 0);
        while now < start() + Duration::days(400) {
            let schedule = due(&names, &inventory, &attempts, now);
            for request in &schedule.due {
                tried += 1;
                let previous = attempts.get(&request.name);
                let next = Attempts::after_failure(
                    previous,
                    request,
                    "down".into(),
                    RetryAdvice::Retry,
                    now,
                );
                attempts.insert(request.name.clone(), next);
            }
            now = due(&names, &inventory, &attempts, now).next.unwrap();
        }
        assert_eq!(tried, 100 * (3 + 400));
    }

    #[test]
    fn four_hundred_days_with_a_good_ca_renew_every_sixty_days() {
        let wanted = [wanted("a.example")];
        let mut inventory = CertificateInventory::default();
        let (mut now, mut issued) = (start(), 0);
        while now < start() + Duration::days(400) {
            for request in due(&wanted, &inventory, &BTreeMap::new(), now).due {
                issued += 1;
                let certificate = stored(&wanted[0], now, 90);
                inventory.certificates.insert(request.name, certificate);
            }
            now = due(&wanted, &inventory, &BTreeMap::new(), now)
                .next
                .unwrap();
        }
        assert_eq!(issued, 7);
    }
}
