//! P: which identifiers an order leaves out, because control of them could not be proven for a while.
//!
//! One identifier that leads elsewhere for good must not keep the others without a certificate
//! (certbot calls this `--allow-subset-of-names`). Only what the CA or our own look before an order
//! says of a single identifier counts; an outage, a limit or a refusal of the account says nothing of
//! any. Each identifier that was left out is ordered again, together with all others, when its next
//! attempt is due.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::certificate::attempts::Attempts;
use crate::certificate::words::first_few;
use crate::certificate::{CLOCK_SKEW, Identifier, StoredCertificate};

/// An identifier that could not be proven since its certificate was last obtained in full; stored
/// with the [`Attempts`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FailingIdentifier {
    pub identifier: Identifier,
    /// Attempts that failed because of it.
    pub failures: u32,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
    /// The others may be ordered without it before this time; `None`: it is tried again first.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next: Option<OffsetDateTime>,
    /// A lowercase fragment: what was said of it last.
    pub why: String,
    /// The CA has said that it will never issue for it.
    #[serde(default)]
    pub refused: bool,
}

/// What one attempt says of one identifier.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentifierFailure {
    pub identifier: Identifier,
    /// A lowercase fragment.
    pub why: String,
    /// The CA will say the same until its policy changes (RFC 8555 §6.7, `rejectedIdentifier`).
    pub refused: bool,
}

impl FailingIdentifier {
    /// After one more failure, whose next attempt is then.
    pub fn after(
        previous: Option<&Self>,
        failure: &IdentifierFailure,
        now: OffsetDateTime,
        next: Option<OffsetDateTime>,
    ) -> Self {
        let previous = previous.filter(|previous| previous.is_believable(now));
        Self {
            identifier: failure.identifier.clone(),
            failures: previous.map_or(0, |it| it.failures).saturating_add(1),
            since: previous.map_or(now, |it| it.since),
            failed_at: now,
            next,
            why: failure.why.clone(),
            refused: failure.refused,
        }
    }

    /// One from the future was written under a wrong clock.
    fn is_believable(&self, now: OffsetDateTime) -> bool {
        self.failed_at <= now + CLOCK_SKEW
    }

    /// `left`: how long a good certificate lasts that has it and the others; `None`: there is none, and
    /// nothing is lost without it.
    fn is_persistent(&self, left: Option<Duration>, now: OffsetDateTime) -> bool {
        let patience = match left {
            None if self.refused => return true,
            None => SHORTEST_PATIENCE,
            Some(left) => (left / 4_i32).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE),
        };
        (self.refused || self.failures >= PERSISTENT) && now - self.since >= patience
    }
}

impl Attempts {
    /// Which of `wanted` the next order leaves out; never all of them. `stored`: the newest
    /// certificate.
    ///
    /// Where every identifier failed the fault is not theirs, and none is left out.
    pub fn omitted(
        &self,
        wanted: &[Identifier],
        stored: Option<&StoredCertificate>,
        now: OffsetDateTime,
    ) -> Vec<&FailingIdentifier> {
        let failing = self.failing.iter().filter(|one| {
            let waits = one.next.is_some_and(|next| now < next);
            waits && one.is_believable(now) && wanted.contains(&one.identifier)
        });
        let mut failing: Vec<_> = failing.collect();
        let fails = |wanted: &&Identifier| failing.iter().any(|one| one.identifier == **wanted);
        let (_, others): (Vec<&Identifier>, Vec<&Identifier>) = wanted.iter().partition(fails);
        if others.is_empty() {
            return Vec::new();
        }
        let others: Vec<Identifier> = others.into_iter().cloned().collect();
        let good = stored.filter(|it| it.validity.is_usable(now) && it.covers(&others));
        failing.retain(|one| {
            let good = good.filter(|it| it.covers(std::slice::from_ref(&one.identifier)));
            let left = good.map(|stored| stored.validity.not_after - now);
            one.is_persistent(left, now)
        });
        failing
    }

    /// With what the attempt says of single identifiers.
    pub fn naming(mut self, failures: &[IdentifierFailure]) -> Self {
        for failure in failures {
            let mut known = self.failing.iter();
            let known = known.position(|one| one.identifier == failure.identifier);
            let known = known.map(|nth| self.failing.remove(nth));
            let (now, next) = (self.failed_at, self.next);
            let after = FailingIdentifier::after(known.as_ref(), failure, now, next);
            self.failing.push(after);
        }
        self
    }

    /// After a certificate without these was stored; `previous`: what was remembered before.
    pub fn after_subset(previous: &Self, omitted: &[Identifier]) -> Self {
        let mut attempts = Self {
            next: None,
            retry: Default::default(),
            troubles: Default::default(),
            ..previous.clone()
        };
        let is_omitted = |one: &FailingIdentifier| omitted.contains(&one.identifier);
        attempts.failing.retain(is_omitted);
        let failing = attempts.failing.iter();
        attempts.failures = failing.clone().map(|it| it.failures).max().unwrap_or(1);
        attempts.failed_at = failing
            .map(|it| it.failed_at)
            .max()
            .unwrap_or(previous.failed_at);
        attempts.last_error = Some(format!("{}; {ONLY_OTHERS}", told(&attempts.failing)));
        attempts
    }

    /// What is still failing besides, appended to an error that does not name it.
    pub(super) fn with_failing(error: String, failing: &[FailingIdentifier]) -> String {
        let unnamed = failing.iter();
        let unnamed = unnamed.filter(|one| !error.contains(&one.identifier.to_string()));
        let unnamed: Vec<_> = unnamed.cloned().collect();
        match unnamed.is_empty() {
            true => error,
            false => format!("{error}; and to {}", told(&unnamed)),
        }
    }

    /// Tries everything again now, and still knows what has failed for how long.
    pub fn retried_now(self) -> Option<Self> {
        let failing = self.failing.into_iter();
        let failing: Vec<_> = failing
            .map(|one| FailingIdentifier { next: None, ..one })
            .collect();
        (!failing.is_empty()).then_some(Self {
            failing,
            failures: 0,
            next: None,
            troubles: Default::default(),
            ..self
        })
    }
}

/// ` without a.example and b.example`; nothing where there are none.
#[derive(Debug)]
pub struct Without<'a>(pub &'a [Identifier]);

impl fmt::Display for Without<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        match names.is_empty() {
            true => Ok(()),
            false => write!(f, " without {}", first_few(&names, ", ")),
        }
    }
}

/// Fits "failed to …".
fn told(failing: &[FailingIdentifier]) -> String {
    let each = failing.iter();
    let each: Vec<String> = each
        .map(|one| format!("{}: {}", one.identifier, one.why))
        .collect();
    format!("prove control of {}", first_few(&each, "; "))
}

const ONLY_OTHERS: &str = "the certificate has only the other names";

/// In a row; before, it may be a fault of the moment.
const PERSISTENT: u32 = 3;
/// As long as three attempts take: the other names have no certificate meanwhile.
const SHORTEST_PATIENCE: Duration = Duration::minutes(10);
/// A weekend: what serves has every name.
const LONGEST_PATIENCE: Duration = Duration::days(3);

#[cfg(test)]
mod tests;
