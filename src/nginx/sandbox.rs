//! X: the sandbox in which nginx judges what others wrote: changed vhosts, certificates of CAs.
//!
//! `nginx -t` is an effect: it opens logs, makes directories, binds, loads modules. Here it is a user
//! of its own without privileges, in a root directory that has what it needs to run
//! ([`PrivateRoot`]), without a network and without other processes. DAC then protects what is left,
//! as it does not from a child that is root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::candidate::CandidateError;
use super::namespace::{self, Walls};
use super::private_root::PrivateRoot;
use super::trial::{self, Trial, scratch};
use crate::command::{self, Finished};
use crate::settings::{SandboxPolicy, Settings};

/// Where nginx is tested with what others wrote.
#[derive(Debug)]
pub struct Sandbox {
    policy: SandboxPolicy,
    binary: PathBuf,
    /// Relative modules are below it (`nginx -V`).
    prefix: PathBuf,
    state_dir: PathBuf,
    /// Empty for the child, also where its binary lies beside them.
    hidden: [PathBuf; 2],
    /// Why there is none; not known until something asks.
    missing: OnceLock<Option<String>>,
}

/// systemd's documentation lists it as unused (UIDS-GIDS: 65520 to 65533), and it exists in a
/// container with 65536 users.
const USER: u32 = 65_533;

/// Ports below 1024 are bound.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Programs, libraries and their configuration. Nix and Guix have theirs elsewhere.
const SYSTEM: [&str; 11] = [
    "/bin", "/etc", "/gnu", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/opt", "/sbin", "/usr",
];

/// As many vhosts as there are may be tried at once.
const LIMIT: Duration = Duration::from_secs(60);

impl Sandbox {
    pub(super) fn new(settings: &Settings, binary: &Path, prefix: &Path) -> Self {
        Self {
            policy: settings.sandbox,
            binary: binary.to_path_buf(),
            prefix: prefix.to_path_buf(),
            state_dir: settings.state_dir.clone(),
            hidden: [settings.state_dir.clone(), settings.runtime_dir.clone()],
            missing: OnceLock::new(),
        }
    }

    /// Why this host has no sandbox now; `None`: it has one.
    pub fn missing(&self) -> Option<String> {
        let known = self.known();
        known.unwrap_or_else(|error| Some(error.to_string()))
    }

    /// As [`Self::missing`]: found out once, by running `nginx -v` in it. An error passes (no memory, too
    /// many namespaces), and says nothing about the next time.
    fn known(&self) -> Result<Option<String>, CandidateError> {
        if let Some(known) = self.missing.get() {
            return Ok(known.clone());
        }
        let reason = match self.probe() {
            Ok(finished) if finished.status.success() => None,
            Ok(finished) => Some(words(&finished)),
            Err(error) if error.has_no_namespace() => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        let is_new = self.missing.set(reason.clone()).is_ok();
        if let (true, SandboxPolicy::Auto, Some(reason)) = (is_new, self.policy, &reason) {
            tracing::info!("no sandbox here ({reason}): changed vhosts are tried without one");
        }
        Ok(reason)
    }

    /// Why candidates are not to be tested on this host.
    pub fn refusal(&self) -> Option<String> {
        let missing = (self.policy == SandboxPolicy::Require).then(|| self.missing());
        let reason = missing.flatten()?;
        Some(CandidateError::NoSandbox(reason).to_string())
    }

    /// What nginx says of `trial` in the sandbox; `None`: the host has none, and may do without.
    pub(super) fn run(
        &self,
        scratch: &Path,
        main: &str,
        trial: &Trial<'_>,
    ) -> Result<Option<Finished>, CandidateError> {
        match self.known()? {
            None => self.run_inside(scratch, main, trial).map(Some),
            Some(reason) if self.policy == SandboxPolicy::Require => {
                Err(CandidateError::NoSandbox(reason))
            }
            Some(_) => Ok(None),
        }
    }

    fn run_inside(
        &self,
        scratch: &Path,
        main: &str,
        trial: &Trial<'_>,
    ) -> Result<Finished, CandidateError> {
        let (shown, copied) = (self.shown(trial.modules), trial.certificate_files());
        let root = PrivateRoot {
            shown: &shown,
            hidden: &self.hidden,
            writable: &[scratch, trial.log_dir],
            copied: &copied,
            user: USER,
        };
        let running = namespace::within(Walls::All, || {
            root.build(scratch)?;
            namespace::change_root(scratch)?;
            trial.write(scratch, main)?;
            namespace::give_up_privileges(USER, KEPT)?;
            Ok::<_, CandidateError>(trial::start(&self.binary, scratch)?)
        })?;
        Ok(running.finish(LIMIT)?)
    }

    fn probe(&self) -> Result<Finished, CandidateError> {
        let (base, shown) = (scratch(&self.state_dir), self.shown(&[]));
        let root = PrivateRoot {
            shown: &shown,
            hidden: &self.hidden,
            writable: &[],
            copied: &[],
            user: USER,
        };
        let running = namespace::within(Walls::All, || {
            root.build(&base)?;
            namespace::change_root(&base)?;
            namespace::give_up_privileges(USER, KEPT)?;
            Ok::<_, CandidateError>(command::start(&self.binary, &["-v"])?)
        })?;
        Ok(running.finish(LIMIT)?)
    }

    /// What nginx needs to start: the system's programs, and what lies elsewhere of its own.
    fn shown(&self, modules: &[String]) -> Vec<PathBuf> {
        let modules = modules.iter().map(|module| self.prefix.join(module));
        let modules = modules.filter_map(|module| module.parent().map(Path::to_path_buf));
        let system = SYSTEM.iter().map(PathBuf::from);
        let further = [tree_of(&self.binary)].into_iter().chain(modules);
        further.fold(system.collect(), |mut shown: Vec<PathBuf>, path| {
            if !shown.iter().any(|tree| path.starts_with(tree)) {
                shown.push(path);
            }
            shown
        })
    }
}

/// Where a program's libraries are: `/srv/nginx` for `/srv/nginx/sbin/nginx`. A script finds what lies
/// beside it. Where others may not enter, the program alone.
fn tree_of(binary: &Path) -> PathBuf {
    let beside = binary.parent().unwrap_or(binary);
    let is_bin = beside.ends_with("sbin") || beside.ends_with("bin");
    let tree = beside.parent().filter(|_| is_bin).unwrap_or(beside);
    let is_open = |path: &Path| {
        let mode = fs::metadata(path).map(|it| it.permissions().mode());
        path != Path::new("/") && mode.is_ok_and(|mode| mode & 0o5 == 0o5)
    };
    if is_open(tree) { tree } else { binary }.to_path_buf()
}

fn words(finished: &Finished) -> String {
    let first = finished.stderr.lines().next().unwrap_or("no reason given");
    format!("nginx does not run in it: {first}")
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_tree_is_what_its_libraries_are_in_unless_others_may_not_enter_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["open/sbin", "open/other", "closed/sbin", "closed/sbin/bin"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let mode = |name: &str, mode| {
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("open", 0o755);
        mode("open/other", 0o755);
        mode("closed", 0o750);
        for (binary, tree) in [
            ("open/sbin/nginx", "open"),
            ("open/other/nginx", "open/other"),
            ("closed/sbin/nginx", "closed/sbin/nginx"),
        ] {
            assert_eq!(tree_of(&at(binary)), at(tree), "{binary}");
        }
        assert_eq!(tree_of(Path::new("/nginx")), Path::new("/nginx"));
        assert_eq!(tree_of(Path::new("/sbin/nginx")), Path::new("/sbin/nginx"));
    }
}
