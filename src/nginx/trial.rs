//! X: nginx judges a few vhost files by themselves, in a sandbox.
//!
//! `nginx -t` is an effect: it opens logs, makes directories, binds, loads modules. So the nginx that
//! meets a changed file here sees no network and no process of the host, writes nowhere but
//! into memory, and has next to no privileges. It costs the same whatever the number of vhosts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::Logs;
use super::candidate::CandidateError;
use super::namespace::{self, Mounts, Walls};
use crate::atomic_file::{self, WriteError};
use crate::command::{self, CommandError, Finished, Running};

/// What is tried.
#[derive(Debug)]
pub struct Trial<'a> {
    /// Relative names and bytes; `http.conf` is the entry, which finds the others below
    /// [`scratch`].
    pub files: Vec<(&'a Path, &'a [u8])>,
    /// Arguments of `load_module`.
    pub modules: &'a [String],
    /// The directory of the files' logs, which exists.
    pub log_dir: &'a Path,
    /// The files' logs.
    pub logs: &'a Logs,
}

/// The directory of the tried files. On disk it is empty, unless there are no namespaces.
pub fn scratch(state_dir: &Path) -> PathBuf {
    state_dir.join("scratch")
}

/// As many vhosts as there are may be tried at once.
const LIMIT: Duration = Duration::from_secs(60);
const MAIN: &str = "nginx.conf";

/// Ports below 1024 are bound, temporary directories get their owner. Files of root's are read
/// because they are root's.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE.union(CapabilitySet::CHOWN);

impl Trial<'_> {
    /// A main file around the entry, with everything that nginx would create in `scratch`.
    pub(super) fn main_file(&self, scratch: &Path, temp_paths: &[String]) -> String {
        let at = |name: &str| scratch.join(name).display().to_string();
        let modules = self.modules.iter();
        let modules: String = modules
            .map(|module| format!("load_module {module};\n"))
            .collect();
        let temporary: String = temp_paths
            .iter()
            .map(|directive| format!("    {directive} {};\n", at(directive)))
            .collect();
        format!(
            "{modules}pid {};\nerror_log stderr;\nevents {{}}\nhttp {{\n    access_log off;\n\
             {temporary}    include {};\n}}\n",
            at("nginx.pid"),
            at("http.conf")
        )
    }

    fn write(&self, scratch: &Path, main: &str) -> Result<(), WriteError> {
        let main = (Path::new(MAIN), main.as_bytes());
        for (name, bytes) in self.files.iter().copied().chain([main]) {
            let path = scratch.join(name);
            if let Some(parent) = path.parent() {
                atomic_file::create_directory(parent, 0o700)?;
            }
            atomic_file::create_unsynced(&path, bytes, 0o600)?;
        }
        Ok(())
    }
}

/// Behind all walls, on a read-only host.
pub(super) fn run_in_sandbox(
    binary: &Path,
    scratch: &Path,
    main: &str,
    trial: &Trial<'_>,
) -> Result<Finished, CandidateError> {
    // mounts are known by what their paths lead to
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let (memory, logs) = (real(scratch), real(trial.log_dir));
    let running = namespace::within(Walls::All, || {
        let writable = [memory.as_path(), logs.as_path()];
        for directory in writable {
            namespace::hide(directory)?;
        }
        trial.write(&memory, main)?;
        Mounts::read()?.protect(&writable, &[&memory, &logs, binary])?;
        namespace::hide(Path::new("/proc"))?;
        namespace::give_up_privileges(KEPT)?;
        Ok::<_, CandidateError>(start(binary, scratch)?)
    })?;
    Ok(running.finish(LIMIT)?)
}

/// Where there are no namespaces to have.
pub(super) fn run_in_directory(
    binary: &Path,
    scratch: &Path,
    main: &str,
    trial: &Trial<'_>,
) -> Result<Finished, CandidateError> {
    // a trial that was killed could not
    atomic_file::remove(scratch)?;
    atomic_file::create_directory(scratch, 0o700)?;
    trial.write(scratch, main)?;
    let finished = start(binary, scratch)?.finish(LIMIT);
    atomic_file::remove(scratch)?;
    atomic_file::create_directory(scratch, 0o700)?;
    Ok(finished?)
}

fn start(binary: &Path, scratch: &Path) -> Result<Running, CommandError> {
    let main = scratch.join(MAIN);
    command::start(binary, &["-t".as_ref(), "-c".as_ref(), main.as_os_str()])
}
