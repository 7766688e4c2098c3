//! X: an operator's own program: with words on its standard input and in its environment, in a
//! process group of its own, waited for no longer than it is alive.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{CommandError, Finished};

/// What is run, and what it is told.
#[derive(Debug)]
pub struct Errand<'a> {
    pub program: &'a Path,
    pub arguments: &'a [String],
    pub environment: &'a [(&'static str, String)],
    pub input: &'a [u8],
}

impl Errand<'_> {
    /// Runs it to its end, at most for `limit`; then it is killed, with all of its process group.
    ///
    /// What it leaves in the background goes on, without its standard error. Of that the beginning
    /// is returned; standard output goes nowhere.
    pub fn run(&self, limit: Duration) -> Result<Finished, CommandError> {
        let program = || self.program.display().to_string();
        let failed = |source| CommandError::Start {
            program: program(),
            source,
        };
        let mut child = self.start().map_err(failed)?;
        let mut stderr = child.stderr.take();
        let heard = listen(
            &child,
            stderr.as_mut().map(|it| it as &mut dyn Stream),
            limit,
        );
        if !matches!(&heard, Ok((true, _))) {
            kill(&mut child);
        }
        let wait_failed = |source| CommandError::Wait {
            program: program(),
            source,
        };
        let status = child.wait().map_err(wait_failed)?;
        match heard.map_err(wait_failed)? {
            (true, words) => Ok(Finished {
                status,
                stdout: Vec::new(),
                stderr: String::from_utf8_lossy(&words).into_owned(),
            }),
            (false, _) => Err(CommandError::TimedOut {
                program: program(),
                limit,
            }),
        }
    }

    fn start(&self) -> io::Result<Child> {
        // a file, not a pipe: whoever does not read it keeps nobody waiting
        let mut input = File::from(memfd_create(c"vhostd-notice", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(self.input)?;
        input.rewind()?;
        Command::new(self.program)
            .args(self.arguments)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(OwnedFd::from(input)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir("/")
            .process_group(0)
            .spawn()
    }
}

trait Stream: Read + AsFd {}
impl<T: Read + AsFd> Stream for T {}

/// Whether the child ended by itself, and the beginning of what it said.
fn listen(
    child: &Child,
    mut stream: Option<&mut dyn Stream>,
    limit: Duration,
) -> io::Result<(bool, Vec<u8>)> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("no process id"))?;
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + limit;
    let (mut words, mut after_the_end) = (Vec::new(), 0);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let ready = {
            let stream = stream.as_ref().map(|stream| stream.as_fd());
            ready(handle.as_fd(), stream, left)?
        };
        // what was said before the end is read before the end is believed; but whoever stays in
        // the background may go on talking
        if ready.stream
            && !left.is_zero()
            && after_the_end < MOST_READS_AFTER_THE_END
            && let Some(reader) = &mut stream
        {
            after_the_end += usize::from(ready.ended);
            if !hear(*reader, &mut words)? {
                stream = None;
            }
            continue;
        }
        if ready.ended || left.is_zero() {
            return Ok((ready.ended, words));
        }
    }
}

struct Ready {
    ended: bool,
    stream: bool,
}

fn ready(
    handle: BorrowedFd<'_>,
    stream: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> io::Result<Ready> {
    let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut set = vec![PollFd::from_borrowed_fd(handle, PollFlags::IN)];
    set.extend(stream.map(|stream| PollFd::from_borrowed_fd(stream, PollFlags::IN)));
    match poll(&mut set, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let is_ready = |at: usize| set.get(at).is_some_and(|it| !it.revents().is_empty());
    Ok(Ready {
        ended: is_ready(0),
        stream: is_ready(1),
    })
}

/// Reads once; `false` at the end of the stream.
fn hear(stream: &mut dyn Stream, words: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    let count = match stream.read(&mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
        read => read?,
    };
    let room = MOST_WORDS.saturating_sub(words.len());
    words.extend(&buffer[..count.min(room)]);
    Ok(count > 0)
}

fn kill(child: &mut Child) {
    // our own child, not yet waited for: neither the id nor the group's can be another's
    if let Ok(id) = i32::try_from(child.id()) {
        let _ = killpg(nix::unistd::Pid::from_raw(id), Signal::SIGKILL);
    }
    let _ = child.kill();
}

const MOST_WORDS: usize = 2048;
/// More than a pipe holds.
const MOST_READS_AFTER_THE_END: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> Result<Finished, CommandError> {
        let arguments = ["-c".to_owned(), script.to_owned()];
        let errand = Errand {
            program: Path::new("/bin/sh"),
            arguments: &arguments,
            environment: &[("VHOSTD_EVENT", "test".to_owned())],
            input: b"words",
        };
        errand.run(limit)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn it_is_told_on_its_input_and_in_its_environment() {
        let script = "echo out; echo \"$VHOSTD_EVENT $(cat)\" >&2; exit 3";
        let finished = run(script, LONG).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stderr, "test words\n");
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let begin = Instant::now();
        let error = run("sleep 60 & sleep 60", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_stays_in_the_background_keeps_nobody_waiting() {
        let begin = Instant::now();
        let finished = run("sleep 30 & echo said >&2", LONG).unwrap();
        assert_eq!(finished.stderr, "said\n");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn one_that_never_stops_talking_is_cut_short_and_killed() {
        let finished = run("yes | head -c 1000000 >&2", LONG).unwrap();
        assert_eq!(finished.stderr.len(), MOST_WORDS);
        let error = run("exec yes >&2", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }
}
