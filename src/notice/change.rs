//! P: what was told and what is the case now → what is to be told, and when time alone will change
//! the answer.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::words::{self, Words};
use super::{Event, Notice, Subject, SubjectKind, Weight};
use crate::certificate::{CertificateName, Validity};
use crate::reconcile::report::Rejected;
use crate::vhost::AppName;

/// What the operator knows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Told {
    /// The serial of each certificate that serves or served. `None`: nobody could look yet.
    pub versions: Option<BTreeMap<CertificateName, String>>,
    /// What is wrong, by what it is about.
    pub standing: BTreeMap<Topic, BTreeMap<String, Standing>>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    Certificate,
    Generation,
    Nginx,
    Served,
    Vhost,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Standing {
    /// Those that were told; none yet of what may be over in a moment.
    pub troubles: BTreeSet<Trouble>,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Of the certificate that served then: only another one ends its trouble.
    pub serial: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    Differs,
    Down,
    Expired,
    Expiring,
    Failing,
    Invalid,
    Rejected,
    Unapplied,
}

/// What is the case now; `None`: it is not known, and what was told of it stays.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Those that are wanted.
    pub certificates: Option<Vec<CertificateSeen>>,
    /// Every certificate that is stored, wanted or not, and its newest serial.
    pub stored: Option<BTreeMap<CertificateName, String>>,
    pub nginx_running: Option<bool>,
    pub applied: Option<Result<(), Unapplied>>,
    /// One for each app.
    pub rejected: Option<Vec<Rejected>>,
    /// Apps of whose files these say nothing: what was told of them stays.
    pub held: BTreeSet<AppName>,
    pub served: Option<Vec<Difference>>,
    /// How long nginx may be down without a word: as it is while a package is upgraded.
    pub patience: Duration,
}

/// A wanted certificate.
#[derive(Clone, Debug)]
pub struct CertificateSeen {
    pub name: CertificateName,
    pub identifiers: Vec<String>,
    /// The newest that is stored.
    pub version: Option<Version>,
    /// The names that that one does not have.
    pub missing: Vec<String>,
    /// Whether that is all that is wanted, and another one is not due yet.
    pub is_settled: bool,
    pub failing: Option<Failing>,
}

#[derive(Clone, Debug)]
pub struct Version {
    pub serial: String,
    pub validity: Validity,
    /// `None`: somebody else renews it.
    pub renew_at: Option<OffsetDateTime>,
    /// Whether the active generation names it.
    pub is_served: bool,
}

#[derive(Clone, Debug)]
pub struct Failing {
    /// A fragment that fits "failed to …".
    pub error: String,
    pub next: Option<OffsetDateTime>,
    /// Nothing helps but a change.
    pub is_useless: bool,
    /// Before that it may be over in a moment, and is not told.
    pub tell_at: OffsetDateTime,
}

/// Why the last change does not serve.
#[derive(Clone, Debug)]
pub struct Unapplied {
    pub error: String,
    pub hint: Option<String>,
}

/// A name that is served with another certificate than the active generation says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Difference {
    pub host: String,
    pub addresses: Vec<String>,
    /// What is served instead.
    pub found: String,
}

#[derive(Debug)]
pub struct Comparison {
    pub told: Told,
    pub notices: Vec<Notice>,
    /// When time alone will have changed something.
    pub next: Option<OffsetDateTime>,
}

/// Without `told`, nobody was told anything yet: what is wrong is told, what is right is not.
pub fn compare(told: Option<&Told>, seen: &Observed, now: OffsetDateTime) -> Comparison {
    let mut comparing = Comparing {
        told: told.cloned().unwrap_or_default(),
        notices: Vec::new(),
        next: None,
        now,
    };
    // what is there at the first look is no news, wanted or not
    if comparing.told.versions.is_none() {
        comparing.told.versions.clone_from(&seen.stored);
    }
    comparing.certificates(seen);
    comparing.nginx(seen);
    comparing.generation(seen);
    comparing.vhosts(seen);
    comparing.served(seen);
    comparing.told.standing.retain(|_, names| !names.is_empty());
    Comparison {
        told: comparing.told,
        notices: comparing.notices,
        next: comparing.next,
    }
}

