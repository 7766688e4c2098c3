//! R: a certificate from files that vhostd does not renew (`tls: {certificate, certificate_key}`).
//!
//! They are read, checked, and stored as a version of their own: server blocks never name them. So
//! a pair that is replaced one file after the other serves only when both are there, and what was
//! good serves on while the files are not.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use time::OffsetDateTime;

use crate::certificate::chain::{Chain, ChainError, MAXIMUM_BYTES};
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::pem::{self, Block};
use crate::certificate::words::first_few;
use crate::certificate::{Identifier, IssuedCertificate, PemFiles, Validity, covers};
use crate::diagnostic::fault;
use crate::vhost::LocalUser;

/// Why files are not used. No word of them is in it, and nothing of a file that the vhost file's owner
/// may not read: they may be any files.
#[derive(Debug, thiserror::Error)]
pub enum PemFilesError {
    #[error("use {}: it has no certificate in PEM: {found}", path.display())]
    Chain { path: PathBuf, found: String },
    #[error("use {}: its private key has a passphrase: write it without one with `openssl pkey`", .0.display())]
    Encrypted(PathBuf),
    #[error("use {}: it has no private key in PEM: {found}", path.display())]
    Key { path: PathBuf, found: String },
    #[error("use {}: its private key is cut off, or no base64", .0.display())]
    KeyDamaged(PathBuf),
    #[error("use {}: it is not for {}", path.display(), list(missing))]
    Names {
        path: PathBuf,
        missing: Vec<Identifier>,
    },
    #[error("use {}: {reason}", path.display())]
    Odd { path: PathBuf, reason: String },
    #[error("use {} with {}: they are not a pair{}", chain.display(), key.display(), order(*nth))]
    Pair {
        chain: PathBuf,
        key: PathBuf,
        /// The certificate that the key belongs to, from 1.
        nth: Option<usize>,
    },
    #[error("read {}: {why}", path.display())]
    Read { path: PathBuf, why: String },
    #[error("read {}: {user}, who owns the vhost file, cannot", path.display())]
    Rights { path: PathBuf, user: String },
    #[error("use {}: it is from {} to {}", path.display(), validity.not_before, validity.not_after)]
    Validity { path: PathBuf, validity: Validity },
}

/// The pair as it is now, which is good for `identifiers` at `now`, opened with the rights of the user
/// who names it. Symbolic links are followed:
/// certbot's live directory is made of them. Each file may have other blocks as well; both may be
/// one file.
pub fn read(
    files: &PemFiles,
    identifiers: &[Identifier],
    now: OffsetDateTime,
) -> Result<IssuedCertificate, PemFilesError> {
    let path = files.chain.clone();
    let user = LocalUser::with_uid(files.uid);
    let chain = chain(&files.chain, &user)?;
    let key_pem = key(&files.key, &user)?;
    if let Err(error) = chain.check_keys() {
        let reason = error.to_string();
        return Err(PemFilesError::Odd { path, reason });
    }
    match chain.check_key(&key_pem) {
        Ok(()) => {}
        Err(ChainError::KeyFile(error)) => {
            return Err(PemFilesError::Odd {
                path: files.key.clone(),
                reason: error.to_string(),
            });
        }
        Err(_) => {
            return Err(PemFilesError::Pair {
                chain: path,
                key: files.key.clone(),
                nth: chain.nth_of_key(&key_pem),
            });
        }
    }
    let missing = identifiers.iter();
    let missing = missing.filter(|wanted| !covers(&chain.identifiers, wanted));
    let missing: Vec<Identifier> = missing.cloned().collect();
    if !missing.is_empty() {
        return Err(PemFilesError::Names { path, missing });
    }
    let validity = chain.validity;
    if !validity.is_usable(now) {
        return Err(PemFilesError::Validity { path, validity });
    }
    Ok(IssuedCertificate {
        chain_pem: chain.to_pem(),
        key_pem,
        origin: None,
        adopted: false,
    })
}

fn chain(path: &Path, user: &LocalUser) -> Result<Chain, PemFilesError> {
    let bytes = contents(path, user)?;
    let blocks = pem::blocks(&bytes);
    Chain::from_blocks(&blocks).map_err(|error| match error {
        ChainError::Empty => PemFilesError::Chain {
            path: path.to_path_buf(),
            found: found(&bytes, &blocks),
        },
        error => PemFilesError::Odd {
            path: path.to_path_buf(),
            reason: error.to_string(),
        },
    })
}

