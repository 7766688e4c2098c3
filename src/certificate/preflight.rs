//! P: what is known before an order is sent: what must fail, and what merely looks odd.
//!
//! Our view is not the CA's. A resolver behind a firewall answers otherwise than the public DNS, a
//! host behind NAT does not have its own public address, and a CDN stands before it rightly. So only
//! what the CA must take for a no is certain, only of a public CA that says it looks into DNS
//! (`caaIdentities` in its directory, RFC 8555 §7.1.1; Pebble says so, too, of a DNS of its own), and
//! only for the first attempts of a row: after them the CA is asked all the same.

pub mod askable; // P which addresses are asked for a challenge
pub mod caa; // P who may issue
pub mod fetch; // N a challenge, fetched as the CA does
pub mod finding; // P what was found, in words
pub mod flight; // N one order's checks, before it and beside it
pub mod observe; // N what there is to see
mod redirect; // P where a redirect of a challenge leads

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::certificate::{CertificateRequest, Challenge, Identifier};
use crate::dns::{Addresses, Caa, Lookup, NoAnswer};
use caa::{Asking, Permission};
use fetch::Fetched;
pub use finding::Finding;

/// What was seen of one order.
#[derive(Clone, Debug)]
pub struct Observations {
    pub names: Vec<Observed>,
    /// This host's own addresses.
    pub host: Vec<IpAddr>,
    pub ca: Ca,
    /// How far our clock is ahead of the CA's; `None`: it has not said.
    pub ahead: Option<Duration>,
    pub method: Method,
    /// The CA has looked since, and was content.
    pub issued: bool,
}

/// What was seen of one identifier. `None`: not in time, or nobody looked.
#[derive(Clone, Debug)]
pub struct Observed {
    pub identifier: Identifier,
    /// Of an address: itself.
    pub addresses: Option<Addresses>,
    /// What each name says that may speak for this one, the nearest first.
    pub caa: Vec<(String, Option<Lookup<Vec<Caa>>>)>,
    /// What was answered at an address.
    pub fetched: Vec<(IpAddr, Fetched)>,
}

/// The CA that is to be asked.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ca {
    /// The host of its directory.
    pub host: String,
    /// `caaIdentities` of its directory.
    pub identities: Vec<String>,
    /// Our account's URL.
    pub account: String,
    /// It is in a network of its own, so that its DNS may be another than ours.
    pub private: bool,
}

/// How control is proven (RFC 8555 §8).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    Dns01,
    Http01,
}

/// What is to be thought of an order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Verdict {
    /// The CA would refuse it.
    pub certain: Vec<Finding>,
    /// It may be meant so.
    pub odd: Vec<Finding>,
}

/// What looked odd at the last order for these names; stored, so that `status` shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Remarks {
    pub identifiers: Vec<Identifier>,
    /// None: all was well.
    pub remarks: Vec<Remark>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Remark {
    /// The same at every order, however its words differ.
    pub about: String,
    /// A sentence.
    pub told: String,
}

impl Remarks {
    pub fn warnings(&self) -> Vec<String> {
        self.remarks.iter().map(|one| one.told.clone()).collect()
    }
}

impl Ca {
    /// Whether the public DNS binds it, as it says itself.
    pub fn obeys_dns(&self) -> bool {
        !self.identities.is_empty() && !self.private
    }

    /// RFC 8657 is nobody's duty, and no directory tells: of whom it is known.
    fn knows_parameters(&self) -> bool {
        let known = |domain: &&str| {
            let rest = self.host.strip_suffix(*domain);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        KEEP_RFC_8657.iter().any(known)
    }
}

impl Method {
    pub fn of(challenge: &Challenge) -> Self {
        match challenge {
            Challenge::Dns01(_) => Self::Dns01,
            Challenge::Http01 => Self::Http01,
        }
    }

    /// RFC 8657 §4.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dns01 => "dns-01",
            Self::Http01 => "http-01",
        }
    }
}

