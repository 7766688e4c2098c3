//! P: which apps get the names that they ask for.
//!
//! A name has one owner. Whoever was accepted with it keeps it; a free one goes to the older file,
//! then to the first file name. The order in which files are read decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::diagnostic::{Diagnostic, Located};
use crate::vhost::{App, AppName, ServerName, VhostSpec};

/// A parsed app that wants to be served.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub app: App,
    /// When its file was last changed.
    pub modified: OffsetDateTime,
    /// Its last good version, which serves where the new one cannot.
    pub fallback: Option<App>,
}

/// Who has which name. Kept apart from the generations: a rollback transfers no names.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Owners(BTreeMap<ServerName, AppName>);

impl Owners {
    pub fn of(apps: &[App]) -> Self {
        let names = |app: &App| {
            names(app)
                .map(|name| name.value.clone())
                .collect::<Vec<_>>()
        };
        Self(
            apps.iter()
                .flat_map(|app| names(app).into_iter().map(|name| (name, app.name.clone())))
                .collect(),
        )
    }

    pub fn owner(&self, name: &ServerName) -> Option<&AppName> {
        self.0.get(name)
    }

    fn has(&self, claim: Claim<'_>) -> bool {
        self.owner(&claim.name.value) == Some(&claim.app.name)
    }
}

/// An app whose newest file is not served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejection {
    pub app: AppName,
    /// At least one.
    pub diagnostics: Vec<Diagnostic>,
    /// Its last good version serves.
    pub stale: bool,
}

/// What [`accept`] decided.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Accepted {
    /// Sorted by name; of a stale app, the last good version.
    pub apps: Vec<App>,
    /// Sorted by name.
    pub rejections: Vec<Rejection>,
    /// Exactly the names of `apps`.
    pub owners: Owners,
}

/// Resolves the apps' names against each other and against the sites that people wrote by hand.
///
/// `hand_written`: a name that such a site serves → its place, `path:line`. A host under another
/// app's wildcard is a conflict too. Whoever loses a name is rejected as a whole, and falls back to
/// its last good version if that has no conflict.
pub fn accept(
    mut candidates: Vec<Candidate>,
    owners: &Owners,
    hand_written: &BTreeMap<ServerName, String>,
) -> Accepted {
    // from here on a candidate's index is its rank among new claimants
    candidates.sort_by(|left, right| {
        let key = |it: &Candidate| (it.modified, it.app.file.clone(), it.app.name.clone());
        key(left).cmp(&key(right))
    });
    let contest = Contest {
        candidates: &candidates,
        owners,
        hand_written,
    };
    let mut chosen = contest.without_losers();
    contest.restore(&mut chosen);
    contest.result(&chosen)
}

/// Which version of a candidate serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    Newest,
    LastGood,
    Nothing,
}

/// A name as one app's version asks for it.
#[derive(Clone, Copy)]
struct Claim<'a> {
    rank: usize,
    app: &'a App,
    name: &'a Located<ServerName>,
}

struct Contest<'a> {
    candidates: &'a [Candidate],
    owners: &'a Owners,
    hand_written: &'a BTreeMap<ServerName, String>,
}

impl<'a> Contest<'a> {
    /// Starts with every newest version and takes losers back, all of a round at once, until
    /// nobody loses.
    fn without_losers(&self) -> Vec<Version> {
        let mut chosen = vec![Version::Newest; self.candidates.len()];
        loop {
            let losers = self.losers(&chosen);
            if losers.is_empty() {
                return chosen;
            }
            for loser in losers {
                chosen[loser] = self.below(loser, chosen[loser]);
            }
        }
    }

    /// A loser's winner may itself have lost later: gives each, the oldest first, the best version
    /// that conflicts with nothing that is left.
    fn restore(&self, chosen: &mut [Version]) {
        let mut changed = true;
        while changed {
            changed = false;
            for rank in 0..chosen.len() {
                for version in self.above(rank, chosen[rank]) {
                    if self.conflicts(rank, version, chosen).is_empty() {
                        chosen[rank] = version;
                        changed = true;
                        break;
                    }
                }
            }
        }
    }

    fn result(&self, chosen: &[Version]) -> Accepted {
        let mut apps: Vec<App> = (0..chosen.len())
            .filter_map(|rank| self.version(rank, chosen[rank]).cloned())
            .collect();
        let mut rejections: Vec<Rejection> = (0..chosen.len())
            .filter(|rank| chosen[*rank] != Version::Newest)
            .map(|rank| Rejection {
                app: self.candidates[rank].app.name.clone(),
                diagnostics: self.conflicts(rank, Version::Newest, chosen),
                stale: chosen[rank] == Version::LastGood,
            })
            .collect();
        apps.sort_by(|left, right| left.name.cmp(&right.name));
        rejections.sort_by(|left, right| left.app.cmp(&right.app));
        Accepted {
            owners: Owners::of(&apps),
            apps,
            rejections,
        }
    }

