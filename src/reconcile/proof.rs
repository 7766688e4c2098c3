//! N: a reload is done when the new generation is seen to answer, and only then.
//!
//! In the order of what it costs to look: the master says nothing bad, no worker of the old
//! generation accepts any more (they answer for about 100 ms after the new ones do), the new
//! number answers five times in a row on every ordinary listener, and each changed name is
//! answered by our block, with the certificate that it should have.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::desired::RESERVED_NAME;
use crate::generation::manifest::{Manifest, ServedName};
use crate::nginx::error_log::Verdict;
use crate::nginx::probe::{Answer, ProbeError, Question, reachable};
use crate::nginx::{Nginx, Reloading};

/// Why a generation is not serving.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error("{name} at {address}: {why}")]
    NotOurs {
        name: String,
        address: SocketAddr,
        why: String,
    },
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
    loop {
        let stage = look(nginx, reloading, manifest);
        if !matches!(stage, Err(Unproven::Foreign { .. })) {
            foreign_since = None;
        }
        match stage {
            Ok(()) => return names_answer(nginx, manifest, names, begin + limit),
            Err(Unproven::Never(error)) => return Err(error),
            Err(Unproven::Foreign { address, why }) => {
                let since = *foreign_since.get_or_insert_with(Instant::now);
                if since.elapsed() > FOREIGN_LIMIT {
                    let name = RESERVED_NAME.to_owned();
                    return Err(ProofError::NotOurs { name, address, why });
                }
                thread::sleep(POLL);
            }
            Err(Unproven::NotYet { address, last }) if begin.elapsed() > limit => {
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
            Err(Unproven::NotYet { .. }) => thread::sleep(POLL),
        }
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
    /// A server block that is not ours answers, though no old worker is left.
    Foreign {
        address: SocketAddr,
        why: String,
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
    if reloading.old_workers_accept() {
        return Err(Unproven::NotYet {
            address: first_address(manifest),
            last: "workers of the old generation still accept".into(),
        });
    }
    for question in listeners(manifest) {
        for _ in 0..IN_A_ROW {
            let answer = nginx.ask(&question);
            if matches!(&answer, Err(ProbeError::Foreign(_))) {
                return Err(Unproven::Foreign {
                    address: question.address,
                    why: in_words(&answer),
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
    Ok(())
}

/// `end`: until then, a question that had no answer at all is asked again.
fn names_answer(
    nginx: &dyn Nginx,
    manifest: &Manifest,
    names: &[&ServedName],
    end: Instant,
) -> Result<(), ProofError> {
    for name in names {
        for address in &manifest.http {
            name_answers(nginx, manifest, name, *address, false, end)?;
        }
        if name.leaf.is_some() {
            for address in &manifest.https {
                name_answers(nginx, manifest, name, *address, true, end)?;
            }
        }
    }
    Ok(())
}

fn name_answers(
    nginx: &dyn Nginx,
    manifest: &Manifest,
    name: &ServedName,
    address: SocketAddr,
    tls: bool,
    end: Instant,
) -> Result<(), ProofError> {
    let question = Question {
        address: reachable(address),
        host: name.host.clone(),
        tls,
    };
    let wrong = |why: String| ProofError::NotOurs {
        name: name.host.clone(),
        address: question.address,
        why,
    };
    let answer = ask_until(nginx, &question, end).map_err(|error| wrong(error.to_string()))?;
    let served = answer.leaf.as_ref().map(|leaf| fingerprint(leaf));
    if answer.vhost != name.vhost.to_string() || answer.generation != manifest.number {
        Err(wrong(in_words(&Ok(answer))))
    } else if tls && served != name.leaf {
        Err(wrong("another certificate is served".into()))
    } else {
        Ok(())
    }
}

/// A busy nginx may lose one connection of hundreds; that says nothing about the configuration.
fn ask_until(nginx: &dyn Nginx, question: &Question, end: Instant) -> Result<Answer, ProbeError> {
    loop {
        match nginx.ask(question) {
            Err(ProbeError::Connect(_) | ProbeError::Talk(_)) if Instant::now() < end => {
                thread::sleep(POLL);
            }
            answer => return answer,
        }
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
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use time::OffsetDateTime;

    use super::*;
    use crate::generation::manifest::Reason;
    use crate::nginx::dump::Survey;
    use crate::nginx::{Accepted, ReloadError, TestError};

    /// Answers as generation 7 should, but loses the first connections for `hello`.
    #[derive(Default)]
    struct Busy {
        lost: AtomicUsize,
    }

    impl Nginx for Busy {
        fn test(&self, _: &Path, _: &Path) -> Result<Accepted, TestError> {
            unreachable!()
        }

        fn reload(&self, _: &Survey) -> Result<Box<dyn Reloading>, ReloadError> {
            unreachable!()
        }

        fn ask(&self, question: &Question) -> Result<Answer, ProbeError> {
            let ours = question.host == RESERVED_NAME;
            if !ours && self.lost.fetch_add(1, Ordering::Relaxed) < 3 {
                return Err(ProbeError::Talk(io::ErrorKind::ConnectionReset.into()));
            }
            Ok(Answer {
                generation: 7,
                vhost: if ours { RESERVED_NAME } else { "hello" }.into(),
                leaf: None,
            })
        }
    }

    struct Done;

    impl Reloading for Done {
        fn verdict(&self) -> Verdict {
            Verdict::Quiet
        }

        fn old_workers_accept(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_connection_that_a_busy_nginx_loses_does_not_disprove_a_name() {
        let manifest = Manifest {
            number: 7,
            http: vec![SocketAddr::from(([127, 0, 0, 1], 80))],
            ..Manifest::draft(OffsetDateTime::UNIX_EPOCH, Reason::File, Survey::default())
        };
        let name = ServedName {
            vhost: "hello".parse().unwrap(),
            host: "hello.example.com".into(),
            leaf: None,
            config: String::new(),
        };
        let limit = Duration::from_secs(10);
        prove(&Busy::default(), &Done, &manifest, &[&name], limit).unwrap();
        prove(&Busy::default(), &Done, &manifest, &[&name], Duration::ZERO).unwrap_err();
    }
}
