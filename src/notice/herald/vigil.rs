//! N: which names are asked for when: all of them once a day, one whose certificate changed soon
//! after, and one that differs until it does not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::task::{JoinError, JoinSet};

use super::super::observe::News;
use crate::installation::Installation;
use crate::served::{Expected, Looked, ServedRecord, expected, look};

#[derive(Default)]
pub(super) struct Vigil {
    pub(super) looking: JoinSet<Result<Looked, String>>,
    /// What each name had when it was asked for last.
    seen: Expected,
    /// When all of them are asked for again.
    all_at: Option<Instant>,
    again_at: Option<Instant>,
    is_stirred: bool,
}

impl Vigil {
    /// There may be another generation.
    pub(super) fn stir(&mut self) {
        self.is_stirred = true;
    }

    pub(super) fn next(&self) -> Instant {
        let never = Instant::now() + DAILY;
        let times = [self.all_at, self.again_at].into_iter().flatten();
        match self.looking.is_empty() {
            true => times.fold(never, Instant::min),
            false => never,
        }
    }

    pub(super) fn start_look(&mut self, news: &News, now: OffsetDateTime) {
        let at = Instant::now();
        let is_due = |time: Option<Instant>| time.is_some_and(|time| time <= at);
        let (all, again) = (is_due(self.all_at), is_due(self.again_at));
        if !self.looking.is_empty() || !(all || again || self.is_stirred) {
            return;
        }
        self.again_at = None;
        self.all_at = self.all_at.filter(|_| !all);
        // there will be news when it runs
        self.is_stirred = !news.nginx_runs();
        if self.is_stirred {
            return;
        }
        let Ok(active) = news.installation.generations.active() else {
            self.again_at = Some(at + AGAIN);
            return;
        };
        let expected = expected(&active.manifest);
        self.seen.retain(|host, _| expected.contains_key(host));
        if self.all_at.is_none() {
            self.all_at = Some(at + DAILY);
            self.seen.clear();
        }
        let known = ServedRecord::read(&news.installation.settings.state_dir);
        let differing = known.iter().flat_map(|record| &record.differences);
        let changed = expected
            .iter()
            .filter(|(host, leaf)| self.seen.get(*host) != Some(leaf));
        let mut names: BTreeSet<String> = changed.map(|(host, _)| host.clone()).collect();
        names.extend(differing.map(|difference| difference.host.clone()));
        if names.is_empty() {
            return;
        }
        let installation: Arc<Installation> = news.installation.clone();
        self.looking.spawn_blocking(move || {
            let looked = look(&installation, &names, now);
            let (count, took) = (names.len(), at.elapsed());
            tracing::debug!("asked what is served for {count} names in {took:.1?}");
            looked
        });
    }

    /// Whether something else is known now.
    pub(super) fn looked(
        &mut self,
        news: &News,
        looked: Result<Result<Looked, String>, JoinError>,
        now: OffsetDateTime,
    ) -> bool {
        let soon = Some(Instant::now() + AGAIN);
        let looked = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) => {
                tracing::debug!("failed to look at what is served: {error}");
                self.again_at = soon;
                return false;
            }
            Err(error) => {
                tracing::error!("failed to look at what is served: {error}");
                self.again_at = soon;
                return false;
            }
        };
        self.seen.extend(looked.asked.clone());
        let changed = learn(&news.installation, &looked, now);
        let differs = ServedRecord::read(&news.installation.settings.state_dir)
            .is_some_and(|record| !record.differences.is_empty());
        let active = news.installation.generations.active();
        let complete = active.is_ok_and(|active| {
            let expected = expected(&active.manifest);
            expected
                .iter()
                .all(|(host, leaf)| self.seen.get(host) == Some(leaf))
        });
        self.again_at = soon.filter(|_| differs || !complete);
        changed
    }
}

/// For those who look once.
pub(super) fn look_if_due(installation: &Installation, now: OffsetDateTime) {
    let known = ServedRecord::read(&installation.settings.state_dir);
    let recent = |record: &ServedRecord| {
        record.differences.is_empty() && record.checked_at + time::Duration::hours(20) > now
    };
    if known.as_ref().is_some_and(recent) {
        return;
    }
    let looked = installation
        .generations
        .active()
        .map_err(|error| error.to_string())
        .and_then(|active| {
            let names = expected(&active.manifest).into_keys().collect();
            look(installation, &names, now)
        });
    match looked {
        Ok(looked) => {
            learn(installation, &looked, now);
        }
        Err(error) => tracing::debug!("failed to look at what is served: {error}"),
    }
}

/// Whether that is something else than what was known.
fn learn(installation: &Installation, looked: &Looked, now: OffsetDateTime) -> bool {
    let state_dir = &installation.settings.state_dir;
    let Ok(active) = installation.generations.active() else {
        return false;
    };
    let known = ServedRecord::read(state_dir);
    let mut record = known.clone().unwrap_or(ServedRecord {
        checked_at: now,
        differences: Vec::new(),
    });
    let expected = expected(&active.manifest);
    record.learn(looked, &expected);
    if looked.asked.len() >= expected.len() {
        record.checked_at = now;
    }
    for difference in &record.differences {
        let news = known
            .as_ref()
            .is_none_or(|it| !it.differences.contains(difference));
        if news {
            let (host, found) = (&difference.host, &difference.found);
            tracing::warn!(identifier = %host, "is not served with its certificate: {found}");
        }
    }
    if known.as_ref() == Some(&record) {
        return false;
    }
    if let Err(error) = record.write(state_dir) {
        tracing::debug!("failed to {error}");
    }
    known.map(|known| known.differences) != Some(record.differences)
}

const DAILY: Duration = Duration::from_secs(24 * 3600);
/// Where something differs, or did not answer.
const AGAIN: Duration = Duration::from_secs(300);
