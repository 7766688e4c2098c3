//! W: one version's directory: written once, verified when read.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::levels::top;
use super::{Judge, StoreError};
use crate::atomic_file::{self, Batch, WriteError};
use crate::certificate::chain::{Chain, MAXIMUM_BYTES};
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::{
    CertificateName, CertificateRequest, Identifier, IssuedCertificate, Issuer, Origin,
    StoredCertificate, covers,
};

/// A verified version, and its place among the versions of its name.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) certificate: StoredCertificate,
    /// From 1; the last stored has the highest. A clock would do until it is set back.
    pub(super) sequence: u64,
}

/// What changes when a file of a version is touched: inode, size and change time of each.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stamp([(u64, u64, i64, i64); 3]);

/// `meta.json`: what the certificate itself does not say.
#[derive(Deserialize, Serialize)]
struct Meta {
    issuer: Issuer,
    sequence: u64,
    #[serde(default)]
    origin: Option<Origin>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    adopted: bool,
    #[serde(default)]
    uid: Option<u32>,
    /// What was wanted, and left out because it could not be proven: the first may be among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    omitted: Vec<Identifier>,
}

impl Stamp {
    pub(super) fn of(directory: &Path) -> io::Result<Self> {
        let mut stamps = [(0, 0, 0, 0); 3];
        for (stamp, file) in stamps.iter_mut().zip([CHAIN, KEY, META]) {
            let metadata = fs::metadata(directory.join(file))
                .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
            *stamp = (
                metadata.ino(),
                metadata.size(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            );
        }
        Ok(Self(stamps))
    }
}

/// Writes the version into `directory`, complete or not at all; its name is durable with the next
/// fsync of `directory`. `chain` was checked.
pub(super) fn write(
    directory: &Path,
    chain: &Chain,
    issued: &IssuedCertificate,
    request: &CertificateRequest,
    sequence: u64,
    judge: Option<&dyn Judge>,
) -> Result<StoredCertificate, StoreError> {
    let path = directory.join(directory_name(chain, request.issuer));
    let there = match path.exists() {
        true => read(&path, &request.name).ok(),
        false => None,
    };
    let there = there.filter(|version| version.certificate.leaf == chain.leaf());
    let meta = Meta {
        issuer: request.issuer,
        sequence,
        origin: issued.origin.clone(),
        adopted: issued.adopted,
        uid: Some(request.uid),
        omitted: request.omitted(),
    };
    let meta = serde_json::to_vec(&meta).map_err(|error| WriteError {
        operation: "serialize",
        path: path.join(META),
        source: error.into(),
    })?;
    let is_newest = |version: &Version| version.sequence + 1 == sequence;
    if let Some(version) = &there {
        // the files of before are back, or another user names them; what a CA issued twice is no news
        let is_known = is_newest(version) && version.certificate.uid == Some(request.uid);
        if request.issuer == Issuer::File && !is_known {
            atomic_file::write(&path.join(META), &meta, 0o644)?;
        }
    } else {
        // a damaged one of the same serial serves nobody
        atomic_file::remove(&path)?;
        atomic_file::build_unsynced(&path, |temporary| {
            atomic_file::create_directory_unsynced(temporary, 0o700)?;
            let mut batch = Batch::default();
            batch.create(
                temporary.join(KEY),
                issued.key_pem.expose().as_bytes(),
                0o600,
            )?;
            batch.create(temporary.join(CHAIN), chain.to_pem().as_bytes(), 0o644)?;
            batch.create(temporary.join(META), &meta, 0o644)?;
            std::thread::scope(|scope| {
                // beside the disk's work
                let trial = judge.map(|judge| scope.spawn(|| try_out(judge, temporary, directory)));
                batch.sync()?;
                atomic_file::sync_directory(temporary)?;
                let tried = trial.map(|trial| trial.join().unwrap_or(Ok(())));
                tried.unwrap_or(Ok(()))
            })
        })?;
    }
    let origin = issued.origin.clone();
    Ok(StoredCertificate {
        origin,
        adopted: issued.adopted,
        uid: Some(request.uid),
        ..stored(&path, chain, request.name.clone(), request.issuer)
    })
}

/// Before anything is renamed: what nginx cannot load would keep it from every other change.
fn try_out(judge: &dyn Judge, version: &Path, directory: &Path) -> Result<(), StoreError> {
    // a short path: nginx listens on a socket in it (unix(7): 107 bytes)
    let scratch = atomic_file::temporary_beside(&top(directory).with_file_name("trial"))?;
    atomic_file::remove(&scratch)?;
    atomic_file::create_directory(&scratch, 0o700)?;
    let refusal = judge.refusal(&version.join(CHAIN), &version.join(KEY), &scratch);
    atomic_file::remove(&scratch)?;
    refusal.map_or(Ok(()), |words| Err(StoreError::Unloadable(words)))
}

/// Reads a version and verifies that its chain, key, serial and name belong together. The error
/// is a lowercase reason.
pub(super) fn read(path: &Path, name: &CertificateName) -> Result<Version, String> {
    let meta: Meta =
        serde_json::from_str(&text(path, META)?).map_err(|error| format!("{META}: {error}"))?;
    let chain = Chain::parse_of(meta.issuer, &text(path, CHAIN)?)
        .map_err(|error| format!("{CHAIN}: failed to {error}"))?;
    let expected = directory_name(&chain, meta.issuer);
    if path
        .file_name()
        .is_none_or(|file_name| file_name != expected.as_str())
    {
        return Err(format!("{CHAIN}: it belongs into {expected}"));
    }
    let first = |identifier| CertificateName::of(identifier).as_str() == name.base();
    // what was not made for us may have a wildcard instead of the vhost's own name
    let own = Identifier::Dns(name.base().to_owned());
    let covered = meta.adopted && covers(&chain.identifiers, &own);
    let foreign = meta.issuer == Issuer::File || covered;
    let mut wanted = chain.identifiers.iter().chain(&meta.omitted);
    if !foreign && !wanted.any(first) {
        return Err(format!("{CHAIN}: not for {name}"));
    }
    let key = PrivateKeyPem::new(text(path, KEY)?);
    chain
        .check_key(&key)
        .map_err(|error| format!("{KEY}: failed to {error}"))?;
    Ok(Version {
        certificate: StoredCertificate {
            origin: meta.origin,
            adopted: meta.adopted,
            uid: meta.uid,
            ..stored(path, &chain, name.clone(), meta.issuer)
        },
        sequence: meta.sequence,
    })
}

/// Makes the version in `path` one that was obtained for `uid`. The error is a lowercase reason.
pub(super) fn give(path: &Path, uid: u32) -> Result<(), String> {
    let mut meta: Meta =
        serde_json::from_str(&text(path, META)?).map_err(|error| format!("{META}: {error}"))?;
    meta.uid = Some(uid);
    let meta = serde_json::to_vec(&meta).map_err(|error| format!("{META}: {error}"))?;
    atomic_file::write(&path.join(META), &meta, 0o644).map_err(|error| error.to_string())
}

impl StoredCertificate {
    /// Its chain, as it is on disk. The error is a lowercase reason.
    pub fn read_chain(&self) -> Result<Chain, String> {
        let directory = self.chain.parent().unwrap_or(&self.chain);
        let chain = Chain::parse_of(self.issuer, &text(directory, CHAIN)?);
        chain.map_err(|error| format!("{CHAIN}: failed to {error}"))
    }

