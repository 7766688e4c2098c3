//! P: which of several CAs is asked, and when another one.
//!
//! A CA is given up for a certificate when it keeps failing by its own fault: it is out of reach,
//! answers nonsense, refuses us or the name. What the next one would meet too (nobody answers the
//! challenge) is no reason. With a good certificate there is time to wait for the first; without
//! one there is none. Whatever was obtained, the next certificate begins with the first again.
//!
//! That a CA is out of reach is nothing that each certificate has to find out for itself: what others
//! have met for a while counts for one that has no time, too.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::certificate::CLOCK_SKEW;
use crate::certificate::attempts::RetryAdvice;

/// What one CA did wrong since a certificate was last obtained.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trouble {
    /// 0: it was not asked, because it had said what it would not allow.
    pub failures: u32,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
    /// It does not want to be asked before.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
    /// It will say the same until something is changed.
    pub hopeless: bool,
}

impl Trouble {
    /// After one more. `tried`: it was asked.
    pub fn after(
        previous: Option<&Self>,
        tried: bool,
        retry: RetryAdvice,
        now: OffsetDateTime,
    ) -> Self {
        let previous = previous.filter(|previous| previous.is_believable(now));
        let asked = match retry {
            RetryAdvice::After(wait) => Duration::try_from(wait).ok(),
            RetryAdvice::Retry | RetryAdvice::Useless => None,
        };
        let earlier = previous.map_or(0, |previous| previous.failures);
        Self {
            failures: earlier.saturating_add(u32::from(tried)),
            since: previous.map_or(now, |previous| previous.since),
            failed_at: now,
            until: asked.map(|wait| now + wait.min(Duration::WEEK)),
            hopeless: retry == RetryAdvice::Useless,
        }
    }

    /// After whoever asked has found the CA out of reach once more.
    pub fn outage(previous: Option<&Self>, now: OffsetDateTime) -> Self {
        let same = previous.filter(|previous| now - previous.failed_at < ANOTHER_OUTAGE);
        Self::after(same, true, RetryAdvice::Retry, now)
    }

    /// Of an outage: it is no moment's, and it was met a moment ago.
    fn is_under_way(&self, now: OffsetDateTime) -> bool {
        let lasted = self.failed_at - self.since >= Duration::MINUTE;
        self.is_believable(now) && lasted && now - self.failed_at < SHORT_WAIT
    }

    /// One from the future was written under a wrong clock.
    fn is_believable(&self, now: OffsetDateTime) -> bool {
        self.failed_at <= now + CLOCK_SKEW
    }

    fn is_given_up(&self, need: Need, now: OffsetDateTime) -> bool {
        if !self.is_believable(now) {
            return false;
        }
        let patience = need.patience();
        let waits = self.until.map_or(Duration::ZERO, |until| until - now);
        if waits > patience.max(SHORT_WAIT) {
            return true;
        }
        let persistent = self.hopeless || self.failures >= need.persistent();
        let lasting = now - self.since >= patience;
        persistent && lasting && now - self.failed_at < RECOVERED
    }
}

/// How much time there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// Nothing good is served, and a person asked for it.
    Insisted,
    /// Nothing good is served.
    Now,
    /// What is served is good for so long.
    Within(Duration),
}

impl Need {
    /// How often in a row; a minute is between the first two.
    fn persistent(self) -> u32 {
        match self {
            Self::Insisted => 1,
            Self::Now | Self::Within(_) => 2,
        }
    }

    /// For how long a CA may fail before it is given up.
    fn patience(self) -> Duration {
        match self {
            Self::Insisted | Self::Now => Duration::ZERO,
            Self::Within(left) => (left / 4_i32).clamp(Duration::ZERO, Duration::DAY),
        }
    }
}

/// One CA, in its place of the order: what it did wrong.
pub type Candidate<'a> = Option<&'a Trouble>;

/// What counts for one certificate: its own trouble, or an outage that others have met where there is
/// no time to find out.
pub fn candidate<'a>(
    own: Option<&'a Trouble>,
    outage: Option<&'a Trouble>,
    need: Need,
    now: OffsetDateTime,
) -> Candidate<'a> {
    match need {
        Need::Insisted | Need::Now => outage.filter(|it| it.is_under_way(now)).or(own),
        Need::Within(_) => own,
    }
}

