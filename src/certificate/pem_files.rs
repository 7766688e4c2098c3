//! R: a certificate from files that somebody else renews (`tls: {certificate, certificate_key}`).
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
use crate::certificate::words::first_few;
use crate::certificate::{Identifier, IssuedCertificate, PemFiles, Validity, covers};
use crate::diagnostic::fault;

/// Why files are not used. No word of them is in it: they may be any files.
#[derive(Debug, thiserror::Error)]
pub enum PemFilesError {
    #[error("use {}: no chain of certificates in PEM, the server's first", .0.display())]
    Chain(PathBuf),
    #[error("use {}: no private key in PEM without a passphrase", .0.display())]
    Key(PathBuf),
    #[error("use {}: it is not for {}", path.display(), list(missing))]
    Names {
        path: PathBuf,
        missing: Vec<Identifier>,
    },
    #[error("use {}: {reason}", path.display())]
    Odd { path: PathBuf, reason: String },
    #[error("use {} with {}: they are not a pair", chain.display(), key.display())]
    Pair { chain: PathBuf, key: PathBuf },
    #[error("read {}: {why}", path.display())]
    Read { path: PathBuf, why: String },
    #[error("use {}: it is from {} to {}", path.display(), validity.not_before, validity.not_after)]
    Validity { path: PathBuf, validity: Validity },
}

/// The pair as it is now, which is good for `identifiers` at `now`. Symbolic links are followed:
/// certbot's live directory is made of them.
pub fn read(
    files: &PemFiles,
    identifiers: &[Identifier],
    now: OffsetDateTime,
) -> Result<IssuedCertificate, PemFilesError> {
    let path = files.chain.clone();
    let chain = match Chain::parse(&text(&files.chain)?) {
        Ok(chain) => chain,
        Err(_) => return Err(PemFilesError::Chain(path)),
    };
    let key_pem = PrivateKeyPem::new(text(&files.key)?);
    match chain.check_key(&key_pem) {
        Ok(()) => {}
        Err(ChainError::KeyFile(_)) => return Err(PemFilesError::Key(files.key.clone())),
        Err(_) => {
            let key = files.key.clone();
            return Err(PemFilesError::Pair { chain: path, key });
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
    let sound = chain.check_validity(now).and(chain.check_soundness());
    if let Err(error) = sound {
        let reason = error.to_string();
        return Err(PemFilesError::Odd { path, reason });
    }
    Ok(IssuedCertificate {
        chain_pem: chain.to_pem(),
        key_pem,
        origin: None,
        adopted: false,
    })
}

/// Anything that is not a file of a certificate's size is refused without waiting for it.
fn text(path: &Path) -> Result<String, PemFilesError> {
    let failed = |why: String| PemFilesError::Read {
        path: path.to_path_buf(),
        why,
    };
    let bytes = bytes(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed("there is no such file".into()),
        _ => failed(fault(&error)),
    })?;
    String::from_utf8(bytes).map_err(|_| failed("not a text".into()))
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