    /// Whether it was made of these files.
    pub fn holds(&self, pair: &IssuedCertificate) -> bool {
        let chain = Chain::parse_of(self.issuer, &pair.chain_pem);
        self.issuer == Issuer::File
            && chain.is_ok_and(|chain| directory_name(&chain, self.issuer) == self.serial)
    }
}

/// In files a leaf may come with another chain than before: a missing link is added.
fn directory_name(chain: &Chain, issuer: Issuer) -> String {
    if issuer != Issuer::File {
        return chain.serial.clone();
    }
    let digest = Sha256::digest(chain.to_pem().as_bytes());
    let digest = digest.iter().take(4).map(|byte| format!("{byte:02x}"));
    format!("{}-{}", chain.serial, digest.collect::<String>())
}

fn stored(path: &Path, chain: &Chain, name: CertificateName, issuer: Issuer) -> StoredCertificate {
    StoredCertificate {
        name,
        serial: directory_name(chain, issuer),
        issuer,
        identifiers: chain.identifiers.clone(),
        validity: chain.validity,
        origin: None,
        adopted: false,
        uid: None,
        key_type: chain.key_type(),
        chain: path.join(CHAIN),
        key: path.join(KEY),
        leaf: chain.leaf().to_vec(),
    }
}

fn text(directory: &Path, file: &str) -> Result<String, String> {
    let path = directory.join(file);
    let failed = |error: io::Error| format!("{file}: {error}");
    if fs::metadata(&path).map_err(failed)?.len() > MAXIMUM_BYTES as u64 {
        return Err(format!("{file}: too large"));
    }
    fs::read_to_string(&path).map_err(failed)
}

const CHAIN: &str = "fullchain.pem";
const KEY: &str = "privkey.pem";
const META: &str = "meta.json";
