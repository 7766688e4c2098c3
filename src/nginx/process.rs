//! R: which process is *this* nginx's master, and what its workers do.
//!
//! A pid file may be stale, empty or name an innocent process that got the id later (measured:
//! `nginx -s reload` killed a `sleep`). So a process is opened first, as a pidfd, and then
//! verified by its executable, its title and its configuration file: a signal through that handle
//! reaches the verified process or nobody.
//!
//! A pid file that leads nowhere does not mean that nginx is down: somebody may have emptied it, or
//! the `pid` directive was changed and not read yet. Then the master is looked for by what it is.

mod burst; // R which workers that came after the signal may be of an older configuration
mod identity; // R whether a process is this nginx's master

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

pub use self::identity::Identity;

use self::burst::FirstBurst;
use self::identity::{has_ended, is_ending, is_in_our_namespace, owner, parent, title, verify};

/// The verified master.
#[derive(Debug)]
pub struct Master {
    pub pid: i32,
    /// Why the pid file did not lead to it, where it did not.
    pub found_without: Option<String>,
    handle: OwnedFd,
}

/// Why there is no master to signal.
#[derive(Debug, thiserror::Error)]
pub enum NoMaster {
    #[error("nginx is not running ({why})")]
    NotRunning { why: String },
    #[error("process {pid} of {} is not this nginx: {why}", pid_file.display())]
    Stranger {
        pid: i32,
        pid_file: PathBuf,
        why: String,
    },
    /// After SIGUSR2 an old and a new master share the sockets until one of them is told to quit:
    /// whichever we told to reload, the other would go on answering as before.
    #[error("nginx's binary is being upgraded (master {old}{}): nobody is told to reload meanwhile", new.map_or(String::new(), |new| format!(" and its successor {new}")))]
    Upgrading { old: i32, new: Option<i32> },
}

impl NoMaster {
    /// A running master, where there are several.
    pub fn running(&self) -> Option<i32> {
        match self {
            Self::Upgrading { old, new } => Some(new.unwrap_or(*old)),
            Self::NotRunning { .. } | Self::Stranger { .. } => None,
        }
    }
}

impl Master {
    pub fn find(identity: &Identity) -> Result<Self, NoMaster> {
        let named = Self::named_by(&identity.pid_file, identity);
        let old = Self::named_by(&old_pid_file(&identity.pid_file), identity).ok();
        match (named, old) {
            (Ok(new), Some(old)) if old.pid != new.pid => Err(NoMaster::Upgrading {
                old: old.pid,
                new: Some(new.pid),
            }),
            (Ok(master), _) => Ok(master),
            // the new one has not written its file yet, or has removed it and not ended
            (Err(_), Some(old)) => Err(NoMaster::Upgrading {
                old: old.pid,
                new: None,
            }),
            (Err(unnamed), None) => Self::search(identity, unnamed),
        }
    }

    fn named_by(pid_file: &Path, identity: &Identity) -> Result<Self, NoMaster> {
        let pid = read_pid(pid_file)?;
        let down = |why: String| NoMaster::NotRunning { why };
        let handle = open(pid).ok_or_else(|| {
            down(format!(
                "{} names process {pid}, which does not exist",
                pid_file.display()
            ))
        })?;
        if has_ended(pid) {
            return Err(down(format!(
                "process {pid} of {} has ended",
                pid_file.display()
            )));
        }
        verify(pid, identity).map_err(|why| match is_ending(pid) {
            true => down(format!("process {pid} ended meanwhile")),
            false => NoMaster::Stranger {
                pid,
                pid_file: pid_file.to_path_buf(),
                why,
            },
        })?;
        Ok(Self {
            pid,
            found_without: None,
            handle,
        })
    }

    /// The one process that is this nginx's master, whatever the pid file says. Not one in a
    /// container whose files have the same names, and not another user's, whose title may lie.
    fn search(identity: &Identity, unnamed: NoMaster) -> Result<Self, NoMaster> {
        let why = match &unnamed {
            NoMaster::NotRunning { why } => why.clone(),
            stranger => stranger.to_string(),
        };
        let mut masters: Vec<Self> = Vec::new();
        for pid in processes() {
            let Some(handle) = open(pid) else { continue };
            // nearly all are out at the first question
            let is_one = verify(pid, identity).is_ok() && !has_ended(pid);
            let is_ours = || owner(pid) == Some(geteuid().as_raw()) && is_in_our_namespace(pid);
            if is_one && is_ours() {
                masters.push(Self {
                    pid,
                    found_without: Some(why.clone()),
                    handle,
                });
            }
        }
        let child = masters.iter().find_map(|master| {
            let old = parent(master.pid)?;
            let upgrading = masters.iter().any(|other| other.pid == old);
            upgrading.then_some((old, master.pid))
        });
        match (child, masters.pop()) {
            (Some((old, new)), _) => Err(NoMaster::Upgrading {
                old,
                new: Some(new),
            }),
            (None, Some(master)) if masters.is_empty() => Ok(master),
            _ => Err(unnamed),
        }
    }

    /// SIGHUP: read the configuration again.
    pub fn hang_up(&self) -> io::Result<()> {
        pidfd_send_signal(&self.handle, Signal::HUP).map_err(io::Error::from)
    }

    /// The workers that accept connections, by id. Those that are shutting down do not.
    pub fn accepting_workers(&self) -> Vec<i32> {
        self.workers("nginx: worker process")
    }

