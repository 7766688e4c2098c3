//! P: who has which name, and for whom a name that was given up is kept.
//!
//! A name belongs to an app and to the user who owns the app's file. Kept apart from the generations: a
//! rollback transfers no names.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::accept::{names, wildcards_above};
use crate::vhost::identity::{FileIdentity, Inode};
use crate::vhost::{App, AppName, ServerName};

/// `owners.json`: names, and beside them two keys that no server name can have.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Owners {
    /// The file of each app when its names were last claimed. An app without one got its names from a
    /// vhostd that did not write that down: they are those of any file of the app's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    apps: BTreeMap<AppName, FileIdentity>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    reserved: BTreeMap<ServerName, Reservation>,
    #[serde(flatten)]
    names: BTreeMap<ServerName, AppName>,
}

/// A name that was given up, or whose file is gone.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reservation {
    /// The user whose files may have it again.
    pub uid: u32,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// How long a name that was given up is kept for its owner.
pub const RESERVED_FOR: Duration = Duration::days(7);

/// What became of apps whose files are not where they were.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Moves {
    /// Apps whose files got another name: the old → the new.
    pub renamed: BTreeMap<AppName, AppName>,
    /// Apps whose very file another user owned before → that user.
    pub chowned: BTreeMap<AppName, u32>,
}

impl Owners {
    pub fn of(apps: &[App]) -> Self {
        let each = apps.iter().flat_map(|app| {
            let names = names(app).map(|name| name.value.clone());
            names.map(|name| (name, app.name.clone()))
        });
        each.collect::<BTreeMap<_, _>>().into()
    }

    pub fn owner(&self, name: &ServerName) -> Option<&AppName> {
        self.names.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServerName, &AppName)> {
        self.names.iter()
    }

    /// The files that apps had when their names were last claimed.
    pub fn files(&self) -> &BTreeMap<AppName, FileIdentity> {
        &self.apps
    }

    pub(super) fn by_app(&self) -> BTreeMap<&AppName, Vec<&ServerName>> {
        let mut by_app: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, owner) in &self.names {
            by_app.entry(owner).or_default().push(name);
        }
        by_app
    }

    /// Names go with a file that gets another name or another owner. `files` are those that are there
    /// now. Where another user's file has taken the place of an app's, the names are kept for the
    /// former owner.
    pub fn follow(
        mut self,
        files: &BTreeMap<AppName, FileIdentity>,
        now: OffsetDateTime,
    ) -> (Self, Moves) {
        let by_inode = files.iter().filter_map(|it| Some((it.1.inode()?, it)));
        let by_inode: BTreeMap<Inode, _> = by_inode.collect();
        let mut moves = Moves::default();
        let mut apps = BTreeMap::new();
        for (app, known) in &self.apps {
            let same = known.inode().and_then(|inode| by_inode.get(&inode));
            match (same, files.get(app)) {
                (Some(&(new, file)), _) => {
                    if new != app {
                        moves.renamed.insert(app.clone(), new.clone());
                    }
                    if file.uid != known.uid {
                        moves.chowned.insert(new.clone(), known.uid);
                    }
                    apps.insert(new.clone(), *file);
                }
                // written anew by its owner, as editors do
                (None, Some(file)) if file.uid == known.uid => {
                    apps.entry(app.clone()).or_insert(*file);
                }
                (None, Some(_)) => {}
                (None, None) => {
                    apps.entry(app.clone()).or_insert(*known);
                }
            }
        }
        let mut names = BTreeMap::new();
        for (name, app) in std::mem::take(&mut self.names) {
            let new = moves.renamed.get(&app).unwrap_or(&app);
            let owner = self.apps.get(&app).map(|known| known.uid);
            let uid = apps.get(new).map(|file| file.uid);
            let goes_along = owner.is_none() || owner == uid || moves.chowned.contains_key(new);
            match owner {
                Some(uid) if !goes_along => self.reserve(name, uid, now),
                _ => {
                    names.insert(name, new.clone());
                }
            }
        }
        self.names = names;
        self.apps = apps;
        (self, moves)
    }

    /// The names of apps that have no file any more are kept for their owners.
    pub fn without_absent(mut self, present: &BTreeSet<AppName>, now: OffsetDateTime) -> Self {
        for (name, app) in std::mem::take(&mut self.names) {
            match (present.contains(&app), self.apps.get(&app)) {
                (true, _) => {
                    self.names.insert(name, app);
                }
                (false, Some(file)) => self.reserve(name, file.uid, now),
                (false, None) => {}
            }
        }
        self.reserved.retain(|_, it| now < it.until);
        self
    }

    /// Root frees every name that was given up.
    pub fn without_reservations(mut self) -> Self {
        self.reserved.clear();
        self
    }

    /// After `accepted` was decided: names that apps gave up are kept for their owners. `files` are
    /// those of the accepted apps.
    pub fn succeeded_by(
        mut self,
        accepted: Self,
        files: &BTreeMap<AppName, FileIdentity>,
        now: OffsetDateTime,
    ) -> Self {
        for (name, app) in std::mem::take(&mut self.names) {
            if let Some(file) = self
                .apps
                .get(&app)
                .filter(|_| !accepted.names.contains_key(&name))
            {
                let uid = file.uid;
                self.reserve(name, uid, now);
            }
        }
        self.reserved
            .retain(|name, _| !accepted.names.contains_key(name));
        let apps: BTreeSet<&AppName> = accepted.names.values().collect();
        let known = |app: &&AppName| files.get(*app).or(self.apps.get(*app)).copied();
        let apps = apps
            .into_iter()
            .filter_map(|app| Some((app.clone(), known(&app)?)));
        self.apps = apps.collect();
        self.names = accepted.names;
        self
    }

    fn reserve(&mut self, name: ServerName, uid: u32, now: OffsetDateTime) {
        let until = now + RESERVED_FOR;
        self.reserved
            .entry(name)
            .or_insert(Reservation { uid, until });
    }

    /// The reservation that keeps a file of `uid` from `name`: of that name, or of one above or below
    /// it.
    pub fn reservation_against(
        &self,
        name: &ServerName,
        uid: u32,
    ) -> Option<(&ServerName, Reservation)> {
        let of_another = |reservation: &Reservation| reservation.uid != uid;
        let (name, reservation) = overlapping(&self.reserved, name, of_another)?;
        Some((name, *reservation))
    }
}

/// The first of `names` that is `name`, a wildcard above it, or below it, and whose value `is_meant`.
pub(super) fn overlapping<'a, T>(
    names: &'a BTreeMap<ServerName, T>,
    name: &ServerName,
    is_meant: impl Fn(&T) -> bool,
) -> Option<(&'a ServerName, &'a T)> {
    if names.is_empty() {
        return None;
    }
    let above = wildcards_above(name.as_str()).filter_map(|text| text.parse().ok());
    let mut at_or_above = std::iter::once(name.clone()).chain(above);
    let meant = |it: &(&ServerName, &T)| is_meant(it.1);
    let found = at_or_above.find_map(|name: ServerName| names.get_key_value(&name).filter(meant));
    found.or_else(|| {
        let all = name.is_wildcard().then_some(names);
        let mut below = all.into_iter().flatten();
        below.find(|(below, value)| name.is_above(below) && is_meant(value))
    })
}

impl From<BTreeMap<ServerName, AppName>> for Owners {
    fn from(names: BTreeMap<ServerName, AppName>) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests;
