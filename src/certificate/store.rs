//! W: versioned directories ↔ [`CertificateInventory`].
//!
//! `certificates/NAME/SERIAL/{fullchain.pem,privkey.pem,meta.json}`, and `NAME/current` → the
//! newest; of a further type of key `NAME/TYPE/SERIAL` and `NAME/TYPE/current`. `placeholders/` has the
//! same form. A version is written under a temporary name, fsynced,
//! renamed, and never changes afterwards: server blocks name its path. What cannot be verified when
//! read is reported and never served.

mod levels; // W where a certificate's versions are, with one type of key or two
mod placeholder; // W what lets nginx start before the certificate is there
mod prune; // W what no generation names any more
mod version; // W one version's directory: written once, verified when read

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

use self::levels::{create_home, home, is_level, names_in};
use self::version::{Stamp, Version};
use crate::atomic_file::{self, WriteError};
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::chain::{Chain, ChainError};
use crate::certificate::key::KeyError;
use crate::certificate::ledger::{Ledger, LedgerError};
use crate::certificate::listing::visible_names;
use crate::certificate::schedule::renew_at;
use crate::certificate::words::one_line;
use crate::certificate::{
    CertificateInventory, CertificateName, CertificateRequest, IssuedCertificate, Issuer,
    StoredCertificate,
};
use crate::diagnostic::Diagnostic;

/// The certificates below a state directory. Cheap to clone; clones share what they have verified.
#[derive(Clone, Debug)]
pub struct CertificateStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    certificates: PathBuf,
    placeholders: PathBuf,
    judge: Option<Arc<dyn Judge>>,
    /// Versions that were verified, by directory: reading a hundred keys on every reload would
    /// cost more than the reload. A version never changes, so its files' stamps suffice.
    verified: Mutex<HashMap<PathBuf, (Stamp, Version)>>,
}

/// Whether whoever will serve a certificate can load it.
pub trait Judge: fmt::Debug + Send + Sync {
    /// Its words where it cannot. `scratch` is an empty directory for its own use.
    fn refusal(&self, chain: &Path, key: &Path, scratch: &Path) -> Option<String>;
}

/// Why a certificate was not stored, or the store not read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("store `{0}`: not a safe file name")]
    Name(CertificateName),
    #[error("use a certificate that is due for renewal at once: the stored one lasts longer")]
    NoGain,
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "use another certificate with the serial number {0}, which is stored (RFC 5280 §4.1.2.2)"
    )]
    SerialTaken(String),
    #[error("use a certificate that nginx cannot load: {}", one_line(.0.as_bytes()))]
    Unloadable(String),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Everything readable, and what was skipped.
pub type Inventory = (CertificateInventory, Vec<Diagnostic>);

impl CertificateStore {
    /// Touches no file.
    pub fn new(state_dir: &Path) -> Self {
        Self::with_judge(state_dir, None)
    }

