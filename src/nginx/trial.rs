//! X: a few vhost files by themselves, for nginx to judge: in the sandbox, or where there is none.
//!
//! It costs the same whatever the number of vhosts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Logs;
use super::candidate::CandidateError;
use super::syntax::{self, Directive};
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

    /// Writes them below `scratch`; whoever may enter that may read them.
    pub(super) fn write(&self, scratch: &Path, main: &str) -> Result<(), WriteError> {
        let main = (Path::new(MAIN), main.as_bytes());
        for (name, bytes) in self.files.iter().copied().chain([main]) {
            let path = scratch.join(name);
            if let Some(parent) = path.parent() {
                atomic_file::create_directory(parent, 0o755)?;
            }
            atomic_file::create_unsynced(&path, bytes, 0o644)?;
        }
        Ok(())
    }

    /// The certificates and keys that the files name. Each was written by vhostd: no vhost file says
    /// where one is.
    pub(super) fn certificate_files(&self) -> Vec<PathBuf> {
        let mut found = BTreeSet::new();
        for (_, bytes) in &self.files {
            collect(&syntax::parse(bytes).unwrap_or_default(), &mut found);
        }
        found.into_iter().collect()
    }
}

fn collect(directives: &[Directive], found: &mut BTreeSet<PathBuf>) {
    for directive in directives {
        collect(directive.children(), found);
        if ["ssl_certificate", "ssl_certificate_key"].contains(&directive.name.as_str()) {
            let paths = directive.args.iter().map(PathBuf::from);
            found.extend(paths.filter(|path| path.is_absolute() && path.is_file()));
        }
    }
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

pub(super) fn start(binary: &Path, scratch: &Path) -> Result<Running, CommandError> {
    let main = scratch.join(MAIN);
    command::start(binary, &["-t".as_ref(), "-c".as_ref(), main.as_os_str()])
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_server_blocks_name_are_certificates_and_keys_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        for name in ["chain", "key", "page"] {
            std::fs::write(at(name), "").unwrap();
        }
        let text = format!(
            "server {{ ssl_certificate {}; ssl_certificate_key \"{}\"; root {}; \
             location {} {{ ssl_certificate {}; }} }}",
            at("chain"),
            at("key"),
            at("page"),
            at("page"),
            at("none")
        );
        let trial = Trial {
            files: vec![(Path::new("a"), text.as_bytes()), (Path::new("b"), b"{")],
            modules: &[],
            log_dir: directory.path(),
            logs: &Logs::default(),
        };
        let expected = ["chain", "key"].map(|name| PathBuf::from(at(name)));
        assert_eq!(trial.certificate_files(), expected);
    }
}
