//! R: inotify on the vhosts directory, and on certificates' files. An event is only a hint to read
//! again; it carries nothing.
//!
//! Two watches at least: on the directory, and on its parent, because a watch dies silently with
//! the directory it is on (removed and made again, or renamed away).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::vhost::source;

/// Keeps the watches; dropping it ends them.
#[derive(Debug)]
pub struct Watch {
    /// `None` where the host has no inotify to give: nothing is ever armed, so it is polled.
    watcher: Option<RecommendedWatcher>,
    targets: [Target; 2],
    /// Directories of files that vhosts name, as far as they are there.
    followed: Vec<Target>,
    files: Files,
}

/// What may have changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hint {
    /// Of nginx's hand-written configuration.
    HandWritten,
    /// A vhost file, or a file that one names.
    Vhosts,
}

/// What is followed beside the vhosts directory.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    /// That vhost files name.
    pub files: BTreeSet<PathBuf>,
    /// Of nginx's hand-written configuration.
    pub hand_written: BTreeSet<PathBuf>,
    /// Where nginx would read further ones.
    pub hand_written_directories: BTreeSet<PathBuf>,
}

/// For the thread that is told of events.
type Files = Arc<Mutex<Followed>>;

#[derive(Debug)]
struct Target {
    path: PathBuf,
    /// Device and inode that the watch is on.
    armed: Option<(u64, u64)>,
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("watch {}: it has no parent directory", .0.display())]
    NoParent(PathBuf),
}

impl Watch {
    /// `changed` is called, on another thread, whenever something may have changed.
    pub fn start(
        directory: &Path,
        changed: impl Fn(Hint) + Send + 'static,
    ) -> Result<Self, WatchError> {
        let parent = directory
            .parent()
            .ok_or_else(|| WatchError::NoParent(directory.to_path_buf()))?;
        let watched = directory.to_path_buf();
        let files = Files::default();
        let followed = files.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let followed = followed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(hint) = hint(&event, &watched, &followed) {
                drop(followed);
                changed(hint);
            }
        });
        Ok(Self::with(watcher, [parent, directory], files))
    }

    fn with(watcher: notify::Result<RecommendedWatcher>, paths: [&Path; 2], files: Files) -> Self {
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(
                "failed to watch for changes, so the directory is read every second ({error}); \
                 `sysctl fs.inotify` shows the limits"
            );
        });
        let target = |path: &Path| Target {
            path: path.to_path_buf(),
            armed: None,
        };
        let mut watch = Self {
            watcher: watcher.ok(),
            targets: paths.map(target),
            followed: Vec::new(),
            files,
        };
        watch.rearm();
        watch
    }

    /// Watches the directories of these files, too, and those that they are linked from; nothing else
    /// of before. A file whose directory is not there yet is found by the next reading.
    pub fn follow(&mut self, mut followed: Followed) {
        for files in [&mut followed.files, &mut followed.hand_written] {
            let resolved = files.iter().filter_map(|file| fs::canonicalize(file).ok());
            let resolved: Vec<PathBuf> = resolved.collect();
            files.extend(resolved);
        }
        let all = followed.files.iter().chain(&followed.hand_written);
        let directories: BTreeSet<PathBuf> = all
            .filter_map(|file| file.parent())
            .map(Path::to_path_buf)
            .chain(followed.hand_written_directories.iter().cloned())
            .collect();
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = followed;
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let ours = |path: &Path| self.targets.iter().any(|target| target.path == path);
        self.followed.retain(|target| {
            let kept = directories.contains(&target.path);
            if !kept && !ours(&target.path) {
                let _ = watcher.unwatch(&target.path);
            }
            kept
        });
        for path in &directories {
            if !self.followed.iter().any(|target| target.path == *path) {
                self.followed.push(Target {
                    path: path.clone(),
                    armed: None,
                });
            }
        }
        for target in &mut self.followed {
            if !self.targets.iter().any(|own| own.path == target.path) {
                target.arm(watcher);
            }
        }
    }

    /// Puts each watch on what is at its path now. Called before every read, so that no change
    /// falls between the two. Returns whether both are armed.
    pub fn rearm(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let mut all = true;
        for target in &mut self.targets {
            target.arm(watcher);
            all &= target.armed.is_some();
        }
        all
    }
}

