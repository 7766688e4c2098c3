//! W: versions of apps that nginx does not take are not tried again at every look; the apps' last
//! good versions serve meanwhile, and everybody else is served.
//!
//! Another version, another nginx, or a person who asks is tried at once. What nginx refused for
//! the app's own sake stays refused; what depends on others is tried again, later each time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::setback;
use crate::atomic_file::{self, WriteError};
use crate::diagnostic::Diagnostic;
use crate::vhost::AppName;

/// `quarantine.json` in the state directory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Quarantine(BTreeMap<AppName, Vec<Refusal>>);

/// Why one version of an app is not served.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    /// SHA-256 of the rendered file, hex.
    pub version: String,
    /// The nginx that did not take it: its version, its file and its modules.
    pub nginx: String,
    pub diagnostic: Diagnostic,
    /// `None` where only another version can help.
    pub again: Option<Again>,
}

/// When to try once more.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Again {
    /// In a row.
    pub failures: u32,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

impl Again {
    /// The first failure at `now`, or one more.
    pub fn after(previous: Option<Self>, now: OffsetDateTime) -> Self {
        Self {
            failures: previous
                .map_or(0, |previous| previous.failures)
                .saturating_add(1),
            since: now,
        }
    }

    fn is_due(self, now: OffsetDateTime) -> bool {
        // a clock that was set back makes nobody wait
        now < self.since || now >= self.since + setback::wait(self.failures)
    }
}

impl Quarantine {
    pub fn read(state_dir: &Path) -> Self {
        let bytes = fs::read(path(state_dir)).unwrap_or_default();
        // without it, each version is tried once more
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub(crate) fn write(&self, state_dir: &Path) -> Result<(), WriteError> {
        if Self::read(state_dir) == *self {
            return Ok(());
        }
        if self.0.is_empty() {
            return atomic_file::remove(&path(state_dir));
        }
        atomic_file::write_json(&path(state_dir), self, 0o600)
    }

    /// Why that version of `app` is not to be tried now.
    pub fn holds(
        &self,
        app: &AppName,
        version: &str,
        nginx: &str,
        now: OffsetDateTime,
    ) -> Option<&Refusal> {
        let known = self.about(app, version)?;
        let due = known.again.is_some_and(|again| again.is_due(now));
        (known.nginx == nginx && !due).then_some(known)
    }

    /// What happened to that version before.
    pub fn about(&self, app: &AppName, version: &str) -> Option<&Refusal> {
        let refusals = self.0.get(app)?;
        refusals.iter().find(|refusal| refusal.version == version)
    }

    /// Forgets what may be others' fault.
    pub(crate) fn keep_lasting(&mut self) {
        for refusals in self.0.values_mut() {
            refusals.retain(|refusal| refusal.again.is_none());
        }
        self.0.retain(|_, refusals| !refusals.is_empty());
    }

    pub(crate) fn add(&mut self, app: AppName, refusal: Refusal) {
        let refusals = self.0.entry(app).or_default();
        refusals.retain(|known| known.version != refusal.version);
        refusals.push(refusal);
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("quarantine.json")
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    fn start() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
    }

    fn quarantine(again: Option<Again>) -> (Quarantine, AppName) {
        let app: AppName = "shop".parse().unwrap();
        let mut quarantine = Quarantine::default();
        let refusal = Refusal {
            version: "a".into(),
            nginx: "1.22.1".into(),
            diagnostic: Diagnostic::new("shop.yml", "nginx refuses it"),
            again,
        };
        quarantine.add(app.clone(), refusal);
        (quarantine, app)
    }

    #[test]
    fn another_version_and_another_nginx_are_tried_at_once_and_the_same_never() {
        let (quarantine, app) = quarantine(None);
        let year = start() + Duration::days(365);
        assert!(quarantine.holds(&app, "a", "1.22.1", year).is_some());
        assert!(quarantine.holds(&app, "b", "1.22.1", start()).is_none());
        assert!(quarantine.holds(&app, "a", "1.30.0", start()).is_none());
        let other = "other".parse().unwrap();
        assert!(quarantine.holds(&other, "a", "1.22.1", start()).is_none());
    }

    #[test]
    fn what_depends_on_others_is_tried_again_later_each_time() {
        let mut again = None;
        for seconds in [30, 60, 120] {
            again = Some(Again::after(again, start()));
            let (quarantine, app) = quarantine(again);
            let held = |after| {
                let now = start() + Duration::seconds(after);
                quarantine.holds(&app, "a", "1.22.1", now).is_some()
            };
            assert!(held(seconds - 1), "{seconds}");
            assert!(!held(seconds), "{seconds}");
            assert!(!held(-1), "{seconds}");
        }
    }
}
