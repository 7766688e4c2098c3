//! X: a program of the operator's, in a process group of its own, waited for no longer than it is alive.
#![expect(clippy::disallowed_methods, reason = "the room that starts processes")]

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, Read, Seek, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{CommandError, Interrupt, Waited, handle, keep_from_service_manager, ready};

/// What is run, what it is told, and what becomes of what it says and leaves.
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<String>,
    /// Beside those that it inherits.
    pub variables: BTreeMap<String, String>,
    /// On its standard input.
    pub input: Vec<u8>,
    pub inherits: Inherits,
    pub heard: Heard,
    pub background: Background,
}

/// Which variables it has beside its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Inherits {
    /// Ours, but for those that speak to the service manager.
    Everything,
    /// What every program needs.
    Necessities,
}

/// What is kept of what it writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// Of its standard error; its standard output goes nowhere.
    BeginningOfErrors,
    /// Of both, as they were written.
    EndOfAll,
}

/// What becomes of processes of its group once it has ended by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Background {
    Ends,
    /// Without anybody who reads what it writes.
    GoesOn,
}

/// What a program that has ended left.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub output: Vec<u8>,
}

impl Program {
    /// Runs it to its end, at most for `limit` and not beyond `interrupt`. Then it is told to end,
    /// and a moment later it is killed, each time with all of its process group.
    pub fn run(
        &self,
        limit: Duration,
        interrupt: Option<&Interrupt>,
    ) -> Result<Ended, CommandError> {
        let program = || self.path.display().to_string();
        let (mut child, mut output) = self.start().map_err(|source| CommandError::Start {
            program: program(),
            source,
        })?;
        let waited = output.wait(&child, limit, interrupt);
        let by_itself = matches!(waited, Ok(Waited::Ended));
        if !by_itself {
            signal(&child, Signal::TERM);
            let _ = output.wait(&child, GRACE, None);
        }
        if !by_itself || self.background == Background::Ends {
            signal(&child, Signal::KILL);
        }
        if !by_itself {
            // it may have left its group
            let _ = child.kill();
        }
        let wait_failed = |source| CommandError::Wait {
            program: program(),
            source,
        };
        let status = child.wait().map_err(wait_failed)?;
        match waited.map_err(wait_failed)? {
            Waited::Ended => Ok(Ended {
                status,
                output: output.kept,
            }),
            Waited::Interrupted => Err(CommandError::Interrupted { program: program() }),
            Waited::TooLong => Err(CommandError::TimedOut {
                program: program(),
                limit,
            }),
        }
    }

    fn start(&self) -> io::Result<(Child, Output)> {
        // a file, not a pipe: whoever does not read it keeps nobody waiting
        let mut input = File::from(memfd_create(c"vhostd-input", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(&self.input)?;
        input.rewind()?;
        let (reader, writer) = pipe()?;
        let mut command = Command::new(&self.path);
        match self.inherits {
            Inherits::Everything => keep_from_service_manager(&mut command),
            Inherits::Necessities => {
                let ours = NECESSITIES.iter();
                let ours = ours.filter_map(|name| Some((*name, env::var_os(name)?)));
                command.env_clear().env("PATH", PATH);
                command.env("LC_ALL", "C.UTF-8").envs(ours);
            }
        }
        match self.heard {
            Heard::BeginningOfErrors => command.stdout(Stdio::null()),
            Heard::EndOfAll => command.stdout(writer.try_clone()?),
        };
        let child = command
            .args(&self.arguments)
            .envs(&self.variables)
            .stdin(Stdio::from(OwnedFd::from(input)))
            .stderr(writer)
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        let output = Output {
            stream: Some(reader),
            heard: self.heard,
            kept: Vec::new(),
        };
        Ok((child, output))
    }
}

/// Variables and arguments may be secrets.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Our own child, not yet waited for: the id of its group cannot be another's.
fn signal(child: &Child, signal: Signal) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // nobody is left in it: good
        let _ = kill_process_group(group, signal);
    }
}

/// Read while it is waited for, or a full pipe would stop it.
struct Output {
    /// `None`: nobody writes any more.
    stream: Option<PipeReader>,
    heard: Heard,
    kept: Vec<u8>,
}

impl Output {
    fn wait(
        &mut self,
        child: &Child,
        limit: Duration,
        interrupt: Option<&Interrupt>,
    ) -> io::Result<Waited> {
        let handle = handle(child.id())?;
        let end = Instant::now() + limit;
        let mut after_the_end = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let stream = self.stream.as_ref().map(AsFd::as_fd);
            let ready = ready(&handle, interrupt, stream, left)?;
            let verdict = ready.verdict(left);
            // what was said before the end is read before the end is believed; but whoever stays in
            // the background may go on talking
            let more = match verdict {
                None => true,
                Some(Waited::Ended) => after_the_end < MOST_READS_AFTER_THE_END,
                Some(Waited::Interrupted | Waited::TooLong) => false,
            };
            if ready.writes && more {
                after_the_end += usize::from(ready.ended);
                self.hear()?;
            } else if let Some(verdict) = verdict {
                return Ok(verdict);
            }
        }
    }

    /// Reads once.
    fn hear(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        let count = match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            read => read?,
        };
        if count == 0 {
            self.stream = None;
        }
        match self.heard {
            Heard::BeginningOfErrors => {
                let room = KEPT.saturating_sub(self.kept.len());
                self.kept.extend(&buffer[..count.min(room)]);
            }
            Heard::EndOfAll => {
                self.kept.extend(&buffer[..count]);
                let beyond = self.kept.len().saturating_sub(KEPT);
                self.kept.drain(..beyond);
            }
        }
        Ok(())
    }
}

/// For who is told to end to leave things in order.
const GRACE: Duration = Duration::from_secs(5);
const KEPT: usize = 4096;
/// More than a pipe holds.
const MOST_READS_AFTER_THE_END: usize = 64;
/// systemd's credentials are for whom the service starts, too (systemd.exec(5)).
const NECESSITIES: [&str; 3] = ["CREDENTIALS_DIRECTORY", "HOME", "TMPDIR"];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests;
