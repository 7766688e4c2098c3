//! P: which apps get the names that they ask for.
//!
//! A name has one owner: the app that was accepted with it keeps it until an accepted version of the
//! app does without it, or its file goes; then it is kept for the user who owned that file. A free one
//! goes to the older file, then to the first file name. The order in which files are read decides nothing.

mod index; // P the claims of chosen versions
mod rounds; // P which version of each app is served
mod words; // P what is said to who loses

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use self::index::{Index, Precedence};
use self::rounds::Rounds;
use self::words::{
    BELOW_HINT, HAND_WRITTEN_HINT, REGISTRY_HINT, diagnostic, explain, further, reserved,
    unspeakable,
};
use super::entrance::{Entrances, addressed};
use super::name_pattern::NamePattern;
use super::owners::Owners;
use super::suffix::{self, Shared};
use crate::certificate::CertificateName;
use crate::diagnostic::{Diagnostic, Located, Position};
use crate::vhost::{App, AppName, NO_OWNER, ServerName, VhostSpec};

/// A parsed app that wants to be served.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub app: App,
    /// When its file was last changed.
    pub modified: OffsetDateTime,
    /// Its last good version, which serves where the new one cannot.
    pub fallback: Option<App>,
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
    /// Of these, the apps that a rollback holds.
    pub held: BTreeSet<AppName>,
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
        owned: given.owners.by_app(),
        given,
    };
    let mut rounds = Rounds::new(&contest);
    rounds.remove_losers();
    rounds.restore();
    contest.result(&rounds.chosen, &rounds.index)
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
    precedence: Precedence,
    /// Its place among the app's claims, from 0.
    nth: usize,
    app: &'a AppName,
    /// The user who owns `file`.
    uid: u32,
    file: &'a Path,
    name: &'a ServerName,
    /// `None`: nothing asks for it now, and it is its owner's all the same.
    at: Option<Position>,
    /// Of an address that is to be served over TLS.
    certificate: Option<&'a CertificateName>,
}

struct Contest<'a> {
    candidates: &'a [Candidate],
    /// Of each, the addresses of its newest and its last good version.
    addressed: &'a [[BTreeMap<ServerName, CertificateName>; 2]],
    /// The names of each app.
    owned: BTreeMap<&'a AppName, Vec<&'a ServerName>>,
    given: &'a Given,
}

impl<'a> Contest<'a> {
    fn result(&self, chosen: &[Version], index: &Index<'a>) -> Accepted {
        let mut apps: Vec<App> = (0..chosen.len())
            .filter_map(|rank| self.version(rank, chosen[rank]).cloned())
            .collect();
        let mut rejections: Vec<Rejection> = (0..chosen.len())
            .filter(|rank| chosen[*rank] != Version::Newest)
            .map(|rank| Rejection {
                app: self.candidates[rank].app.name.clone(),
                diagnostics: self.conflicts(rank, index),
                stale: chosen[rank] == Version::LastGood,
            })
            .collect();
        apps.sort_by(|left, right| left.name.cmp(&right.name));
        rejections.sort_by(|left, right| left.app.cmp(&right.app));
        let held = || index.claims();
        let owned = held().map(|claim| (claim.name.clone(), claim.app.clone()));
        Accepted {
            shared: held().filter_map(|claim| self.shared(claim)).collect(),
            owners: owned.collect::<BTreeMap<_, _>>().into(),
            apps,
            rejections,
        }
    }

    /// Which of the two answers is nginx's choice; the proof tells.
    fn shared(&self, claim: Claim<'_>) -> Option<Diagnostic> {
        let (name, at) = (claim.name, claim.at?);
        let place = self.given.hand_written.get(name);
        let place = place.filter(|_| self.has(claim))?;
        let reason = format!(
            "`{name}` is also written by hand, at {place}: take it out of one of the two files"
        );
        Some(Diagnostic::new(claim.file, reason).at(at))
    }

    fn has(&self, claim: Claim<'_>) -> bool {
        self.given.owners.owner(claim.name) == Some(claim.app)
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

    fn claims(
        &self,
        rank: usize,
        version: Version,
    ) -> impl Iterator<Item = Claim<'a>> + use<'_, 'a> {
        let candidate = &self.candidates[rank];
        let (name, file) = (&candidate.app.name, candidate.app.file.as_path());
        let uid = candidate.app.uid;
        let asked = self.version(rank, version).into_iter().flat_map(names);
        let addressed = &self.addressed[rank][usize::from(version == Version::LastGood)];
        let asked = asked.enumerate().map(move |(nth, located)| Claim {
            precedence: Precedence {
                asks: true,
                newcomer: self.given.owners.owner(&located.value) != Some(name),
                rank,
            },
            nth,
            app: name,
            uid,
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
    ) -> impl Iterator<Item = Claim<'a>> + use<'_, 'a> {
        let own = self.owned.get(app).into_iter().flatten();
        own.enumerate().map(move |(nth, name)| Claim {
            precedence: Precedence {
                asks: false,
                newcomer: false,
                rank,
            },
            nth,
            app,
            uid: NO_OWNER,
            file,
            name,
            at: None,
            certificate: None,
        })
    }

    /// What apps that are no candidates own, each with a rank of its own behind all candidates'.
    fn kept_by_silent(&self) -> impl Iterator<Item = Claim<'a>> {
        let silent = (self.candidates.len()..).zip(&self.given.silent);
        silent.flat_map(|(rank, (app, file))| self.kept(rank, app, file))
    }