/// When little is left of a certificate's life: an eighth, or a sixth of one of 10 days or less. By
/// then it should have been renewed whatever its CA suggests (`certificate::schedule::renew_at`).
pub fn expires_soon_at(validity: Validity) -> OffsetDateTime {
    let lifetime = validity.lifetime();
    let part = match lifetime <= Duration::days(10) {
        true => lifetime / 6_i32,
        false => lifetime / 8_i32,
    };
    validity.not_after - part
}

impl Told {
    /// Whether what a notice tells of is still so; `false` of what was only told once.
    pub fn stands(&self, notice: &Notice) -> bool {
        let (topic, trouble) = match notice.event {
            Event::CertificateExpired => (Topic::Certificate, Trouble::Expired),
            Event::CertificateExpiring => (Topic::Certificate, Trouble::Expiring),
            Event::CertificateFailing => (Topic::Certificate, Trouble::Failing),
            Event::CertificateInvalid => (Topic::Certificate, Trouble::Invalid),
            Event::NginxDown => (Topic::Nginx, Trouble::Down),
            Event::ReloadFailed => (Topic::Generation, Trouble::Unapplied),
            Event::ServedDiffers => (Topic::Served, Trouble::Differs),
            Event::VhostRejected => (Topic::Vhost, Trouble::Rejected),
            Event::CertificateObtained
            | Event::CertificateRecovered
            | Event::CertificateRenewed
            | Event::NginxRecovered
            | Event::ReloadRecovered
            | Event::ServedRecovered
            | Event::Test
            | Event::VhostRecovered => return false,
        };
        let names = self.standing.get(&topic);
        let standing = names.and_then(|names| names.get(&notice.subject.name));
        standing.is_some_and(|standing| standing.troubles.contains(&trouble))
    }
}

struct Comparing {
    told: Told,
    notices: Vec<Notice>,
    next: Option<OffsetDateTime>,
    now: OffsetDateTime,
}

impl Comparing {
    fn certificates(&mut self, seen: &Observed) {
        let Some(wanted) = &seen.certificates else {
            return;
        };
        let mut versions = self.told.versions.take().unwrap_or_default();
        for certificate in wanted {
            self.certificate(certificate, &mut versions);
        }
        let names: BTreeSet<&str> = wanted.iter().map(|it| it.name.as_str()).collect();
        let standing = self.told.standing.entry(Topic::Certificate).or_default();
        let gone = standing
            .keys()
            .filter(|name| !names.contains(name.as_str()));
        let gone: Vec<String> = gone.cloned().collect();
        standing.retain(|name, _| names.contains(name.as_str()));
        for name in gone {
            let words = words::unwanted(&name);
            let subject = subject(SubjectKind::Certificate, &name);
            self.tell(Event::CertificateRecovered, Weight::Success, subject, words);
        }
        // of what nobody wants for a while it is remembered what it was: to be wanted again is no news
        let stored = seen.stored.as_ref();
        let known = |name: &CertificateName| stored.is_some_and(|stored| stored.contains_key(name));
        versions.retain(|name, _| known(name) || names.contains(name.as_str()));
        self.told.versions = Some(versions);
    }

