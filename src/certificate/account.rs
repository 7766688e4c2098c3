//! W: the ACME account's key and URL.
//!
//! `accounts/HOST-DIGEST/account.json` (0600). The key is made here, before the network is asked
//! for anything: its thumbprint is the answer to every http-01 challenge, and nginx can give it
//! while the CA is out of reach. The account at the CA follows with the first order.

pub mod successor; // W from one account key to the next

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::{self, WriteError};
use crate::certificate::jws::thumbprint;
use crate::certificate::key::{KeyError, PrivateKeyPem};
use crate::settings::KeyType;

/// The account key for one ACME directory, and what is known about its account.
#[derive(Clone, Debug)]
pub struct AccountKey {
    path: PathBuf,
    directory: String,
    key: PrivateKeyPem,
    thumbprint: String,
    successor: Option<PrivateKeyPem>,
    former: bool,
}

/// What the CA knows of the account.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Registration {
    /// The account's URL: the `kid` of every request (RFC 8555 §6.2).
    pub url: String,
    /// The contact that was sent last, without `mailto:`.
    pub email: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("use the account of {}: it is for {found}", path.display())]
    Directory { path: PathBuf, found: String },
    #[error("use the account of {}: the file is gone", .0.display())]
    Gone(PathBuf),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("parse {}: {source}", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
}

#[derive(Deserialize, Serialize)]
struct Written {
    directory: String,
    /// PKCS#8 PEM, P-256.
    key: String,
    #[serde(default)]
    account: Option<Registration>,
    /// Likewise: the key of a change that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    successor: Option<String>,
    /// The key was changed, and nginx may not know it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    former: bool,
}

impl AccountKey {
    /// Reads the key for `directory`, or makes it. A key that cannot be read is an error, never a
    /// reason to make another: with it the account, its orders and its CAA records are lost.
    pub fn open(state_dir: &Path, directory: &str) -> Result<Self, AccountError> {
        let home = state_dir.join("accounts").join(home_name(directory));
        atomic_file::create_directory(&state_dir.join("accounts"), 0o700)?;
        atomic_file::create_directory(&home, 0o700)?;
        let path = home.join("account.json");
        let _lock = lock(&home.join("lock"))?;
        let written = match read(&path)? {
            Some(written) => written,
            None => {
                let written = Written {
                    directory: directory.to_owned(),
                    key: PrivateKeyPem::generate(KeyType::EcdsaP256)?
                        .expose()
                        .to_owned(),
                    account: None,
                    successor: None,
                    former: false,
                };
                write(&path, &written)?;
                written
            }
        };
        Self::of(path, directory, written)
    }

    fn of(path: PathBuf, directory: &str, written: Written) -> Result<Self, AccountError> {
        if written.directory != directory {
            let found = written.directory;
            return Err(AccountError::Directory { path, found });
        }
        let key = PrivateKeyPem::new(written.key);
        Ok(Self {
            thumbprint: thumbprint(&key)?,
            path,
            directory: written.directory,
            key,
            successor: written.successor.map(PrivateKeyPem::new),
            former: written.former,
        })
    }

    /// As it is on disk now: another process may have changed the key.
    pub fn reread(&self) -> Result<Self, AccountError> {
        let written = read(&self.path)?.ok_or_else(|| AccountError::Gone(self.path.clone()))?;
        Self::of(self.path.clone(), &self.directory, written)
    }

    /// The same key at another CA, where a renewal is rehearsed: what nginx answers is right for both.
    /// Beside the account that we may have there for real.
    pub fn at(&self, state_dir: &Path, directory: &str) -> Result<Self, AccountError> {
        let home = state_dir.join("accounts").join(home_name(directory));
        atomic_file::create_directory(&home, 0o700)?;
        let other = Self {
            path: home.join("rehearsal.json"),
            directory: directory.to_owned(),
            successor: None,
            former: false,
            ..self.clone()
        };
        let _lock = lock(&home.join("lock"))?;
        let known = read(&other.path)?;
        if known.is_none_or(|known| known.key != self.key.expose()) {
            let written = Written {
                directory: directory.to_owned(),
                key: self.key.expose().to_owned(),
                account: None,
                successor: None,
                former: false,
            };
            write(&other.path, &written)?;
        }
        Ok(other)
    }

    /// RFC 7638 over the public key, base64url: the second half of every key authorization.
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The directory's URL.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// `account.json`
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn key(&self) -> &PrivateKeyPem {
        &self.key
    }

    /// PKCS#8, DER.
    pub(super) fn pkcs8(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.key.pair()?.serialize_der())
    }

    /// The account as it was recorded last, by this process or another.
    pub fn registration(&self) -> Result<Option<Registration>, AccountError> {
        Ok(read(&self.path)?.and_then(|written| written.account))
    }

    /// Keeps the key that is on disk, whoever has written it.
    pub fn record_registration(&self, account: Option<Registration>) -> Result<(), AccountError> {
        self.update(|written| written.account = account)
    }

    fn update(&self, change: impl FnOnce(&mut Written)) -> Result<(), AccountError> {
        let _lock = lock(&self.path.with_file_name("lock"))?;
        let mut written = read(&self.path)?.ok_or_else(|| AccountError::Gone(self.path.clone()))?;
        change(&mut written);
        write(&self.path, &written)
    }
}