    /// As [`CertificateStore::new`]; what a CA sent is stored only where `judge` can load it;
    /// it is not asked about what it certainly can.
    pub fn with_judge(state_dir: &Path, judge: Option<Arc<dyn Judge>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                certificates: state_dir.join("certificates"),
                placeholders: state_dir.join("placeholders"),
                judge,
                verified: Mutex::default(),
            }),
        }
    }

    /// The newest good version of each certificate, and a diagnostic for each that is not good.
    ///
    /// Newest is the one that was stored last, not the one that lasts longest: a certificate with
    /// more names, from another issuer or of a shorter profile replaces one that would outlive it.
    pub fn inventory(&self) -> Result<Inventory, StoreError> {
        let mut problems = Vec::new();
        let inventory = CertificateInventory {
            certificates: self.newest_below(&self.shared.certificates, &mut problems)?,
            placeholders: self.newest_below(&self.shared.placeholders, &mut problems)?,
        };
        Ok((inventory, problems))
    }

    /// The newest good version of one certificate.
    pub fn newest(&self, name: &CertificateName) -> Result<Option<StoredCertificate>, StoreError> {
        let directory = home(&self.shared.certificates, checked(name)?);
        let versions = self.versions(&directory, name, &mut Vec::new())?;
        Ok(newest(&versions).map(|version| version.certificate.clone()))
    }

    /// Checks what a CA issued against the request and the clock, stores it, and makes it current.
    ///
    /// Call it with the certificate's lock held. Storing the same certificate twice is no error.
    pub fn store(
        &self,
        issued: &IssuedCertificate,
        request: &CertificateRequest,
        now: OffsetDateTime,
    ) -> Result<StoredCertificate, StoreError> {
        self.add(&self.shared.certificates, issued, request, now)
    }

    /// Makes every version of `name` one that was obtained for `uid`: its vhost file has got another
    /// owner. Returns why some could not be given.
    pub fn give(&self, name: &CertificateName, uid: u32) -> Result<Vec<String>, StoreError> {
        let directory = home(&self.shared.certificates, checked(name)?);
        let versions = self.versions(&directory, name, &mut Vec::new())?;
        let others = versions.iter().filter(|it| it.certificate.uid != Some(uid));
        let failures = others.filter_map(|version| {
            let path = directory.join(&version.certificate.serial);
            let failed = version::give(&path, uid).err()?;
            Some(format!("{}: {failed}", path.display()))
        });
        Ok(failures.collect())
    }

    /// Removes what interrupted writes left, and points each `current` at the newest version where
    /// a crash came between the two; but for certificates that somebody is obtaining. Call it under
    /// the lock of the state directory, which placeholders are made under.
    pub fn sweep(&self, ledger: &Ledger) -> Result<(), StoreError> {
        atomic_file::sweep_dead(&self.shared.certificates)?;
        for name in names_in(&self.shared.certificates)? {
            let directory = home(&self.shared.certificates, &name);
            let behind = self.newest_if_not_current(&directory, &name)?.is_some()
                || !self.misnamed(&name)?.is_empty();
            // an order that starts now finds its lock free wherever there is nothing to do
            if (behind || atomic_file::has_temporaries(&directory))
                && let Some(_lock) = ledger.try_lock(&name)?
            {
                self.settle(&directory, &name)?;
                self.name_first_type(&name)?;
            }
        }
        for name in names_in(&self.shared.placeholders)? {
            self.settle(&home(&self.shared.placeholders, &name), &name)?;
        }
        Ok(())
    }

    fn settle(&self, directory: &Path, name: &CertificateName) -> Result<(), StoreError> {
        atomic_file::sweep(directory)?;
        if let Some(serial) = self.newest_if_not_current(directory, name)? {
            atomic_file::symlink(&directory.join(CURRENT), Path::new(&serial))?;
        }
        Ok(())
    }

    /// The serial of the newest good version, where `current` leads elsewhere.
    fn newest_if_not_current(
        &self,
        directory: &Path,
        name: &CertificateName,
    ) -> Result<Option<String>, StoreError> {
        let current = fs::read_link(directory.join(CURRENT)).ok();
        let versions = self.versions(directory, name, &mut Vec::new())?;
        let newest = newest(&versions).map(|version| version.certificate.serial.clone());
        Ok(newest.filter(|serial| current.as_deref() != Some(Path::new(serial))))
    }

    fn add(
        &self,
        base: &Path,
        issued: &IssuedCertificate,
        request: &CertificateRequest,
        now: OffsetDateTime,
    ) -> Result<StoredCertificate, StoreError> {
        let chain = Chain::parse_of(request.issuer, &issued.chain_pem)?;
        // what is in files was not made for us: `pem_files` has seen what they are good for
        let from_files = request.issuer == Issuer::File;
        if !from_files {
            chain.check_identifiers(&request.identifiers)?;
        }
        chain.check_key(&issued.key_pem)?;
        if !from_files {
            chain.check_validity(now)?;
            chain.check_soundness()?;
        }
        let directory = create_home(base, checked(&request.name)?)?;
        let versions = self.versions(&directory, &request.name, &mut Vec::new())?;
        if !from_files {
            check_against(&versions, &chain, now)?;
        }
        let sequence = newest(&versions).map_or(1, |newest| newest.sequence + 1);
        let judge = self.shared.judge.as_deref();
        let judge = judge.filter(|_| match request.issuer {
            Issuer::Acme => !chain.is_ordinary(),
            // the key is somebody else's too
            Issuer::File => true,
            // our own need none
            Issuer::Internal | Issuer::Placeholder => false,
        });
        let stored = version::write(&directory, &chain, issued, request, sequence, judge)?;
        // whose fsync makes the version durable, too
        let link = directory.join(CURRENT);
        atomic_file::symlink(&link, Path::new(&stored.serial))?;
        self.name_first_type(&request.name)?;
        Ok(stored)
    }

    fn newest_below(
        &self,
        base: &Path,
        problems: &mut Vec<Diagnostic>,
    ) -> Result<std::collections::BTreeMap<CertificateName, StoredCertificate>, StoreError> {
        let mut all = std::collections::BTreeMap::new();
        // each directory is read once: there may be thousands
        let mut homes = levels::tops_in(base)?;
        while let Some((name, home)) = homes.pop() {
            let entries = entries(&home)?;
            homes.extend(levels::further_among(&entries, &name, &home));
            let versions = self.versions_among(entries, &home, &name, problems);
            if let Some(newest) = newest(&versions) {
                all.insert(name, newest.certificate.clone());
            }
        }
        Ok(all)
    }

    /// The good versions in `directory`, in no order.
    fn versions(
        &self,
        directory: &Path,
        name: &CertificateName,
        problems: &mut Vec<Diagnostic>,
    ) -> Result<Vec<Version>, StoreError> {
        let entries = entries(directory)?;
        Ok(self.versions_among(entries, directory, name, problems))
    }

    fn versions_among(
        &self,
        entries: Vec<String>,
        directory: &Path,
        name: &CertificateName,
        problems: &mut Vec<Diagnostic>,
    ) -> Vec<Version> {
        let mut versions = Vec::new();
        for serial in entries {
            if serial == CURRENT || is_level(&serial) {
                continue;
            }
            let path = directory.join(&serial);
            match self.version(&path, name) {
                Ok(version) => versions.push(version),
                Err(reason) => problems.push(
                    Diagnostic::new(path, reason)
                        .hint("it is not used; remove the directory once no generation names it"),
                ),
            }
        }
        versions
    }

    fn version(&self, path: &Path, name: &CertificateName) -> Result<Version, String> {
        let stamp = Stamp::of(path).map_err(|error| error.to_string())?;
        let mut verified = self
            .shared
            .verified
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match verified.get(path) {
            Some((seen, version)) if *seen == stamp => Ok(version.clone()),
            _ => {
                let version = version::read(path, name)?;
                verified.insert(path.to_path_buf(), (stamp, version.clone()));
                Ok(version)
            }
        }
    }
}