/// Which CA is asked: the first that was not given up, else the one that failed longest ago. `None`
/// only where there is no candidate at all. (One that the names' CAA records refuse is not sent the
/// order, which is trouble, too.)
pub fn choose(candidates: &[Candidate<'_>], need: Need, now: OffsetDateTime) -> Option<usize> {
    let usable = |candidate: &Candidate<'_>| is_usable(*candidate, need, now);
    let patient = || {
        let numbered = candidates.iter().enumerate();
        let patient = numbered.min_by_key(|(_, trouble)| trouble.map(|trouble| trouble.failed_at));
        patient.map(|(nth, _)| nth)
    };
    candidates.iter().position(usable).or_else(patient)
}

/// Whether it was not given up.
pub fn is_usable(candidate: Candidate<'_>, need: Need, now: OffsetDateTime) -> bool {
    !candidate.is_some_and(|trouble| trouble.is_given_up(need, now))
}

/// As long is waited for a CA that says when, also while nothing good is served; and so long after a
/// failure somebody tries whether an outage is over.
const SHORT_WAIT: Duration = Duration::minutes(10);
/// Failures that are so far apart are of two outages.
const ANOTHER_OUTAGE: Duration = Duration::HOUR;
/// After so long a CA that was given up is tried before the next.
const RECOVERED: Duration = Duration::WEEK;

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    /// After failures at these minutes.
    fn failed_at(minutes: &[i64], retry: RetryAdvice) -> Option<Trouble> {
        let failures = minutes
            .iter()
            .map(|minute| start() + Duration::minutes(*minute));
        failures.fold(None, |trouble, now| {
            Some(Trouble::after(trouble.as_ref(), true, retry, now))
        })
    }

    fn chosen(troubles: &[Option<Trouble>], need: Need, minute: i64) -> usize {
        let candidates: Vec<_> = troubles.iter().map(Option::as_ref).collect();
        choose(&candidates, need, start() + Duration::minutes(minute)).unwrap()
    }

    const GOOD: Need = Need::Within(Duration::days(30));
    const RETRY: RetryAdvice = RetryAdvice::Retry;
    const USELESS: RetryAdvice = RetryAdvice::Useless;

    #[test]
    fn without_a_good_certificate_two_failures_of_the_first_bring_the_second() {
        assert_eq!(chosen(&[None, None], Need::Insisted, 0), 0);
        assert_eq!(chosen(&[failed_at(&[0], RETRY), None], Need::Now, 1), 0);
        // who waits for it does not wait for that minute
        assert_eq!(
            chosen(&[failed_at(&[0], RETRY), None], Need::Insisted, 0),
            1
        );
        assert_eq!(chosen(&[failed_at(&[0, 1], RETRY), None], Need::Now, 1), 1);
    }

    #[test]
    fn with_a_good_certificate_the_first_is_given_a_day_or_a_quarter_of_what_is_left() {
        let two_hours = failed_at(&[0, 1, 11, 111], RETRY);
        assert_eq!(chosen(&[two_hours.clone(), None], GOOD, 111), 0);
        assert_eq!(chosen(&[two_hours.clone(), None], GOOD, 24 * 60), 1);
        let soon = Need::Within(Duration::hours(4));
        assert_eq!(chosen(&[two_hours, None], soon, 111), 1);
    }

    #[test]
    fn a_refusal_for_good_or_for_long_brings_the_second_at_once_where_there_is_no_time() {
        let refused = failed_at(&[0], USELESS);
        assert_eq!(chosen(&[refused.clone(), None], Need::Now, 0), 1);
        assert_eq!(chosen(&[refused, None], GOOD, 0), 0);
        let limited = |seconds| RetryAdvice::After(std::time::Duration::from_secs(seconds));
        let minutes = failed_at(&[0], limited(300));
        assert_eq!(chosen(&[minutes, None], Need::Now, 0), 0);
        let hours = failed_at(&[0], limited(7200));
        assert_eq!(chosen(&[hours.clone(), None], Need::Now, 0), 1);
        assert_eq!(chosen(&[hours, None], GOOD, 0), 0);
        let days = failed_at(&[0], limited(3 * 86400));
        assert_eq!(chosen(&[days, None], GOOD, 0), 1);
    }

    #[test]
    fn an_outage_that_others_met_counts_for_who_has_nothing_good_and_is_tried_every_ten_minutes() {
        let met = |minutes: &[i64]| {
            let moments = minutes
                .iter()
                .map(|minute| start() + Duration::minutes(*minute));
            moments.fold(None, |outage, now| {
                Some(Trouble::outage(outage.as_ref(), now))
            })
        };
        let chosen = |minutes: &[i64], need, minute| {
            let (outage, now) = (met(minutes), start() + Duration::minutes(minute));
            let first = candidate(None, outage.as_ref(), need, now);
            choose(&[first, None], need, now).unwrap()
        };
        // many at once are one moment's
        assert_eq!(chosen(&[0, 0, 0, 0], Need::Now, 0), 0);
        assert_eq!(chosen(&[0, 0, 1], Need::Now, 2), 1);
        assert_eq!(chosen(&[0, 0, 1], Need::Insisted, 2), 1);
        assert_eq!(chosen(&[0, 0, 1], GOOD, 2), 0);
        assert_eq!(chosen(&[0, 1], Need::Now, 11), 0);
        assert_eq!(chosen(&[0, 1, 11], Need::Now, 12), 1);
        // another one, two hours later
        assert_eq!(chosen(&[0, 1, 120], Need::Now, 120), 0);
        let future = met(&[500, 501]);
        assert_eq!(candidate(None, future.as_ref(), Need::Now, start()), None);
    }

    #[test]
    fn where_all_keep_failing_they_take_turns() {
        let (first, second) = (failed_at(&[0, 1], RETRY), failed_at(&[1, 11], RETRY));
        assert_eq!(chosen(&[first, second.clone()], Need::Now, 11), 0);
        assert_eq!(
            chosen(&[failed_at(&[0, 1, 111], RETRY), second], Need::Now, 111),
            1
        );
    }

    #[test]
    fn a_ca_that_was_given_up_is_tried_again_after_a_week() {
        let down = failed_at(&[0, 1], RETRY);
        assert_eq!(chosen(&[down.clone(), None], Need::Now, 6 * 24 * 60), 1);
        assert_eq!(chosen(&[down, None], Need::Now, 7 * 24 * 60 + 1), 0);
    }

    #[test]
    fn trouble_from_the_future_is_not_believed() {
        let future = failed_at(&[500, 501], RETRY);
        assert_eq!(chosen(&[future.clone(), None], Need::Now, 0), 0);
        let again = Trouble::after(future.as_ref(), true, RETRY, start());
        assert_eq!(again.failures, 1);
    }
}
