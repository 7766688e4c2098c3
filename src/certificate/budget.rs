//! P: what a CA allows, what was used of it, and when the next order is possible.
//!
//! Let's Encrypt counts with token buckets: so much at once, and one more after each pause. A bucket
//! is told by one moment: when it will be full again. Of other CAs only what they answer is known.

mod refusal; // P what a CA says it will not do, and until when
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

pub use self::refusal::Refusal;
use crate::certificate::Identifier;
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::fallback::Trouble;

/// So much at once, and one more after each pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    pub burst: i32,
    pub pause: Duration,
}

/// What a CA is known to allow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Orders of one account.
    pub orders: Rate,
    /// Certificates with names below one registered domain, or for one address.
    pub domain: Rate,
    /// Certificates with exactly the same names.
    pub same_names: Rate,
    /// Failed authorizations of one identifier.
    pub failures: Rate,
}

/// <https://letsencrypt.org/docs/rate-limits/>, read in November 2026.
pub const LETS_ENCRYPT: Limits = Limits {
    orders: Rate {
        burst: 300,
        pause: Duration::seconds(36),
    },
    domain: Rate {
        burst: 50,
        pause: Duration::minutes(202),
    },
    same_names: Rate {
        burst: 5,
        pause: Duration::hours(34),
    },
    failures: Rate {
        burst: 5,
        pause: Duration::minutes(12),
    },
};

impl Limits {
    /// Of the CA with that directory; its staging area, and every other CA, has none that matter.
    pub fn of(directory: &str) -> Option<Self> {
        let production = "https://acme-v02.api.letsencrypt.org/";
        directory.starts_with(production).then_some(LETS_ENCRYPT)
    }
}

/// An order that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Planned<'a> {
    pub identifiers: &'a [Identifier],
    pub renewing: Renewing,
}

/// What an order follows; renewals are counted less.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Renewing {
    Nothing,
    /// A certificate with exactly the same names.
    SameNames,
    /// One that the CA wants replaced now (RFC 9773 §5): such an order is counted nowhere.
    Suggested,
}

/// What is counted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    Account,
    /// A registered domain, or an address.
    Domain(String),
    Identifier(String),
    Names(Vec<Identifier>),
}

/// Why an order has to wait, and until when.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wait {
    pub until: OffsetDateTime,
    /// A lowercase fragment that fits "failed to …".
    pub why: String,
    /// Until a person did something at the CA.
    pub for_a_person: bool,
    /// Control of a name could not be proven: another CA would not believe it either.
    pub of_failures: bool,
}

/// What was used at one CA, what it refused, and whether it is there at all.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Budget {
    used: BTreeMap<String, Moment>,
    refused: BTreeMap<String, Refused>,
    /// It was out of reach for whoever asked last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outage: Option<Trouble>,
}