impl Target {
    fn arm(&mut self, watcher: &mut RecommendedWatcher) {
        let now = identity(&self.path);
        if self.armed != now || now.is_none() {
            // the old watch may be on an inode that has gone, or was moved away
            let _ = watcher.unwatch(&self.path);
            let watched = watcher.watch(&self.path, RecursiveMode::NonRecursive);
            self.armed = watched.ok().and(now);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata: io::Result<fs::Metadata> = fs::metadata(path);
    metadata
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

fn is_empty(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| it.is_file() && it.len() == 0)
}

/// What `event` says may have changed; `None`: nothing.
fn hint(
    event: &notify::Result<notify::Event>,
    directory: &Path,
    followed: &Followed,
) -> Option<Hint> {
    // an error or an overflow may hide anything: read again
    let Some(event) = event.as_ref().ok().filter(|event| !event.need_rescan()) else {
        return Some(Hint::Vhosts);
    };
    let kind = match event.kind {
        // our own reading opens files, too
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        // a writer is at work: what it closes is whole, and half a file may look whole too
        EventKind::Modify(ModifyKind::Data(_)) => false,
        // so is the one that has just created it
        EventKind::Create(CreateKind::File) => !event.paths.iter().all(|path| is_empty(path)),
        _ => true,
    };
    // of other directories only the files that are followed are interesting, and ours itself
    let vhosts = |path: &PathBuf| {
        let in_directory = path.parent() == Some(directory) && source::is_read(path);
        path == directory || in_directory || followed.files.contains(path)
    };
    let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    let hand_written = |path: &PathBuf| {
        let parent = path.parent().map(Path::to_path_buf);
        let beside = parent.is_some_and(|it| followed.hand_written_directories.contains(&it));
        let seen = !path.file_name().is_some_and(hidden);
        followed.hand_written.contains(path) || (beside && seen)
    };
    let any = |is: &dyn Fn(&PathBuf) -> bool| kind && event.paths.iter().any(is);
    match (any(&vhosts), any(&hand_written)) {
        (true, _) => Some(Hint::Vhosts),
        (false, true) => Some(Hint::HandWritten),
        (false, false) => None,
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(10);

    fn start(directory: &Path) -> (Watch, Receiver<Hint>) {
        let (sender, receiver) = channel();
        let watch = Watch::start(directory, move |hint| {
            let _ = sender.send(hint);
        });
        (watch.unwrap(), receiver)
    }

    fn settle(events: &Receiver<Hint>) {
        while events.recv_timeout(Duration::from_millis(50)).is_ok() {}
    }

    #[test]
    fn reading_a_file_is_no_change_and_writing_one_is() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("vhosts.d");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yml"), "x").unwrap();
        let (_watch, events) = start(&directory);
        fs::read(directory.join("a.yml")).unwrap();
        fs::read_dir(&directory).unwrap().count();
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
        fs::write(directory.join("a.yml"), "y").unwrap();
        events.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn what_is_no_vhost_file_is_no_change_until_it_becomes_one() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("vhosts.d");
        fs::create_dir(&directory).unwrap();
        let (_watch, events) = start(&directory);
        for name in [".x", ".a.yml.swp", "a.yml~", "a.yml.bak", "4913"] {
            fs::write(directory.join(name), "x").unwrap();
            fs::remove_file(directory.join(name)).unwrap();
        }
        fs::write(directory.join(".new"), "x").unwrap();
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
        fs::rename(directory.join(".new"), directory.join("a.yaml")).unwrap();
        events.recv_timeout(LIMIT).unwrap();
        settle(&events);
        fs::rename(directory.join("a.yaml"), directory.join("a.yaml.off")).unwrap();
        events.recv_timeout(LIMIT).unwrap();
        settle(&events);
        // it is refused, and that is told
        fs::write(directory.join("no name.yml"), "x").unwrap();
        events.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn a_file_is_read_when_its_writer_closes_it_and_not_before() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("vhosts.d");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yml"), "x").unwrap();
        let (_watch, events) = start(&directory);
        let mut file = fs::File::create(directory.join("a.yml")).unwrap();
        std::io::Write::write_all(&mut file, b"half").unwrap();
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
        drop(file);
        events.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn a_host_without_inotify_to_give_is_polled() {
        let home = tempfile::tempdir().unwrap();
        let exhausted = Err(notify::Error::generic("too many open files"));
        let mut watch = Watch::with(exhausted, [home.path(), home.path()], Arc::default());
        assert!(!watch.rearm(), "what is not armed is read every second");
    }

    #[test]
    fn a_directory_that_is_removed_and_made_again_is_watched_again() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("vhosts.d");
        fs::create_dir(&directory).unwrap();
        let (mut watch, events) = start(&directory);
        fs::remove_dir(&directory).unwrap();
        events.recv_timeout(LIMIT).unwrap();
        assert!(!watch.rearm());
        settle(&events);
        fs::create_dir(&directory).unwrap();
        events.recv_timeout(LIMIT).unwrap();
        assert!(watch.rearm());
        settle(&events);
        fs::write(directory.join("a.yml"), "x").unwrap();
        events.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn a_followed_file_is_watched_where_it_is_and_where_it_leads_and_its_neighbours_are_not() {
        let home = tempfile::tempdir().unwrap();
        let [vhosts, live, archive] = ["vhosts.d", "live", "archive"].map(|name| {
            let path = home.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        fs::write(archive.join("cert1.pem"), "1").unwrap();
        std::os::unix::fs::symlink("../archive/cert1.pem", live.join("cert.pem")).unwrap();
        let beside = home.path().join("own.pem");
        fs::write(&beside, "1").unwrap();
        let (mut watch, events) = start(&vhosts);
        watch.follow(Followed {
            files: BTreeSet::from([live.join("cert.pem"), beside.clone()]),
            ..Followed::default()
        });
        fs::write(live.join("README"), "x").unwrap();
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
        fs::write(archive.join("cert1.pem"), "2").unwrap();
        events.recv_timeout(LIMIT).unwrap();
        settle(&events);
        std::os::unix::fs::symlink("../archive/cert2.pem", live.join("new")).unwrap();
        fs::rename(live.join("new"), live.join("cert.pem")).unwrap();
        events.recv_timeout(LIMIT).unwrap();
        settle(&events);
        fs::write(&beside, "2").unwrap();
        events.recv_timeout(LIMIT).unwrap();
        settle(&events);
        watch.follow(Followed::default());
        fs::write(archive.join("cert1.pem"), "3").unwrap();
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
    }

    #[test]
    fn a_hand_written_file_that_comes_or_changes_is_a_hint_of_its_own_and_a_hidden_one_is_none() {
        let home = tempfile::tempdir().unwrap();
        let [vhosts, sites] = ["vhosts.d", "sites"].map(|name| {
            let path = home.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        let main = home.path().join("nginx.conf");
        fs::write(&main, "1").unwrap();
        let (mut watch, events) = start(&vhosts);
        watch.follow(Followed {
            hand_written: BTreeSet::from([main.clone()]),
            hand_written_directories: BTreeSet::from([sites.clone()]),
            ..Followed::default()
        });
        for path in [sites.join(".new.swp"), home.path().join("other")] {
            fs::write(path, "2").unwrap();
        }
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
        for path in [main, sites.join("new")] {
            fs::write(path, "2").unwrap();
            assert_eq!(events.recv_timeout(LIMIT), Ok(Hint::HandWritten));
            settle(&events);
        }
        fs::write(vhosts.join("a.yml"), "2").unwrap();
        assert_eq!(events.recv_timeout(LIMIT), Ok(Hint::Vhosts));
    }

    #[test]
    fn what_happens_beside_the_directory_is_nothing_to_us() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("vhosts.d");
        fs::create_dir(&directory).unwrap();
        let (_watch, events) = start(&directory);
        fs::write(home.path().join("vhostd.yml"), "x").unwrap();
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
    }
}