/// `acme-v02.api.letsencrypt.org-1a2b3c4d`: for people, and one per directory URL.
pub(super) fn home_name(directory: &str) -> String {
    let host: String = directory
        .split("://")
        .nth(1)
        .unwrap_or_default()
        .chars()
        .take_while(|c| *c != '/')
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                c
            } else {
                '_'
            }
        })
        .take(100)
        .collect();
    let digest = Sha256::digest(directory.as_bytes());
    let digest: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{}-{digest}", host.trim_start_matches('.'))
}

/// Two processes that start at once must not make two keys.
fn lock(path: &Path) -> Result<fs::File, AccountError> {
    let file = atomic_file::lock_file(path)?;
    match file.lock() {
        Ok(()) => Ok(file),
        Err(source) => Err(AccountError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

fn read(path: &Path) -> Result<Option<Written>, AccountError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|source| AccountError::Read {
            path: path.to_path_buf(),
            source,
        })?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| AccountError::Parse {
            path: path.to_path_buf(),
            source,
        })
}

fn write(path: &Path, written: &Written) -> Result<(), AccountError> {
    let bytes = serde_json::to_vec_pretty(written).map_err(|source| AccountError::Parse {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(atomic_file::write(path, &bytes, 0o600)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DIRECTORY: &str = "https://ca.example:14000/dir";

    #[test]
    fn the_key_is_made_once_and_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let first = AccountKey::open(directory.path(), DIRECTORY).unwrap();
        let again = AccountKey::open(directory.path(), DIRECTORY).unwrap();
        assert_eq!(first.thumbprint(), again.thumbprint());
        assert_eq!(first.thumbprint().len(), 43);
        let mode = fs::metadata(&first.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_directories_have_two_keys() {
        let directory = tempfile::tempdir().unwrap();
        let one = AccountKey::open(directory.path(), DIRECTORY).unwrap();
        let two = AccountKey::open(directory.path(), "https://ca.example:14000/other").unwrap();
        assert_ne!(one.thumbprint(), two.thumbprint());
    }

    #[test]
    fn one_key_may_have_an_account_at_two_cas() {
        let directory = tempfile::tempdir().unwrap();
        let first = AccountKey::open(directory.path(), DIRECTORY).unwrap();
        let other = "https://staging.example/dir";
        // one of its own: the CA may be asked for real, too
        let own = AccountKey::open(directory.path(), other).unwrap();
        own.record_registration(Some(Registration::default()))
            .unwrap();
        let staging = first.at(directory.path(), other).unwrap();
        let kept = AccountKey::open(directory.path(), other).unwrap();
        assert_eq!(kept.thumbprint(), own.thumbprint());
        assert!(kept.registration().unwrap().is_some());
        assert_eq!(staging.thumbprint(), first.thumbprint());
        assert_eq!(staging.directory(), other);
        assert_eq!(staging.registration().unwrap(), None);
        let account = Registration {
            url: "https://staging.example/1".into(),
            email: None,
        };
        staging.record_registration(Some(account.clone())).unwrap();
        let again = first.at(directory.path(), other).unwrap();
        assert_eq!(again.registration().unwrap(), Some(account));
        assert_eq!(first.registration().unwrap(), None);
    }

    #[test]
    fn an_unreadable_key_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = AccountKey::open(directory.path(), DIRECTORY).unwrap().path;
        fs::write(&path, "{").unwrap();
        let error = AccountKey::open(directory.path(), DIRECTORY).unwrap_err();
        assert!(matches!(error, AccountError::Parse { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }

    #[test]
    fn a_registration_is_read_back_by_another_process() {
        let directory = tempfile::tempdir().unwrap();
        let key = AccountKey::open(directory.path(), DIRECTORY).unwrap();
        assert_eq!(key.registration().unwrap(), None);
        let account = Registration {
            url: "https://ca.example/acct/1".into(),
            email: Some("admin@example.com".into()),
        };
        key.record_registration(Some(account.clone())).unwrap();
        let other = AccountKey::open(directory.path(), DIRECTORY).unwrap();
        assert_eq!(other.registration().unwrap(), Some(account));
        assert_eq!(other.thumbprint(), key.thumbprint());
    }

    #[test]
    fn the_thumbprint_is_the_one_that_the_protocol_library_computes() {
        let directory = tempfile::tempdir().unwrap();
        let key = AccountKey::open(directory.path(), DIRECTORY).unwrap();
        use base64::Engine;
        let credentials = serde_json::json!({
            "id": "x",
            "key_pkcs8": base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(key.pkcs8().unwrap()),
            "urls": {"newNonce": "n", "newAccount": "a", "newOrder": "o"},
        });
        let http = super::super::http::AcmeHttp::new(
            DIRECTORY,
            None,
            &Default::default(),
            std::time::Duration::from_secs(1),
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let account = runtime
            .block_on(
                instant_acme::Account::builder_with_http(Box::new(http.exchange()))
                    .from_credentials(serde_json::from_value(credentials).unwrap()),
            )
            .unwrap();
        assert_eq!(account.key_thumbprint(), key.thumbprint());
    }
}
