//! R: the vhosts directory → its files, as they are written. The only reader of that directory.
//!
//! A vhost file is untrusted: it may be a link to a secret, a pipe that never ends, or half
//! written. Each is opened once, without following links and without waiting, and judged by that
//! one handle. What is refused says so without a byte of the file.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use time::OffsetDateTime;

use super::AppName;
use super::identity::FileIdentity;
use crate::diagnostic::{Diagnostic, Position, fault, printable};

/// One vhost file as it is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VhostFile {
    pub app: AppName,
    /// `-` for standard input.
    pub path: PathBuf,
    /// At most [`MAX_BYTES`], UTF-8, not empty; or why there is none.
    pub text: Result<String, Diagnostic>,
    /// The time of its last change; the epoch where there is no such file.
    pub modified: OffsetDateTime,
    /// Taken from the handle that `text` is read from; a file that is not opened has its link's.
    pub identity: FileIdentity,
}

/// What [`read`] found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// Sorted by app, then by path. `hello.yml` beside `hello.yaml` gives two, both refused.
    pub files: Vec<VhostFile>,
    /// Files that look like a vhost file and whose name cannot be an app's, sorted by path.
    pub refused: Vec<Diagnostic>,
}

/// Reads every `NAME.yml` and `NAME.yaml` of `directory`.
///
/// Dot-files, editors' backups and every other ending are ignored. A file that vanishes meanwhile
/// was removed.
pub fn read(directory: &Path) -> Result<Listing, SourceError> {
    let unreadable = |source: io::Error| SourceError::of(directory, source);
    let mut listing = Listing::default();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = directory.join(entry.map_err(unreadable)?.file_name());
        match vhost_name(&path) {
            FileName::Other => {}
            FileName::Refused(diagnostic) => listing.refused.push(diagnostic),
            FileName::App(app) => listing.files.extend(open(app, path)),
        }
    }
    listing.files.sort_by(|left, right| {
        let key = |file: &VhostFile| (file.app.clone(), file.path.clone());
        key(left).cmp(&key(right))
    });
    listing
        .refused
        .sort_by(|left, right| left.file.cmp(&right.file));
    refuse_twins(&mut listing.files);
    Ok(listing)
}

/// Reads one file of any name and place, as the caller may: for `check FILE`, where `-` is standard
/// input and a link or a pipe is followed.
///
/// The app is named after the file where that is possible, else `vhost`.
pub fn read_one(path: &Path) -> Result<VhostFile, SourceError> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let named = stem.and_then(|stem| stem.parse().ok());
    let app = match named.or_else(|| "vhost".parse().ok()) {
        Some(app) => app,
        None => return Err(SourceError::of(path, io::ErrorKind::InvalidInput.into())),
    };
    let failed = |source: io::Error| SourceError::of(path, source);
    let (bytes, modified, identity) = if path == Path::new("-") {
        let bytes = read_limited(io::stdin().lock()).map_err(failed)?;
        let caller = FileIdentity::without_file(nix::unistd::geteuid().as_raw());
        (bytes, OffsetDateTime::UNIX_EPOCH, caller)
    } else {
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let bytes = read_limited(&file).map_err(failed)?;
        (bytes, modified(&metadata), FileIdentity::of(&metadata))
    };
    Ok(VhostFile {
        app,
        path: path.to_path_buf(),
        text: text(path, bytes),
        modified,
        identity,
    })
}

/// The user who owns the vhost file of `app`; `None` where there is none, or two of different users.
pub fn owner(files: &[VhostFile], app: &AppName) -> Option<u32> {
    let mut owners = files.iter().filter(|file| file.app == *app);
    let owner = owners.next()?.identity.uid;
    owners
        .all(|file| file.identity.uid == owner)
        .then_some(owner)
}

enum FileName {
    App(AppName),
    Other,
    Refused(Diagnostic),
}

/// Whether [`read`] looks at a file of this name, if only to refuse it.
pub fn is_read(path: &Path) -> bool {
    !matches!(vhost_name(path), FileName::Other)
}

fn vhost_name(path: &Path) -> FileName {
    let bytes = path.file_name().unwrap_or_default().as_encoded_bytes();
    // `.hello.yml.swp`, `.#hello.yml`, `.ansible_tmp…`; emacs' `#hello.yml#` and vim's `4913` have
    // no such ending, nor has `hello.yml~`, `hello.yml.bak`, `hello.yml.dpkg-new`
    let stem = bytes
        .strip_suffix(b".yml")
        .or_else(|| bytes.strip_suffix(b".yaml"));
    let Some(stem) = stem.filter(|_| !bytes.starts_with(b".")) else {
        return FileName::Other;
    };
    let name = str::from_utf8(stem).ok().map(str::parse::<AppName>);
    match name {
        Some(Ok(app)) => FileName::App(app),
        Some(Err(error)) => {
            let diagnostic =
                Diagnostic::new(shown(path), "the file's name cannot be an app's name");
            FileName::Refused(match error.hint() {
                Some(hint) => diagnostic.hint(hint),
                None => diagnostic,
            })
        }
        None => FileName::Refused(Diagnostic::new(shown(path), "the file's name is not UTF-8")),
    }
}

/// A name that is no app's may be anything.
fn shown(path: &Path) -> PathBuf {
    printable(&path.to_string_lossy()).into()
}

