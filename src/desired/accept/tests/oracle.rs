//! The same decisions without an index: everything is compared with everything, each time.

use std::collections::BTreeSet;

use super::*;
use crate::desired::accept::words::{explain, unspeakable};

/// What [`accept`] decides.
pub(super) fn accept(mut candidates: Vec<Candidate>, given: &Given) -> Accepted {
    candidates.sort_by_key(|it| (it.modified, it.app.file.clone(), it.app.name.clone()));
    let of = |app: &App| match &given.entrances {
        Some(entrances) => addressed(app, &entrances.tls),
        None => BTreeMap::new(),
    };
    let addressed = candidates.iter().map(|candidate| {
        let fallback = candidate.fallback.as_ref().map(of);
        [of(&candidate.app), fallback.unwrap_or_default()]
    });
    let addressed = addressed.collect::<Vec<_>>();
    let contest = Contest {
        candidates: &candidates,
        addressed: &addressed,
        owned: given.owners.by_app(),
        given,
    };
    let mut chosen = without_losers(&contest);
    restore(&contest, &mut chosen);
    let held = all(&contest, &chosen);
    let owned = held.iter().map(|it| (it.name.clone(), it.app.clone()));
    let mut accepted = Accepted {
        owners: owned.collect::<BTreeMap<_, _>>().into(),
        shared: held.iter().filter_map(|it| contest.shared(*it)).collect(),
        ..contest.result(&chosen, &contest.empty_index())
    };
    for rejection in &mut accepted.rejections {
        let is = |it: &Candidate| it.app.name == rejection.app;
        let rank = candidates.iter().position(is).unwrap();
        rejection.diagnostics = conflicts(&contest, rank, Version::Newest, &chosen);
    }
    accepted
}

fn without_losers(contest: &Contest<'_>) -> Vec<Version> {
    let mut chosen = vec![Version::Newest; contest.candidates.len()];
    loop {
        let losers = losers(contest, &chosen);
        if losers.is_empty() {
            return chosen;
        }
        for loser in losers {
            chosen[loser] = contest.below(loser, chosen[loser]);
        }
    }
}

fn restore(contest: &Contest<'_>, chosen: &mut [Version]) {
    let mut changed = true;
    while changed {
        changed = false;
        for rank in 0..chosen.len() {
            for version in contest.above(rank, chosen[rank]) {
                if conflicts(contest, rank, version, chosen).is_empty() {
                    chosen[rank] = version;
                    changed = true;
                    break;
                }
            }
        }
    }
}

/// By name, then by rank.
fn all<'a>(contest: &Contest<'a>, chosen: &[Version]) -> Vec<Claim<'a>> {
    let versions = chosen.iter().enumerate();
    let asked = versions.flat_map(|(rank, version)| contest.claims(rank, *version));
    let mut all: Vec<_> = asked.chain(contest.kept_by_silent()).collect();
    all.sort_by_key(|it| (it.name.as_str(), it.precedence.rank));
    all
}

fn losers(contest: &Contest<'_>, chosen: &[Version]) -> BTreeSet<usize> {
    let all = all(contest, chosen);
    let mut losers = BTreeSet::new();
    for claim in &all {
        if claim.at.is_some() && contest.against_given(*claim).is_some() {
            losers.insert(claim.precedence.rank);
        }
        let sharing = sharing(contest, &all, *claim);
        for other in at_or_above(&all, *claim).into_iter().chain(sharing) {
            losers.extend(loser(*claim, other));
        }
    }
    losers
}

fn loser(left: Claim<'_>, right: Claim<'_>) -> Option<usize> {
    let later = if left.precedence > right.precedence {
        left
    } else {
        right
    };
    later.at.map(|_| later.precedence.rank)
}

fn conflicts(
    contest: &Contest<'_>,
    rank: usize,
    version: Version,
    chosen: &[Version],
) -> Vec<Diagnostic> {
    let mut others = chosen.to_vec();
    others[rank] = version;
    let all = all(contest, &others);
    let mut found = Vec::new();
    for claim in contest.claims(rank, version) {
        found.extend(contest.against_given(claim));
        let above = at_or_above(&all, claim);
        found.extend(above.into_iter().map(|other| explain(claim, other, false)));
        let below = all
            .iter()
            .filter(|other| other.app != claim.app && claim.name.is_above(other.name));
        found.extend(below.map(|other| explain(claim, *other, false)));
        let sharing = sharing(contest, &all, claim);
        found.extend(sharing.into_iter().map(|other| unspeakable(claim, other)));
    }
    found
}

/// The same name, then the wildcards above it, the longest first.
fn at_or_above<'a>(all: &[Claim<'a>], claim: Claim<'a>) -> Vec<Claim<'a>> {
    let others = all.iter().filter(|other| other.app != claim.app);
    let others = others.filter(|other| other.name == claim.name || other.name.is_above(claim.name));
    let mut others: Vec<_> = others.copied().collect();
    others.sort_by_key(|it| {
        let name = it.name.as_str();
        (it.name != claim.name, std::cmp::Reverse(name.len()))
    });
    others
}

fn sharing<'a>(contest: &Contest<'a>, all: &[Claim<'a>], claim: Claim<'a>) -> Vec<Claim<'a>> {
    let (Some(certificate), Some(entrances)) = (claim.certificate, &contest.given.entrances) else {
        return Vec::new();
    };
    let place = |claim: Claim<'_>| claim.at.map(|at| (at.line, at.column));
    let mut others = all.to_vec();
    others.retain(|other| {
        let another = other.certificate.is_some_and(|it| it != certificate);
        let own = other.app == claim.app;
        another
            && (!own || place(*other) < place(claim))
            && entrances.shared(claim.name, other.name).is_some()
    });
    others
}
