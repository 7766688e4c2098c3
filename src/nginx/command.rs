//! X: one child process, with an argv, a timeout and no inherited surprises.
#![expect(
    clippy::disallowed_methods,
    reason = "nginx is the room that starts processes"
)]

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What a finished child left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("run {program}: {source}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("wait for {program}: {source}")]
    Wait {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("run {program}: it did not end within {} s and was killed", limit.as_secs())]
    TimedOut { program: String, limit: Duration },
}

/// A child that has been started. Dropped before [`Running::finish`], it goes on by itself.
#[derive(Debug)]
pub struct Running {
    program: String,
    child: Child,
}

/// Runs `program` to its end, at most for `limit`, then kills it.
pub fn run<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    limit: Duration,
) -> Result<Finished, CommandError> {
    start(program, arguments)?.finish(limit)
}

/// Starts `program` with what the calling thread has: its namespaces, its privileges.
///
/// The child gets no standard input, and not the service manager's socket: its own `READY=1`
/// would be taken for ours.
pub fn start<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Result<Running, CommandError> {
    let name = program.display().to_string();
    let started = Command::new(program)
        .args(arguments)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match started {
        Ok(child) => Ok(Running {
            program: name,
            child,
        }),
        Err(source) => Err(CommandError::Start {
            program: name,
            source,
        }),
    }
}

impl Running {
    /// Waits for its end, at most for `limit`, then kills it.
    pub fn finish(self, limit: Duration) -> Result<Finished, CommandError> {
        let Self { program, mut child } = self;
        let stdout = child.stdout.take().map(read_to_end);
        let stderr = child.stderr.take().map(read_to_end);
        let in_time = ended_within(child.id(), limit);
        if !matches!(in_time, Ok(true)) {
            // our own child, not yet waited for: the id cannot be another's
            let _ = child.kill();
        }
        let wait_failed = |source| CommandError::Wait {
            program: program.clone(),
            source,
        };
        let status = child.wait().map_err(wait_failed)?;
        if !in_time.map_err(wait_failed)? {
            return Err(CommandError::TimedOut { program, limit });
        }
        Ok(Finished {
            status,
            stdout: join(stdout),
            stderr: String::from_utf8_lossy(&join(stderr)).into_owned(),
        })
    }
}

/// A pidfd becomes readable when its process ends: no polling, no lost wake-up.
fn ended_within(id: u32, limit: Duration) -> io::Result<bool> {
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("no process id"))?;
    let handle: OwnedFd = pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut set = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut set, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

type Reader = thread::JoinHandle<Vec<u8>>;

fn read_to_end(mut stream: impl Read + Send + 'static) -> Reader {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // a broken pipe ends the output, nothing more: the exit status decides
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

fn join(reader: Option<Reader>) -> Vec<u8> {
    reader
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_are_returned() {
        let finished = run(
            Path::new("sh"),
            &["-c", "echo out; echo err >&2; exit 3"],
            Duration::from_secs(10),
        )
        .unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stdout, b"out\n");
        assert_eq!(finished.stderr, "err\n");
    }

    #[test]
    fn a_child_that_hangs_is_killed_at_the_limit() {
        let begin = Instant::now();
        let error = run(Path::new("sleep"), &["60"], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
