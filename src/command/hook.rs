//! X: a program of the operator's: a clean environment, a process group of its own, output that is bounded.
#![expect(clippy::disallowed_methods, reason = "the room that starts processes")]

use std::collections::BTreeMap;
use std::env;
use std::io::{self, PipeReader, Read, pipe};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::{CommandError, Interrupt, Waited, wait};

/// What a program that has ended left.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// The end of what it wrote, to either stream.
    pub output: Vec<u8>,
}

/// Runs `program` to its end, at most for `limit` and not beyond `interrupt`; then it is killed.
///
/// It has `variables` and what every program needs, and nothing else of ours. Whatever it has
/// started and left behind in its process group ends with it.
pub fn run(
    program: &Path,
    arguments: &[String],
    variables: &BTreeMap<String, String>,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Ended, CommandError> {
    let name = program.display().to_string();
    let started = start(program, arguments, variables);
    let (mut child, output) = started.map_err(|source| CommandError::Start {
        program: name.clone(),
        source,
    })?;
    let waited = wait(child.id(), limit, Some(interrupt));
    end_group(&child);
    let wait_failed = |source| CommandError::Wait {
        program: name.clone(),
        source,
    };
    let status = child.wait().map_err(wait_failed)?;
    match waited.map_err(wait_failed)? {
        Waited::Ended => Ok(Ended {
            status,
            output: output.end(),
        }),
        Waited::Interrupted => Err(CommandError::Interrupted { program: name }),
        Waited::TooLong => Err(CommandError::TimedOut {
            program: name,
            limit,
        }),
    }
}

fn start(
    program: &Path,
    arguments: &[String],
    variables: &BTreeMap<String, String>,
) -> io::Result<(Child, Output)> {
    let (reader, writer) = pipe()?;
    let ours = OURS
        .iter()
        .filter_map(|name| Some((*name, env::var_os(name)?)));
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .envs(ours)
        .envs(variables)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    Ok((child, Output::of(reader)))
}

/// Our own child, not yet waited for: the id of its group cannot be another's.
fn end_group(child: &Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // nobody is left in it: good
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Read beside the program, or a full pipe would stop it.
struct Output {
    last: Arc<Mutex<Vec<u8>>>,
    end: Receiver<()>,
}

impl Output {
    fn of(mut reader: PipeReader) -> Self {
        let last: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (ended, end) = channel();
        let kept = last.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..length]);
                let beyond = kept.len().saturating_sub(KEPT);
                kept.drain(..beyond);
            }
            let _ = ended.send(());
        });
        Self { last, end }
    }

    /// Who has left the group may hold the pipe for ever: it is not waited for.
    fn end(self) -> Vec<u8> {
        let _ = self.end.recv_timeout(PATIENCE);
        let last = self.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// systemd's credentials are for whom the service starts, too (systemd.exec(5)).
const OURS: [&str; 3] = ["CREDENTIALS_DIRECTORY", "HOME", "TMPDIR"];
const KEPT: usize = 4096;
const PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<Ended, CommandError> {
        let variables = BTreeMap::from([("ASKED".to_owned(), "yes".to_owned())]);
        let arguments = ["-c".to_owned(), script.to_owned()];
        let interrupt = Interrupt::new().unwrap();
        run(
            Path::new("/bin/sh"),
            &arguments,
            &variables,
            limit,
            &interrupt,
        )
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_program_has_what_it_was_given_and_nothing_else_of_ours() {
        let ended = sh("env; echo err >&2; exit 3", LONG).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        let text = String::from_utf8(ended.output).unwrap();
        assert!(
            text.contains("ASKED=yes\n") && text.ends_with("err\n"),
            "{text}"
        );
        // cargo's own are not handed on
        assert!(!text.contains("CARGO"), "{text}");
    }

    #[test]
    fn what_a_program_leaves_behind_ends_with_it() {
        let begin = Instant::now();
        let ended = sh("sleep 60 & echo $!", LONG).unwrap();
        let pid = String::from_utf8(ended.output).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(20));
        // gone, or nobody has waited for it yet
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        while state().is_ok_and(|state| !state.contains(") Z ")) {
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let begin = Instant::now();
        let error = sh("sleep 60; echo late", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn of_endless_output_the_end_is_kept() {
        let ended = sh("yes | head -c 1000000; echo end", LONG).unwrap();
        assert!(ended.output.len() <= KEPT);
        assert!(ended.output.ends_with(b"end\n"));
    }
}
