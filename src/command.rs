//! X: one child process, with an argv, a timeout and no inherited surprises.
#![expect(clippy::disallowed_methods, reason = "the room that starts processes")]

pub mod program; // X a program of the operator's

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
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
    #[error("wait for {program}: nobody needs its answer any more")]
    Interrupted { program: String },
    #[error("wait for {program}: {source}")]
    Wait {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("run {program}: it did not end within {} s and was killed", limit.as_secs())]
    TimedOut { program: String, limit: Duration },
}

/// Says that nobody needs what children are asked: whoever waits for one ends it.
#[derive(Debug)]
pub struct Interrupt(OwnedFd);

impl Interrupt {
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// For good.
    pub fn raise(&self) {
        // eventfd(2): it fails only where it was raised 2^64 times
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
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
/// The child gets no standard input, and not the service manager's socket.
pub fn start<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Result<Running, CommandError> {
    let name = program.display().to_string();
    let mut command = Command::new(program);
    keep_from_service_manager(&mut command);
    let started = command
        .args(arguments)
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

/// A `READY=1` of a child's own would be taken for ours.
fn keep_from_service_manager(command: &mut Command) {
    for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"] {
        command.env_remove(name);
    }
}

impl Running {
    /// Waits for its end, at most for `limit`, then kills it.
    pub fn finish(self, limit: Duration) -> Result<Finished, CommandError> {
        let Self { program, mut child } = self;
        let stdout = child.stdout.take().map(read_to_end);
        let stderr = child.stderr.take().map(read_to_end);
        let ended = ends_within(child.id(), limit);
        if !matches!(ended, Ok(true)) {
            // our own child, not yet waited for: the id cannot be another's
            let _ = child.kill();
        }
        let wait_failed = |source| CommandError::Wait {
            program: program.clone(),
            source,
        };
        let status = child.wait().map_err(wait_failed)?;
        match ended.map_err(wait_failed)? {
            true => Ok(Finished {
                status,
                stdout: join(stdout),
                stderr: String::from_utf8_lossy(&join(stderr)).into_owned(),
            }),
            false => Err(CommandError::TimedOut { program, limit }),
        }
    }
}

enum Waited {
    Ended,
    Interrupted,
    TooLong,
}

fn ends_within(id: u32, limit: Duration) -> io::Result<bool> {
    let handle = handle(id)?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let ready = ready(&handle, None, None, left)?;
        if let Some(waited) = ready.verdict(left) {
            return Ok(matches!(waited, Waited::Ended));
        }
    }
}

/// A pidfd becomes readable when its process ends: no polling, no lost wake-up.
fn handle(id: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no process id"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// What can be said now of a child, of who waits for it, and of what it writes.
#[derive(Default)]
struct Ready {
    ended: bool,
    interrupted: bool,
    writes: bool,
}

impl Ready {
    /// `left`: of the time that it has.
    fn verdict(&self, left: Duration) -> Option<Waited> {
        match self {
            Self { ended: true, .. } => Some(Waited::Ended),
            Self {
                interrupted: true, ..
            } => Some(Waited::Interrupted),
            _ => left.is_zero().then_some(Waited::TooLong),
        }
    }
}

/// Waits until there is something to say, at most for `limit`.
fn ready(
    handle: &OwnedFd,
    interrupt: Option<&Interrupt>,
    output: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> io::Result<Ready> {
    let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut set = vec![PollFd::new(handle, PollFlags::IN)];
    set.extend(interrupt.map(|interrupt| PollFd::new(&interrupt.0, PollFlags::IN)));
    set.extend(output.map(|output| PollFd::from_borrowed_fd(output, PollFlags::IN)));
    match poll(&mut set, Some(&timeout)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    let mut ready = set.iter().map(|it| !it.revents().is_empty());
    Ok(Ready {
        ended: ready.next() == Some(true),
        interrupted: interrupt.is_some() && ready.next() == Some(true),
        writes: output.is_some() && ready.next() == Some(true),
    })
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