/// `None` where the file has vanished.
///
/// To open a device can already be an effect (a tape rewinds, a watchdog starts to count), so its
/// kind is looked at first, and once more when it is open.
fn open(app: AppName, path: PathBuf) -> Option<VhostFile> {
    let (refused, identity) = match fs::symlink_metadata(&path) {
        Ok(metadata) => (
            refuse_kind(&path, &metadata).err(),
            FileIdentity::of(&metadata),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => (Some(refusal(&path, &error)), FileIdentity::default()),
    };
    if let Some(refused) = refused {
        return Some(VhostFile {
            app,
            path,
            text: Err(refused),
            modified: OffsetDateTime::UNIX_EPOCH,
            identity,
        });
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&path);
    let unopened = |error: &io::Error| (Err(refusal(&path, error)), None);
    let (text, metadata) = match opened {
        Ok(file) => match file.metadata() {
            Ok(metadata) => (read_opened(&path, &file, &metadata), Some(metadata)),
            Err(error) => unopened(&error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => unopened(&error),
    };
    Some(VhostFile {
        app,
        path,
        text,
        modified: metadata
            .as_ref()
            .map_or(OffsetDateTime::UNIX_EPOCH, modified),
        identity: metadata.as_ref().map_or(identity, FileIdentity::of),
    })
}

fn refusal(path: &Path, error: &io::Error) -> Diagnostic {
    match error.raw_os_error() {
        // open(2): with O_NOFOLLOW, a symbolic link is "too many of them"
        Some(code) if code == nix::errno::Errno::ELOOP as i32 => symbolic_link(path),
        // a socket, or a device without a driver
        Some(code) if code == nix::errno::Errno::ENXIO as i32 => {
            Diagnostic::new(path, "not a regular file")
        }
        _ => Diagnostic::new(path, format!("cannot be opened: {}", fault(error))),
    }
}

fn symbolic_link(path: &Path) -> Diagnostic {
    Diagnostic::new(path, "a symbolic link is not read")
        .hint("copy the file instead of linking to it")
}

fn read_opened(path: &Path, file: &File, before: &Metadata) -> Result<String, Diagnostic> {
    let unreadable =
        |error: io::Error| Diagnostic::new(path, format!("cannot be read: {}", fault(&error)));
    refuse_kind(path, before)?;
    let bytes = read_limited(file).map_err(unreadable)?;
    let after = file.metadata().map_err(unreadable)?;
    refuse_torn(path, before, &after, bytes.len())?;
    text(path, bytes)
}

fn refuse_kind(path: &Path, metadata: &Metadata) -> Result<(), Diagnostic> {
    if metadata.is_symlink() {
        return Err(symbolic_link(path));
    }
    if !metadata.is_file() {
        return Err(Diagnostic::new(path, "not a regular file"));
    }
    // a second name could be anybody's, of a file that its author may not even read
    if metadata.nlink() > 1 {
        return Err(
            Diagnostic::new(path, "the file has a second name (a hard link)")
                .hint("copy the file instead of linking to it"),
        );
    }
    Ok(())
}

/// A writer was at work: what was read may be neither the old file nor the new one. The change that
/// it makes brings us back.
fn refuse_torn(
    path: &Path,
    before: &Metadata,
    after: &Metadata,
    read: usize,
) -> Result<(), Diagnostic> {
    let state = |it: &Metadata| (it.len(), it.mtime(), it.mtime_nsec());
    let whole = u64::try_from(read).is_ok_and(|read| read == after.len().min(MAX_BYTES + 1));
    if state(before) == state(after) && whole {
        Ok(())
    } else {
        Err(Diagnostic::new(path, "the file changed while it was read"))
    }
}

/// At most one byte more than is allowed.
fn read_limited(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, Diagnostic> {
    if bytes.is_empty() {
        return Err(Diagnostic::new(path, "the file is empty")
            .hint("write at least `server_name` and `proxy_pass_url` or `root`"));
    }
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
        let reason = format!("the file is larger than {} KiB", MAX_BYTES / 1024);
        return Err(Diagnostic::new(path, reason).hint("split it: each app has a file of its own"));
    }
    String::from_utf8(bytes).map_err(|error| {
        Diagnostic::new(path, "not UTF-8")
            .at(Position::of_not_utf8(&error))
            .hint("save the file as UTF-8")
    })
}

/// `hello.yml` beside `hello.yaml`: neither is obviously the one that is meant.
fn refuse_twins(files: &mut [VhostFile]) {
    let paths: Vec<(AppName, PathBuf)> = files
        .iter()
        .map(|file| (file.app.clone(), file.path.clone()))
        .collect();
    for file in files {
        let twin = paths
            .iter()
            .find(|(app, path)| *app == file.app && *path != file.path);
        if let Some((app, path)) = twin {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            file.text = Err(Diagnostic::new(
                &file.path,
                format!("{name} beside it is `{app}` too"),
            )
            .hint("remove one of the two"));
        }
    }
}

fn modified(metadata: &Metadata) -> OffsetDateTime {
    let nanoseconds =
        i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    // a time beyond the year 9999 is no age to compare
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Why nothing could be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory may come back: retrying helps.
    #[error("read {}: there is no such file or directory", path.display())]
    Missing { path: PathBuf },
    /// Retrying helps once the permissions do.
    #[error("read {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Unreadable { path, source },
        }
    }
}

/// A vhost file of a hundred vhosts has a quarter of it.
pub const MAX_BYTES: u64 = 64 * 1024;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests;
