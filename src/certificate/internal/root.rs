//! W: the roots of our CA on disk.
//!
//! `root.key` (0600) and `root.pem` (0644) are the first root, `root-2.…` the second, and so on. A
//! root that was taken out of use is `retired/ID.pem`: whatever else is there of it is removed by
//! whoever comes next, its key first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::scope::Scope;
use super::{BACKDATED, InternalError};
use crate::atomic_file;
use crate::certificate::chain::Chain;
use crate::certificate::key::{self, KeyError, PrivateKeyPem};
use crate::certificate::listing::visible_names;
use crate::certificate::{Identifier, Validity};
use crate::settings::KeyType;

/// A certificate to trust.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Root {
    /// `vhostd internal CA 1a2b3c4d`
    pub name: String,
    /// The end of the name: the beginning of the key's digest.
    pub id: String,
    /// Of the certificate (SHA-256), in lower-case hex.
    pub fingerprint: String,
    pub validity: Validity,
    /// `None`: everything. Roots are made with a scope since there is one.
    pub scope: Option<Scope>,
    pub pem: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Root {
    fn parse(path: &Path, pem: String) -> Result<Self, InternalError> {
        let damaged = |source| InternalError::Root {
            path: path.to_path_buf(),
            source,
        };
        let chain = Chain::parse_root(&pem).map_err(damaged)?;
        let unreadable = |source| InternalError::Read {
            path: path.to_path_buf(),
            source: io::Error::other(source),
        };
        let (_, certificate) = X509Certificate::from_der(chain.leaf()).map_err(unreadable)?;
        let mut names = certificate.subject().iter_common_name();
        let name = names.next().and_then(|name| name.as_str().ok());
        Ok(Self {
            name: name.unwrap_or("a root without a name").to_owned(),
            id: id(&certificate.public_key().subject_public_key.data),
            fingerprint: hex(&Sha256::digest(chain.leaf())),
            validity: chain.validity,
            scope: Scope::of(&certificate),
            pem,
            path: path.to_path_buf(),
        })
    }

    pub fn permits(&self, identifiers: &[Identifier]) -> bool {
        let scope = self.scope.as_ref();
        scope.is_none_or(|scope| identifiers.iter().all(|it| scope.permits(it)))
    }

    /// Whether it is valid from now on for at least `time`.
    pub fn lasts(&self, now: OffsetDateTime, time: Duration) -> bool {
        self.validity.contains(now) && self.validity.contains(now + time)
    }

    /// `None`: it is lost.
    pub(super) fn key(&self) -> Result<Option<PrivateKeyPem>, InternalError> {
        let Some(key) = read(&self.path.with_extension("key"))? else {
            return Ok(None);
        };
        let key = PrivateKeyPem::new(key);
        let chain = Chain::parse_root(&self.pem);
        let checked = chain.and_then(|chain| chain.check_key(&key));
        checked.map_err(|source| InternalError::Root {
            path: self.path.clone(),
            source,
        })?;
        Ok(Some(key))
    }
}

/// Those in use, the first made first. Writes nothing.
pub(super) fn in_use(directory: &Path) -> Result<Vec<Root>, InternalError> {
    let all = all(directory)?.into_iter();
    Ok(all
        .filter(|root| !retired_path(directory, root).exists())
        .collect())
}

/// Those that were taken out of use.
pub(super) fn retired(directory: &Path) -> Result<Vec<Root>, InternalError> {
    let directory = directory.join(RETIRED);
    let mut found = Vec::new();
    for name in names(&directory)? {
        if let Some(root) = parsed(&directory.join(name))? {
            found.push(root);
        }
    }
    Ok(found)
}

/// Takes one out of use: nothing is signed by it any more. Call it under the CA's lock.
pub(super) fn retire(directory: &Path, root: &Root) -> Result<(), InternalError> {
    atomic_file::create_directory(&directory.join(RETIRED), 0o755)?;
    // from here on it is retired, whoever is killed
    atomic_file::write(&retired_path(directory, root), root.pem.as_bytes(), 0o644)?;
    finish(root)
}

/// Removes what is left of those whose retiring was interrupted. Call it under the CA's lock.
pub(super) fn finish_retiring(directory: &Path) -> Result<(), InternalError> {
    let all = all(directory)?.into_iter();
    let mut left = all.filter(|root| retired_path(directory, root).exists());
    left.try_for_each(|root| finish(&root))
}

/// The key first: a key without its root would become the next root's.
fn finish(root: &Root) -> Result<(), InternalError> {
    atomic_file::remove(&root.path.with_extension("key"))?;
    Ok(atomic_file::remove(&root.path)?)
}

/// Makes one more root. Call it under the CA's lock.
pub(super) fn make(
    directory: &Path,
    scope: &Scope,
    now: OffsetDateTime,
) -> Result<Root, InternalError> {
    let mut paths = (1..).map(|number| path(directory, number));
    let free = |path: &PathBuf| !path.exists();
    let path = paths.find(free).unwrap_or_default();
    let key_path = path.with_extension("key");
    let key = match read(&key_path)? {
        Some(key) => PrivateKeyPem::new(key),
        None => PrivateKeyPem::generate(KeyType::EcdsaP256)?,
    };
    // the key first: a crash in between leaves a key that nobody has trusted yet
    atomic_file::write(&key_path, key.expose().as_bytes(), 0o600)?;
    let pem = certificate(&key.pair()?, scope, now)?;
    atomic_file::write(&path, pem.as_bytes(), 0o644)?;
    Root::parse(&path, pem)
}

fn certificate(key: &KeyPair, scope: &Scope, now: OffsetDateTime) -> Result<String, KeyError> {
    let mut parameters = key::parameters(&[])?;
    // several hosts' roots in one browser are told apart by name
    let name = format!("vhostd internal CA {}", id(key.public_key_raw()));
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = now - BACKDATED;
    parameters.not_after = now + LIFETIME;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // neither mail nor programs are signed by it
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.name_constraints = Some(scope.constraints());
    let root = parameters.self_signed(key).map_err(KeyError::Sign)?;
    Ok(root.pem())
}

fn all(directory: &Path) -> Result<Vec<Root>, InternalError> {
    let mut numbers: Vec<u32> = names(directory)?
        .iter()
        .filter_map(|name| match name.as_str() {
            "root.pem" => Some(1),
            name => name
                .strip_prefix("root-")?
                .strip_suffix(".pem")?
                .parse()
                .ok(),
        })
        .collect();
    numbers.sort_unstable();
    let mut found = Vec::new();
    for number in numbers {
        found.extend(parsed(&path(directory, number))?);
    }
    Ok(found)
}

fn parsed(path: &Path) -> Result<Option<Root>, InternalError> {
    let pem = read(path)?;
    pem.map(|pem| Root::parse(path, pem)).transpose()
}

fn path(directory: &Path, number: u32) -> PathBuf {
    directory.join(match number {
        1 => "root.pem".to_owned(),
        _ => format!("root-{number}.pem"),
    })
}

fn retired_path(directory: &Path, root: &Root) -> PathBuf {
    directory.join(RETIRED).join(format!("{}.pem", root.id))
}

fn names(directory: &Path) -> Result<Vec<String>, InternalError> {
    let mut names = visible_names(directory).map_err(|source| InternalError::Read {
        path: directory.to_path_buf(),
        source,
    })?;
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Option<String>, InternalError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InternalError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

fn id(key: &[u8]) -> String {
    hex(Sha256::digest(key).get(..4).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const RETIRED: &str = "retired";
pub(super) const LIFETIME: Duration = Duration::days(3650);
