//! R: what nginx wrote to its error log since a moment.
//!
//! Notices are never relied on: Debian's level hides them. `[emerg]` lines of the master are how a
//! reload that did not take says so, mostly within 35 ms.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A place in the error log, taken before the signal.
#[derive(Clone, Debug)]
pub struct Mark {
    path: Option<PathBuf>,
    inode: u64,
    offset: u64,
}

/// How the master's own words judge the reload so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing bad was said.
    Quiet,
    /// A port is taken; nginx tries five times within 2.5 s, and it may heal.
    Retrying(Vec<String>),
    /// The old configuration stays.
    Refused(Vec<String>),
}

/// More than this since the mark is not read: the lines that matter come first.
const MOST: u64 = 256 * 1024;

impl Mark {
    /// `None`: nginx logs to stderr or syslog, which nobody can read back.
    pub fn take(path: Option<&Path>) -> Self {
        let metadata = path.and_then(|path| fs::metadata(path).ok());
        Self {
            path: path.map(Path::to_path_buf),
            inode: metadata.as_ref().map_or(0, MetadataExt::ino),
            offset: metadata.map_or(0, |metadata| metadata.len()),
        }
    }

    /// The master's verdict since the mark.
    pub fn verdict(&self, master: i32) -> Verdict {
        judge(&self.new_text(), master)
    }

    fn new_text(&self) -> String {
        let Some(mut file) = self.path.as_ref().and_then(|path| File::open(path).ok()) else {
            return String::new();
        };
        // rotated since: everything in the new file is new
        let same = file.metadata().is_ok_and(|now| now.ino() == self.inode);
        let from = if same { self.offset } else { 0 };
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(from)).is_ok() {
            let _ = file.take(MOST).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn judge(text: &str, master: i32) -> Verdict {
    let mine = format!("[emerg] {master}#");
    let lines: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_once(&mine))
        .map(|(_, rest)| {
            rest.split_once(": ")
                .map_or(rest, |(_, message)| message)
                .to_owned()
        })
        .collect();
    if lines.is_empty() {
        Verdict::Quiet
    } else if lines.iter().all(|line| line.starts_with("bind() to ")) {
        Verdict::Retrying(deduplicated(lines))
    } else {
        Verdict::Refused(deduplicated(lines))
    }
}

fn deduplicated(mut lines: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    const BIND: &str = "2026/11/23 08:00:00 [emerg] 7#7: bind() to 0.0.0.0:443 failed (98: Address already in use)\n";

    #[test]
    fn a_bind_failure_is_final_only_when_nginx_gives_up() {
        assert!(matches!(judge(BIND, 7), Verdict::Retrying(lines) if lines.len() == 1));
        let text = format!("{BIND}{BIND}2026/11/23 08:00:02 [emerg] 7#7: still could not bind()\n");
        assert!(matches!(judge(&text, 7), Verdict::Refused(lines) if lines.len() == 2));
    }

    #[test]
    fn lines_of_other_processes_and_levels_say_nothing() {
        assert_eq!(judge(BIND, 8), Verdict::Quiet);
        assert_eq!(
            judge("x [error] 7#7: *1 upstream timed out\n", 7),
            Verdict::Quiet
        );
    }

    #[test]
    fn only_what_came_after_the_mark_counts_even_when_the_log_was_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        fs::write(&path, BIND).unwrap();
        let mark = Mark::take(Some(&path));
        assert_eq!(mark.verdict(7), Verdict::Quiet);
        fs::rename(&path, directory.path().join("error.log.1")).unwrap();
        fs::write(&path, "x [emerg] 7#7: unknown directive \"nope\"\n").unwrap();
        assert!(matches!(mark.verdict(7), Verdict::Refused(_)));
    }
}
