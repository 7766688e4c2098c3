//! P: what failed, and when it is tried again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::certificate::budget::Wait;
use crate::certificate::fallback::Trouble;
use crate::certificate::subset::FailingIdentifier;
use crate::certificate::{
    CLOCK_SKEW, CertificateRequest, Challenge, Identifier, Issuer, WantedCertificate,
};

/// What went wrong since a certificate was last obtained; stored, so that a restart asks no sooner.
///
/// It speaks of one set of identifiers, one issuer and one challenge: once the operator changes those, the new
/// wish is tried at once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attempts {
    pub identifiers: Vec<Identifier>,
    pub issuer: Issuer,
    #[serde(default)]
    pub challenge: Challenge,
    /// In a row; 0: nothing was tried, because the CA would not allow it yet.
    pub failures: u32,
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
    /// Not before this time; `None`: at once.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next: Option<OffsetDateTime>,
    /// A lowercase fragment for the operator: the CA's own words where there are any.
    pub last_error: Option<String>,
    pub retry: RetryAdvice,
    /// What CAs did wrong, by directory.
    #[serde(default)]
    pub troubles: BTreeMap<String, Trouble>,
    /// The identifiers that could not be proven.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<FailingIdentifier>,
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

impl Attempts {
    /// What to remember after one more failure: 1, 10, 100 minutes, then a day between attempts;
    /// sooner where the stored certificate is about to end.
    ///
    /// `chance` is from 0 up to 1: what fails together is not tried again together.
    pub fn after_failure(
        previous: Option<&Self>,
        request: &CertificateRequest,
        error: String,
        retry: RetryAdvice,
        now: OffsetDateTime,
        chance: f64,
    ) -> Self {
        let earlier = previous
            .filter(|previous| previous.is_of(request))
            .map_or(0, |previous| previous.failures);
        let failures = earlier.saturating_add(1);
        let left = request.expires.map(|expires| expires - now);
        let failing = still_failing(previous, request);
        Self {
            identifiers: request.wanted.clone(),
            issuer: request.issuer,
            challenge: request.challenge.clone(),
            failures,
            failed_at: now,
            next: Some(now + delay(failures, retry, left, chance)),
            last_error: Some(Self::with_failing(error, &failing)),
            retry,
            troubles: troubles(previous, request),
            failing,
        }
    }

    /// What to remember of an attempt that was not made. What failed before still did.
    pub fn postponed(
        previous: Option<&Self>,
        request: &CertificateRequest,
        wait: &Wait,
        now: OffsetDateTime,
    ) -> Self {
        let earlier = previous
            .filter(|previous| previous.is_of(request))
            .map_or(0, |previous| previous.failures);
        let failing = still_failing(previous, request);
        Self {
            identifiers: request.wanted.clone(),
            issuer: request.issuer,
            challenge: request.challenge.clone(),
            failures: earlier,
            failed_at: now,
            next: Some(wait.until),
            last_error: Some(Self::with_failing(wait.why.clone(), &failing)),
            retry: wait.retry(now),
            troubles: troubles(previous, request),
            failing,
        }
    }

    /// As it is, and it was the fault of the CA with that directory. `tried`: that one was asked.
    pub fn blaming(mut self, directory: &str, tried: bool, now: OffsetDateTime) -> Self {
        let previous = self.troubles.get(directory);
        let trouble = Trouble::after(previous, tried, self.retry, now);
        self.troubles.insert(directory.to_owned(), trouble);
        self
    }

    /// As it is, but not tried before the CA would allow it.
    pub fn not_before(mut self, wait: &Wait) -> Self {
        self.next = self.next.max(Some(wait.until));
        if wait.for_a_person {
            self.last_error = Some(wait.why.clone());
            self.retry = RetryAdvice::Useless;
        }
        self
    }

    /// Until when these failures forbid another attempt.
    ///
    /// A record from the future was written under a wrong clock: it forbids nothing, or a renewal
    /// could wait for years.
    pub(super) fn blocks(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let believable = self.failed_at <= now + CLOCK_SKEW;
        self.next.filter(|next| believable && now < *next)
    }