    fn certificate(
        &mut self,
        seen: &CertificateSeen,
        versions: &mut BTreeMap<CertificateName, String>,
    ) {
        let name = seen.name.as_str();
        let served = seen.version.as_ref().filter(|version| version.is_served);
        let known = versions.get(&seen.name).cloned();
        let new = served.filter(|version| known.as_ref() != Some(&version.serial));
        let troubles = self.troubles(seen);
        let standing = self.take(Topic::Certificate, name);
        let another = |standing: &Standing| {
            served.is_some_and(|version| standing.serial.as_ref() != Some(&version.serial))
        };
        // or nothing is asked for any more: the name that failed was taken out again
        let settled = seen.is_settled && troubles.is_empty();
        let ended = standing
            .as_ref()
            .is_some_and(|standing| another(standing) || settled);
        if let Some(version) = served {
            versions.insert(seen.name.clone(), version.serial.clone());
        }
        let subject = || subject(SubjectKind::Certificate, name);
        if ended && troubles.is_empty() {
            let Some(version) = served else {
                // a new one that visitors do not get yet ends nothing
                if let Some(standing) = standing {
                    self.put(Topic::Certificate, name, standing);
                }
                return;
            };
            let words = match standing.as_ref().is_some_and(another) {
                true => words::stored(seen, version, "is well again"),
                false => words::settled(seen, version),
            };
            self.tell(
                Event::CertificateRecovered,
                Weight::Success,
                subject(),
                words,
            );
            return;
        }
        // of one that lacks a name, what fails stands on
        let lacking = !seen.missing.is_empty();
        if (standing.is_none() || lacking)
            && let Some(version) = new
        {
            let (event, what) = match known {
                Some(_) => (Event::CertificateRenewed, "was renewed"),
                None => (Event::CertificateObtained, "was obtained"),
            };
            let words = words::stored(seen, version, &words::without(what, &seen.missing));
            self.tell(event, Weight::Success, subject(), words);
        }
        if standing.is_none() && troubles.is_empty() {
            return;
        }
        let serial = served.map(|version| version.serial.clone());
        let standing = standing.filter(|_| !ended || lacking);
        let mut standing = standing.unwrap_or_else(|| Standing {
            troubles: BTreeSet::new(),
            since: self.now,
            serial: serial.clone(),
        });
        if ended {
            let is_still = |told: &Trouble| troubles.iter().any(|(it, ..)| it == told);
            standing.troubles.retain(is_still);
            standing.serial = serial;
        }
        for (trouble, event, weight, words) in troubles {
            if standing.troubles.insert(trouble) {
                self.tell(event, weight, subject(), words);
            }
        }
        self.put(Topic::Certificate, name, standing);
    }

    fn troubles(&mut self, seen: &CertificateSeen) -> Vec<(Trouble, Event, Weight, Words)> {
        let mut troubles = Vec::new();
        let version = seen.version.as_ref();
        let usable = version.is_some_and(|it| self.now <= it.validity.not_after);
        let weight = match usable && seen.missing.is_empty() {
            true => Weight::Warning,
            false => Weight::Failure,
        };
        if let Some(failing) = &seen.failing
            && self.is_time(failing.tell_at)
        {
            troubles.push(match failing.is_useless {
                true => {
                    let words = words::invalid(seen, failing, self.now);
                    let event = Event::CertificateInvalid;
                    (Trouble::Invalid, event, Weight::Failure, words)
                }
                false => {
                    let words = words::failing(seen, failing, self.now);
                    (Trouble::Failing, Event::CertificateFailing, weight, words)
                }
            });
        }
        if let Some(version) = version {
            let (soon, end) = (
                expires_soon_at(version.validity),
                version.validity.not_after,
            );
            if end < self.now {
                let words = words::expired(seen, version);
                let event = Event::CertificateExpired;
                troubles.push((Trouble::Expired, event, Weight::Failure, words));
            } else if soon <= self.now {
                let words = words::expiring(seen, version);
                let event = Event::CertificateExpiring;
                troubles.push((Trouble::Expiring, event, Weight::Warning, words));
                self.look_at(end + Duration::SECOND);
            } else {
                self.look_at(soon);
            }
        }
        troubles
    }

    fn nginx(&mut self, seen: &Observed) {
        let Some(running) = seen.nginx_running else {
            return;
        };
        let standing = self.take(Topic::Nginx, NGINX);
        let subject = subject(SubjectKind::Nginx, NGINX);
        match (running, standing) {
            (true, Some(standing)) if !standing.troubles.is_empty() => {
                let words = words::nginx_recovered();
                self.tell(Event::NginxRecovered, Weight::Success, subject, words);
            }
            (true, _) => {}
            (false, standing) => {
                let mut standing = standing.unwrap_or_else(|| Standing {
                    troubles: BTreeSet::new(),
                    since: self.now,
                    serial: None,
                });
                if self.is_time(standing.since + seen.patience)
                    && standing.troubles.insert(Trouble::Down)
                {
                    let words = words::nginx_down();
                    self.tell(Event::NginxDown, Weight::Failure, subject, words);
                }
                self.put(Topic::Nginx, NGINX, standing);
            }
        }
    }

