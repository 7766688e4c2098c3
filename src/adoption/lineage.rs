//! R: certbot's directory → its lineages, each with its newest certificate and key.
//!
//! `renewal/NAME.conf` says how it is renewed; `live/NAME/*.pem` are symbolic links into
//! `archive/NAME/`. No other link is followed: a key is imported from where certbot keeps keys, and
//! from nowhere else.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use time::OffsetDateTime;

use super::renewal::{ConfError, RenewalConf};
use crate::certificate::chain::{Chain, ChainError, MAXIMUM_BYTES};
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::listing::visible_names;

/// A certificate of certbot's.
#[derive(Clone, Debug)]
pub struct Lineage {
    pub name: String,
    /// Absolute, without links.
    pub config_dir: PathBuf,
    pub conf: RenewalConf,
    /// Scripts that certbot runs around every renewal, whatever it renews.
    pub scripts: Vec<PathBuf>,
}

/// What would be imported.
#[derive(Clone, Debug)]
pub struct Material {
    pub chain: Chain,
    pub key: PrivateKeyPem,
}

/// Why a lineage cannot be adopted, whoever wants it.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    #[error("{}: {source}", path.display())]
    Conf {
        path: PathBuf,
        #[source]
        source: ConfError,
    },
    #[error("{} says that `{key}` is {said}, not {}", path.display(), expected.display())]
    Elsewhere {
        path: PathBuf,
        key: &'static str,
        said: String,
        expected: PathBuf,
    },
    #[error("{} is not the key of {}", path.display(), of.display())]
    Key { path: PathBuf, of: PathBuf },
    #[error("{} is not {what}", path.display())]
    Kind { path: PathBuf, what: &'static str },
    #[error("{} leads out of {}", path.display(), archive.display())]
    Link { path: PathBuf, archive: PathBuf },
    #[error("certbot has no certificate of that name in {}", .0.display())]
    None(PathBuf),
    #[error("{} is signed by itself: a placeholder, which no browser trusts", .0.display())]
    Placeholder(PathBuf),
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {}", path.display(), reason(.source))]
    Unfit {
        path: PathBuf,
        #[source]
        source: ChainError,
    },
}

/// A file, with what has to stay when it is replaced.
#[derive(Debug)]
pub(super) struct ReadFile {
    pub(super) text: String,
    pub(super) metadata: fs::Metadata,
}

/// The names of all lineages, sorted.
pub fn names(config_dir: &Path) -> Result<Vec<String>, LineageError> {
    let path = config_dir.join("renewal");
    let failed = |source| LineageError::Read {
        path: path.clone(),
        source,
    };
    let mut names = visible_names(&path).map_err(failed)?;
    names.retain(|name| name.ends_with(CONF));
    let stems = names.iter().filter_map(|name| name.strip_suffix(CONF));
    let mut names: Vec<String> = stems.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

impl Lineage {
    pub fn read(config_dir: &Path, name: &str) -> Result<Self, LineageError> {
        let config_dir = fs::canonicalize(config_dir).map_err(unread(config_dir))?;
        let path = conf_path(&config_dir, name);
        if name.is_empty() || name.starts_with('.') || name.contains('/') || is_absent(&path) {
            return Err(LineageError::None(config_dir));
        }
        // what is written there must not land elsewhere
        own_directory(&config_dir.join("renewal"))?;
        let conf = RenewalConf::parse(&read_file(&path)?.text)
            .map_err(|source| LineageError::Conf { path, source })?;
        Ok(Self {
            scripts: scripts(&config_dir),
            name: name.to_owned(),
            config_dir,
            conf,
        })
    }

    pub fn conf_path(&self) -> PathBuf {
        conf_path(&self.config_dir, &self.name)
    }

    pub fn live(&self) -> PathBuf {
        self.config_dir.join("live").join(&self.name)
    }

    fn archive(&self) -> PathBuf {
        self.config_dir.join("archive").join(&self.name)
    }

    /// Its newest certificate and key, which belong together and are good now.
    pub fn material(&self, now: OffsetDateTime) -> Result<Material, LineageError> {
        self.check_paths()?;
        let chain_path = self.member("fullchain")?;
        let key_path = self.member("privkey")?;
        let (chain, key) = (read_file(&chain_path)?.text, read_file(&key_path)?.text);
        let unfit = |source| LineageError::Unfit {
            path: chain_path.clone(),
            source,
        };
        let chain = Chain::parse(&chain).map_err(unfit)?;
        let key = PrivateKeyPem::new(key);
        let fits = chain.check_key(&key);
        fits.map_err(|error| match error {
            ChainError::Key => LineageError::Key {
                path: key_path,
                of: chain_path.clone(),
            },
            source => LineageError::Unfit {
                path: key_path,
                source,
            },
        })?;
        chain.check_validity(now).map_err(unfit)?;
        if chain.is_self_issued() {
            return Err(LineageError::Placeholder(chain_path));
        }
        chain.check_soundness().map_err(unfit)?;
        Ok(Material { chain, key })
    }

    /// certbot works on what its configuration names: that must be what we read.
    fn check_paths(&self) -> Result<(), LineageError> {
        let expected = [
            ("archive_dir", self.archive()),
            ("fullchain", self.live().join("fullchain.pem")),
            ("privkey", self.live().join("privkey.pem")),
        ];
        for (key, expected) in expected {
            let said = self.conf.top(key).unwrap_or_default();
            let same =
                |path: &Path| resolved(path).is_some_and(|it| Some(it) == resolved(&expected));
            // older ones leave `archive_dir` to be guessed from the links
            if !(said.is_empty() && key == "archive_dir" || same(Path::new(said))) {
                return Err(LineageError::Elsewhere {
                    path: self.conf_path(),
                    key,
                    said: said.to_owned(),
                    expected,
                });
            }
        }
        Ok(())
    }

    /// Where `live/NAME/WHAT.pem` leads: to `archive/NAME/WHATn.pem`.
    fn member(&self, what: &str) -> Result<PathBuf, LineageError> {
        let archive = self.archive();
        for directory in [
            &self.config_dir.join("live"),
            &self.live(),
            &self.config_dir.join("archive"),
            &archive,
        ] {
            own_directory(directory)?;
        }
        let path = self.live().join(format!("{what}.pem"));
        let target = match fs::read_link(&path) {
            Ok(target) => self.live().join(target),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let what = "a link into certbot's archive";
                return Err(LineageError::Kind { path, what });
            }
            Err(error) => return Err(unread(&path)(error)),
        };
        let parent = target.parent().and_then(|it| fs::canonicalize(it).ok());
        let file_name = target.file_name().and_then(|name| name.to_str());
        let versioned = file_name.filter(|name| {
            let number = name.strip_prefix(what);
            let number = number.and_then(|rest| rest.strip_suffix(".pem"));
            number.is_some_and(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()))
        });
        match versioned {
            Some(file_name) if parent.as_ref() == Some(&archive) => Ok(archive.join(file_name)),
            _ => Err(LineageError::Link { path, archive }),
        }
    }
}

