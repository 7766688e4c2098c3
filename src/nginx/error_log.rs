//! R: what nginx wrote to its error log since a moment.
//!
//! Notices are never relied on: Debian's level hides them. `[emerg]` lines of the master are how a
//! reload that did not take says so, mostly within 35 ms.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A place in the error log, taken before the signal.
#[derive(Debug)]
pub struct Mark {
    path: Option<PathBuf>,
    /// The log at that time: a rotation renames it, and nginx writes on until it is told.
    file: Option<File>,
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
    /// `None`: nginx logs to stderr or syslog, which nobody can read back. What is no regular file
    /// (`/dev/stderr`, a pipe) is as none: reading it would wait, or take away what others read.
    pub fn take(path: Option<&Path>) -> Self {
        let file = path.and_then(open);
        let length = file.as_ref().and_then(|file| file.metadata().ok());
        Self {
            path: path.map(Path::to_path_buf),
            offset: length.map_or(0, |metadata| metadata.len()),
            file,
        }
    }

    /// The master's verdict since the mark.
    pub fn verdict(&self, master: i32) -> Verdict {
        judge(&self.new_text(), master)
    }

    fn new_text(&self) -> String {
        let now = self.path.as_deref().and_then(open);
        let inode = |file: &File| file.metadata().ok().map(|it| (it.dev(), it.ino()));
        let known = self.file.as_ref().and_then(inode);
        let mut bytes = Vec::new();
        if let Some(file) = &self.file {
            read_from(file, self.offset, &mut bytes);
        }
        // rotated since: everything in the new file is new
        if let Some(file) = now.filter(|file| inode(file) != known) {
            read_from(&file, 0, &mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Never waits for a writer.
fn open(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nix::libc::O_NONBLOCK);
    // a look first: opening a device may do something
    let regular = fs::metadata(path).is_ok_and(|it| it.is_file());
    let file = regular.then(|| options.open(path).ok()).flatten()?;
    file.metadata().is_ok_and(|it| it.is_file()).then_some(file)
}

fn read_from(mut file: &File, offset: u64, bytes: &mut Vec<u8>) {
    // a rotation by copy and truncate: everything is new
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let from = if length < offset { 0 } else { offset };
    if file.seek(SeekFrom::Start(from)).is_ok() {
        let _ = file.take(MOST).read_to_end(bytes);
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

    #[test]
    fn what_nginx_writes_into_a_renamed_log_before_it_is_told_counts_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        fs::write(&path, BIND).unwrap();
        let mark = Mark::take(Some(&path));
        let renamed = directory.path().join("error.log.1");
        fs::rename(&path, &renamed).unwrap();
        fs::write(&renamed, format!("{BIND}x [emerg] 7#7: no\n")).unwrap();
        assert_eq!(mark.verdict(7), Verdict::Refused(vec!["no".into()]));
    }

    #[test]
    fn a_log_that_was_truncated_is_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        fs::write(&path, BIND.repeat(10)).unwrap();
        let mark = Mark::take(Some(&path));
        fs::write(&path, "x [emerg] 7#7: no\n").unwrap();
        assert_eq!(mark.verdict(7), Verdict::Refused(vec!["no".into()]));
    }

    #[test]
    fn a_log_that_is_a_pipe_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // somebody holds it open, so that reading would wait for ever
        let _writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mark = Mark::take(Some(&path));
        assert_eq!(mark.verdict(7), Verdict::Quiet);
        assert_eq!(
            Mark::take(Some(Path::new("/dev/stderr"))).verdict(7),
            Verdict::Quiet
        );
    }
}