impl StoreError {
    /// Will ordering again help?
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::Chain(error) => error.retry(),
            Self::Key(_)
            | Self::Ledger(_)
            | Self::NoGain
            | Self::Read { .. }
            | Self::SerialTaken(_)
            | Self::Unloadable(_)
            | Self::Write(_) => RetryAdvice::Retry,
            Self::Name(_) => RetryAdvice::Useless,
        }
    }

    /// The same answer of the CA would be refused again.
    pub(super) fn is_about_the_answer(&self) -> bool {
        matches!(
            self,
            Self::Chain(_)
                | Self::Key(_)
                | Self::NoGain
                | Self::SerialTaken(_)
                | Self::Unloadable(_)
        )
    }
}

/// A version is immutable, and what serves is not given up for what ends sooner and would have to
/// be renewed at once.
fn check_against(
    versions: &[Version],
    chain: &Chain,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let same_serial = |version: &&Version| version.certificate.serial == chain.serial;
    match versions.iter().find(same_serial) {
        Some(version) if version.certificate.leaf == chain.leaf() => return Ok(()),
        Some(_) => return Err(StoreError::SerialTaken(chain.serial.clone())),
        None => {}
    }
    let lasts_longer = newest(versions).is_some_and(|stored| {
        let validity = stored.certificate.validity;
        validity.is_usable(now) && validity.not_after > chain.validity.not_after
    });
    match lasts_longer && renew_at(chain.validity, None) <= now {
        true => Err(StoreError::NoGain),
        false => Ok(()),
    }
}

fn newest(versions: &[Version]) -> Option<&Version> {
    versions
        .iter()
        .max_by_key(|version| (version.sequence, version.certificate.validity.not_after))
}

/// Names come from the network's and the operator's words: none of them may leave the store.
fn checked(name: &CertificateName) -> Result<&CertificateName, StoreError> {
    match CertificateName::from_file_name(name.as_str()) {
        Some(_) => Ok(name),
        None => Err(StoreError::Name(name.clone())),
    }
}

fn entries(directory: &Path) -> Result<Vec<String>, StoreError> {
    match visible_names(directory) {
        // somebody's file: there is no version in it
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        names => names.map_err(|source| StoreError::Read {
            path: directory.to_path_buf(),
            source,
        }),
    }
}

const CURRENT: &str = "current";

#[cfg(test)]
mod tests;