/// The first private key that is whole, as OpenSSL takes it, and nothing else of the file.
fn key(path: &Path, user: &LocalUser) -> Result<PrivateKeyPem, PemFilesError> {
    let path = path.to_path_buf();
    let bytes = contents(&path, user)?;
    let blocks = pem::blocks(&bytes);
    let is_key = |block: &&Block| block.label == ENCRYPTED || KEYS.contains(&&*block.label);
    let keys = || blocks.iter().filter(is_key);
    let whole = keys().find_map(|key| Some((key, key.contents.as_ref()?)));
    match (whole, keys().next()) {
        (Some((key, _)), _) if key.is_encrypted || key.label == ENCRYPTED => {
            Err(PemFilesError::Encrypted(path))
        }
        (Some((key, der)), _) => Ok(PrivateKeyPem::new(pem::encode(&key.label, der))),
        (None, Some(_)) => Err(PemFilesError::KeyDamaged(path)),
        (None, None) => {
            let found = found(&bytes, &blocks);
            Err(PemFilesError::Key { path, found })
        }
    }
}

/// What is in a file instead.
fn found(bytes: &[u8], blocks: &[Block]) -> String {
    let labels: Vec<String> = blocks
        .iter()
        .map(|it| known(&it.label).to_owned())
        .collect();
    match (bytes, labels.is_empty()) {
        (_, false) => format!("only {}", first_few(&labels, ", ")),
        ([], true) => "it is empty".to_owned(),
        // ASN.1 SEQUENCE
        ([0x30, ..], true) => {
            "it looks like DER or PKCS #12: convert it with `openssl x509`, `pkey` or `pkcs12`"
                .to_owned()
        }
        ([..], true) => "no line begins with -----BEGIN".to_owned(),
    }
}

/// A label is shown where it is one that people know: it may be a line of any file.
fn known(label: &str) -> &'static str {
    let known = KEYS.into_iter().chain(OTHERS);
    known
        .into_iter()
        .find(|known| *known == label)
        .unwrap_or("another block")
}

fn order(nth: Option<usize>) -> String {
    nth.map_or_else(String::new, |nth| {
        format!(": the key is that of certificate {nth} of the chain, and the server's must be the first")
    })
}

/// Anything that is not a file of a certificate's size is refused without waiting for it.
fn contents(path: &Path, user: &LocalUser) -> Result<Vec<u8>, PemFilesError> {
    let failed = |why: String| PemFilesError::Read {
        path: path.to_path_buf(),
        why,
    };
    user.with_rights(|| bytes(path))
        .map_err(|error| match error.kind() {
            // whether there is such a file is not told to a user who may not know
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                if !user.has_vhostds_rights() =>
            {
                PemFilesError::Rights {
                    path: path.to_path_buf(),
                    user: user.to_string(),
                }
            }
            io::ErrorKind::NotFound => failed("there is no such file".into()),
            _ => failed(fault(&error)),
        })
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let regular = |metadata: fs::Metadata| match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("not a regular file")),
    };
    // to open a device can be an effect already
    regular(fs::metadata(path)?)?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags.bits()).open(path)?;
    regular(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(MAXIMUM_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() > MAXIMUM_BYTES {
        true => Err(io::Error::other("too large for a certificate")),
        false => Ok(bytes),
    }
}

fn list(identifiers: &[Identifier]) -> String {
    let each: Vec<String> = identifiers.iter().map(ToString::to_string).collect();
    first_few(&each, ", ")
}

/// RFC 5208 §6.
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
const KEYS: [&str; 3] = ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];
const OTHERS: [&str; 13] = [
    "CERTIFICATE",
    "CERTIFICATE REQUEST",
    "DH PARAMETERS",
    "DSA PRIVATE KEY",
    "EC PARAMETERS",
    ENCRYPTED,
    "NEW CERTIFICATE REQUEST",
    "OPENSSH PRIVATE KEY",
    "PKCS7",
    "PUBLIC KEY",
    "TRUSTED CERTIFICATE",
    "X509 CERTIFICATE",
    "X509 CRL",
];
