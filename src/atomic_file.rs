//! W: every write passes here.
//!
//! A file is created under a temporary dot-name in its own directory with its final mode, written,
//! fsynced, renamed over the target, and its directory is fsynced. A crash at any point leaves the
//! old file or the new one, and at most one dot-file that [`sweep`] removes.
#![expect(
    clippy::disallowed_methods,
    reason = "the room through which every other room writes"
)]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use serde::Serialize;

/// The prefix of everything unfinished; nothing that starts with it is ever read.
pub const TEMPORARY_PREFIX: &str = ".vhostd-tmp-";

/// More have been seen to gain nothing.
const SYNCS_AT_ONCE: usize = 16;

/// What could not be written, and where.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct WriteError {
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Replaces or creates `path` with `contents`, durably.
///
/// `mode` is the final permission bits, set at creation.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), WriteError> {
    replace(path, |temporary| create(temporary, contents, mode))
}

/// [`write()`]s somebody else's file, which keeps its mode and its owner.
pub fn rewrite(path: &Path, contents: &[u8], before: &fs::Metadata) -> Result<(), WriteError> {
    replace(path, |temporary| {
        create(temporary, contents, 0o600)?;
        let mode = fs::Permissions::from_mode(before.mode() & 0o7777);
        std::os::unix::fs::chown(temporary, Some(before.uid()), Some(before.gid()))
            .and_then(|()| fs::set_permissions(temporary, mode))
            .map_err(failed("restrict", temporary))
    })
}

/// What `fill` makes under a temporary name takes the place of `path`, durably, or is gone.
fn replace(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let (directory, temporary) = beside(path)?;
    clear(&temporary)?;
    let written = fill(&temporary)
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("rename to", path)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_directory(&directory)
}

/// [`write()`]s `value` as JSON. What cannot be serialized leaves the file as it was.
pub fn write_json(path: &Path, value: &impl Serialize, mode: u32) -> Result<(), WriteError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| failed("serialize", path)(error.into()))?;
    write(path, &bytes, mode)
}

/// Opens a file to lock, and makes it where it is missing. It is never replaced: two processes that
/// start together must lock the same file.
pub fn lock_file(path: &Path) -> Result<File, WriteError> {
    match create_unsynced(path, b"", 0o600) {
        Err(error) if error.source.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        // a power cut leaves nobody who holds it
        _ => {}
    }
    File::open(path).map_err(failed("open", path))
}

/// Creates `path`, which must not exist, and fsyncs it; the caller renames or fsyncs its directory.
/// For files inside a directory that is itself still temporary.
pub fn create(path: &Path, contents: &[u8], mode: u32) -> Result<(), WriteError> {
    let mut file = create_unsynced(path, contents, mode)?;
    file.flush()
        .and_then(|()| file.sync_all())
        .map_err(failed("fsync", path))
}

/// As [`create`], without the fsync: for what a power cut may take.
pub fn create_unsynced(path: &Path, contents: &[u8], mode: u32) -> Result<File, WriteError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed("create", path))?;
    // the umask may have taken bits away: the mode is part of the contract
    file.set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(contents))
        .map_err(failed("write", path))?;
    Ok(file)
}

/// Creates an empty log with mode 0640. What is there, a symbolic link included, stays as it is. A power
/// cut may take it.
///
/// Who may not give files away (chown(2)) keeps it as the user and the group that it is.
pub fn create_log(path: &Path, owner: u32, group: u32) -> Result<(), WriteError> {
    match create_unsynced(path, b"", 0o640) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(file) => {
            let given = std::os::unix::fs::fchown(&file, Some(owner), Some(group));
            let refused = given.err().filter(|_| nix::unistd::geteuid().is_root());
            refused.map_or(Ok(()), |error| Err(failed("give away", path)(error)))
        }
    }
}

/// New files that are fsynced at the same time, since then they share the disk's work.
#[derive(Debug, Default)]
pub struct Batch(Vec<(File, PathBuf)>);

impl Batch {
    /// As [`create`]; durable after [`Batch::sync`].
    pub fn create(&mut self, path: PathBuf, contents: &[u8], mode: u32) -> Result<(), WriteError> {
        let file = create_unsynced(&path, contents, mode)?;
        self.0.push((file, path));
        Ok(())
    }