    fn version(&self, rank: usize, version: Version) -> Option<&'a App> {
        let candidate = &self.candidates[rank];
        match version {
            Version::Newest => Some(&candidate.app),
            Version::LastGood => candidate.fallback.as_ref(),
            Version::Nothing => None,
        }
    }

    fn below(&self, rank: usize, version: Version) -> Version {
        match version {
            Version::Newest if self.candidates[rank].fallback.is_some() => Version::LastGood,
            _ => Version::Nothing,
        }
    }

    fn above(&self, rank: usize, version: Version) -> Vec<Version> {
        match version {
            Version::Newest => Vec::new(),
            Version::Nothing if self.candidates[rank].fallback.is_some() => {
                vec![Version::Newest, Version::LastGood]
            }
            _ => vec![Version::Newest],
        }
    }

    fn claims(&self, rank: usize, version: Version) -> impl Iterator<Item = Claim<'a>> {
        self.version(rank, version)
            .into_iter()
            .flat_map(move |app| names(app).map(move |name| Claim { rank, app, name }))
    }

    fn index(&self, chosen: &[Version]) -> Index<'a> {
        let mut index = Index::default();
        for (rank, version) in chosen.iter().enumerate() {
            for claim in self.claims(rank, *version) {
                let claims = index.0.entry(claim.name.value.as_str()).or_default();
                claims.push(claim);
            }
        }
        index
    }

    fn losers(&self, chosen: &[Version]) -> BTreeSet<usize> {
        let index = self.index(chosen);
        let mut losers = BTreeSet::new();
        for claim in index.0.values().flatten() {
            if self.hand_written.contains_key(&claim.name.value) {
                losers.insert(claim.rank);
            }
            for other in index.at_or_above(*claim) {
                losers.insert(self.loser(*claim, other));
            }
        }
        losers
    }

    /// Who has the name loses to nobody but another who has his; then the later file loses.
    fn loser(&self, left: Claim<'_>, right: Claim<'_>) -> usize {
        let order = |claim: Claim<'_>| (!self.owners.has(claim), claim.rank);
        if order(left) > order(right) {
            left.rank
        } else {
            right.rank
        }
    }

    /// What stands between `version` of one candidate and the chosen versions of the others.
    fn conflicts(&self, rank: usize, version: Version, chosen: &[Version]) -> Vec<Diagnostic> {
        let mut others = chosen.to_vec();
        others[rank] = version;
        let index = self.index(&others);
        let mut found = Vec::new();
        for claim in self.claims(rank, version) {
            let against = index.at_or_above(claim).chain(index.below(claim));
            found.extend(against.map(|other| explain(claim, other)));
            if let Some(place) = self.hand_written.get(&claim.name.value) {
                found.push(explain_hand_written(claim, place));
            }
        }
        found
    }
}

/// The claims of all chosen versions, by name.
#[derive(Default)]
struct Index<'a>(BTreeMap<&'a str, Vec<Claim<'a>>>);

impl<'a> Index<'a> {
    /// Other apps' claims to the same name, or to a wildcard above it.
    fn at_or_above(&self, claim: Claim<'a>) -> impl Iterator<Item = Claim<'a>> {
        let same = self.0.get(claim.name.value.as_str());
        let above = wildcards_above(claim.name.value.as_str())
            .filter_map(|wildcard| self.0.get(wildcard.as_str()))
            .collect::<Vec<_>>();
        same.into_iter()
            .chain(above)
            .flatten()
            .filter(move |other| other.rank != claim.rank)
            .copied()
    }

    /// Other apps' claims to names under a wildcard.
    fn below(&self, claim: Claim<'a>) -> impl Iterator<Item = Claim<'a>> {
        let wildcard = &claim.name.value;
        let all = wildcard.is_wildcard().then(|| self.0.values().flatten());
        all.into_iter()
            .flatten()
            .filter(move |other| other.rank != claim.rank && wildcard.is_above(&other.name.value))
            .copied()
    }
}

/// `a.b.example.org` → `*.b.example.org`, `*.example.org`; of a wildcard, without itself.
fn wildcards_above(name: &str) -> impl Iterator<Item = String> {
    let inner = name.strip_prefix("*.").unwrap_or(name);
    inner
        .match_indices('.')
        .map(|(dot, _)| format!("*{}", &inner[dot..]))
        .filter(move |wildcard| wildcard != name)
}

fn names(app: &App) -> impl Iterator<Item = &Located<ServerName>> {
    app.vhosts.iter().flat_map(VhostSpec::all_names)
}

fn explain(claim: Claim<'_>, other: Claim<'_>) -> Diagnostic {
    let (name, theirs) = (&claim.name.value, &other.name.value);
    let place = format!("{}:{}", other.app.file.display(), other.name.at.line);
    let reason = if name == theirs {
        format!("`{name}` already belongs to {} ({place})", other.app.name)
    } else if theirs.is_above(name) {
        format!(
            "`{name}` is under `{theirs}`, which belongs to {} ({place})",
            other.app.name
        )
    } else {
        format!(
            "`{name}` is above `{theirs}`, which belongs to {} ({place})",
            other.app.name
        )
    };
    Diagnostic::new(&claim.app.file, reason)
        .at(claim.name.at)
        .hint("a name has one owner: take it out of one of the two files")
}

fn explain_hand_written(claim: Claim<'_>, place: &str) -> Diagnostic {
    let reason = format!("`{}` is already served by {place}", claim.name.value);
    Diagnostic::new(&claim.app.file, reason)
        .at(claim.name.at)
        .hint("take it out of that file, which vhostd does not touch, or out of this one")
}

#[cfg(test)]
mod tests;
