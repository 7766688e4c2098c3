//! R: what `nginx -t` would create: log files and directories that the configuration names.
//!
//! nginx opens every log for appending and makes every missing temporary and cache directory, in a
//! test as in earnest. Found by reading the hand-written files as nginx would, before it does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::syntax::{self, Directive};

/// Absolute paths; whether they exist is not asked here.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Footprint {
    pub logs: BTreeSet<PathBuf>,
    pub directories: BTreeSet<PathBuf>,
    /// The `pid` directive.
    pub pid: Option<PathBuf>,
    /// Of every `include` of hand-written files, absolute, and the main file.
    pub patterns: BTreeSet<PathBuf>,
    /// The hand-written file that includes ours.
    pub entry: Option<PathBuf>,
}

/// Where the reading begins.
#[derive(Clone, Copy, Debug)]
pub struct Roots<'a> {
    /// The main file, canonical: relative includes are below its directory.
    pub main: &'a Path,
    /// `nginx -V`'s prefix: other relative paths are below it.
    pub prefix: &'a Path,
    /// What is below it is ours, and known.
    pub ours: &'a Path,
}

const LOGS: [&str; 2] = ["access_log", "error_log"];
const DIRECTORIES: [&str; 9] = [
    "client_body_temp_path",
    "fastcgi_cache_path",
    "fastcgi_temp_path",
    "proxy_cache_path",
    "proxy_temp_path",
    "scgi_cache_path",
    "scgi_temp_path",
    "uwsgi_cache_path",
    "uwsgi_temp_path",
];

impl Footprint {
    /// Of the hand-written files. What cannot be read is left out: nginx will say it.
    pub fn read(roots: Roots<'_>) -> Self {
        let mut reading = Reading {
            roots,
            seen: BTreeSet::new(),
            found: Self::default(),
        };
        reading.found.patterns.insert(roots.main.to_path_buf());
        reading.file(roots.main);
        reading.found
    }

    /// The directories in which something would be created, with the logs that are there already.
    pub fn touched(&self) -> Vec<(PathBuf, Vec<PathBuf>)> {
        let missing = self.logs.iter().chain(&self.directories);
        let parents: BTreeSet<PathBuf> = missing
            .filter(|path| !path.exists())
            .filter_map(|path| path.ancestors().skip(1).find(|parent| parent.is_dir()))
            .map(Path::to_path_buf)
            .collect();
        let logs_in = |parent: &Path| {
            let there = |log: &&PathBuf| log.parent() == Some(parent) && log.is_file();
            self.logs.iter().filter(there).cloned().collect()
        };
        parents
            .into_iter()
            .map(|parent| {
                let logs = logs_in(&parent);
                (parent, logs)
            })
            .collect()
    }
}

struct Reading<'a> {
    roots: Roots<'a>,
    seen: BTreeSet<PathBuf>,
    found: Footprint,
}

impl Reading<'_> {
    fn file(&mut self, written: &Path) {
        let Ok(path) = written.canonicalize() else {
            return;
        };
        if path.starts_with(self.roots.ours) || !self.seen.insert(path.clone()) {
            return;
        }
        let text = fs::read(&path).unwrap_or_default();
        self.directives(written, &syntax::parse(&text).unwrap_or_default());
    }

    fn directives(&mut self, file: &Path, directives: &[Directive]) {
        for directive in directives {
            self.directives(file, directive.children());
            let Some(argument) = directive.args.first() else {
                continue;
            };
            match directive.name.as_str() {
                "include" => self.include(file, argument),
                "pid" => self.found.pid = Some(self.roots.prefix.join(argument)),
                name if LOGS.contains(&name) && is_file(argument) => {
                    self.found.logs.insert(self.roots.prefix.join(argument));
                }
                name if DIRECTORIES.contains(&name) => {
                    let directory = self.roots.prefix.join(argument);
                    self.found.directories.insert(directory);
                }
                _ => {}
            }
        }
    }

    fn include(&mut self, from: &Path, pattern: &str) {
        let beside = self.roots.main.parent().unwrap_or(Path::new("/"));
        let pattern = beside.join(pattern);
        if pattern.starts_with(self.roots.ours) {
            self.found.entry.get_or_insert_with(|| from.to_path_buf());
            return;
        }
        for file in matching(&pattern) {
            self.file(&file);
        }
        self.found.patterns.insert(pattern);
    }
}

/// The files that an `include` of `pattern` reads, sorted.
pub(super) fn matching(pattern: &Path) -> Vec<PathBuf> {
    let as_nginx = glob::MatchOptions {
        require_literal_leading_dot: true,
        require_literal_separator: true,
        case_sensitive: true,
    };
    let files = glob::glob_with(&pattern.to_string_lossy(), as_nginx);
    files.into_iter().flatten().flatten().collect()
}

/// A log's argument that is a path: not `off`, standard error, a server, memory or variables.
fn is_file(argument: &str) -> bool {
    let elsewhere = ["syslog:", "memory:"];
    !matches!(argument, "off" | "stderr")
        && !argument.contains('$')
        && elsewhere.iter().all(|prefix| !argument.starts_with(prefix))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn logs_and_directories_of_included_files_are_found_and_ours_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let write = |name: &str, text: &str| {
            let path = base.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "nginx.conf",
            "pid /run/n.pid; error_log stderr; http { include sites/*.conf; access_log off; }",
        );
        write(
            "sites/a.conf",
            "server { access_log logs/a.log; error_log syslog:server=x; access_log /l/$host; }\n\
             proxy_cache_path /cache/a keys_zone=a:1m; include ../nginx.conf; include none;",
        );
        write("sites/.hidden.conf", "access_log /hidden.log;");
        write("sites/broken.conf", "access_log {");
        write("ours/http.conf", "access_log /ours.log;");
        write("sites/vhostd.conf", "include ../ours/http.conf;");
        let found = Footprint::read(Roots {
            main: &base.join("nginx.conf"),
            prefix: &base,
            ours: &base.join("ours"),
        });
        let expected = Footprint {
            logs: [base.join("logs/a.log")].into(),
            directories: [PathBuf::from("/cache/a")].into(),
            pid: Some("/run/n.pid".into()),
            ..found.clone()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn only_directories_that_lack_something_are_touched() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        for name in ["full", "new"] {
            fs::create_dir(base.join(name)).unwrap();
            fs::write(base.join(name).join("old.log"), "").unwrap();
        }
        let footprint = Footprint {
            logs: ["full/old.log", "new/old.log", "new/new.log"]
                .map(|name| base.join(name))
                .into(),
            directories: [base.join("new/not/yet")].into(),
            ..Footprint::default()
        };
        let touched = footprint.touched();
        assert_eq!(
            touched,
            [(base.join("new"), vec![base.join("new/old.log")])]
        );
    }
}
