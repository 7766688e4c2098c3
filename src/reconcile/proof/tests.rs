use std::path::Path;
use std::sync::Mutex;

use time::OffsetDateTime;

use super::*;
use crate::generation::manifest::Reason;
use crate::nginx::dump::Survey;
use crate::nginx::{Accepted, Logs, ReloadError, TestError, Trial};

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

    fn prove(&self, reloading: &dyn Reloading, names: &[&ServedName]) -> Result<(), ProofError> {
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
    fn test(&self, _: &Path, _: &Path, _: &Logs) -> Result<Accepted, TestError> {
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
        further_leaves: Vec::new(),
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
    let expected = "hello.example.com at 127.0.0.1:80: generation 7 answers, by the block of shop";
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

#[test]
fn every_name_that_does_not_answer_as_ours_is_told_at_once_and_silence_is_waited_for() {
    let named = |host: &str| ServedName {
        vhost: host.split('.').next().unwrap().parse().unwrap(),
        host: host.into(),
        ..hello()
    };
    let names =
        ["hello", "lost", "stray", "mute", "last"].map(|it| named(&format!("{it}.example.com")));
    let names: Vec<&ServedName> = names.iter().collect();
    let nginx = Scripted::new(|question, _| match question.host.as_str() {
        "mute.example.com" => Err(ProbeError::Talk(std::io::ErrorKind::ConnectionReset.into())),
        "lost.example.com" | "stray.example.com" => Err(ProbeError::Foreign("404".into())),
        _ => Ok(answer(7, question)),
    });
    let ProofError::NotOurs(failed) = nginx.prove(&quiet(), &names).unwrap_err() else {
        panic!("another error");
    };
    let hosts: Vec<&str> = failed.iter().map(|name| name.host.as_str()).collect();
    assert_eq!(
        hosts,
        ["lost.example.com", "stray.example.com", "mute.example.com"]
    );
    assert_eq!(nginx.asked_for("hello.example.com"), 2);
    assert!(nginx.asked_for("mute.example.com") > 1);
    // a stalled nginx would keep us at each of thousands
    assert_eq!(nginx.asked_for("last.example.com"), 0);
}
