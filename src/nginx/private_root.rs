//! W: a root directory for a sandboxed child: what it needs of the host, read-only, and nothing else.
//!
//! It is a list of what is there, not of what is hidden: a socket, a device or a file of root's is out
//! of reach wherever it lies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::candidate::CandidateError;
use super::namespace::{self, Mounts, NamespaceError, ROOT};
use crate::atomic_file::{self, WriteError};

/// What a sandboxed child finds. All paths are absolute.
#[derive(Clone, Debug)]
pub struct PrivateRoot<'a> {
    /// Files and directories of the host.
    pub shown: &'a [PathBuf],
    /// Directories that are empty, also where they are below one that is shown.
    pub hidden: &'a [PathBuf],
    /// Empty directories in memory that belong to `user`.
    pub writable: &'a [&'a Path],
    /// Files whose bytes are copied, and which `user` may read, whoever may read them on the host.
    pub copied: &'a [PathBuf],
    /// User and group of the child.
    pub user: u32,
}

/// Directories that programs expect.
const EMPTY: [&str; 5] = ["dev", "proc", "run", "tmp", "var"];

/// Those that neither store nor tell anything.
const DEVICES: [&str; 5] = ["full", "null", "random", "urandom", "zero"];

impl PrivateRoot<'_> {
    /// Builds it at `base`, an existing directory. [`namespace::change_root`] makes it the root.
    pub fn build(&self, base: &Path) -> Result<(), CandidateError> {
        // the files, too, are read where the host still is
        let mounts = Mounts::read()?;
        let copied = self.copied.iter().filter(|path| !self.is_shown(path));
        let copied: Vec<_> = copied
            .map(|path| Ok((self.place(base, path), fs::read(path).map_err(read(path))?)))
            .collect::<Result<_, CandidateError>>()?;
        let places = |paths: &[&Path]| -> Vec<PathBuf> {
            paths.iter().map(|path| self.place(base, path)).collect()
        };
        let hidden: Vec<&Path> = self.hidden.iter().map(PathBuf::as_path).collect();
        let (hidden, writable) = (places(&hidden), places(self.writable));
        namespace::hide(base, ROOT)?;
        for name in EMPTY {
            atomic_file::create_directory_unsynced(&base.join(name), 0o755)?;
        }
        for device in DEVICES.map(|name| Path::new("/dev").join(name)) {
            bind(&device, &inside(base, &device))?;
        }
        for path in self.shown {
            show(base, path, &mounts)?;
        }
        for directory in hidden.iter().filter(|directory| directory.is_dir()) {
            namespace::hide(directory, ROOT)?;
        }
        for directory in &writable {
            atomic_file::create_directory(directory, 0o755)?;
            namespace::hide(directory, self.user)?;
        }
        for (place, bytes) in copied {
            create_parent(&place)?;
            atomic_file::create_unsynced(&place, &bytes, 0o444)?;
        }
        Ok(namespace::restrict(base)?)
    }

    /// Where `path` is while the root is at `base`. Links of the host are followed where they would be
    /// there; elsewhere there are none.
    fn place(&self, base: &Path, path: &Path) -> PathBuf {
        let below = |tree: &PathBuf| path.starts_with(tree);
        match path.canonicalize() {
            Ok(real) if self.shown.iter().any(below) => inside(base, &real),
            _ => inside(base, path),
        }
    }

    fn is_shown(&self, path: &Path) -> bool {
        let below = |tree: &PathBuf| path.starts_with(tree);
        self.shown.iter().any(below) && !self.hidden.iter().any(below)
    }
}

fn inside(base: &Path, path: &Path) -> PathBuf {
    base.join(path.strip_prefix("/").unwrap_or(path))
}

/// Shows what the host has at `path`, with what is mounted below it.
fn show(base: &Path, path: &Path, mounts: &Mounts) -> Result<(), CandidateError> {
    let place = inside(base, path);
    // Debian's /bin, /lib and /sbin
    if path.parent() == Some(Path::new("/"))
        && let Ok(target) = fs::read_link(path)
    {
        return Ok(atomic_file::symlink(&place, &target)?);
    }
    if !path.exists() {
        return Ok(());
    }
    bind(path, &place)?;
    namespace::restrict(&place)?;
    for point in mounts.local_below(path) {
        let place = inside(base, point);
        let shown = namespace::bind(point, &place).and_then(|()| namespace::restrict(&place));
        match shown {
            // behind another mount, or not to be mounted twice: it is not there
            Err(NamespaceError::Mount { .. }) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Binds a file or a directory at a place that is made for it.
fn bind(path: &Path, place: &Path) -> Result<(), CandidateError> {
    if path.is_dir() {
        atomic_file::create_directory(place, 0o755)?;
    } else {
        create_parent(place)?;
        atomic_file::create_unsynced(place, b"", 0o444)?;
    }
    Ok(namespace::bind(path, place)?)
}

fn create_parent(place: &Path) -> Result<(), WriteError> {
    place.parent().map_or(Ok(()), |parent| {
        atomic_file::create_directory(parent, 0o755)
    })
}

fn read(path: &Path) -> impl Fn(io::Error) -> CandidateError + '_ {
    move |source| CandidateError::Read {
        path: path.to_path_buf(),
        source,
    }
}