/// Whether an order that must fail is kept back. Not where a person insists; not for long, because
/// we may be wrong; and not where the certificate is about to end.
pub fn holds_back(request: &CertificateRequest, now: OffsetDateTime) -> bool {
    let soon = |expires: OffsetDateTime| expires - now < ABOUT_TO_END;
    !request.forced && request.failures < HELD_BACK && !request.expires.is_some_and(soon)
}

/// Whether an order that only tries failing identifiers again is kept back as long as they do not
/// lead here; every seventh is sent all the same, because we may be wrong.
pub fn holds_back_retry(request: &CertificateRequest) -> bool {
    let person = request.forced || request.insisted;
    !request.retried.is_empty() && !person && !request.failures.is_multiple_of(RETRIES_HELD_BACK)
}

/// Why no address of these answers the challenge.
pub fn unreached(seen: &Observations, names: &[Identifier]) -> Vec<Finding> {
    let observed = seen.names.iter();
    let observed = observed.filter(|it| names.contains(&it.identifier));
    let reaches = |it: &Observed| {
        let mut fetched = it.fetched.iter();
        fetched.any(|(_, fetched)| *fetched == Fetched::Ours)
    };
    let why = |it: &Observed| {
        let (address, fetched) = it.fetched.first()?;
        let name = it.identifier.to_string();
        reached(&name, *address, seen.host.contains(address), Some(fetched))
    };
    match observed.clone().any(reaches) {
        true => Vec::new(),
        false => observed.filter_map(why).collect(),
    }
}

pub fn decide(seen: &Observations) -> Verdict {
    let mut verdict = Verdict::default();
    for observed in &seen.names {
        addresses(seen, observed, &mut verdict);
        authorization(seen, observed, &mut verdict);
    }
    clock(seen, &mut verdict);
    verdict
}

impl Verdict {
    fn add(&mut self, finding: Finding, certain: bool) {
        match certain {
            true => self.certain.push(finding),
            false => self.odd.push(finding),
        }
    }

    /// All of it, what must fail first.
    pub fn findings(self) -> Vec<Finding> {
        self.certain.into_iter().chain(self.odd).collect()
    }
}

/// By dns-01 a name needs none.
fn addresses(seen: &Observations, observed: &Observed, verdict: &mut Verdict) {
    if seen.method != Method::Http01 {
        return;
    }
    let name = observed.identifier.to_string();
    let Some(found) = &observed.addresses else {
        let why = "no answer in time".to_owned();
        return verdict.add(Finding::Unresolved { name, why }, false);
    };
    let all = found.all();
    if all.is_empty() {
        let certain = seen.ca.obeys_dns();
        let should = finding::publicly(&seen.host);
        return match found.why_none() {
            NoAnswer::NoData => verdict.add(Finding::NoAddress { name, should }, certain),
            NoAnswer::NoSuchName => verdict.add(Finding::NoName { name, should }, certain),
            error => {
                let why = error.to_string();
                verdict.add(Finding::Unresolved { name, why }, false);
            }
        };
    }
    // it came by the only way there is: behind NAT a host may not reach itself by its public address
    let proven = seen.issued && all.iter().all(IpAddr::is_ipv4);
    for address in all {
        let fetched = observed.fetched.iter().find(|(at, _)| *at == address);
        let fetched = fetched.map(|(_, fetched)| fetched);
        let unseen = |it: &Fetched| matches!(it, Fetched::Failed(_) | Fetched::NotAsked(_));
        if proven && fetched.is_none_or(unseen) {
            continue;
        }
        if let Some(finding) = reached(&name, address, seen.host.contains(&address), fetched) {
            verdict.add(finding, false);
        }
    }
}

