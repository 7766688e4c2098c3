//! W: the version of each app before the one that serves: also when its generation is not kept any
//! more, because other apps were changed often.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::{AppSource, Manifest};
use crate::atomic_file::{self, WriteError};
use crate::vhost::AppName;

/// `previous.json` in the state directory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PreviousVersions(BTreeMap<AppName, PreviousVersion>);

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PreviousVersion {
    /// The last one that had it.
    pub generation: u64,
    pub source: AppSource,
}

impl PreviousVersions {
    /// Nothing where it cannot be read: the generations that are kept have most of it.
    pub fn read(state_dir: &Path) -> Self {
        let bytes = fs::read(path(state_dir)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub fn of(&self, app: &AppName) -> Option<&PreviousVersion> {
        self.0.get(app)
    }

    /// After `new` has taken the place of `old`. An app that is gone has no version to return to.
    #[must_use]
    pub fn after(mut self, old: &Manifest, new: &Manifest) -> Self {
        self.0.retain(|app, _| new.apps.contains_key(app));
        for (app, source) in &old.apps {
            if new.apps.get(app).is_some_and(|now| now.text != source.text) {
                let version = PreviousVersion {
                    generation: old.number,
                    source: source.clone(),
                };
                self.0.insert(app.clone(), version);
            }
        }
        self
    }

    /// Records that `new` has taken the place of `old`; writes nothing where no app changed.
    pub fn record(state_dir: &Path, old: &Manifest, new: &Manifest) -> Result<(), WriteError> {
        let before = Self::read(state_dir);
        let after = before.clone().after(old, new);
        if after == before {
            return Ok(());
        }
        atomic_file::write_json(&path(state_dir), &after, 0o600)
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("previous.json")
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::generation::manifest::Reason;
    use crate::nginx::dump::Survey;

    fn generation(number: u64, words: &str) -> Manifest {
        let pairs = words.split_whitespace().filter_map(|it| it.split_once('='));
        let apps = pairs.map(|(app, text)| {
            let source = serde_json::json!({"file": "/x.yml", "text": text, "stale": false});
            (
                app.parse().unwrap(),
                serde_json::from_value(source).unwrap(),
            )
        });
        Manifest {
            number,
            apps: apps.collect(),
            ..Manifest::draft(OffsetDateTime::UNIX_EPOCH, Reason::File, Survey::default())
        }
    }

    #[test]
    fn each_app_that_serves_has_the_version_before_however_often_others_change() {
        let directory = tempfile::tempdir().unwrap();
        let mut old = generation(1, "a=1 b=1 gone=1");
        for new in [
            generation(2, "a=2 b=1 gone=2"),
            generation(3, "a=2 b=2"),
            generation(4, "a=2 b=3 new=1"),
            generation(5, "a=2 b=3 new=1"),
        ] {
            PreviousVersions::record(directory.path(), &old, &new).unwrap();
            old = new;
        }
        let found = PreviousVersions::read(directory.path());
        let of = |app: &str| {
            let version = found.of(&app.parse().unwrap())?;
            Some((version.generation, version.source.text.clone()))
        };
        assert_eq!(of("a"), Some((1, "1".into())));
        assert_eq!(of("b"), Some((3, "2".into())));
        assert_eq!((of("new"), of("gone")), (None, None));
    }
}
