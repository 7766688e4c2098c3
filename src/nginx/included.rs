//! R: every file that nginx reads beside ours, as it was at one look: whether one came, went or
//! changed since is a matter of names, inodes, sizes and times.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::footprint::{Footprint, matching};

/// The hand-written files of one nginx.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct IncludedFiles {
    /// Of every `include`, absolute, and the main file.
    patterns: BTreeSet<PathBuf>,
    /// What the patterns led to.
    files: BTreeMap<PathBuf, Stamp>,
}

/// What changes with a file's contents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl IncludedFiles {
    pub(super) fn of(footprint: &Footprint) -> Self {
        Self {
            files: stamps(&footprint.patterns),
            patterns: footprint.patterns.clone(),
        }
    }

    /// Whether all is as it was.
    pub fn is_current(&self) -> bool {
        stamps(&self.patterns) == self.files
    }

    /// The files, and the directories in which another one would be read, too.
    pub fn paths(&self) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        let is_pattern = |path: &&PathBuf| path.to_string_lossy().contains(['*', '?', '[']);
        let patterns = self.patterns.iter().filter(is_pattern);
        let parents = patterns.filter_map(|pattern| pattern.parent());
        let directories = parents.map(Path::to_path_buf).collect();
        (self.files.keys().cloned().collect(), directories)
    }
}

fn stamps(patterns: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Stamp> {
    let files = patterns.iter().flat_map(|pattern| matching(pattern));
    files
        .filter_map(|path| stamp(&path).map(|stamp| (path, stamp)))
        .collect()
}

/// Of what a link leads to: that is what nginx reads.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::nginx::footprint::Roots;

    #[test]
    fn a_hand_written_file_that_comes_changes_or_goes_is_a_difference_and_ours_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        for name in ["conf.d", "available", "state"] {
            fs::create_dir(base.join(name)).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(base.join(name), text).unwrap();
        let main = base.join("nginx.conf");
        let ours = base.join("state");
        write(
            "nginx.conf",
            "http { include mime.types; include conf.d/*.conf; }",
        );
        write("mime.types", "types { }");
        write("state/http.conf", "# 1");
        write("available/a", "include more;");
        write("more", "# more");
        std::os::unix::fs::symlink("../available/a", base.join("conf.d/a.conf")).unwrap();
        let line = format!("include {}/http.conf;", ours.display());
        write("conf.d/vhostd.conf", &line);
        let look = || {
            let roots = Roots {
                main: &main,
                prefix: &base,
                ours: &ours,
            };
            IncludedFiles::of(&Footprint::read(roots))
        };
        let mut before = look();
        assert!(before.is_current());
        write("state/http.conf", "# another generation");
        write("conf.d/.a.conf.swp", "not read");
        write("conf.d/a.conf.dpkg-new", "not read");
        assert!(before.is_current());
        for change in [
            || ("conf.d/b.conf", "# new"),
            || ("conf.d/b.conf", "# changed"),
            || ("available/a", "include more; # behind a link"),
            || ("more", "# changed too"),
            || ("mime.types", "types { a b; }"),
            || {
                (
                    "nginx.conf",
                    "http { include mime.types; include conf.d/*; }",
                )
            },
        ] {
            let (name, text) = change();
            write(name, text);
            assert!(!before.is_current(), "{name}");
            before = look();
            assert!(before.is_current(), "{name}");
        }
        fs::remove_file(base.join("conf.d/b.conf")).unwrap();
        assert!(!before.is_current());
    }
}
