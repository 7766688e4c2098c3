//! R: inotify on the vhosts directory. An event is only a hint to read again; it carries nothing.
//!
//! Two watches: on the directory, and on its parent, because a watch dies silently with the
//! directory it is on (removed and made again, or renamed away).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Keeps the watches; dropping it ends them.
#[derive(Debug)]
pub struct Watch {
    /// `None` where the host has no inotify to give: nothing is ever armed, so it is polled.
    watcher: Option<RecommendedWatcher>,
    targets: [Target; 2],
}

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
        changed: impl Fn() + Send + 'static,
    ) -> Result<Self, WatchError> {
        let parent = directory
            .parent()
            .ok_or_else(|| WatchError::NoParent(directory.to_path_buf()))?;
        let (watched, above) = (directory.to_path_buf(), parent.to_path_buf());
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if matters(&event, &watched, &above) {
                changed();
            }
        });
        Ok(Self::with(watcher, [parent, directory]))
    }

    fn with(watcher: notify::Result<RecommendedWatcher>, paths: [&Path; 2]) -> Self {
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
        };
        watch.rearm();
        watch
    }

    /// Puts each watch on what is at its path now. Called before every read, so that no change
    /// falls between the two. Returns whether both are armed.
    pub fn rearm(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let mut all = true;
        for target in &mut self.targets {
            let now = identity(&target.path);
            if target.armed != now || now.is_none() {
                // the old watch may be on an inode that has gone, or was moved away
                let _ = watcher.unwatch(&target.path);
                let watched = watcher.watch(&target.path, RecursiveMode::NonRecursive);
                target.armed = watched.ok().and(now);
            }
            all &= target.armed.is_some();
        }
        all
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

fn matters(event: &notify::Result<notify::Event>, directory: &Path, parent: &Path) -> bool {
    // an error or an overflow may hide anything: read again
    let Ok(event) = event else { return true };
    if event.need_rescan() {
        return true;
    }
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
    // of the parent only the directory itself is interesting
    kind && event
        .paths
        .iter()
        .any(|path| path == directory || path.parent() != Some(parent))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(10);

    fn start(directory: &Path) -> (Watch, Receiver<()>) {
        let (sender, receiver) = channel();
        let watch = Watch::start(directory, move || {
            let _ = sender.send(());
        });
        (watch.unwrap(), receiver)
    }

    fn settle(events: &Receiver<()>) {
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
        let mut watch = Watch::with(exhausted, [home.path(), home.path()]);
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
    fn what_happens_beside_the_directory_is_nothing_to_us() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("vhosts.d");
        fs::create_dir(&directory).unwrap();
        let (_watch, events) = start(&directory);
        fs::write(home.path().join("vhostd.yml"), "x").unwrap();
        assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
    }
}