    /// Their names are their directories' affair: [`sync_directory`].
    pub fn sync(&self) -> Result<(), WriteError> {
        let share = self.0.len().div_ceil(SYNCS_AT_ONCE).max(1);
        let sync = |(file, path): &(File, PathBuf)| file.sync_all().map_err(failed("fsync", path));
        thread::scope(|scope| {
            let shares = self.0.chunks(share);
            let threads = shares.map(|files| scope.spawn(move || files.iter().try_for_each(sync)));
            // all of them run before the first is waited for
            let threads: Vec<_> = threads.collect();
            threads.into_iter().try_for_each(|thread| {
                let synced = thread.join();
                synced.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }
}

/// Points the symbolic link `path` at `target` by a rename, durably.
pub fn symlink(path: &Path, target: &Path) -> Result<(), WriteError> {
    let (directory, temporary) = beside(path)?;
    clear(&temporary)?;
    std::os::unix::fs::symlink(target, &temporary).map_err(failed("symlink", &temporary))?;
    if let Err(error) = fs::rename(&temporary, path) {
        let _ = fs::remove_file(&temporary);
        return Err(failed("rename to", path)(error));
    }
    sync_directory(&directory)
}

/// Sets mode and group of something that has no public name yet (a socket gets both from `bind`).
pub fn restrict(path: &Path, mode: u32, group: Option<u32>) -> Result<(), WriteError> {
    std::os::unix::fs::chown(path, None, group)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(failed("restrict", path))
}

/// Renames within one file system and fsyncs the parent of the target.
pub fn rename(from: &Path, to: &Path) -> Result<(), WriteError> {
    fs::rename(from, to).map_err(failed("rename to", to))?;
    sync_directory(parent(to))
}

/// Creates a directory inside of one that is itself still temporary, or will be fsynced.
pub fn create_directory_unsynced(path: &Path, mode: u32) -> Result<(), WriteError> {
    let made = fs::DirBuilder::new().mode(mode).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(failed("create", path))
}

/// Creates a directory with `mode` where it is missing (its parents with 0755), durably.
pub fn create_directory(path: &Path, mode: u32) -> Result<(), WriteError> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    if !above.exists() {
        create_directory(above, 0o755)?;
    }
    match create_directory_unsynced(path, mode) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    sync_directory(above)
}

/// Makes a directory that nobody else has, with a name that cannot be foreseen, below `parent`.
/// Whoever makes it removes it.
pub fn create_temporary_directory(
    parent: &Path,
    prefix: &str,
    mode: u32,
) -> Result<PathBuf, WriteError> {
    let template = parent.join(format!("{prefix}XXXXXX"));
    let path = nix::unistd::mkdtemp(&template)
        .map_err(|errno| failed("create", &template)(errno.into()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        .map_err(failed("restrict", &path))?;
    Ok(path)
}

/// Builds the new directory `root` (0700) with `files` (relative paths, 0600), all durable when it
/// returns. A file whose bytes `reusable` already holds under the same name becomes a second name
/// of that one: immutable files are written once.
pub fn write_tree(
    root: &Path,
    files: &[(&Path, &[u8])],
    reusable: Option<&Path>,
) -> Result<(), WriteError> {
    let mut directories = BTreeSet::from([root.to_path_buf()]);
    let mut batch = Batch::default();
    fs::DirBuilder::new()
        .mode(0o700)
        .create(root)
        .map_err(failed("create", root))?;
    for (relative, contents) in files {
        let path = root.join(relative);
        let directory = parent(&path).to_path_buf();
        if directories.insert(directory.clone()) {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&directory)
                .map_err(failed("create", &directory))?;
        }
        let twin = reusable.map(|reusable| reusable.join(relative));
        match twin.filter(|twin| fs::read(twin).is_ok_and(|bytes| bytes == *contents)) {
            Some(twin) => hard_link(&twin, &path)?,
            None => batch.create(path, contents, 0o600)?,
        }
    }
    batch.sync()?;
    directories
        .iter()
        .rev()
        .try_for_each(|directory| sync_directory(directory))
}

/// Makes the directory `path`, durably and at once: `fill` makes it under another name, with all that
/// is in it. Where that fails nothing of it is left: on a full disk it would be in everybody's way.
pub fn build<E: From<WriteError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    build_unsynced(path, fill)?;
    Ok(sync_directory(parent(path))?)
}

/// As [`build`]; its name is durable with the next fsync of the directory that it is in.
pub fn build_unsynced<E: From<WriteError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = temporary_beside(path)?;
    remove(&temporary)?;
    let built = fill(&temporary).and_then(|()| {
        let renamed = fs::rename(&temporary, path);
        Ok(renamed.map_err(failed("rename to", path))?)
    });
    if built.is_err() {
        let _ = remove(&temporary);
    }
    built
}

/// A second name for an immutable, already durable file.
pub fn hard_link(from: &Path, to: &Path) -> Result<(), WriteError> {
    fs::hard_link(from, to).map_err(failed("link to", to))
}

/// Removes a file or a tree, and fsyncs the directory it was in. What is not there is no error.
///
/// A tree first loses its name: a crash in between leaves all of it, or what [`sweep`] removes.
pub fn remove(path: &Path) -> Result<(), WriteError> {
    match remove_unsynced(path)? {
        true => sync_directory(parent(path)),
        false => Ok(()),
    }
}

/// As [`remove`], for what may come back after a power cut. Whether it was there.
pub fn remove_unsynced(path: &Path) -> Result<bool, WriteError> {
    let gone = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(unnamed(path)?),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
        Ok(()) => Ok(true),
    }
}

/// Where the tree `path` is now that it is not read any more.
fn unnamed(path: &Path) -> Result<PathBuf, WriteError> {
    if is_temporary(path) {
        return Ok(path.to_path_buf());
    }
    let (directory, temporary) = beside(path)?;
    match fs::rename(path, &temporary) {
        Ok(()) => {
            sync_directory(&directory)?;
            Ok(temporary)
        }
        // on a full disk there may be no room for another name, and yet this is to make room
        Err(_) => Ok(path.to_path_buf()),
    }
}

fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes()
        .starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// Removes what an interrupted write left in `directory`, except for what another living process
/// may be writing. Call it under the lock of that directory.
pub fn sweep(directory: &Path) -> Result<(), WriteError> {
    for (path, writer) in temporaries(directory)? {
        if writer == Some(std::process::id()) || !writer.is_some_and(lives) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// As [`sweep`], for a directory without a lock: what this process may be writing stays, too.
pub fn sweep_dead(directory: &Path) -> Result<(), WriteError> {
    for (path, writer) in temporaries(directory)? {
        if !writer.is_some_and(lives) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Whether there is anything to sweep.
pub fn has_temporaries(directory: &Path) -> bool {
    temporaries(directory).is_ok_and(|found| !found.is_empty())
}

/// Each temporary, and the id of the process that made it.
fn temporaries(directory: &Path) -> Result<Vec<(PathBuf, Option<u32>)>, WriteError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("read", directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("read", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(rest) = name.strip_prefix(TEMPORARY_PREFIX) {
            let id = rest.split(|c: char| !c.is_ascii_digit()).next();
            found.push((entry.path(), id.and_then(|id| id.parse().ok())));
        }
    }
    Ok(found)
}

fn lives(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

/// fsyncs a directory, so that the names in it survive a power cut.
pub fn sync_directory(directory: &Path) -> Result<(), WriteError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(failed("fsync", directory))
}

/// The temporary path in which a new directory for `path` is built before its rename.
pub fn temporary_beside(path: &Path) -> Result<PathBuf, WriteError> {
    beside(path).map(|(_, temporary)| temporary)
}

/// A temporary of the same name can only be what an earlier process with our id left.
fn clear(temporary: &Path) -> Result<(), WriteError> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", temporary)(error))
        }
        _ => Ok(()),
    }
}

fn beside(path: &Path) -> Result<(PathBuf, PathBuf), WriteError> {
    let name = path.file_name().ok_or_else(|| {
        failed("write", path)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a file name",
        ))
    })?;
    let directory = parent(path).to_path_buf();
    // unique among threads and processes: two writers of one target never share a temporary
    let temporary = directory.join(format!(
        "{TEMPORARY_PREFIX}{}-{:?}-{}",
        std::process::id(),
        std::thread::current().id(),
        name.to_string_lossy()
    ));
    Ok((directory, temporary))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> WriteError + 'a {
    move |source| WriteError {
        operation,
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_rewritten_keeps_its_mode_and_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.conf");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let as_root = nix::unistd::geteuid().is_root();
        if as_root {
            std::os::unix::fs::chown(&path, Some(4711), Some(4712)).unwrap();
        }
        let before = fs::metadata(&path).unwrap();
        rewrite(&path, b"new", &before).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(after.mode() & 0o7777, 0o640);
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
        assert!(!as_root || after.uid() == 4711);
    }

