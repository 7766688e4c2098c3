//! X: lets a child nginx read a candidate generation exactly where the active one is read.
//!
//! On a host: a mount namespace of the child's own, with the candidate bound over the active
//! generation, so the very same main file is tested and the live tree never holds an untested
//! file. Without the privilege (a demo, some containers): a copy of the main file beside it, whose
//! one include leads to the candidate.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::namespace::{self, Mounts, NamespaceError, ROOT, Walls};
use super::syntax::{self, Directive};
use crate::atomic_file::{self, TEMPORARY_PREFIX, WriteError};
use crate::command::{CommandError, Finished, Running};

#[derive(Debug, thiserror::Error)]
pub enum CandidateError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The settings say `sandbox: require`.
    #[error("test a candidate without the sandbox: {0}")]
    NoSandbox(String),
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "test without the privilege to mount: {} does not include {} by a line of its own",
        config.display(), include.display()
    )]
    Unreachable { config: PathBuf, include: PathBuf },
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl CandidateError {
    /// The host does not allow a namespace, or has none to give: the other way remains.
    pub fn has_no_namespace(&self) -> bool {
        use NamespaceError::{Privileges, Unavailable};
        matches!(self, Self::Namespace(Privileges(_) | Unavailable(_)))
    }
}

/// Starts a child behind walls of mounts, where `candidate` is what is read at `active`, and what
/// would be created in the `touched` directories is created in memory, mounted at `scratch`. Also
/// returns those of them for which that could not be had.
pub fn start_in_namespace(
    candidate: &Path,
    active: &Path,
    scratch: &Path,
    touched: &[(PathBuf, Vec<PathBuf>)],
    start: impl FnOnce() -> Result<Running, CommandError> + Send,
) -> Result<(Running, Vec<PathBuf>), CandidateError> {
    namespace::within(Walls::Mounts, || {
        let mut open = Vec::new();
        if !touched.is_empty() {
            let mounts = Mounts::read()?;
            namespace::hide(scratch, ROOT)?;
            for (number, (directory, logs)) in touched.iter().enumerate() {
                let memory = scratch.join(number.to_string());
                // an overlay shows nothing that is mounted below it, such as the scratch directory
                let covers = mounts.are_below(directory) || scratch.starts_with(directory);
                if covers || capture(directory, logs, &memory).is_err() {
                    open.push(directory.clone());
                }
            }
        }
        namespace::bind(candidate, active)?;
        Ok((start()?, open))
    })
}

/// Whatever is created in `directory` from now on is created below `memory`. A log that is there
/// already is an empty one for the test: opening it for writing would copy it into memory.
fn capture(directory: &Path, logs: &[PathBuf], memory: &Path) -> Result<(), CandidateError> {
    let (upper, work) = (memory.join("upper"), memory.join("work"));
    for path in [memory, &upper, &work] {
        atomic_file::create_directory(path, 0o755)?;
    }
    for name in logs.iter().filter_map(|log| log.file_name()) {
        atomic_file::create_unsynced(&upper.join(name), b"", 0o644)?;
    }
    Ok(namespace::overlay(directory, &upper, &work)?)
}

/// The main file once more, beside itself (elsewhere relative includes break), leading to the
/// candidate. Removed on drop.
#[derive(Debug)]
pub struct RewrittenMain {
    pub path: PathBuf,
    mirror: PathBuf,
    config: PathBuf,
    mirrored: PathBuf,
}

impl RewrittenMain {
    /// `include` is the one-line file of ours; the main file itself must include its directory.
    pub fn create(config: &Path, include: &Path, candidate: &Path) -> Result<Self, CandidateError> {
        let unreachable = || CandidateError::Unreachable {
            config: config.to_path_buf(),
            include: include.to_path_buf(),
        };
        let beside = config.parent().ok_or_else(unreachable)?;
        let ours = include.parent().ok_or_else(unreachable)?;
        // a test that was killed could not remove its own
        atomic_file::sweep_dead(beside)?;
        let text = fs::read_to_string(config).map_err(read(config))?;
        let directives = syntax::parse(text.as_bytes()).map_err(|_| unreachable())?;
        let mut patterns = Vec::new();
        includes(&directives, &mut patterns);
        let pattern = patterns
            .iter()
            .find(|pattern| beside.join(pattern).parent() == Some(ours))
            .ok_or_else(unreachable)?;
        let id = std::process::id();
        let rewritten = Self {
            path: beside.join(format!("{TEMPORARY_PREFIX}{id}.conf")),
            mirror: beside.join(format!("{TEMPORARY_PREFIX}{id}")),
            config: config.to_path_buf(),
            mirrored: ours.to_path_buf(),
        };
        rewritten.build_mirror(ours, include, candidate)?;
        let last = Path::new(pattern).file_name().ok_or_else(unreachable)?;
        let replaced = rewritten.mirror.join(last);
        let text = text.replace(pattern.as_str(), &replaced.to_string_lossy());
        atomic_file::write(&rewritten.path, text.as_bytes(), 0o600)?;
        Ok(rewritten)
    }

