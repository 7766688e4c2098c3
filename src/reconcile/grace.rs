//! P: a removed file's vhost goes after a second of absence, not at once: editors that save by
//! unlink-and-create, `git checkout` and `rsync` must not drop a site.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::vhost::AppName;

/// Which apps' files are missing, and since when.
#[derive(Clone, Debug, Default)]
pub struct Absences {
    since: BTreeMap<AppName, Instant>,
}

pub const GRACE: Duration = Duration::from_secs(1);

impl Absences {
    /// Compares the apps that serve with the files that are there. Returns the missing apps that
    /// are still to be kept.
    pub fn observe(
        &mut self,
        serving: &BTreeSet<AppName>,
        present: &BTreeSet<AppName>,
        now: Instant,
    ) -> BTreeSet<AppName> {
        self.since
            .retain(|app, _| serving.contains(app) && !present.contains(app));
        for app in serving.difference(present) {
            self.since.entry(app.clone()).or_insert(now);
        }
        self.since
            .iter()
            .filter(|(_, since)| now < **since + GRACE)
            .map(|(app, _)| app.clone())
            .collect()
    }

    /// The whole directory is missing: that says nothing about any file. Once it is back, each has
    /// its second again.
    pub fn forget(&mut self) {
        self.since.clear();
    }

    /// When the next absence becomes a removal.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.since
            .values()
            .map(|since| *since + GRACE)
            .filter(|end| *end > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apps(names: &[&str]) -> BTreeSet<AppName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn an_absence_becomes_a_removal_after_a_second() {
        let (mut absences, begin) = (Absences::default(), Instant::now());
        assert_eq!(
            absences.observe(&apps(&["a", "b"]), &apps(&["b"]), begin),
            apps(&["a"])
        );
        assert_eq!(absences.next(begin), Some(begin + GRACE));
        let later = begin + GRACE;
        assert_eq!(
            absences.observe(&apps(&["a", "b"]), &apps(&["b"]), later),
            apps(&[])
        );
        assert_eq!(absences.next(later), None);
    }

    #[test]
    fn a_file_that_comes_back_starts_a_new_second_when_it_goes_again() {
        let (mut absences, begin) = (Absences::default(), Instant::now());
        absences.observe(&apps(&["a"]), &apps(&[]), begin);
        absences.observe(&apps(&["a"]), &apps(&["a"]), begin + GRACE / 2);
        let kept = absences.observe(&apps(&["a"]), &apps(&[]), begin + GRACE);
        assert_eq!(kept, apps(&["a"]));
    }
}