/// When a bucket is full again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
struct Moment(#[serde(with = "time::serde::rfc3339")] OffsetDateTime);

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Refused {
    #[serde(with = "time::serde::rfc3339")]
    until: OffsetDateTime,
    why: String,
    #[serde(default)]
    for_a_person: bool,
}

const ORDER_NOW: &str = "order now: ";

impl Wait {
    /// For who has just got what he insisted on.
    pub fn told(&self) -> String {
        let (until, why) = (self.until(), self.limit());
        format!("another order has to wait until {until}: {why}")
    }

    /// To the second.
    fn until(&self) -> OffsetDateTime {
        self.until.replace_nanosecond(0).unwrap_or(self.until)
    }

    /// What is not allowed, without what was to be done.
    fn limit(&self) -> &str {
        self.why.strip_prefix(ORDER_NOW).unwrap_or(&self.why)
    }

    pub fn retry(&self, now: OffsetDateTime) -> RetryAdvice {
        match self.for_a_person {
            true => RetryAdvice::Useless,
            false => RetryAdvice::After((self.until - now).try_into().unwrap_or_default()),
        }
    }
}

impl Budget {
    /// Whether the order may be made now; if so, it is counted. `limits`: where they are known.
    pub fn admit(
        &mut self,
        planned: &Planned<'_>,
        limits: Option<&Limits>,
        now: OffsetDateTime,
    ) -> Result<(), Wait> {
        self.tidy(now);
        if let Some(wait) = self.wait(planned, limits, now) {
            return Err(wait);
        }
        self.count(planned, limits, now);
        Ok(())
    }

    /// Counts an order that is made whatever the CA allows.
    pub fn count(&mut self, planned: &Planned<'_>, limits: Option<&Limits>, now: OffsetDateTime) {
        for (subject, rate) in counted(planned, limits) {
            self.take(&subject, rate, now);
        }
    }

    /// What keeps the order from being made now: of several, what takes longest.
    pub fn wait(
        &self,
        planned: &Planned<'_>,
        limits: Option<&Limits>,
        now: OffsetDateTime,
    ) -> Option<Wait> {
        let refused = subjects(planned).into_iter().filter_map(|subject| {
            let refused = self.refused.get(&subject.to_string())?;
            let believable = refused.until <= now + LONGEST_WAIT;
            (believable && now < refused.until).then(|| Wait {
                until: refused.until,
                why: refused.why.clone(),
                for_a_person: refused.for_a_person,
                of_failures: false,
            })
        });
        let failures = limits.into_iter().flat_map(|limits| {
            let identifiers = planned.identifiers.iter();
            identifiers.map(|identifier| {
                let subject = Subject::Identifier(identifier.to_string());
                (subject, limits.failures)
            })
        });
        let used = counted(planned, limits).into_iter().chain(failures);
        let used = used.filter_map(|(subject, rate)| {
            let until = self.next(&subject, rate, now);
            (until > now).then(|| Wait {
                until,
                why: format!("{ORDER_NOW}the CA allows {}", allowed(&subject, rate)),
                for_a_person: false,
                of_failures: matches!(subject, Subject::Identifier(_)),
            })
        });
        refused.chain(used).max_by_key(|wait| wait.until)
    }

    /// What whoever insists on the order should know before it is made.
    pub fn risk(
        &self,
        planned: &Planned<'_>,
        limits: Option<&Limits>,
        now: OffsetDateTime,
    ) -> Option<String> {
        if let Some(wait) = self.wait(planned, limits, now) {
            let (until, why) = (wait.until(), wait.limit());
            return Some(format!(
                "ordered although the CA is known not to allow it before {until}: {why}"
            ));
        }
        let mut after = self.clone();
        after.count(planned, limits, now);
        let wait = after.wait(planned, limits, now)?;
        let (until, why) = (wait.until(), wait.limit());
        Some(format!("the last order for it until {until}: {why}"))
    }

    /// No certificate came of the order, or the CA has not even made it: that is not counted.
    pub fn returned(&mut self, planned: &Planned<'_>, limits: Option<&Limits>, made: bool) {
        for (subject, rate) in counted(planned, limits) {
            if !(made && subject == Subject::Account)
                && let Some(full) = self.used.get_mut(&subject.to_string())
            {
                full.0 -= rate.pause;
            }
        }
    }

    /// The CA did not believe that we control it.
    pub fn failed(&mut self, identifier: &str, limits: Option<&Limits>, now: OffsetDateTime) {
        if let Some(limits) = limits {
            let subject = Subject::Identifier(identifier.to_owned());
            self.take(&subject, limits.failures, now);
        }
    }

    /// What the CA refused, it is not asked for before it said.
    pub fn refused(&mut self, refusal: &Refusal, planned: &Planned<'_>) {
        let subject = refusal.subject.clone();
        let subject = subject.unwrap_or_else(|| Subject::Names(sorted(planned.identifiers)));
        let refused = Refused {
            until: refusal.until,
            why: refusal.why.clone(),
            for_a_person: refusal.for_a_person,
        };
        self.refused.insert(subject.to_string(), refused);
    }

    /// An order was admitted by the CA: what it refused before, it refuses no more.
    pub fn forgive(&mut self, planned: &Planned<'_>) {
        for subject in subjects(planned) {
            self.refused.remove(&subject.to_string());
        }
    }

    /// Whether the CA answered at all.
    pub fn reached(&mut self, reached: bool, now: OffsetDateTime) {
        let outage = || Trouble::outage(self.outage.as_ref(), now);
        self.outage = (!reached).then(outage);
    }

    /// Since when nobody has reached it.
    pub fn outage(&self) -> Option<&Trouble> {
        self.outage.as_ref()
    }

    fn tidy(&mut self, now: OffsetDateTime) {
        self.used.retain(|_, full| now < full.0);
        self.refused.retain(|_, refused| now < refused.until);
    }

    fn take(&mut self, subject: &Subject, rate: Rate, now: OffsetDateTime) {
        let full = self.full(subject, rate, now) + rate.pause;
        self.used.insert(subject.to_string(), Moment(full));
    }

    /// When one more is possible; not after `now`: it is.
    fn next(&self, subject: &Subject, rate: Rate, now: OffsetDateTime) -> OffsetDateTime {
        self.full(subject, rate, now) + rate.pause - rate.pause * rate.burst
    }

    /// A bucket takes as long to fill as its size says: anything else was written under a wrong
    /// clock, and is taken for the longest.
    fn full(&self, subject: &Subject, rate: Rate, now: OffsetDateTime) -> OffsetDateTime {
        let known = self.used.get(&subject.to_string()).map(|full| full.0);
        let longest = now + rate.pause * rate.burst;
        known.map_or(now, |full| full.clamp(now, longest))
    }
}

/// What the order counts for.
fn counted(planned: &Planned<'_>, limits: Option<&Limits>) -> Vec<(Subject, Rate)> {
    let (Some(limits), false) = (limits, planned.renewing == Renewing::Suggested) else {
        return Vec::new();
    };
    let same_names = Subject::Names(sorted(planned.identifiers));
    let mut counted = vec![(same_names, limits.same_names)];
    if planned.renewing == Renewing::Nothing {
        counted.push((Subject::Account, limits.orders));
        let domains = domains(planned.identifiers);
        counted.extend(domains.into_iter().map(|domain| (domain, limits.domain)));
    }
    counted
}

/// Everything that the CA may have refused.
fn subjects(planned: &Planned<'_>) -> Vec<Subject> {
    let names = Subject::Names(sorted(planned.identifiers));
    let identifiers = planned.identifiers.iter();
    let identifiers = identifiers.map(|identifier| Subject::Identifier(identifier.to_string()));
    let mut subjects = vec![Subject::Account, names];
    subjects.extend(domains(planned.identifiers));
    subjects.extend(identifiers);
    subjects
}

fn domains(identifiers: &[Identifier]) -> Vec<Subject> {
    let mut domains: Vec<String> = identifiers.iter().map(domain).collect();
    domains.sort();
    domains.dedup();
    domains.into_iter().map(Subject::Domain).collect()
}

fn domain(identifier: &Identifier) -> String {
    let text = identifier.to_string();
    match identifier {
        Identifier::Ip(_) => text,
        Identifier::Dns(_) => psl::domain_str(text.trim_start_matches("*."))
            .unwrap_or(&text)
            .to_owned(),
    }
}

fn sorted(identifiers: &[Identifier]) -> Vec<Identifier> {
    let mut sorted = identifiers.to_vec();
    sorted.sort();
    sorted
}

/// `5 certificates for the same names a week`
fn allowed(subject: &Subject, rate: Rate) -> String {
    let burst = rate.burst;
    match subject {
        Subject::Account => format!("{burst} orders in 3 hours"),
        Subject::Domain(domain) => format!("{burst} certificates a week for {domain}"),
        Subject::Identifier(name) => format!("{burst} failed authorizations an hour for {name}"),
        Subject::Names(_) => format!("{burst} certificates a week for exactly the same names"),
    }
}

/// The key under which it is remembered.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account => f.write_str("account"),
            Self::Domain(domain) => write!(f, "domain {domain}"),
            Self::Identifier(identifier) => write!(f, "identifier {identifier}"),
            Self::Names(names) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let digest = Sha256::digest(names.join(" ").as_bytes());
                f.write_str("names ")?;
                digest
                    .iter()
                    .take(16)
                    .try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// No refusal holds longer: no limit that is known has a longer window.
const LONGEST_WAIT: Duration = Duration::WEEK;