    #[test]
    fn a_new_log_is_for_its_owner_and_group_and_what_is_there_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let own = fs::metadata(directory.path()).unwrap();
        create_log(&at("new"), own.uid(), own.gid()).unwrap();
        let made = fs::metadata(at("new")).unwrap();
        assert_eq!((made.mode() & 0o7777, made.len()), (0o640, 0));
        assert_eq!((made.uid(), made.gid()), (own.uid(), own.gid()));
        fs::write(at("old"), "line").unwrap();
        fs::set_permissions(at("old"), fs::Permissions::from_mode(0o604)).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("link")).unwrap();
        for name in ["old", "link"] {
            create_log(&at(name), own.uid(), own.gid()).unwrap();
        }
        assert_eq!(fs::read(at("old")).unwrap(), b"line");
        assert_eq!(fs::metadata(at("old")).unwrap().mode() & 0o7777, 0o604);
        assert!(!at("elsewhere").exists());
        assert!(create_log(&at("none/x"), own.uid(), own.gid()).is_err());
    }

    #[test]
    fn what_cannot_be_serialized_leaves_the_file_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status.json");
        write_json(&path, &["x"], 0o600).unwrap();
        // JSON has only strings for keys
        let unspeakable = std::collections::BTreeMap::from([((1, 2), "x")]);
        let error = write_json(&path, &unspeakable, 0o600).unwrap_err();
        assert_eq!(error.operation, "serialize");
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  \"x\"\n]");
    }

    #[test]
    fn a_write_replaces_the_whole_file_with_the_final_mode_and_leaves_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write(&path, b"first", 0o644).unwrap();
        write(&path, b"second", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"").unwrap();
        let error = write(&path, b"x", 0o600).unwrap_err();
        assert_eq!(error.operation, "rename to");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_a_directory_that_cannot_be_built_whole_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let built: Result<(), WriteError> = build(&directory.path().join("x"), |temporary| {
            create_directory(temporary, 0o700)?;
            create(&temporary.join("half"), b"", 0o600)?;
            create(&temporary.join("half"), b"", 0o600)
        });
        assert_eq!(built.unwrap_err().operation, "create");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_symlink_is_moved_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("current");
        symlink(&link, Path::new("generations/1")).unwrap();
        symlink(&link, Path::new("generations/2")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("generations/2"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_sweep_removes_only_temporaries() {
        let directory = tempfile::tempdir().unwrap();
        // no process has an id above 2^22
        fs::write(directory.path().join(".vhostd-tmp-9999998-x"), b"").unwrap();
        fs::create_dir(directory.path().join(".vhostd-tmp-9999999-y")).unwrap();
        fs::write(directory.path().join("keep"), b"").unwrap();
        assert!(has_temporaries(directory.path()));
        sweep(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_sweep_leaves_what_another_living_process_writes() {
        let directory = tempfile::tempdir().unwrap();
        let mine = format!(".vhostd-tmp-{}-x", std::process::id());
        fs::write(directory.path().join(".vhostd-tmp-1-x"), b"").unwrap();
        fs::write(directory.path().join(mine), b"").unwrap();
        sweep_dead(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        sweep(directory.path()).unwrap();
        assert!(directory.path().join(".vhostd-tmp-1-x").exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
