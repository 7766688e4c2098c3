//! P: which apps get the names that they ask for.
//!
//! A name has one owner. Whoever was accepted with it keeps it until an accepted version of his does
//! without it, or his file goes; a free one goes to the older file, then to the first file name. The
//! order in which files are read decides nothing.

mod words; // P what is said to who loses

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use self::words::{BELOW_HINT, HAND_WRITTEN_HINT, REGISTRY_HINT, diagnostic, explain, unspeakable};
use super::entrance::{Entrances, addressed};
use super::name_pattern::NamePattern;
use super::suffix::{self, Shared};
use crate::certificate::CertificateName;
use crate::diagnostic::{Diagnostic, Located, Position};
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

    /// What `moved` says of apps whose files got another name: the old → the new app.
    pub fn moved(mut self, moved: &BTreeMap<AppName, AppName>) -> Self {
        for owner in self.0.values_mut() {
            if let Some(new) = moved.get(owner) {
                *owner = new.clone();
            }
        }
        self
    }

    fn has(&self, claim: Claim<'_>) -> bool {
        self.owner(claim.name) == Some(claim.app)
    }

    fn names_of(&self, app: &AppName) -> impl Iterator<Item = &ServerName> {
        let own = self.0.iter().filter(move |(_, owner)| *owner == app);
        own.map(|(name, _)| name)
    }
}

impl From<BTreeMap<ServerName, AppName>> for Owners {
    fn from(owners: BTreeMap<ServerName, AppName>) -> Self {
        Self(owners)
    }
}

/// What holds before anybody asks.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub owners: Owners,
    /// A name that a hand-written site serves → its place, `path:line`.
    pub hand_written: BTreeMap<ServerName, String>,
    /// Hand-written names that stand for many.
    pub patterns: Vec<NamePattern>,
    /// Apps whose files are there, but ask for nothing that can be accepted → those files. They keep
    /// what they own.
    pub silent: BTreeMap<AppName, PathBuf>,
    /// Who answers clients of an address; `None`: nothing is known of it, and nothing is refused.
    pub entrances: Option<Entrances>,
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
    /// The names of `apps`, and what rejected apps without a last good version own.
    pub owners: Owners,
    /// Warnings: names that an app keeps, and that a hand-written site has got since.
    pub shared: Vec<Diagnostic>,
}

