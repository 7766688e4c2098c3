//! R: which process is *this* nginx's master, and which of its workers still accept.
//!
//! A pid file may be stale, empty or name an innocent process that got the id later (measured:
//! `nginx -s reload` killed a `sleep`). So the process is opened first, as a pidfd, and then
//! verified by its executable, its title and its configuration file: a signal through that handle
//! reaches the verified process or nobody.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The verified master.
#[derive(Debug)]
pub struct Master {
    pub pid: i32,
    handle: OwnedFd,
}

/// What a running master must look like.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    pub pid_file: PathBuf,
    /// Canonical path of the executable.
    pub binary: PathBuf,
    /// Canonical path of the main configuration file.
    pub config: PathBuf,
    /// What nginx reads when it gets no `-c`.
    pub default_config: PathBuf,
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
}

impl Master {
    pub fn find(identity: &Identity) -> Result<Self, NoMaster> {
        let pid = read_pid(&identity.pid_file)?;
        let down = |why: String| NoMaster::NotRunning { why };
        let raw = Pid::from_raw(pid).ok_or_else(|| down(format!("process id {pid}")))?;
        let handle = pidfd_open(raw, PidfdFlags::empty()).map_err(|_| {
            down(format!(
                "{} names process {pid}, which does not exist",
                identity.pid_file.display()
            ))
        })?;
        if has_ended(pid) {
            return Err(down(format!(
                "process {pid} of {} has ended",
                identity.pid_file.display()
            )));
        }
        verify(pid, identity).map_err(|why| match is_ending(pid) {
            true => down(format!("process {pid} ended meanwhile")),
            false => NoMaster::Stranger {
                pid,
                pid_file: identity.pid_file.clone(),
                why,
            },
        })?;
        Ok(Self { pid, handle })
    }

    /// SIGHUP: read the configuration again.
    pub fn hang_up(&self) -> io::Result<()> {
        pidfd_send_signal(&self.handle, Signal::HUP).map_err(io::Error::from)
    }

    /// The workers that accept connections, by id. Those that are shutting down do not.
    pub fn accepting_workers(&self) -> Vec<i32> {
        let list = format!("/proc/{0}/task/{0}/children", self.pid);
        fs::read_to_string(list)
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|id| id.parse().ok())
            .filter(|&id| title(id).is_some_and(|title| is_accepting_worker(&title)))
            .collect()
    }
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

/// A zombie keeps its id, and no executable, until its parent takes note: in a container without
/// an init that may be never.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the title before it may hold anything, parentheses too
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    matches!(state, None | Some(Some('Z' | 'X')))
}

/// Its memory, and with it executable and title, goes before it is a zombie.
fn is_ending(pid: i32) -> bool {
    let executable = fs::read_link(format!("/proc/{pid}/exe"));
    executable.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) || has_ended(pid)
}

fn verify(pid: i32, identity: &Identity) -> Result<(), String> {
    let executable = fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?;
    // after a package upgrade the running master's file is gone; its path still says who it is
    let path = executable.to_string_lossy();
    let path = path.strip_suffix(" (deleted)").unwrap_or(&path);
    if Path::new(path) != identity.binary {
        return Err(format!("its executable is {path}"));
    }
    let title = title(pid).unwrap_or_default();
    let Some(arguments) = title.strip_prefix("nginx: master process ") else {
        return Err("it is not an nginx master".into());
    };
    let config = config_argument(arguments).unwrap_or(identity.default_config.clone());
    let config = config.canonicalize().unwrap_or(config);
    if config != identity.config {
        return Err(format!("its configuration is {}", config.display()));
    }
    Ok(())
}

/// nginx writes its own arguments into its title, joined by spaces.
fn config_argument(arguments: &str) -> Option<PathBuf> {
    let mut words = arguments.split_whitespace();
    while let Some(word) = words.next() {
        match word.strip_prefix("-c") {
            Some("") => return words.next().map(PathBuf::from),
            Some(attached) => return Some(attached.into()),
            None => {}
        }
    }
    None
}

fn title(pid: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.replace('\0', " ").trim_end().to_owned())
}

fn is_accepting_worker(title: &str) -> bool {
    title == "nginx: worker process"
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
            config: "/etc/nginx/nginx.conf".into(),
            default_config: "/etc/nginx/nginx.conf".into(),
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

    #[test]
    fn the_configuration_is_read_from_the_title() {
        assert_eq!(config_argument("/usr/sbin/nginx -g daemon on;"), None);
        assert_eq!(config_argument("nginx -c /a/b"), Some("/a/b".into()));
        assert_eq!(config_argument("nginx -c/a/b -p x"), Some("/a/b".into()));
    }
}
