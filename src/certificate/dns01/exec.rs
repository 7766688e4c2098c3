//! X: a program of the operator's changes the zone (docs/dns-01.md says what it is told).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::record::Record;
use super::{Changing, DnsProvider, ProviderError};
use crate::certificate::words::one_line;
use crate::command::program::{Background, Ended, Heard, Inherits, Program};
use crate::command::{CommandError, Interrupt};
use crate::settings::ExecSettings;

/// One program, at most once at a time: many read a zone, change it, and write it back.
pub struct Exec {
    settings: ExecSettings,
    timeout: Duration,
    turn: Arc<Mutex<()>>,
}

/// Why a program did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("run {} {action}: it ended with {status}{output}", program.display())]
    Ended {
        program: PathBuf,
        action: &'static str,
        status: String,
        /// With what stands before it; may be empty.
        output: String,
    },
    #[error("run a program: {0}")]
    Prepare(#[source] io::Error),
    #[error("finish work in the background: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Exec {
    pub(super) fn new(settings: &ExecSettings, timeout: Duration) -> Self {
        Self {
            settings: settings.clone(),
            timeout,
            turn: Arc::default(),
        }
    }

    /// Cancelled, it ends the program before anything else of the same provider is run.
    async fn run(&self, action: &'static str, record: &Record) -> Result<(), ExecError> {
        let turn = self.turn.clone().lock_owned().await;
        let interrupt = Arc::new(Interrupt::new().map_err(ExecError::Prepare)?);
        let _raised_when_dropped = Raised(interrupt.clone());
        let program = self.program(action, record);
        let limit = self.timeout;
        let ended = spawn_blocking(move || {
            let _turn = turn;
            program.run(limit, Some(&interrupt))
        });
        self.judge(action, ended.await??)
    }

    fn program(&self, action: &str, record: &Record) -> Program {
        let mut arguments = self.settings.arguments.clone();
        arguments.extend(words(action, record));
        let mut variables = self.settings.environment.clone();
        variables.extend(told(action, record));
        Program {
            path: self.settings.program.clone(),
            arguments,
            variables,
            input: Vec::new(),
            inherits: Inherits::Necessities,
            heard: Heard::EndOfAll,
            background: Background::Ends,
        }
    }

    fn judge(&self, action: &'static str, ended: Ended) -> Result<(), ExecError> {
        let output = self.without_secrets(&String::from_utf8_lossy(&ended.output));
        if ended.status.success() {
            tracing::debug!(program = %self.settings.program.display(), action, "{output}");
            return Ok(());
        }
        Err(ExecError::Ended {
            program: self.settings.program.clone(),
            action,
            status: ended.status.to_string(),
            output: match output.is_empty() {
                true => String::new(),
                false => format!(": {output}"),
            },
        })
    }

    /// The end of what it said, without what the settings have told it.
    fn without_secrets(&self, output: &str) -> String {
        let mut output = output.to_owned();
        let told = self.settings.environment.values();
        for secret in told.chain(&self.settings.arguments) {
            if secret.len() >= SHORTEST_SECRET {
                output = output.replace(secret.as_str(), "…");
            }
        }
        let from = output.len().saturating_sub(SHOWN);
        let from = (from..=output.len()).find(|at| output.is_char_boundary(*at));
        one_line(&output.as_bytes()[from.unwrap_or_default()..])
    }
}

impl DnsProvider for Exec {
    fn present<'a>(&'a self, record: &'a Record) -> Changing<'a> {
        Box::pin(async move {
            self.run("present", record)
                .await
                .map_err(ProviderError::Exec)
        })
    }

    fn clean_up<'a>(&'a self, record: &'a Record) -> Changing<'a> {
        Box::pin(async move {
            self.run("cleanup", record)
                .await
                .map_err(ProviderError::Exec)
        })
    }
}

/// As lego's exec provider says it, so that its scripts work: the action, the name where the record
/// is, with its last dot, and the value.
fn words(action: &str, record: &Record) -> [String; 3] {
    [
        action.to_owned(),
        format!("{}.", record.target),
        record.value.clone(),
    ]
}

fn told(action: &str, record: &Record) -> BTreeMap<String, String> {
    let domain = record.name.strip_prefix("_acme-challenge.");
    let relative = record.target.strip_suffix(&record.zone);
    let relative = relative.map(|it| it.trim_end_matches('.'));
    [
        ("VHOSTD_ACTION", action),
        ("VHOSTD_DOMAIN", domain.unwrap_or_default()),
        ("VHOSTD_NAME", &record.target),
        ("VHOSTD_RELATIVE_NAME", relative.unwrap_or_default()),
        ("VHOSTD_VALUE", &record.value),
        ("VHOSTD_ZONE", &record.zone),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Nobody needs the program any more once whoever waits for it is gone.
struct Raised(Arc<Interrupt>);

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.raise();
    }
}

const SHOWN: usize = 400;
/// Shorter ones are words.
const SHORTEST_SECRET: usize = 8;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn exec(script: &str) -> Exec {
        let settings = ExecSettings {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into(), "hook".into()],
            environment: BTreeMap::from([("TOKEN".into(), "very-secret-token".into())]),
        };
        Exec::new(&settings, Duration::from_secs(20))
    }

    fn record() -> Record {
        Record {
            name: "_acme-challenge.a.example".into(),
            target: "a.acme.other.example".into(),
            zone: "other.example".into(),
            value: "VALUE".into(),
        }
    }

    async fn said(script: &str) -> String {
        let error = exec(script).present(&record()).await.unwrap_err();
        error.to_string()
    }

    #[tokio::test]
    async fn a_program_is_told_what_to_put_where() {
        let said = said(
            "echo $1 $2 $3 $VHOSTD_ACTION $VHOSTD_DOMAIN $VHOSTD_NAME $VHOSTD_RELATIVE_NAME $VHOSTD_ZONE $VHOSTD_VALUE; exit 1",
        );
        assert_eq!(
            said.await,
            "run /bin/sh present: it ended with exit status: 1: present a.acme.other.example. VALUE \
             present a.example a.acme.other.example a.acme other.example VALUE"
        );
    }

    #[tokio::test]
    async fn what_a_program_was_told_in_secret_is_not_shown() {
        let said = said("echo denied: $TOKEN; exit 3").await;
        assert_eq!(
            said,
            "run /bin/sh present: it ended with exit status: 3: denied: …"
        );
        assert!(!format!("{:?}", exec("").settings).contains("very-secret"));
    }

    #[tokio::test]
    async fn who_is_cancelled_kills_the_program_before_the_next_one_runs() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let path = log.display();
        let exec = exec(&format!(
            "echo begin $1 >> {path}; test $1 = cleanup || sleep 60; echo end $1 >> {path}"
        ));
        let limit = Duration::from_millis(300);
        let (record, begin) = (record(), Instant::now());
        let presented = tokio::time::timeout(limit, exec.present(&record)).await;
        assert!(presented.is_err());
        exec.clean_up(&record).await.unwrap();
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.ends_with("begin cleanup\nend cleanup\n"), "{log}");
        assert!(!log.contains("end present"), "{log}");
        // its own limit is 20 s
        assert!(begin.elapsed() < Duration::from_secs(15));
    }
}