    fn empty_index(&self) -> Index<'a> {
        let versions = self.candidates.iter();
        let versions = versions.flat_map(|it| std::iter::once(&it.app).chain(&it.fallback));
        let asked = versions.flat_map(names).map(|name| &name.value);
        Index::new(asked.chain(self.owned.values().flatten().copied()))
    }

    /// Where clients arrive of an address that is served over TLS.
    fn sockets(&self, claim: Claim<'_>) -> Vec<SocketAddr> {
        let entrances = self.given.entrances.as_ref();
        let entrances = entrances.filter(|_| claim.certificate.is_some());
        entrances.map_or_else(Vec::new, |it| it.arrivals_of(claim.name))
    }

    /// Whether a version conflicts with itself, or with what no app decides.
    fn is_barred(&self, rank: usize, version: Version) -> bool {
        let mut speaking = BTreeMap::new();
        self.claims(rank, version).any(|claim| {
            let sockets = self.sockets(claim);
            let mut speakers = sockets
                .into_iter()
                .map(|socket| *speaking.entry(socket).or_insert(claim.certificate));
            let another = speakers.any(|speaker| speaker != claim.certificate);
            another || self.against_given(claim).is_some()
        })
    }

    /// What stands between the newest version of a candidate and the chosen versions of the others.
    fn conflicts(&self, rank: usize, index: &Index<'a>) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let mut own = self.own_addresses(rank);
        own.sort_by_key(|claim| claim.name.as_str());
        for claim in self.claims(rank, Version::Newest) {
            found.extend(self.against_given(claim));
            let held = |other: &Claim<'_>| self.given.held.contains(other.app);
            let explain = |other: Claim<'a>| explain(claim, other, held(&other));
            found.extend(index.at_or_above(claim, Precedence::ALL).map(explain));
            let mut below: Vec<_> = index
                .below(claim, &Precedence::ALL)
                .take(SHOWN + 1)
                .collect();
            below.sort_by_key(|other| (other.name.as_str(), other.precedence.rank));
            let more = below.len() > SHOWN;
            below.truncate(SHOWN);
            found.extend(below.into_iter().map(explain));
            let mut sharing = self.sharing(claim, index, &own);
            let more = more || sharing.len() > SHOWN;
            sharing.truncate(SHOWN);
            found.extend(sharing.into_iter().map(|other| unspeakable(claim, other)));
            found.extend(more.then(|| further(claim)));
        }
        found
    }

    fn own_addresses(&self, rank: usize) -> Vec<Claim<'a>> {
        let claims = self.claims(rank, Version::Newest);
        claims.filter(|it| it.certificate.is_some()).collect()
    }

    /// Claims to addresses whose clients could only get another certificate than those of this one; of
    /// its own app, to earlier ones.
    fn sharing(&self, claim: Claim<'a>, index: &Index<'a>, own: &[Claim<'a>]) -> Vec<Claim<'a>> {
        let sockets = self.sockets(claim);
        if sockets.is_empty() {
            return Vec::new();
        }
        let another = |it: &Claim<'a>| it.certificate != claim.certificate;
        let here = |it: &Claim<'a>| self.sockets(*it).iter().any(|it| sockets.contains(it));
        let place = |claim: Claim<'_>| claim.at.map(|at| (at.line, at.column));
        let earlier = |it: &Claim<'a>| place(*it) < place(claim);
        let own = own.iter().filter(|it| another(it) && earlier(it));
        let own = own.filter(|it| here(it)).copied().take(SHOWN + 1);
        let others = index.addresses(&sockets);
        let others = others.filter(|it| it.app != claim.app && another(it));
        let mut sharing: Vec<_> = others.take(SHOWN + 1).chain(own).collect();
        let key = |it: &Claim<'a>| (it.name.as_str(), it.precedence.rank);
        sharing.sort_by(|left, right| key(left).cmp(&key(right)));
        sharing.dedup_by(|left, right| key(left) == key(right));
        sharing
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
        if self.has(claim) {
            return None;
        }
        let owners = &self.given.owners;
        if let Some((kept, reservation)) = owners.reservation_against(name, claim.uid) {
            return Some(reserved(claim, kept, reservation));
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

/// `a.b.example.org` → `*.b.example.org`, `*.example.org`; of a wildcard, without itself.
pub(super) fn wildcards_above(name: &str) -> impl Iterator<Item = String> {
    let inner = name.strip_prefix("*.").unwrap_or(name);
    inner
        .match_indices('.')
        .map(|(dot, _)| format!("*{}", &inner[dot..]))
        .filter(move |wildcard| wildcard != name)
}

pub(super) fn names(app: &App) -> impl Iterator<Item = &Located<ServerName>> {
    app.vhosts.iter().flat_map(VhostSpec::all_names)
}

/// How many of the names below a wildcard are told, and of the addresses that share a socket.
const SHOWN: usize = 10;

#[cfg(test)]
mod tests;