/// No link to one.
fn own_directory(path: &Path) -> Result<(), LineageError> {
    let metadata = fs::symlink_metadata(path).map_err(unread(path))?;
    match metadata.is_dir() {
        true => Ok(()),
        false => Err(LineageError::Kind {
            path: path.to_path_buf(),
            what: "a directory of certbot's",
        }),
    }
}

/// Regular, not large, in UTF-8, and no link.
pub(super) fn read_file(path: &Path) -> Result<ReadFile, LineageError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let not_regular = || LineageError::Kind {
        path: path.to_path_buf(),
        what: "a regular file",
    };
    let file = match opened {
        // open(2): with O_NOFOLLOW, a symbolic link is "too many of them"
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => {
            return Err(not_regular());
        }
        opened => opened.map_err(unread(path))?,
    };
    let metadata = file.metadata().map_err(unread(path))?;
    if !metadata.is_file() {
        return Err(not_regular());
    }
    let mut text = String::new();
    // one byte more than the parsers take
    let mut limited = file.take(MAXIMUM_BYTES as u64 + 1);
    limited.read_to_string(&mut text).map_err(unread(path))?;
    Ok(ReadFile { text, metadata })
}

/// `path` with its directory's links resolved, but not its own.
fn resolved(path: &Path) -> Option<PathBuf> {
    let parent = fs::canonicalize(path.parent()?).ok()?;
    Some(parent.join(path.file_name()?))
}

/// `renewal-hooks/KIND/*`, as certbot chooses them.
fn scripts(config_dir: &Path) -> Vec<PathBuf> {
    let mut scripts = Vec::new();
    for kind in ["pre", "deploy", "post"] {
        let directory = config_dir.join("renewal-hooks").join(kind);
        let mut names = visible_names(&directory).unwrap_or_default();
        names.sort();
        let paths = names.iter().filter(|name| !name.ends_with('~'));
        let paths = paths.map(|name| directory.join(name));
        scripts.extend(paths.filter(|path| {
            let metadata = fs::metadata(path);
            metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        }));
    }
    scripts
}

fn conf_path(config_dir: &Path, name: &str) -> PathBuf {
    config_dir.join("renewal").join(format!("{name}{CONF}"))
}

fn is_absent(path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn unread(path: &Path) -> impl Fn(io::Error) -> LineageError + '_ {
    move |source| LineageError::Read {
        path: path.to_path_buf(),
        source,
    }
}

/// Theirs is not ours to use yet, but ours to describe.
fn reason(error: &ChainError) -> String {
    match error {
        ChainError::Validity { validity, now } if *now > validity.not_after => {
            format!("it ended at {}", super::day_and_time(validity.not_after))
        }
        ChainError::Validity { validity, .. } => {
            let begin = super::day_and_time(validity.not_before);
            format!("it is not valid before {begin}")
        }
        other => format!("failed to {other}"),
    }
}

const CONF: &str = ".conf";
