//! P: which version of each app is served, decided in rounds.
//!
//! A round looks only at what the one before changed, so that the cost grows with the number of
//! claims, and not with the number of rejected apps times that.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Index, Precedence};
use super::{Contest, Version};

pub(super) struct Rounds<'c, 'a> {
    contest: &'c Contest<'a>,
    /// The chosen version of each candidate, by rank.
    pub chosen: Vec<Version>,
    /// The claims of those.
    pub index: Index<'a>,
    /// Versions that no other app's decision can help, once that is known: the newest and the last
    /// good one of each candidate.
    barred: Vec<[Option<bool>; 2]>,
}

/// Why a version cannot be chosen now.
enum Obstacle {
    Claimed { rank: usize },
    Lasting,
}

impl<'c, 'a> Rounds<'c, 'a> {
    /// Every candidate's newest version.
    pub fn new(contest: &'c Contest<'a>) -> Self {
        let count = contest.candidates.len();
        let mut rounds = Self {
            contest,
            chosen: vec![Version::Newest; count],
            index: contest.empty_index(),
            barred: vec![[None; 2]; count],
        };
        for claim in contest.kept_by_silent() {
            rounds.index.add(claim, &[]);
        }
        for rank in 0..count {
            rounds.add(rank);
        }
        rounds
    }

    /// Takes losers back, all of a round at once, until none loses.
    pub fn remove_losers(&mut self) {
        let all = 0..self.chosen.len();
        let mut losers: BTreeSet<usize> = all.filter(|rank| self.loses(*rank)).collect();
        while !losers.is_empty() {
            for loser in &losers {
                let below = self.contest.below(*loser, self.chosen[*loser]);
                self.choose(*loser, below);
            }
            // without a new claim there is no new conflict
            let changed = std::mem::take(&mut losers);
            for rank in changed {
                losers.extend(self.loses(rank).then_some(rank));
                self.beaten_by(rank, &mut losers);
            }
        }
    }

    /// A loser's winner may itself have lost later: gives each, the oldest first, the best version
    /// that conflicts with nothing that is left, and begins again until nothing changes.
    pub fn restore(&mut self) {
        let all = 0..self.chosen.len();
        let mut due: BTreeSet<usize> = all
            .filter(|rank| self.chosen[*rank] != Version::Newest)
            .collect();
        // what stays in the way need not be looked at again: a rank → the ranks that it blocked
        let mut blocked: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        while !due.is_empty() {
            let mut next = BTreeSet::new();
            while let Some(rank) = due.pop_first() {
                for version in self.contest.above(rank, self.chosen[rank]) {
                    match self.obstacle(rank, version) {
                        Some(Obstacle::Claimed { rank: by }) => {
                            blocked.entry(by).or_default().insert(rank);
                        }
                        Some(Obstacle::Lasting) => {}
                        None => {
                            self.choose(rank, version);
                            let mut freed = blocked.remove(&rank).unwrap_or_default();
                            due.append(&mut freed.split_off(&rank));
                            next.append(&mut freed);
                            break;
                        }
                    }
                }
            }
            due = next;
        }
    }

    fn add(&mut self, rank: usize) {
        for claim in self.contest.claims(rank, self.chosen[rank]) {
            self.index.add(claim, &self.contest.sockets(claim));
        }
    }

    fn choose(&mut self, rank: usize, version: Version) {
        for claim in self.contest.claims(rank, self.chosen[rank]) {
            self.index.remove(claim, &self.contest.sockets(claim));
        }
        self.chosen[rank] = version;
        self.add(rank);
    }

    fn is_barred(&mut self, rank: usize, version: Version) -> bool {
        let place = match version {
            Version::Newest => 0,
            Version::LastGood => 1,
            Version::Nothing => return false,
        };
        let contest = self.contest;
        *self.barred[rank][place].get_or_insert_with(|| contest.is_barred(rank, version))
    }

    /// What has a name loses it only to what has another of its names; then the later file loses. An
    /// app loses no name that it does not ask for.
    fn loses(&mut self, rank: usize) -> bool {
        let version = self.chosen[rank];
        if self.is_barred(rank, version) {
            return true;
        }
        let mut claims = self.contest.claims(rank, version);
        claims.any(|claim| {
            let better = claim.precedence.up_to();
            let mut others = self.index.others(claim, &better);
            let sockets = self.contest.sockets(claim);
            let mut speaking = self.index.speaking(claim, &sockets, &better);
            claim.at.is_some() && (others.next().is_some() || speaking.next().is_some())
        })
    }

    /// The ranks of those that lose to the chosen version of `rank`.
    fn beaten_by(&self, rank: usize, losers: &mut BTreeSet<usize>) {
        for claim in self.contest.claims(rank, self.chosen[rank]) {
            let worse = claim.precedence.onwards();
            let others = self.index.others(claim, &worse);
            let asking = others.filter(|other| other.at.is_some());
            losers.extend(asking.map(|other| other.precedence.rank));
            let sockets = self.contest.sockets(claim);
            losers.extend(self.index.speaking(claim, &sockets, &worse));
        }
    }

    /// What stands between `version` of one candidate and the chosen versions of the others.
    fn obstacle(&mut self, rank: usize, version: Version) -> Option<Obstacle> {
        if self.is_barred(rank, version) {
            return Some(Obstacle::Lasting);
        }
        let mut claims = self.contest.claims(rank, version);
        let by = claims.find_map(|claim| {
            let mut others = self.index.others(claim, &Precedence::ALL);
            let other = others.next().map(|other| other.precedence.rank);
            let speaking = || {
                let sockets = self.contest.sockets(claim);
                let all = &Precedence::ALL;
                self.index.speaking(claim, &sockets, all).next()
            };
            other.or_else(speaking)
        });
        by.map(|rank| Obstacle::Claimed { rank })
    }
}
