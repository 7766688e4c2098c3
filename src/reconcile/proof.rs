//! N: a reload is done when the new generation is seen to answer, and only then.
//!
//! In the order of what it costs to look: the master says nothing bad, no worker of the old
//! generation accepts any more (they answer for about 100 ms after the new ones do), the new
//! number answers five times in a row on every ordinary listener, and each changed name is
//! answered by our block, with the certificate that it should have.

use std::fmt;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::desired::{RESERVED_NAME, arrivals};
use crate::generation::manifest::{Manifest, ServedName};
use crate::nginx::error_log::Verdict;
use crate::nginx::probe::{Answer, ProbeError, Question, reachable};
use crate::nginx::{Nginx, Reloading};
use crate::vhost::VhostName;

/// Why a generation is not serving.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// At least one.
    #[error("{}", in_a_line(.0))]
    NotOurs(Vec<ForeignName>),
    /// nginx kept the old configuration and said why.
    #[error("nginx keeps the old configuration: {}", lines.join("; "))]
    Refused { lines: Vec<String> },
    #[error("{} did not answer with generation {generation} within {:.1} s ({last})", address, waited.as_secs_f32())]
    TimedOut {
        generation: u64,
        address: SocketAddr,
        waited: Duration,
        last: String,
    },
}

/// A name that is answered, and not as the generation says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ForeignName {
    /// `None` for the reserved name, without which nothing is proven.
    pub vhost: Option<VhostName>,
    pub host: String,
    pub address: SocketAddr,
    pub why: String,
}

impl fmt::Display for ForeignName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.host, self.address, self.why)
    }
}

fn in_a_line(names: &[ForeignName]) -> String {
    let first = names.first().map(ToString::to_string).unwrap_or_default();
    match names.len() {
        0 | 1 => first,
        more => format!("{first} (and {} more)", more - 1),
    }
}

/// Old and new workers share the sockets for a while: one right answer proves nothing.
const IN_A_ROW: usize = 5;
const POLL: Duration = Duration::from_millis(2);
/// With no old worker left, another block's answer is the new configuration's: it stays.
const FOREIGN_LIMIT: Duration = Duration::from_millis(500);

/// Waits until `manifest`'s generation is proven, or it is certain or too late that it is not.
pub fn prove(
    nginx: &dyn Nginx,
    reloading: &dyn Reloading,
    manifest: &Manifest,
    names: &[&ServedName],
    limit: Duration,
) -> Result<(), ProofError> {
    let begin = Instant::now();
    let mut foreign_since = None;
    let mut names = names.to_vec();
    loop {
        let unproven = match look(nginx, reloading, manifest)
            .and_then(|()| names_answer(nginx, manifest, &mut names))
        {
            Ok(()) => return Ok(()),
            Err(unproven) => unproven,
        };
        match unproven {
            Unproven::Never(error) => return Err(error),
            Unproven::Names {
                names,
                silent: false,
            } => {
                let since = *foreign_since.get_or_insert_with(Instant::now);
                if since.elapsed() > FOREIGN_LIMIT {
                    return Err(ProofError::NotOurs(names));
                }
            }
            Unproven::Names {
                names,
                silent: true,
            } => {
                foreign_since = None;
                if begin.elapsed() > limit {
                    return Err(ProofError::NotOurs(names));
                }
            }
            Unproven::NotYet { address, last } => {
                foreign_since = None;
                if begin.elapsed() > limit {
                    // a port that stays taken: nginx's own words say more than our clock
                    if let Verdict::Retrying(lines) = reloading.verdict() {
                        return Err(ProofError::Refused { lines });
                    }
                    return Err(ProofError::TimedOut {
                        generation: manifest.number,
                        address,
                        waited: begin.elapsed(),
                        last,
                    });
                }
            }
        }
        thread::sleep(POLL);
    }
}

/// The generation that answers on every listener of `manifest` now; `None` where they disagree or
/// somebody else answers.
pub fn answering(nginx: &dyn Nginx, manifest: &Manifest) -> Option<u64> {
    let mut answers =
        listeners(manifest).map(|question| nginx.ask(&question).ok().map(|a| a.generation));
    let first = answers.next()??;
    answers.all(|answer| answer == Some(first)).then_some(first)
}

enum Unproven {
    /// Something else than what is meant answers, though no old worker is left; or, where one is
    /// `silent`, nothing: a busy nginx may drop a connection.
    Names {
        names: Vec<ForeignName>,
        silent: bool,
    },
    NotYet {
        address: SocketAddr,
        last: String,
    },
    Never(ProofError),
}