    /// Whether these failures are of what is wanted now.
    fn is_about(&self, identifiers: &[Identifier], issuer: Issuer, challenge: &Challenge) -> bool {
        self.identifiers == identifiers && self.issuer == issuer && self.challenge == *challenge
    }

    pub fn is_for(&self, wanted: &WantedCertificate) -> bool {
        self.is_about(&wanted.identifiers, wanted.issuer, &wanted.challenge)
    }

    pub fn is_of(&self, request: &CertificateRequest) -> bool {
        self.is_about(&request.wanted, request.issuer, &request.challenge)
    }
}

/// Of the same way to prove them, also where other identifiers came or went.
fn still_failing(
    previous: Option<&Attempts>,
    request: &CertificateRequest,
) -> Vec<FailingIdentifier> {
    let same = |previous: &&Attempts| {
        previous.issuer == request.issuer && previous.challenge == request.challenge
    };
    let failing = previous.filter(same).into_iter();
    let failing = failing.flat_map(|previous| &previous.failing);
    let wanted = failing.filter(|one| request.wanted.contains(&one.identifier));
    wanted.cloned().collect()
}

/// What is known of CAs for the same wish.
fn troubles(
    previous: Option<&Attempts>,
    request: &CertificateRequest,
) -> BTreeMap<String, Trouble> {
    let previous = previous.filter(|previous| previous.is_of(request));
    previous.map_or_else(BTreeMap::new, |previous| previous.troubles.clone())
}

/// After that many failures in a row. `left`: of the stored certificate's life.
fn delay(failures: u32, retry: RetryAdvice, left: Option<Duration>, chance: f64) -> Duration {
    let daily = match left {
        Some(left) if left.is_positive() => (left / 8_i32).clamp(Duration::HOUR, Duration::DAY),
        _ => Duration::DAY,
    };
    let scheduled = |failures: u32| {
        let usual = match failures {
            0 | 1 => Duration::MINUTE,
            2 => 10 * Duration::MINUTE,
            3 => 100 * Duration::MINUTE,
            _ => daily,
        };
        usual * (1.0 + chance * JITTER)
    };
    match retry {
        RetryAdvice::After(wait) => {
            let wait = Duration::try_from(wait).unwrap_or(LONGEST_WAIT);
            let wait = wait.clamp(Duration::SECOND, LONGEST_WAIT);
            // what is a limit is kept by the budget; who is only busy must not outlast the certificate
            let wait = match left {
                Some(left) if left.is_positive() => wait.min((left / 4_i32).max(Duration::HOUR)),
                _ => wait,
            };
            match failures <= BELIEVED || wait >= Duration::MINUTE {
                // the CA has said when: not a second later for our sake
                true => wait,
                // it says "in a moment" again and again
                false => scheduled(failures - BELIEVED),
            }
        }
        RetryAdvice::Retry => scheduled(failures),
        RetryAdvice::Useless => Duration::DAY * (1.0 + chance * JITTER),
    }
}

/// So many times in a row a CA that asks for less than a minute is taken at its word.
const BELIEVED: u32 = 3;