    /// Workers of earlier configurations that still hold connections, by id.
    pub fn draining_workers(&self) -> Vec<i32> {
        self.workers("nginx: worker process is shutting down")
    }

    fn workers(&self, wanted: &str) -> Vec<i32> {
        let list = format!("/proc/{0}/task/{0}/children", self.pid);
        fs::read_to_string(list)
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|id| id.parse().ok())
            .filter(|&id| title(id).is_some_and(|title| title == wanted))
            .collect()
    }
}

/// The workers of the time of a signal, and those that came after it.
#[derive(Debug)]
pub struct Workers {
    before: Vec<i32>,
    first: FirstBurst,
}

impl Workers {
    /// To be called before the signal.
    pub fn of(master: &Master) -> Self {
        Self {
            before: master.accepting_workers(),
            first: FirstBurst::default(),
        }
    }

    /// Whether one still accepts that may be of an older configuration than the signal asked for.
    pub fn are_old(&self, master: &Master) -> bool {
        let now = master.accepting_workers();
        let (old, new): (Vec<i32>, Vec<i32>) = now
            .into_iter()
            .partition(|worker| self.before.contains(worker));
        // both: the first burst is noted as soon as it is seen
        self.first.lingers(&new) || !old.is_empty()
    }
}

/// Where nginx keeps the old master's id during an upgrade (`NGX_OLDPID_EXT`).
fn old_pid_file(pid_file: &Path) -> PathBuf {
    let mut name = pid_file.as_os_str().to_owned();
    name.push(".oldbin");
    name.into()
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn read_pid(pid_file: &Path) -> Result<i32, NoMaster> {
    let down = |why: String| NoMaster::NotRunning {
        why: format!("{}: {why}", pid_file.display()),
    };
    let text = fs::read_to_string(pid_file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => down("no such pid file".into()),
        _ => down(error.to_string()),
    })?;
    match text.trim().parse::<i32>() {
        Ok(pid) if pid > 1 => Ok(pid),
        _ if text.trim().is_empty() => Err(down("the pid file is empty".into())),
        _ => Err(down("the pid file holds no process id".into())),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    fn identity(directory: &Path, pid: &str) -> Identity {
        let pid_file = directory.join("nginx.pid");
        fs::write(&pid_file, pid).unwrap();
        Identity {
            pid_file,
            binary: "/usr/sbin/nginx".into(),
            // no nginx that may run on this host has it
            config: directory.join("nginx.conf"),
            default_config: "/etc/nginx/nginx.conf".into(),
            prefix: "/usr/share/nginx".into(),
        }
    }

    #[test]
    fn a_recycled_process_id_is_a_stranger_and_gets_no_handle() {
        let directory = tempfile::tempdir().unwrap();
        let mut innocent = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let error =
            Master::find(&identity(directory.path(), &innocent.id().to_string())).unwrap_err();
        assert!(matches!(error, NoMaster::Stranger { .. }), "{error}");
        innocent.kill().unwrap();
        innocent.wait().unwrap();
    }

    #[test]
    fn a_process_that_calls_itself_a_master_is_a_stranger_by_its_executable() {
        let directory = tempfile::tempdir().unwrap();
        let mut impostor = std::process::Command::new("sleep")
            .arg0("nginx: master process /usr/sbin/nginx")
            .arg("60")
            .spawn()
            .unwrap();
        let identity = identity(directory.path(), &impostor.id().to_string());
        let error = Master::find(&identity).unwrap_err();
        impostor.kill().unwrap();
        impostor.wait().unwrap();
        assert!(error.to_string().contains("its executable is"), "{error}");
    }

    #[test]
    fn a_process_that_ended_and_was_not_waited_for_means_not_running() {
        let directory = tempfile::tempdir().unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let stat = format!("/proc/{}/stat", ended.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z") {
            std::thread::yield_now();
        }
        let error = Master::find(&identity(directory.path(), &ended.id().to_string())).unwrap_err();
        assert!(matches!(error, NoMaster::NotRunning { .. }), "{error}");
        ended.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_just_ending_is_no_stranger() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..200 {
            let mut ending = std::process::Command::new("sleep")
                .arg("60")
                .spawn()
                .unwrap();
            let identity = identity(directory.path(), &ending.id().to_string());
            ending.kill().unwrap();
            loop {
                match Master::find(&identity).unwrap_err() {
                    NoMaster::NotRunning { .. } => break,
                    // it has not heard of its end yet
                    NoMaster::Stranger { why, .. } => {
                        assert!(why.starts_with("its executable is "), "{why}");
                    }
                    upgrading @ NoMaster::Upgrading { .. } => panic!("{upgrading}"),
                }
            }
            ending.wait().unwrap();
        }
    }

    #[test]
    fn an_empty_garbage_or_missing_pid_file_means_not_running() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "\n", "x", "-5", "0", "1", "99999999"] {
            let error = Master::find(&identity(directory.path(), text)).unwrap_err();
            assert!(
                matches!(error, NoMaster::NotRunning { .. }),
                "{text:?}: {error}"
            );
        }
        let mut gone = identity(directory.path(), "");
        gone.pid_file = directory.path().join("none");
        assert!(matches!(
            Master::find(&gone),
            Err(NoMaster::NotRunning { .. })
        ));
    }
}