fn look(nginx: &dyn Nginx, reloading: &dyn Reloading, manifest: &Manifest) -> Result<(), Unproven> {
    if let Verdict::Refused(lines) = reloading.verdict() {
        return Err(Unproven::Never(ProofError::Refused { lines }));
    }
    none_is_old(reloading, manifest)?;
    for question in listeners(manifest) {
        for _ in 0..IN_A_ROW {
            let answer = nginx.ask(&question);
            if matches!(&answer, Err(ProbeError::Foreign(_))) {
                return Err(Unproven::Names {
                    names: vec![ForeignName {
                        vhost: None,
                        host: question.host,
                        address: question.address,
                        why: in_words(&answer),
                    }],
                    silent: false,
                });
            }
            if !matches!(&answer, Ok(answer) if answer.generation == manifest.number) {
                return Err(Unproven::NotYet {
                    address: question.address,
                    last: in_words(&answer),
                });
            }
        }
    }
    // who was not there yet at the first look may have come, and answered all
    none_is_old(reloading, manifest)
}

fn none_is_old(reloading: &dyn Reloading, manifest: &Manifest) -> Result<(), Unproven> {
    match reloading.old_workers_accept() {
        false => Ok(()),
        true => Err(Unproven::NotYet {
            address: first_address(manifest),
            last: "workers of the old generation still accept".into(),
        }),
    }
}

/// `names` keeps those that are still to be proven. All are asked: who fails is told at once.
fn names_answer(
    nginx: &dyn Nginx,
    manifest: &Manifest,
    names: &mut Vec<&ServedName>,
) -> Result<(), Unproven> {
    let (mut unproven, mut silent) = (Vec::new(), false);
    names.retain(|name| {
        // a stalled nginx would keep us for each name: the first one is enough
        if silent {
            return true;
        }
        let plain = manifest.http.iter().map(|address| (*address, false));
        let secure = secure_sockets(manifest, name).into_iter();
        let mut sockets = plain.chain(secure.map(|address| (address, true)));
        let failed = sockets.find_map(|(address, tls)| {
            let address = reachable(address);
            let (why, is_silent) = why_not(nginx, manifest, name, address, tls)?;
            silent |= is_silent;
            Some(ForeignName {
                vhost: Some(name.vhost.clone()),
                host: name.host.clone(),
                address,
                why,
            })
        });
        let keep = failed.is_some();
        unproven.extend(failed);
        keep
    });
    match unproven.is_empty() {
        true => Ok(()),
        false => Err(Unproven::Names {
            names: unproven,
            silent,
        }),
    }
}

/// Where its certificate must be served: of an address, where its clients arrive.
pub(crate) fn secure_sockets(manifest: &Manifest, name: &ServedName) -> Vec<SocketAddr> {
    match (&name.leaf, name.address()) {
        (None, _) => Vec::new(),
        (Some(_), Some(address)) => arrivals(address, &manifest.https),
        (Some(_), None) => manifest.https.clone(),
    }
}

/// What is wrong with the answer, and whether there is none.
fn why_not(
    nginx: &dyn Nginx,
    manifest: &Manifest,
    name: &ServedName,
    address: SocketAddr,
    tls: bool,
) -> Option<(String, bool)> {
    let host = name.host.clone();
    match nginx.ask(&Question { address, host, tls }) {
        Ok(answer) => {
            let served = answer.leaf.as_ref().map(|leaf| fingerprint(leaf));
            if answer.vhost != name.vhost.to_string() || answer.generation != manifest.number {
                Some((in_words(&Ok(answer)), false))
            } else if tls && !served.is_some_and(|leaf| name.has(&leaf)) {
                Some(("another certificate is served".into(), false))
            } else {
                None
            }
        }
        Err(ProbeError::Foreign(why)) => Some((in_words(&Err(ProbeError::Foreign(why))), false)),
        Err(error) => Some((error.to_string(), true)),
    }
}

/// SHA-256 of a leaf's DER, as manifests hold it.
pub fn fingerprint(leaf: &[u8]) -> String {
    Sha256::digest(leaf)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn listeners(manifest: &Manifest) -> impl Iterator<Item = Question> + '_ {
    let plain = manifest.http.iter().map(|address| (address, false));
    let secure = manifest.https.iter().map(|address| (address, true));
    plain.chain(secure).map(|(address, tls)| Question {
        address: reachable(*address),
        host: RESERVED_NAME.into(),
        tls,
    })
}

fn first_address(manifest: &Manifest) -> SocketAddr {
    let first = manifest.http.first().copied();
    reachable(first.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))))
}

fn in_words(answer: &Result<Answer, ProbeError>) -> String {
    match answer {
        Ok(answer) => format!(
            "generation {} answers, by the block of {}",
            answer.generation, answer.vhost
        ),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