/// What answers the challenge is right, wherever it is: NAT and CDNs are.
fn reached(name: &str, address: IpAddr, ours: bool, fetched: Option<&Fetched>) -> Option<Finding> {
    let name = name.to_owned();
    match fetched {
        Some(Fetched::Ours) => None,
        Some(Fetched::Other(what)) => Some(Finding::OtherAnswer {
            name,
            address,
            what: what.clone(),
        }),
        Some(Fetched::NotAsked(kind)) => Some(Finding::NotAsked {
            name,
            address,
            kind,
        }),
        Some(Fetched::Failed(why)) if ours => Some(Finding::Unanswered {
            name,
            address,
            why: why.clone(),
        }),
        Some(Fetched::Failed(why)) => Some(Finding::Foreign {
            name,
            address,
            why: Some(why.clone()),
        }),
        None if ours => None,
        None => Some(Finding::Foreign {
            name,
            address,
            why: None,
        }),
    }
}

fn authorization(seen: &Observations, observed: &Observed, verdict: &mut Verdict) {
    // RFC 8659 §3 is about names
    let (Identifier::Dns(name), true) = (&observed.identifier, seen.ca.obeys_dns()) else {
        return;
    };
    let late: Lookup<Vec<Caa>> = Err(NoAnswer::Unconfirmed);
    let levels = observed.caa.iter();
    let levels = levels.map(|(name, said)| (name.as_str(), said.as_ref().unwrap_or(&late)));
    let Some((at, records)) = caa::relevant(levels) else {
        return;
    };
    let (name, at) = (name.clone(), at.to_owned());
    let records = match records {
        Ok(records) => records,
        // a registry has none, and some resolvers forward no name of one label
        Err(_) if !at.contains('.') => return,
        Err(error) => {
            let why = match error {
                NoAnswer::Unconfirmed => "no answer in time".to_owned(),
                error => error.to_string(),
            };
            return verdict.add(Finding::CaaUnknown { name, at, why }, false);
        }
    };
    let asking = Asking {
        identities: &seen.ca.identities,
        account: &seen.ca.account,
        method: seen.method.name(),
        wildcard: name.starts_with("*."),
    };
    let ca = seen.ca.identities.first().cloned().unwrap_or_default();
    match caa::permission(records, asking) {
        Permission::Granted => {}
        Permission::Denied { allowed } => {
            let finding = Finding::CaaDenies {
                name,
                at,
                allowed,
                ca,
            };
            verdict.add(finding, true);
        }
        Permission::Narrowed { parameter, value } => {
            let ours = match parameter {
                "accounturi" => seen.ca.account.clone(),
                _ => asking.method.to_owned(),
            };
            let finding = Finding::CaaNarrows {
                name,
                at,
                parameter,
                value,
                ours,
            };
            verdict.add(finding, seen.ca.knows_parameters());
        }
        Permission::Critical { tag } => {
            verdict.add(Finding::CaaCritical { name, at, tag }, true);
        }
    }
}

/// A certificate is not stored that begins later than now: that of a CA whose clock is right would
/// be refused here, after it was issued and counted.
fn clock(seen: &Observations, verdict: &mut Verdict) {
    let Some(ahead) = seen.ahead.filter(|ahead| ahead.abs() > ODD_CLOCK) else {
        return;
    };
    let certain = ahead < -WRONG_CLOCK && seen.ca.obeys_dns();
    verdict.add(Finding::Clock { ahead }, certain);
}

/// Let's Encrypt: <https://letsencrypt.org/docs/caa/>.
const KEEP_RFC_8657: [&str; 1] = ["letsencrypt.org"];
/// In a row: two hours. Then the CA is asked all the same, once a day.
const HELD_BACK: u32 = 3;
const RETRIES_HELD_BACK: u32 = 7;
const ABOUT_TO_END: Duration = Duration::DAY;
/// CAs begin their certificates an hour, some a day, before they issue them.
const WRONG_CLOCK: Duration = Duration::hours(25);
const ODD_CLOCK: Duration = Duration::minutes(5);

#[cfg(test)]
mod tests;
