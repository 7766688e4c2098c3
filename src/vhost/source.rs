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
    let (bytes, modified) = if path == Path::new("-") {
        let bytes = read_limited(io::stdin().lock()).map_err(failed)?;
        (bytes, OffsetDateTime::UNIX_EPOCH)
    } else {
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        (read_limited(&file).map_err(failed)?, modified(&metadata))
    };
    Ok(VhostFile {
        app,
        path: path.to_path_buf(),
        text: text(path, bytes),
        modified,
    })
}

enum FileName {
    App(AppName),
    Other,
    Refused(Diagnostic),
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
    let refused = match fs::symlink_metadata(&path) {
        Ok(metadata) => refuse_kind(&path, &metadata).err(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Some(refusal(&path, &error)),
    };
    if let Some(refused) = refused {
        return Some(VhostFile {
            app,
            path,
            text: Err(refused),
            modified: OffsetDateTime::UNIX_EPOCH,
        });
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&path);
    let (text, modified) = match opened {
        Ok(file) => read_opened(&path, &file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => (Err(refusal(&path, &error)), OffsetDateTime::UNIX_EPOCH),
    };
    Some(VhostFile {
        app,
        path,
        text,
        modified,
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

fn read_opened(path: &Path, file: &File) -> (Result<String, Diagnostic>, OffsetDateTime) {
    let unreadable =
        |error: io::Error| Diagnostic::new(path, format!("cannot be read: {}", fault(&error)));
    let before = match file.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return (Err(unreadable(error)), OffsetDateTime::UNIX_EPOCH),
    };
    let text = refuse_kind(path, &before)
        .and_then(|()| read_limited(file).map_err(unreadable))
        .and_then(|bytes| {
            let after = file.metadata().map_err(unreadable)?;
            refuse_torn(path, &before, &after, bytes.len())?;
            text(path, bytes)
        });
    (text, modified(&before))
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
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::{Duration, Instant};

    use super::*;

    const GOOD: &str = "server_name: a.example\n";

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn apps(listing: &Listing) -> Vec<&str> {
        listing.files.iter().map(|file| file.app.as_str()).collect()
    }

    /// Reads a directory that has one file, which must be refused, quickly.
    fn reason(directory: &Path) -> String {
        let start = Instant::now();
        let listing = read(directory).unwrap();
        assert!(start.elapsed() < Duration::from_millis(50));
        assert_eq!(listing.files.len(), 1);
        listing.files[0].text.clone().unwrap_err().reason
    }

    #[test]
    fn yml_and_yaml_files_are_read_sorted_by_app_and_all_else_is_ignored() {
        let directory = directory(&[
            ("b.yml", GOOD),
            ("a.yaml", GOOD),
            (".hidden.yml", GOOD),
            (".b.yml.swp", GOOD),
            ("b.yml~", GOOD),
            ("#b.yml#", GOOD),
            (".#b.yml", GOOD),
            ("4913", GOOD),
            ("b.yml.bak", GOOD),
            ("b.yml.dpkg-new", GOOD),
            ("b.yml.rpmsave", GOOD),
            ("README", GOOD),
            ("c.json", GOOD),
            (".yml", GOOD),
            ("b.YML", GOOD),
        ]);
        let listing = read(directory.path()).unwrap();
        assert_eq!(apps(&listing), ["a", "b"]);
        assert!(listing.refused.is_empty());
        assert_eq!(listing.files[0].text.as_deref(), Ok(GOOD));
        assert!(listing.files[0].modified > OffsetDateTime::UNIX_EPOCH);
    }

    #[test]
    fn a_name_that_cannot_be_an_apps_is_refused_and_reported() {
        let directory = directory(&[
            ("a b.yml", GOOD),
            ("-x.yml", GOOD),
            ("ok.yml", GOOD),
            ("a$b.yaml", GOOD),
        ]);
        let listing = read(directory.path()).unwrap();
        assert_eq!(apps(&listing), ["ok"]);
        assert_eq!(listing.refused.len(), 3);
        assert_eq!(listing.refused[0].file, directory.path().join("-x.yml"));
    }

    #[test]
    fn the_same_app_in_both_endings_is_a_conflict_that_both_files_report() {
        let directory = directory(&[("a.yml", GOOD), ("a.yaml", GOOD), ("b.yml", GOOD)]);
        let listing = read(directory.path()).unwrap();
        assert_eq!(apps(&listing), ["a", "a", "b"]);
        assert_eq!(
            listing.files[0].text.as_ref().unwrap_err().reason,
            "a.yml beside it is `a` too"
        );
        assert_eq!(
            listing.files[1].text.as_ref().unwrap_err().reason,
            "a.yaml beside it is `a` too"
        );
        assert!(listing.files[2].text.is_ok());
    }

    #[test]
    fn a_symbolic_link_is_refused_without_a_byte_of_what_it_leads_to() {
        let directory = directory(&[("secret", "s3cret")]);
        symlink(
            directory.path().join("secret"),
            directory.path().join("a.yml"),
        )
        .unwrap();
        assert_eq!(reason(directory.path()), "a symbolic link is not read");
    }

    #[test]
    fn a_hard_link_is_refused() {
        let directory = directory(&[("secret", "s3cret")]);
        fs::hard_link(
            directory.path().join("secret"),
            directory.path().join("a.yml"),
        )
        .unwrap();
        assert_eq!(
            reason(directory.path()),
            "the file has a second name (a hard link)"
        );
    }

    #[test]
    fn a_pipe_a_socket_and_a_directory_are_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yml");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(reason(directory.path()), "not a regular file");
        fs::remove_file(&path).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(reason(directory.path()), "not a regular file");
        drop(socket);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(reason(directory.path()), "not a regular file");
    }

    #[test]
    fn an_empty_a_large_and_a_binary_file_are_refused() {
        let empty = directory(&[("a.yml", "")]);
        assert_eq!(reason(empty.path()), "the file is empty");
        let whole = directory(&[("a.yml", &"#".repeat(64 * 1024))]);
        assert!(read(whole.path()).unwrap().files[0].text.is_ok());
        let large = directory(&[("a.yml", &"#".repeat(64 * 1024 + 1))]);
        assert_eq!(reason(large.path()), "the file is larger than 64 KiB");
        let binary = tempfile::tempdir().unwrap();
        fs::write(binary.path().join("a.yml"), b"a: 1\nb: \xff\n").unwrap();
        let refused = read(binary.path()).unwrap().files[0].text.clone();
        let diagnostic = refused.unwrap_err();
        assert_eq!(diagnostic.reason, "not UTF-8");
        let at = diagnostic.at.unwrap();
        assert_eq!((at.line, at.column, at.offset), (2, 4, 8));
    }

    #[test]
    fn a_file_that_changed_meanwhile_is_refused() {
        let directory = directory(&[("a.yml", GOOD), ("b.yml", "longer than the other file")]);
        let of = |name: &str| fs::metadata(directory.path().join(name)).unwrap();
        let path = Path::new("a.yml");
        assert!(refuse_torn(path, &of("a.yml"), &of("a.yml"), GOOD.len()).is_ok());
        assert!(refuse_torn(path, &of("a.yml"), &of("a.yml"), GOOD.len() - 1).is_err());
        assert!(refuse_torn(path, &of("a.yml"), &of("b.yml"), GOOD.len()).is_err());
    }

    #[test]
    fn a_missing_directory_is_an_error_of_its_own_kind() {
        let directory = tempfile::tempdir().unwrap();
        let error = read(&directory.path().join("vhosts.d")).unwrap_err();
        assert!(matches!(error, SourceError::Missing { .. }));
        let error = read_one(&directory.path().join("a.yml")).unwrap_err();
        assert!(matches!(error, SourceError::Missing { .. }));
    }

    #[test]
    fn one_file_may_have_any_name_and_be_a_link() {
        let directory = directory(&[(".ansible_tmp1 hello.yml", GOOD), ("shop.yml", GOOD)]);
        let file = read_one(&directory.path().join(".ansible_tmp1 hello.yml")).unwrap();
        assert_eq!(
            (file.app.as_str(), file.text.as_deref()),
            ("vhost", Ok(GOOD))
        );
        let link = directory.path().join("linked.yml");
        symlink(directory.path().join("shop.yml"), &link).unwrap();
        let file = read_one(&link).unwrap();
        assert_eq!(
            (file.app.as_str(), file.text.as_deref()),
            ("linked", Ok(GOOD))
        );
    }
}
