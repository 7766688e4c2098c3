//! W: a certbot lineage → a certificate of ours, and certbot's renewal of it turned off.
//!
//! In this order: the certificate is stored, whoever serves it serves it, certbot's renewal is turned
//! off. Each step is one rename, so that whoever is killed in between leaves a certificate that
//! somebody renews, and the next run does the rest. `adopt --undo` takes back the last step.

pub mod lineage; // R certbot's directory → lineages, keys and chains
mod lock; // W no certbot runs meanwhile
pub mod renewal; // P the text of `renewal/NAME.conf`
pub mod standing; // P what is to be done about a lineage, or why nothing can be

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::atomic_file::{self, WriteError};
use crate::certificate::ledger::{CertificateLock, Ledger, LedgerError};
use crate::certificate::store::{CertificateStore, StoreError};
use crate::certificate::{
    CertificateName, CertificateRequest, IssuedCertificate, Issuer, Origin, StoredCertificate,
    WantedCertificate,
};
use lineage::{Lineage, LineageError, Material, read_file};
use lock::{CertbotLock, CertbotLockError};
use renewal::{ConfError, RenewalConf};
use standing::keeps;

/// Why a lineage was not adopted, or not given back.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("lock the certificate {0}: another process has held it for {wait} s", wait = PATIENCE.as_secs())]
    Busy(CertificateName),
    #[error(transparent)]
    Certbot(#[from] CertbotLockError),
    #[error("turn certbot's renewal off in {path}: {source}", path = path.display())]
    Edit {
        path: std::path::PathBuf,
        #[source]
        source: ConfError,
    },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("read the lineage: {0}")]
    Lineage(#[from] LineageError),
    #[error("turn certbot's renewal on: in {} it was turned off by somebody else", .0.display())]
    NotOurs(std::path::PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Where what is imported goes.
#[derive(Clone, Copy, Debug)]
pub struct Stores<'a> {
    pub certificates: &'a CertificateStore,
    pub ledger: &'a Ledger,
}

/// What became of `undo`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Undone {
    Nothing,
    TurnedOn,
}

impl AdoptError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Busy(_) => Some("an order is under way: try again when it has ended"),
            Self::Certbot(error) => Some(error.hint()),
            Self::NotOurs(_) => Some("remove its line `autorenew = False`"),
            Self::Write(_) => Some("run it as root; certbot's files are as they were"),
            _ => None,
        }
    }
}

/// Stores what certbot has for each of `wanted`, unless ours is at least as good; what is stored
/// then. Nothing is ordered, and certbot goes on.
pub fn import(
    lineage: &Lineage,
    wanted: &[WantedCertificate],
    stores: Stores<'_>,
    now: OffsetDateTime,
) -> Result<Vec<StoredCertificate>, AdoptError> {
    let _certbot = CertbotLock::acquire(&lineage.config_dir)?;
    // it may have been renewed since it was looked at
    let lineage = Lineage::read(&lineage.config_dir, &lineage.name)?;
    let material = lineage.material(now)?;
    let wanted = wanted.iter();
    let stored = wanted.map(|wanted| import_as(wanted, &lineage, &material, stores, now));
    stored.collect()
}

fn import_as(
    wanted: &WantedCertificate,
    lineage: &Lineage,
    material: &Material,
    stores: Stores<'_>,
    now: OffsetDateTime,
) -> Result<StoredCertificate, AdoptError> {
    let _lock = lock(stores.ledger, &wanted.name)?;
    if let Some(ours) = stores.certificates.newest(&wanted.name)?
        && keeps(wanted, &ours, material.chain.validity, now)
    {
        return Ok(ours);
    }
    let issued = IssuedCertificate {
        chain_pem: material.chain.to_pem(),
        key_pem: material.key.clone(),
        origin: origin(lineage),
        adopted: true,
    };
    // with the names that it has, under the name that the vhost looks for
    let theirs = WantedCertificate {
        identifiers: material.chain.identifiers.clone(),
        issuer: Issuer::Acme,
        ..wanted.clone()
    };
    let request = CertificateRequest::new(&theirs, None, None);
    let stored = stores.certificates.store(&issued, &request, now)?;
    stores.ledger.forget_failures(&wanted.name)?;
    stores.ledger.forget_order(&wanted.name)?;
    Ok(stored)
}

fn origin(lineage: &Lineage) -> Option<Origin> {
    let server = lineage.conf.server()?;
    let is_url = server.starts_with("https://") || server.starts_with("http://");
    is_url.then(|| Origin {
        directory: server.to_owned(),
        profile: None,
    })
}

/// Keeps `certbot renew` from it. `undo` is the command that takes it back, for whoever reads the
/// file. Call it when what was imported is stored.
pub fn turn_off(config_dir: &Path, name: &str, undo: &str) -> Result<(), AdoptError> {
    let _certbot = CertbotLock::acquire(config_dir)?;
    let lineage = Lineage::read(config_dir, name)?;
    if !lineage.conf.renews() {
        return Ok(());
    }
    rewrite(&lineage, &lineage.conf.turned_off(undo), false)
}

/// Lets `certbot renew` renew it again.
pub fn undo(config_dir: &Path, name: &str) -> Result<Undone, AdoptError> {
    let _certbot = CertbotLock::acquire(config_dir)?;
    let lineage = Lineage::read(config_dir, name)?;
    match (lineage.conf.renews(), lineage.conf.turned_on()) {
        (_, Some(text)) => rewrite(&lineage, &text, true).map(|()| Undone::TurnedOn),
        (true, None) => Ok(Undone::Nothing),
        (false, None) => Err(AdoptError::NotOurs(lineage.conf_path())),
    }
}

/// Whatever the text became, certbot must understand it as it is meant.
fn rewrite(lineage: &Lineage, text: &str, renews: bool) -> Result<(), AdoptError> {
    let path = lineage.conf_path();
    let failed = |source| AdoptError::Edit {
        path: path.clone(),
        source,
    };
    let parsed = RenewalConf::parse(text).map_err(failed)?;
    if parsed.renews() != renews {
        return Err(failed(ConfError::Autorenew { line: 1 }));
    }
    let before = read_file(&path)?.metadata;
    atomic_file::sweep_dead(&lineage.config_dir.join("renewal"))?;
    Ok(atomic_file::rewrite(&path, text.as_bytes(), &before)?)
}

fn lock(ledger: &Ledger, name: &CertificateName) -> Result<CertificateLock, AdoptError> {
    patiently(|| ledger.try_lock(name))?.ok_or_else(|| AdoptError::Busy(name.clone()))
}

/// `None` where it stays so for too long.
fn patiently<T, E>(mut attempt: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt()? {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            ended => return Ok(ended),
        }
    }
}

/// In UTC, to the second.
pub fn day_and_time(at: OffsetDateTime) -> String {
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}

/// Longer than most orders; certbot waits for its turn of the day with its lock held, for minutes.
const PATIENCE: Duration = Duration::from_secs(20);
