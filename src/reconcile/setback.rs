//! W: a candidate that did not serve is not tried again every few seconds: each attempt costs nginx
//! a reload, and its workers that drain hold on to their connections.
//!
//! Another candidate, another master of nginx, or a person who asks is tried at once.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::report::{Outcome, Report};
use crate::atomic_file::{self, WriteError};

/// What failed last, in `setback.json` in the state directory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Setback {
    /// Of the candidate.
    digest: String,
    /// The process id of the master that did not take it.
    master: Option<i32>,
    /// In a row.
    failures: u32,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    outcome: Outcome,
    error: String,
    hint: Option<String>,
}

const FIRST_WAIT: Duration = Duration::seconds(30);
const LONGEST_WAIT: Duration = Duration::minutes(15);

impl Setback {
    /// `None`: `report` tells of no failure that another attempt would repeat.
    pub(crate) fn after(
        previous: Option<&Self>,
        digest: &str,
        master: Option<i32>,
        report: &Report,
        now: OffsetDateTime,
    ) -> Option<Self> {
        let error = report.error.clone().filter(|_| report.nginx_running)?;
        let same = previous.filter(|previous| previous.is_about(digest, master));
        Some(Self {
            digest: digest.to_owned(),
            master,
            failures: same
                .map_or(0, |previous| previous.failures)
                .saturating_add(1),
            at: now,
            outcome: report.outcome,
            error,
            hint: report.hint.clone(),
        })
    }

    /// Whether it is too early to try the candidate with `digest` again.
    pub fn holds(&self, digest: &str, master: Option<i32>, now: OffsetDateTime) -> bool {
        // a clock that was set back makes nobody wait
        self.is_about(digest, master) && self.at <= now && now < self.next()
    }

    fn is_about(&self, digest: &str, master: Option<i32>) -> bool {
        self.digest == digest && self.master == master
    }

    fn next(&self) -> OffsetDateTime {
        self.at + wait(self.failures)
    }

    /// What is still true while it holds.
    pub(crate) fn tell(self, report: &mut Report) {
        report.outcome = self.outcome;
        report.error = Some(self.error);
        report.hint = self.hint;
    }

    pub fn read(state_dir: &Path) -> Option<Self> {
        let bytes = fs::read(path(state_dir)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn write(&self, state_dir: &Path) -> Result<(), WriteError> {
        atomic_file::write_json(&path(state_dir), self, 0o600)
    }

    pub(crate) fn remove(state_dir: &Path) -> Result<(), WriteError> {
        atomic_file::remove(&path(state_dir))
    }
}

/// How long to wait after so many failures in a row: 30 s, 1, 2, 4, 8, then every 15 minutes.
pub(super) fn wait(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    (FIRST_WAIT * 2_i32.pow(doublings)).min(LONGEST_WAIT)
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("setback.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::base_report;

    fn failed() -> Report {
        Report {
            outcome: Outcome::RolledBack,
            error: Some("a port is taken".into()),
            ..base_report(1)
        }
    }

    fn start() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
    }

    fn after(previous: Option<&Setback>, now: OffsetDateTime) -> Setback {
        Setback::after(previous, "a", Some(7), &failed(), now).unwrap()
    }

    #[test]
    fn the_same_candidate_waits_longer_after_each_failure_and_never_more_than_15_minutes() {
        let (mut last, mut now) = (None, start());
        let mut waits = Vec::new();
        for _ in 0..8 {
            let setback = after(last.as_ref(), now);
            waits.push((setback.next() - now).whole_seconds());
            now = setback.next();
            last = Some(setback);
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900, 900]);
    }

    #[test]
    fn another_candidate_another_master_and_a_clock_set_back_do_not_wait() {
        let setback = after(None, start());
        let soon = start() + Duration::SECOND;
        assert!(setback.holds("a", Some(7), soon));
        assert!(!setback.holds("b", Some(7), soon));
        assert!(!setback.holds("a", Some(8), soon));
        assert!(!setback.holds("a", Some(7), start() - Duration::SECOND));
        assert!(!setback.holds("a", Some(7), setback.next()));
        let other = Setback::after(Some(&setback), "b", Some(7), &failed(), soon).unwrap();
        assert_eq!(other.failures, 1);
    }

    #[test]
    fn neither_success_nor_an_nginx_that_is_down_is_a_setback() {
        let mut report = base_report(1);
        assert_eq!(Setback::after(None, "a", None, &report, start()), None);
        report.error = Some("nginx is not running".into());
        report.nginx_running = false;
        assert_eq!(Setback::after(None, "a", None, &report, start()), None);
    }
}