    /// What nginx said, with the paths that the admin knows.
    pub fn original_names(&self, finished: Finished) -> Finished {
        let pairs = [(&self.path, &self.config), (&self.mirror, &self.mirrored)];
        let restore = |text: String| {
            pairs.iter().fold(text, |text, (from, to)| {
                text.replace(&*from.to_string_lossy(), &to.to_string_lossy())
            })
        };
        Finished {
            stdout: match String::from_utf8(finished.stdout) {
                Ok(text) => restore(text).into_bytes(),
                Err(not_text) => not_text.into_bytes(),
            },
            stderr: restore(finished.stderr),
            status: finished.status,
        }
    }

    /// The include directory again: links to the admin's files, and ours leading to the candidate.
    fn build_mirror(
        &self,
        ours: &Path,
        include: &Path,
        candidate: &Path,
    ) -> Result<(), CandidateError> {
        atomic_file::remove(&self.mirror)?;
        atomic_file::create_directory(&self.mirror, 0o700)?;
        for entry in fs::read_dir(ours).map_err(read(ours))? {
            let entry = entry.map_err(read(ours))?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if entry.path() != include && !hidden {
                atomic_file::symlink(&self.mirror.join(entry.file_name()), &entry.path())?;
            }
        }
        let line = format!("include {}/http.conf;\n", candidate.display());
        if let Some(name) = include.file_name() {
            atomic_file::write(&self.mirror.join(name), line.as_bytes(), 0o600)?;
        }
        Ok(())
    }
}

impl Drop for RewrittenMain {
    fn drop(&mut self) {
        // what cannot be removed now is a dot-file that no include pattern matches
        let _ = atomic_file::remove(&self.path);
        let _ = atomic_file::remove(&self.mirror);
    }
}

/// The arguments of every `include`, as written.
fn includes(directives: &[Directive], found: &mut Vec<String>) {
    for directive in directives {
        if directive.name == "include" {
            found.extend(directive.args.first().cloned());
        }
        includes(directive.children(), found);
    }
}

fn read(path: &Path) -> impl Fn(io::Error) -> CandidateError + '_ {
    move |source| CandidateError::Read {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// A main file with one hand-written site beside ours, rewritten for a candidate.
    fn rewritten(directory: &Path) -> Result<RewrittenMain, CandidateError> {
        let include = directory.join("conf.d/vhostd.conf");
        fs::create_dir(directory.join("conf.d")).unwrap();
        fs::write(directory.join("conf.d/admin.conf"), "# by hand\n").unwrap();
        fs::write(&include, "include /active/http.conf;\n").unwrap();
        let main = "events {}\nhttp {\n    include conf.d/*.conf;\n    include sites/*;\n}\n";
        fs::write(directory.join("nginx.conf"), main).unwrap();
        let config = directory.join("nginx.conf");
        RewrittenMain::create(&config, &include, Path::new("/candidate"))
    }

    #[test]
    fn the_rewritten_main_file_leads_to_the_candidate_and_to_the_hand_written_sites() {
        let directory = tempfile::tempdir().unwrap();
        let rewritten = rewritten(directory.path()).unwrap();
        let text = fs::read_to_string(&rewritten.path).unwrap();
        let mirror = rewritten.mirror.display();
        assert!(
            text.contains(&format!("include {mirror}/*.conf;")),
            "{text}"
        );
        assert!(text.contains("include sites/*;"), "{text}");
        let read = |name: &str| fs::read_to_string(rewritten.mirror.join(name)).unwrap();
        assert_eq!(read("vhostd.conf"), "include /candidate/http.conf;\n");
        assert_eq!(read("admin.conf"), "# by hand\n");
    }

    #[test]
    fn what_nginx_says_names_the_files_that_the_admin_knows() {
        let directory = tempfile::tempdir().unwrap();
        let rewritten = rewritten(directory.path()).unwrap();
        let said = |root: &Path, main: &Path| {
            format!("bad in {}/admin.conf:3, {}", root.display(), main.display())
        };
        let finished = rewritten.original_names(Finished {
            status: std::process::ExitStatus::from_raw(0),
            stdout: said(&rewritten.mirror, &rewritten.path).into_bytes(),
            stderr: said(&rewritten.mirror, &rewritten.path),
        });
        let at = |name: &str| directory.path().join(name);
        let expected = said(&at("conf.d"), &at("nginx.conf"));
        assert_eq!(finished.stderr, expected);
        assert_eq!(finished.stdout, expected.into_bytes());
    }

    #[test]
    fn a_rewritten_main_file_leaves_nothing_beside_the_real_one() {
        let directory = tempfile::tempdir().unwrap();
        drop(rewritten(directory.path()).unwrap());
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["conf.d", "nginx.conf"]);
    }
}
