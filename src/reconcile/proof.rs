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

use crate::desired::RESERVED_NAME;
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
            Unproven::Foreign(names) => {
                let since = *foreign_since.get_or_insert_with(Instant::now);
                if since.elapsed() > FOREIGN_LIMIT {
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
    /// Something else than what is meant answers, though no old worker is left.
    Foreign(Vec<ForeignName>),
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
                return Err(Unproven::Foreign(vec![ForeignName {
                    vhost: None,
                    host: question.host,
                    address: question.address,
                    why: in_words(&answer),
                }]));
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

/// `names` keeps those that are still to be proven. All are asked: who fails is told at once.
fn names_answer(
    nginx: &dyn Nginx,
    manifest: &Manifest,
    names: &mut Vec<&ServedName>,
) -> Result<(), Unproven> {
    let mut unproven: Option<Unproven> = None;
    names.retain(|name| {
        let Err(why) = name_is_ours(nginx, manifest, name) else {
            return false;
        };
        unproven = Some(match (unproven.take(), why) {
            (Some(Unproven::Foreign(mut all)), Unproven::Foreign(one)) => {
                all.extend(one);
                Unproven::Foreign(all)
            }
            // who may answer yet is waited for first
            (Some(Unproven::Foreign(_)) | None, why) => why,
            (Some(first), _) => first,
        });
        true
    });
    unproven.map_or(Ok(()), Err)
}

fn name_is_ours(nginx: &dyn Nginx, manifest: &Manifest, name: &ServedName) -> Result<(), Unproven> {
    for address in &manifest.http {
        name_answers(nginx, manifest, name, *address, false)?;
    }
    if name.leaf.is_some() {
        for address in &manifest.https {
            name_answers(nginx, manifest, name, *address, true)?;
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
) -> Result<(), Unproven> {
    let address = reachable(address);
    let question = Question {
        address,
        host: name.host.clone(),
        tls,
    };
    let why = match nginx.ask(&question) {
        Ok(answer) => {
            let served = answer.leaf.as_ref().map(|leaf| fingerprint(leaf));
            if answer.vhost != name.vhost.to_string() || answer.generation != manifest.number {
                in_words(&Ok(answer))
            } else if tls && served != name.leaf {
                "another certificate is served".into()
            } else {
                return Ok(());
            }
        }
        Err(ProbeError::Foreign(why)) => in_words(&Err(ProbeError::Foreign(why))),
        // a busy nginx may drop a connection
        Err(error) => {
            let last = format!("{}: {error}", name.host);
            return Err(Unproven::NotYet { address, last });
        }
    };
    Err(Unproven::Foreign(vec![ForeignName {
        vhost: Some(name.vhost.clone()),
        host: name.host.clone(),
        address,
        why,
    }]))
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
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use time::OffsetDateTime;

    use super::*;
    use crate::generation::manifest::Reason;
    use crate::nginx::dump::Survey;
    use crate::nginx::{Accepted, ReloadError, TestError, Trial};

    /// Answers by a function of the question and of how many were asked before.
    struct Scripted<F> {
        answer: F,
        asked: Mutex<Vec<Question>>,
    }

    impl<F> Scripted<F>
    where
        F: Fn(&Question, usize) -> Result<Answer, ProbeError> + Send + Sync,
    {
        fn new(answer: F) -> Self {
            Self {
                answer,
                asked: Mutex::default(),
            }
        }

        fn prove(
            &self,
            reloading: &dyn Reloading,
            names: &[&ServedName],
        ) -> Result<(), ProofError> {
            let limit = Duration::from_millis(50);
            prove(self, reloading, &manifest(), names, limit)
        }

        fn asked_for(&self, host: &str) -> usize {
            let asked = self.asked.lock().unwrap();
            asked
                .iter()
                .filter(|question| question.host == host)
                .count()
        }
    }

    impl<F> Nginx for Scripted<F>
    where
        F: Fn(&Question, usize) -> Result<Answer, ProbeError> + Send + Sync,
    {
        fn test(&self, _: &Path, _: &Path, _: &[PathBuf]) -> Result<Accepted, TestError> {
            panic!("a proof tests nothing")
        }

        fn try_alone(&self, _: &Trial<'_>) -> Result<(), TestError> {
            panic!("a proof tries nothing")
        }

        fn reload(&self, _: &Survey) -> Result<Box<dyn Reloading>, ReloadError> {
            panic!("a proof signals nobody")
        }

        fn ask(&self, question: &Question) -> Result<Answer, ProbeError> {
            let mut asked = self.asked.lock().unwrap();
            asked.push(question.clone());
            (self.answer)(question, asked.len() - 1)
        }
    }

    struct Master {
        verdict: Verdict,
        old_looks: Mutex<usize>,
    }

    impl Reloading for Master {
        fn verdict(&self) -> Verdict {
            self.verdict.clone()
        }

        fn old_workers_accept(&self) -> bool {
            let mut looks = self.old_looks.lock().unwrap();
            let more = *looks > 0;
            *looks = looks.saturating_sub(1);
            more
        }
    }

    fn quiet() -> Master {
        Master {
            verdict: Verdict::Quiet,
            old_looks: Mutex::new(0),
        }
    }

    /// Generation 7 on one HTTP and one HTTPS socket.
    fn manifest() -> Manifest {
        Manifest {
            number: 7,
            http: vec![([127, 0, 0, 1], 80).into()],
            https: vec![([127, 0, 0, 1], 443).into()],
            ..Manifest::draft(OffsetDateTime::UNIX_EPOCH, Reason::File, Survey::default())
        }
    }

    fn hello() -> ServedName {
        ServedName {
            vhost: "hello".parse().unwrap(),
            host: "hello.example.com".into(),
            leaf: Some(fingerprint(b"leaf")),
            config: String::new(),
        }
    }

    fn answer(generation: u64, question: &Question) -> Answer {
        Answer {
            generation,
            vhost: question.host.split('.').next().unwrap().into(),
            leaf: question.tls.then(|| b"leaf".to_vec()),
        }
    }

    #[test]
    fn each_listener_answers_five_times_in_a_row_and_each_name_once_per_listener() {
        let nginx = Scripted::new(|question, _| Ok(answer(7, question)));
        nginx.prove(&quiet(), &[&hello()]).unwrap();
        assert_eq!(nginx.asked_for(RESERVED_NAME), 2 * IN_A_ROW);
        assert_eq!(nginx.asked_for("hello.example.com"), 2);
    }

    #[test]
    fn one_old_answer_among_five_begins_the_row_again() {
        let nginx = Scripted::new(|question, before| {
            let generation = if before == IN_A_ROW - 1 { 6 } else { 7 };
            Ok(answer(generation, question))
        });
        nginx.prove(&quiet(), &[]).unwrap();
        assert_eq!(nginx.asked_for(RESERVED_NAME), IN_A_ROW + 2 * IN_A_ROW);
    }

    #[test]
    fn while_an_old_worker_accepts_nothing_is_asked() {
        let nginx = Scripted::new(|question, _| Ok(answer(7, question)));
        let master = Master {
            old_looks: Mutex::new(usize::MAX),
            ..quiet()
        };
        let error = nginx.prove(&master, &[]).unwrap_err();
        assert!(error.to_string().contains("old generation"), "{error}");
        assert_eq!(nginx.asked_for(RESERVED_NAME), 0);
    }

    #[test]
    fn what_the_master_refuses_is_said_at_once_in_its_words() {
        let nginx = Scripted::new(|question, _| Ok(answer(6, question)));
        let master = Master {
            verdict: Verdict::Refused(vec!["[emerg] no".into()]),
            ..quiet()
        };
        let error = nginx.prove(&master, &[]).unwrap_err();
        assert!(error.to_string().ends_with("[emerg] no"), "{error}");
    }

    #[test]
    fn an_old_generation_that_answers_on_is_no_proof() {
        let nginx = Scripted::new(|question, _| Ok(answer(6, question)));
        let error = nginx.prove(&quiet(), &[]).unwrap_err();
        assert!(matches!(error, ProofError::TimedOut { .. }), "{error}");
        assert!(
            error.to_string().contains("generation 6 answers"),
            "{error}"
        );
    }

    #[test]
    fn a_name_that_another_block_answers_is_not_ours() {
        let nginx = Scripted::new(|question, _| {
            let mut answer = answer(7, question);
            if question.host == "hello.example.com" && !question.tls {
                answer.vhost = "shop".into();
            }
            Ok(answer)
        });
        let error = nginx.prove(&quiet(), &[&hello()]).unwrap_err();
        let expected =
            "hello.example.com at 127.0.0.1:80: generation 7 answers, by the block of shop";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_name_with_another_certificate_is_not_ours() {
        let nginx = Scripted::new(|question, _| {
            let mut answer = answer(7, question);
            if question.host == "hello.example.com" && question.tls {
                answer.leaf = Some(b"another".to_vec());
            }
            Ok(answer)
        });
        let error = nginx.prove(&quiet(), &[&hello()]).unwrap_err();
        assert!(
            error.to_string().ends_with("another certificate is served"),
            "{error}"
        );
    }

    #[test]
    fn a_dropped_connection_is_tried_again() {
        let dropped = Mutex::new(3);
        let nginx = Scripted::new(|question, _| {
            let mut left = dropped.lock().unwrap();
            if question.host == "hello.example.com" && *left > 0 {
                *left -= 1;
                return Err(ProbeError::Talk(std::io::ErrorKind::ConnectionReset.into()));
            }
            Ok(answer(7, question))
        });
        nginx.prove(&quiet(), &[&hello()]).unwrap();
        assert_eq!(*dropped.lock().unwrap(), 0);
    }
}