/// Resolves the apps' names against each other and against the sites that people wrote by hand.
///
/// A host under another's wildcard is a conflict too, and a public suffix is nobody's. Whoever loses
/// a name is rejected as a whole, and falls back to its last good version if that has no conflict.
pub fn accept(mut candidates: Vec<Candidate>, given: &Given) -> Accepted {
    // from here on a candidate's index is its rank among new claimants
    candidates.sort_by(|left, right| {
        let key = |it: &Candidate| (it.modified, it.app.file.clone(), it.app.name.clone());
        key(left).cmp(&key(right))
    });
    let of = |app: &App| match &given.entrances {
        Some(entrances) => addressed(app, &entrances.tls),
        None => BTreeMap::new(),
    };
    let addressed = candidates.iter().map(|candidate| {
        let fallback = candidate.fallback.as_ref().map(of);
        [of(&candidate.app), fallback.unwrap_or_default()]
    });
    let contest = Contest {
        candidates: &candidates,
        addressed: &addressed.collect::<Vec<_>>(),
        given,
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
    /// [`SILENT`] for an app that is no candidate.
    rank: usize,
    app: &'a AppName,
    file: &'a Path,
    name: &'a ServerName,
    /// `None`: nothing asks for it now, and it is its owner's all the same.
    at: Option<Position>,
    /// Of an address that is to be served over TLS.
    certificate: Option<&'a CertificateName>,
}

/// Behind every candidate.
const SILENT: usize = usize::MAX;

struct Contest<'a> {
    candidates: &'a [Candidate],
    /// Of each, the addresses of its newest and its last good version.
    addressed: &'a [[BTreeMap<ServerName, CertificateName>; 2]],
    given: &'a Given,
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
        let held: Vec<Claim<'_>> = self.index(chosen).0.into_values().flatten().collect();
        let shared = held.iter().filter_map(|claim| self.shared(*claim));
        Accepted {
            shared: shared.collect(),
            owners: Owners(
                held.iter()
                    .map(|claim| (claim.name.clone(), claim.app.clone()))
                    .collect(),
            ),
            apps,
            rejections,
        }
    }

    /// Which of the two answers is nginx's choice; the proof tells.
    fn shared(&self, claim: Claim<'_>) -> Option<Diagnostic> {
        let (name, at) = (claim.name, claim.at?);
        let place = self.given.hand_written.get(name);
        let place = place.filter(|_| self.given.owners.has(claim))?;
        let reason = format!(
            "`{name}` is also written by hand, at {place}: take it out of one of the two files"
        );
        Some(Diagnostic::new(claim.file, reason).at(at))
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
        let candidate = &self.candidates[rank];
        let (name, file) = (&candidate.app.name, candidate.app.file.as_path());
        let asked = self.version(rank, version).into_iter().flat_map(names);
        let addressed = &self.addressed[rank][usize::from(version == Version::LastGood)];
        let asked = asked.map(move |located| Claim {
            rank,
            app: name,
            file,
            name: &located.value,
            at: Some(located.at),
            certificate: addressed.get(&located.value),
        });
        let kept = (version == Version::Nothing).then(|| self.kept(rank, name, file));
        asked.chain(kept.into_iter().flatten())
    }

    /// What an app owns that nothing of its own is served for.
    fn kept(
        &self,
        rank: usize,
        app: &'a AppName,
        file: &'a Path,
    ) -> impl Iterator<Item = Claim<'a>> {
        let own = self.given.owners.names_of(app);
        own.map(move |name| Claim {
            rank,
            app,
            file,
            name,
            at: None,
            certificate: None,
        })
    }

    fn index(&self, chosen: &[Version]) -> Index<'a> {
        let mut index = Index::default();
        let versions = chosen.iter().enumerate();
        let asked = versions.flat_map(|(rank, version)| self.claims(rank, *version));
        let silent = self.given.silent.iter();
        let kept = silent.flat_map(|(app, file)| self.kept(SILENT, app, file));
        for claim in asked.chain(kept) {
            index.0.entry(claim.name.as_str()).or_default().push(claim);
        }
        index
    }

    fn losers(&self, chosen: &[Version]) -> BTreeSet<usize> {
        let index = self.index(chosen);
        let mut losers = BTreeSet::new();
        for claim in index.0.values().flatten() {
            if claim.at.is_some() && self.against_given(*claim).is_some() {
                losers.insert(claim.rank);
            }
            for other in index
                .at_or_above(*claim)
                .chain(self.sharing(&index, *claim))
            {
                losers.extend(self.loser(*claim, other));
            }
        }
        losers
    }

    /// Who has the name loses to nobody but another who has his; then the later file loses. Nobody
    /// can lose what he does not ask for.
    fn loser(&self, left: Claim<'_>, right: Claim<'_>) -> Option<usize> {
        let order = |claim: Claim<'_>| {
            let asks = claim.at.is_some();
            (asks, !self.given.owners.has(claim), claim.rank)
        };
        let later = if order(left) > order(right) {
            left
        } else {
            right
        };
        later.at.map(|_| later.rank)
    }

    /// What stands between `version` of one candidate and the chosen versions of the others.
    fn conflicts(&self, rank: usize, version: Version, chosen: &[Version]) -> Vec<Diagnostic> {
        let mut others = chosen.to_vec();
        others[rank] = version;
        let index = self.index(&others);
        let mut found = Vec::new();
        for claim in self.claims(rank, version) {
            let against = index.at_or_above(claim).chain(index.below(claim));
            found.extend(self.against_given(claim));
            found.extend(against.map(|other| explain(claim, other)));
            let sharing = self.sharing(&index, claim).into_iter();
            found.extend(sharing.map(|other| unspeakable(claim, other)));
        }
        found
    }

    /// Claims to addresses whose clients could only get another certificate than those of this one; of
    /// its own app, to earlier ones.
    fn sharing(&self, index: &Index<'a>, claim: Claim<'a>) -> Vec<Claim<'a>> {
        let (Some(certificate), Some(entrances)) = (claim.certificate, &self.given.entrances)
        else {
            return Vec::new();
        };
        let place = |claim: Claim<'_>| claim.at.map(|at| (at.line, at.column));
        let mut others: Vec<Claim<'a>> = index.0.values().flatten().copied().collect();
        others.retain(|other| {
            let another = other.certificate.is_some_and(|it| it != certificate);
            let own = other.app == claim.app;
            another
                && (!own || place(*other) < place(claim))
                && entrances.shared(claim.name, other.name).is_some()
        });
        others
    }

    /// What stands against a claim that no app has to make: a name of a hand-written site, one
    /// under such a site's wildcard, a public suffix. Who owns the name already keeps it.
    fn against_given(&self, claim: Claim<'_>) -> Option<Diagnostic> {
        let name = claim.name;
        // whoever has it: what cannot be served is not
        let entrances = self.given.entrances.as_ref();
        let entrances = entrances.filter(|_| claim.certificate.is_some());
        if let Some((reason, hint)) = entrances.and_then(|it| it.against(name)) {
            return Some(diagnostic(claim, reason, hint));
        }
        if self.given.owners.has(claim) {
            return None;
        }
        let place = |name: &ServerName| self.given.hand_written.get(name);
        if let Some(place) = place(name) {
            let reason = format!("`{name}` is already served by {place}");
            return Some(diagnostic(claim, reason, HAND_WRITTEN_HINT));
        }
        if let Some(shared) = suffix::shared(name) {
            let (reason, hint) = match shared {
                Shared::Below => ("nobody owns all that is below it", BELOW_HINT),
                Shared::Registry => ("names are registered below it", REGISTRY_HINT),
            };
            let suffix = name.as_str().trim_start_matches("*.");
            let reason = format!("`{suffix}` is a public suffix: {reason}");
            return Some(diagnostic(claim, reason, hint));
        }
        let above = wildcards_above(name.as_str()).filter_map(|text| text.parse().ok());
        let above = above
            .filter_map(|above: ServerName| Some((place(&above)?, above)))
            .map(|(place, above)| (above, place))
            .next();
        if let Some((wildcard, place)) = above {
            let reason = format!("`{name}` is under `{wildcard}`, which {place} serves");
            return Some(diagnostic(claim, reason, HAND_WRITTEN_HINT));
        }
        let mut patterns = self.given.patterns.iter();
        let (pattern, host) = patterns.find_map(|it| Some((it, it.taken_by(name)?)))?;
        let (text, place) = (&pattern.text, &pattern.place);
        let reason = format!("`{host}` is already served by {place}, whose `{text}` matches it");
        Some(diagnostic(claim, reason, HAND_WRITTEN_HINT))
    }
}

/// The claims of all chosen versions, by name.
#[derive(Default)]
struct Index<'a>(BTreeMap<&'a str, Vec<Claim<'a>>>);

impl<'a> Index<'a> {
    /// Other apps' claims to the same name, or to a wildcard above it.
    fn at_or_above(&self, claim: Claim<'a>) -> impl Iterator<Item = Claim<'a>> {
        let same = self.0.get(claim.name.as_str());
        let above = wildcards_above(claim.name.as_str())
            .filter_map(|wildcard| self.0.get(wildcard.as_str()))
            .collect::<Vec<_>>();
        same.into_iter()
            .chain(above)
            .flatten()
            .filter(move |other| other.app != claim.app)
            .copied()
    }

    /// Other apps' claims to names under a wildcard.
    fn below(&self, claim: Claim<'a>) -> impl Iterator<Item = Claim<'a>> {
        let all = claim.name.is_wildcard().then(|| self.0.values().flatten());
        all.into_iter()
            .flatten()
            .filter(move |other| other.app != claim.app && claim.name.is_above(other.name))
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

#[cfg(test)]
mod tests;