/// The part of a delay that may be added to it.
const JITTER: f64 = 0.1;
/// The longest window of a known rate limit; a CA that asks for more is asked again anyway.
const LONGEST_WAIT: Duration = Duration::WEEK;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::WantedCertificate;

    fn start() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn request(expires: Option<OffsetDateTime>) -> CertificateRequest {
        let names = vec![Identifier::Dns("a.example".into())];
        let wanted = WantedCertificate::new(names, Issuer::Acme).unwrap();
        CertificateRequest {
            expires,
            ..CertificateRequest::new(&wanted, None, None)
        }
    }

    /// The waits of so many failures in a row, in minutes.
    fn waits(count: usize, expires: Option<OffsetDateTime>, chance: f64) -> Vec<i64> {
        let (request, mut now, mut last) = (request(expires), start(), None);
        let mut waits = Vec::new();
        for _ in 0..count {
            let (error, retry) = ("no route".to_owned(), RetryAdvice::Retry);
            let failed =
                Attempts::after_failure(last.as_ref(), &request, error, retry, now, chance);
            waits.push((failed.next.unwrap() - now).whole_minutes());
            now = failed.next.unwrap();
            last = Some(failed);
        }
        waits
    }

    #[test]
    fn a_failed_certificate_waits_1_10_and_100_minutes_then_a_day() {
        assert_eq!(waits(5, None, 0.0), [1, 10, 100, 1440, 1440]);
        let far = start() + Duration::days(30);
        assert_eq!(waits(5, Some(far), 0.0), [1, 10, 100, 1440, 1440]);
    }

    #[test]
    fn what_failed_by_one_challenge_keeps_nobody_from_another() {
        let (request, now) = (request(None), start());
        let (error, retry) = ("no route".to_owned(), RetryAdvice::Retry);
        let failed = Attempts::after_failure(None, &request, error, retry, now, 0.0);
        let is_about = |challenge: Challenge| {
            let request = CertificateRequest {
                challenge,
                ..request.clone()
            };
            failed.is_of(&request)
        };
        assert!(failed.blocks(now).is_some());
        assert!(is_about(Challenge::Http01));
        assert!(!is_about(Challenge::Dns01("own".into())));
    }

    #[test]
    fn what_failed_together_is_not_tried_again_together() {
        assert_eq!(waits(5, None, 0.999), [1, 10, 109, 1583, 1583]);
    }

    #[test]
    fn a_certificate_that_is_about_to_end_is_tried_more_often_but_not_every_minute() {
        let two_days = waits(40, Some(start() + Duration::days(2)), 0.0);
        assert!(two_days[3] < 6 * 60, "{two_days:?}");
        assert_eq!(two_days[20], 60);
        // once it is over, nothing is lost by patience
        assert_eq!(two_days[39], 1440);
        let hopeless = RetryAdvice::Useless;
        let request = request(Some(start() + Duration::days(2)));
        let failed = Attempts::after_failure(None, &request, "no".into(), hopeless, start(), 0.0);
        assert_eq!(failed.next, Some(start() + Duration::DAY));
    }

    #[test]
    fn the_cas_own_delay_is_kept_to_the_second_but_never_for_more_than_a_week() {
        assert_eq!(waits_of(0, 1), [1]);
        assert_eq!(waits_of(7200, 6), [7200; 6]);
        assert_eq!(waits_of(u64::MAX, 1), [604_800]);
    }

    #[test]
    fn a_ca_that_asks_for_more_than_is_left_of_the_certificate_is_asked_before_that_ends() {
        let advice = RetryAdvice::After(std::time::Duration::from_secs(604_800));
        let (mut now, ends) = (start(), start() + Duration::hours(80));
        let (request, mut last) = (request(Some(ends)), None);
        let mut attempts = 0;
        while now < ends {
            let busy = "busy".to_owned();
            let failed = Attempts::after_failure(last.as_ref(), &request, busy, advice, now, 0.0);
            now = failed.next.unwrap();
            last = Some(failed);
            attempts += 1;
        }
        assert!((5..50).contains(&attempts), "{attempts}");
        assert_eq!(waits_of(u64::MAX, 1), [604_800]);
    }

    #[test]
    fn a_ca_that_says_in_a_moment_again_and_again_is_believed_three_times() {
        assert_eq!(waits_of(7, 7), [7, 7, 7, 60, 600, 6000, 86400]);
    }

    /// In seconds, of a CA that asks for so many each time.
    fn waits_of(seconds: u64, count: usize) -> Vec<i64> {
        let advice = RetryAdvice::After(std::time::Duration::from_secs(seconds));
        let (request, mut last) = (request(None), None);
        let mut waits = Vec::new();
        for _ in 0..count {
            let failed = Attempts::after_failure(
                last.as_ref(),
                &request,
                "busy".into(),
                advice,
                start(),
                0.0,
            );
            waits.push((failed.next.unwrap() - start()).whole_seconds());
            last = Some(failed);
        }
        waits
    }
}
