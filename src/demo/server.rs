//! X: the demo's own nginx, a child in the foreground of nobody's terminal. Stopped on drop.
#![expect(
    clippy::disallowed_methods,
    reason = "the demo starts the nginx that a host would have"
)]

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::DemoError;

/// A running nginx. As a child that nobody has waited for, its process id is nobody else's.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts `binary` with the main file in `directory`; returns when the master has begun.
    pub fn start(binary: &Path, directory: &Path) -> Result<Self, DemoError> {
        let child = Command::new(binary)
            .arg("-c")
            .arg(directory.join("nginx.conf"))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // a Ctrl-C is for the demo, which stops nginx in its turn
            .process_group(0)
            .spawn()
            .map_err(DemoError::Nginx)?;
        let mut server = Self { child };
        server.wait_until_up(directory)?;
        Ok(server)
    }

    fn wait_until_up(&mut self, directory: &Path) -> Result<(), DemoError> {
        let pid_file = directory.join("nginx.pid");
        let own = self.child.id().to_string();
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if fs::read_to_string(&pid_file).is_ok_and(|pid| pid.trim() == own) {
                return Ok(());
            }
            let ended = self.child.try_wait().map_err(DemoError::Nginx)?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(DemoError::Nginx(io::Error::other(last_words(directory))));
            }
            thread::sleep(POLL);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // one that has ended already needs no signal
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    fn ended_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(POLL);
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM: nginx's fast shutdown, which takes its workers along
        self.signal(Signal::TERM);
        if !self.ended_within(STOP_LIMIT) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Why nginx did not come up, in its own words.
fn last_words(directory: &Path) -> String {
    let log: PathBuf = directory.join("logs/error.log");
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().last().unwrap_or("it did not come up");
    last.to_owned()
}

const POLL: Duration = Duration::from_millis(5);
const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);