    fn generation(&mut self, seen: &Observed) {
        let Some(applied) = &seen.applied else {
            return;
        };
        let present = applied.as_ref().err().map(|unapplied| {
            let words = words::unapplied(unapplied);
            (GENERATION.to_owned(), words)
        });
        self.settle(
            Topic::Generation,
            SubjectKind::Generation,
            Trouble::Unapplied,
            [Event::ReloadFailed, Event::ReloadRecovered],
            present.into_iter().collect(),
            |_| words::reload_recovered(),
        );
    }

    fn vhosts(&mut self, seen: &Observed) {
        let Some(rejected) = &seen.rejected else {
            return;
        };
        let present = rejected.iter();
        let held: Vec<(&AppName, Standing)> = seen
            .held
            .iter()
            .filter(|app| rejected.iter().all(|it| it.name != app.as_str()))
            .filter_map(|app| Some((app, self.take(Topic::Vhost, app.as_str())?)))
            .collect();
        self.settle(
            Topic::Vhost,
            SubjectKind::Vhost,
            Trouble::Rejected,
            [Event::VhostRejected, Event::VhostRecovered],
            // the first error of a file is the one to correct first
            present
                .rev()
                .map(|it| (it.name.clone(), words::rejected(it)))
                .collect(),
            words::vhost_recovered,
        );
        for (app, standing) in held {
            self.put(Topic::Vhost, app.as_str(), standing);
        }
    }

    fn served(&mut self, seen: &Observed) {
        let Some(differences) = &seen.served else {
            return;
        };
        let present = differences.iter();
        self.settle(
            Topic::Served,
            SubjectKind::ServerName,
            Trouble::Differs,
            [Event::ServedDiffers, Event::ServedRecovered],
            present
                .map(|it| (it.host.clone(), words::differs(it)))
                .collect(),
            words::served_recovered,
        );
    }

    /// A topic with one kind of trouble: what is new is told, and what has gone.
    fn settle(
        &mut self,
        topic: Topic,
        kind: SubjectKind,
        trouble: Trouble,
        [begins, ends]: [Event; 2],
        present: BTreeMap<String, Words>,
        end: impl Fn(&str) -> Words,
    ) {
        let known = self.told.standing.remove(&topic).unwrap_or_default();
        for name in known.keys().filter(|name| !present.contains_key(*name)) {
            self.tell(ends, Weight::Success, subject(kind, name), end(name));
        }
        let mut standing = BTreeMap::new();
        for (name, words) in present {
            let stands = known.get(&name).cloned().unwrap_or_else(|| {
                self.tell(begins, Weight::Failure, subject(kind, &name), words);
                Standing {
                    troubles: BTreeSet::from([trouble]),
                    since: self.now,
                    serial: None,
                }
            });
            standing.insert(name, stands);
        }
        self.told.standing.insert(topic, standing);
    }

    fn take(&mut self, topic: Topic, name: &str) -> Option<Standing> {
        self.told.standing.get_mut(&topic)?.remove(name)
    }

    fn put(&mut self, topic: Topic, name: &str, standing: Standing) {
        let names = self.told.standing.entry(topic).or_default();
        names.insert(name.to_owned(), standing);
    }

    fn tell(&mut self, event: Event, weight: Weight, subject: Subject, words: Words) {
        let notice = Notice::new(event, weight, subject, words, self.now);
        self.notices.push(notice);
    }

    fn is_time(&mut self, at: OffsetDateTime) -> bool {
        let is_time = at <= self.now;
        if !is_time {
            self.look_at(at);
        }
        is_time
    }

    fn look_at(&mut self, at: OffsetDateTime) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

fn subject(kind: SubjectKind, name: &str) -> Subject {
    Subject {
        kind,
        name: name.to_owned(),
    }
}

const NGINX: &str = "nginx";
const GENERATION: &str = "generation";

#[cfg(test)]
mod tests;
