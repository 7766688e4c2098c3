//! P: the claims of every app's chosen version, where one app's are added, removed and compared
//! without a look at all the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::Claim;
use crate::certificate::CertificateName;
use crate::vhost::ServerName;

/// Which of two conflicting claims wins: the lesser. Those of two apps are never equal.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Precedence {
    /// A name that nothing asks for stays its owner's.
    pub asks: bool,
    /// Whether another app owns the name, or none.
    pub newcomer: bool,
    /// Behind every candidate's for an app that is none.
    pub rank: usize,
}

impl Precedence {
    const FIRST: Self = Self {
        asks: false,
        newcomer: false,
        rank: 0,
    };
    const LAST: Self = Self {
        asks: true,
        newcomer: true,
        rank: usize::MAX,
    };
    pub const ALL: RangeInclusive<Self> = Self::FIRST..=Self::LAST;

    pub fn up_to(self) -> RangeInclusive<Self> {
        Self::FIRST..=self
    }

    pub fn onwards(self) -> RangeInclusive<Self> {
        self..=Self::LAST
    }
}

#[derive(Default)]
pub(super) struct Index<'a> {
    /// The wildcards that any version of any app has, by their zones: `.example.org` →
    /// `*.example.org`.
    zones: BTreeMap<&'a str, &'a str>,
    by_name: Claims<'a>,
    /// By the wildcards above them.
    below: Claims<'a>,
    /// By the sockets where their clients arrive, and by name.
    addresses: BTreeMap<(SocketAddr, &'a str, Precedence), Claim<'a>>,
    /// The certificates of `addresses`: an app with many addresses has few of these.
    speakers: BTreeMap<(SocketAddr, Precedence), BTreeSet<&'a CertificateName>>,
}

type Claims<'a> = BTreeMap<(&'a str, Precedence, usize), Claim<'a>>;

/// Those of `claims` that have this key, and a precedence between these.
fn of<'s, 'a>(
    claims: &'s Claims<'a>,
    key: &'a str,
    between: &RangeInclusive<Precedence>,
) -> impl Iterator<Item = Claim<'a>> + use<'s, 'a> {
    let range = (key, *between.start(), 0)..=(key, *between.end(), usize::MAX);
    claims.range(range).map(|(_, claim)| {
        looked();
        *claim
    })
}

impl<'a> Index<'a> {
    /// Empty, for versions that ask for no wildcards but those among `names`.
    pub fn new(names: impl Iterator<Item = &'a ServerName>) -> Self {
        let wildcards = names.filter(|name| name.is_wildcard());
        let wildcards = wildcards.map(ServerName::as_str);
        Self {
            zones: wildcards.map(|text| (&text[1..], text)).collect(),
            ..Self::default()
        }
    }

    /// `sockets`: where clients of an address arrive that is served over TLS.
    pub fn add(&mut self, claim: Claim<'a>, sockets: &[SocketAddr]) {
        looked();
        let key = |text: &'a str| (text, claim.precedence, claim.nth);
        let above: Vec<&str> = self.above(claim.name).collect();
        self.by_name.insert(key(claim.name.as_str()), claim);
        for wildcard in above {
            self.below.insert(key(wildcard), claim);
        }
        let Some(certificate) = claim.certificate else {
            return;
        };
        for socket in sockets {
            let key = (*socket, claim.name.as_str(), claim.precedence);
            self.addresses.insert(key, claim);
            let speakers = self.speakers.entry((*socket, claim.precedence));
            speakers.or_default().insert(certificate);
        }
    }

    /// Takes out what [`Self::add`] was given; with it go all claims of the app to the same sockets.
    pub fn remove(&mut self, claim: Claim<'a>, sockets: &[SocketAddr]) {
        looked();
        let key = |text: &'a str| (text, claim.precedence, claim.nth);
        let above: Vec<&str> = self.above(claim.name).collect();
        self.by_name.remove(&key(claim.name.as_str()));
        for wildcard in above {
            self.below.remove(&key(wildcard));
        }
        for socket in sockets {
            let key = (*socket, claim.name.as_str(), claim.precedence);
            self.addresses.remove(&key);
            self.speakers.remove(&(*socket, claim.precedence));
        }
    }

    /// The wildcards above a name, the longest first.
    fn above(&self, name: &'a ServerName) -> impl Iterator<Item = &'a str> + use<'_, 'a> {
        let text = name.as_str();
        let inner = text.strip_prefix("*.").unwrap_or(text);
        let dots = inner.match_indices('.').map(|(dot, _)| dot);
        dots.filter_map(move |dot| self.zones.get(&inner[dot..]).copied())
    }

    /// Other apps' claims to the same name, to a wildcard above it, and to names below it.
    pub fn others(
        &self,
        claim: Claim<'a>,
        between: &RangeInclusive<Precedence>,
    ) -> impl Iterator<Item = Claim<'a>> + use<'_, 'a> {
        let at_or_above = self.at_or_above(claim, between.clone());
        at_or_above.chain(self.below(claim, between))
    }

    pub fn at_or_above(
        &self,
        claim: Claim<'a>,
        between: RangeInclusive<Precedence>,
    ) -> impl Iterator<Item = Claim<'a>> + use<'_, 'a> {
        let names = std::iter::once(claim.name.as_str()).chain(self.above(claim.name));
        let claims = names.flat_map(move |name| of(&self.by_name, name, &between));
        claims.filter(move |other| other.app != claim.app)
    }

    pub fn below(
        &self,
        claim: Claim<'a>,
        between: &RangeInclusive<Precedence>,
    ) -> impl Iterator<Item = Claim<'a>> + use<'_, 'a> {
        let claims = of(&self.below, claim.name.as_str(), between);
        claims.filter(move |other| other.app != claim.app)
    }

    /// The ranks of other apps whose certificate, and not this claim's, a client at one of `sockets`
    /// may get.
    pub fn speaking(
        &self,
        claim: Claim<'a>,
        sockets: &[SocketAddr],
        between: &RangeInclusive<Precedence>,
    ) -> impl Iterator<Item = usize> {
        let (low, high) = (*between.start(), *between.end());
        let here = sockets
            .iter()
            .flat_map(move |socket| self.speakers.range((*socket, low)..=(*socket, high)));
        here.filter_map(move |((_, precedence), certificates)| {
            looked();
            let own = precedence.rank == claim.precedence.rank;
            let another = |it: &&CertificateName| Some(*it) != claim.certificate;
            // of many certificates one at most is the same
            let another = certificates.iter().take(2).any(another);
            (!own && another).then_some(precedence.rank)
        })
    }

    /// All claims to addresses whose clients arrive at one of `sockets`, by name.
    pub fn addresses(&self, sockets: &[SocketAddr]) -> impl Iterator<Item = Claim<'a>> {
        let here = sockets.iter().flat_map(|socket| {
            let claims = self.addresses.range((*socket, "", Precedence::FIRST)..);
            claims.take_while(move |((other, ..), _)| other == socket)
        });
        here.map(|(_, claim)| {
            looked();
            *claim
        })
    }

    /// By name.
    pub fn claims(&self) -> impl Iterator<Item = Claim<'a>> {
        self.by_name.values().copied()
    }
}

#[cfg(not(test))]
fn looked() {}

#[cfg(test)]
fn looked() {
    LOOKS.with(|looks| looks.set(looks.get() + 1));
}

#[cfg(test)]
thread_local! {
    /// How often a claim was added, removed or compared: the cost, without a clock.
    pub(super) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
