//! W: what must outlive a crash while certificates are obtained.
//!
//! `orders/NAME.attempts.json`: the failures since the last success. `orders/NAME.renewal.json`: when
//! the CA wants it renewed. `orders/NAME.remarks.json`: what looked odd. `orders/HOST-DIGEST.budget.json`: what was used of what that CA allows.
//! `orders/NAME.order.json` (0600): the order that is under way, with its key; durable before the CA
//! is told to validate anything, gone once the certificate is stored. `orders/NAME.dns.json` (0600): what
//! was put into DNS for it, durable before it is put there. `orders/NAME.lock`: flock(2), so
//! that the daemon and the timer's command obtain each certificate once; the kernel drops it with its
//! owner.

mod presented; // W what was put into DNS, until it is taken out again

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::atomic_file::{self, TEMPORARY_PREFIX, WriteError};
use crate::certificate::account::home_name;
use crate::certificate::attempts::Attempts;
use crate::certificate::budget::Budget;
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::listing;
use crate::certificate::preflight::Remarks;
use crate::certificate::renewal_info::RenewalInfo;
use crate::certificate::schedule::Memory;
use crate::certificate::{CertificateName, Identifier};

/// `state_dir/orders`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    directory: PathBuf,
    /// What is not on disk, shared by the clones: a disk that is full or read-only must not turn
    /// the schedule into one attempt, or one question, after the other.
    unwritten: Arc<Mutex<BTreeMap<CertificateName, Memory>>>,
    /// Likewise, by directory.
    budgets: Arc<Mutex<BTreeMap<String, Budget>>>,
}

/// An order that the CA knows (RFC 8555 §7.1.3), and what is needed to finish it.
#[derive(Clone, Debug)]
pub struct PendingOrder {
    /// The CA that it is at.
    pub directory: String,
    pub url: String,
    pub identifiers: Vec<Identifier>,
    pub profile: Option<String>,
    /// The one that the CSR was or will be made with.
    pub key: PrivateKeyPem,
}

/// Nobody else, in this process or another, obtains the certificate while this or a clone lives.
///
/// Whatever writes in the background holds a clone: when its caller is cancelled, it runs on, and
/// nobody may write beside it.
#[must_use = "the lock is dropped with this value"]
#[derive(Clone, Debug)]
pub struct CertificateLock {
    _file: Arc<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("lock {}: {source}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
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

impl Ledger {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("orders"),
            unwritten: Arc::default(),
            budgets: Arc::default(),
        }
    }

    /// What is remembered of every certificate. A file that cannot be read or parsed is as none: the
    /// worst that follows is one attempt, or one question, too early, of that certificate alone.
    pub fn memories(&self) -> Result<BTreeMap<CertificateName, Memory>, LedgerError> {
        let mut names: BTreeSet<CertificateName> = self.unwritten().keys().cloned().collect();
        for file_name in file_names(&self.directory)? {
            let name = [ATTEMPTS, REMARKS, RENEWAL]
                .iter()
                .find_map(|suffix| file_name.strip_suffix(suffix));
            names.extend(name.and_then(CertificateName::from_file_name));
        }
        let memories = names.into_iter().map(|name| {
            let memory = Memory {
                attempts: or_none(&name, self.attempts_of(&name)),
                renewal_info: or_none(&name, self.renewal_info_of(&name)),
                remarks: or_none(&name, self.remarks_of(&name)),
            };
            (name, memory)
        });
        Ok(memories.collect())
    }

    pub fn memory_of(&self, name: &CertificateName) -> Result<Memory, LedgerError> {
        Ok(Memory {
            attempts: self.attempts_of(name)?,
            renewal_info: self.renewal_info_of(name)?,
            remarks: self.remarks_of(name)?,
        })
    }

    pub fn remarks_of(&self, name: &CertificateName) -> Result<Option<Remarks>, LedgerError> {
        self.read(name, REMARKS)
    }

    /// None are no file.
    pub fn record_remarks(
        &self,
        name: &CertificateName,
        remarks: &Remarks,
    ) -> Result<(), LedgerError> {
        match remarks.remarks.is_empty() {
            true => Ok(atomic_file::remove(&self.path(name, REMARKS))?),
            false => self.write(name, REMARKS, remarks, 0o644),
        }
    }

    pub fn attempts_of(&self, name: &CertificateName) -> Result<Option<Attempts>, LedgerError> {
        let unwritten = self.unwritten();
        match unwritten.get(name).and_then(|it| it.attempts.clone()) {
            Some(attempts) => Ok(Some(attempts)),
            None => self.read(name, ATTEMPTS),
        }
    }

    pub fn renewal_info_of(
        &self,
        name: &CertificateName,
    ) -> Result<Option<RenewalInfo>, LedgerError> {
        let unwritten = self.unwritten();
        match unwritten.get(name).and_then(|it| it.renewal_info.clone()) {
            Some(info) => Ok(Some(info)),
            None => self.read(name, RENEWAL),
        }
    }

    /// What cannot be written is remembered, and an error all the same.
    pub fn record_renewal_info(
        &self,
        name: &CertificateName,
        info: &RenewalInfo,
    ) -> Result<(), LedgerError> {
        self.remember(name, |memory| memory.renewal_info = Some(info.clone()));
        self.write(name, RENEWAL, info, 0o644)?;
        self.remember(name, |memory| memory.renewal_info = None);
        Ok(())
    }

    /// What cannot be written is remembered, and an error all the same.
    pub fn record_failure(
        &self,
        name: &CertificateName,
        attempts: &Attempts,
    ) -> Result<(), LedgerError> {
        self.remember_failure(name, attempts);
        self.write(name, ATTEMPTS, attempts, 0o644)?;
        self.remember(name, |memory| memory.attempts = None);
        Ok(())
    }

    /// As [`Self::record_failure`], for this process and its clones alone: without the lock, nothing
    /// is written.
    pub fn remember_failure(&self, name: &CertificateName, attempts: &Attempts) {
        self.remember(name, |memory| memory.attempts = Some(attempts.clone()));
    }

    /// Forgets the failures: after a success, or because the operator wants it tried now.
    pub fn forget_failures(&self, name: &CertificateName) -> Result<(), LedgerError> {
        self.remember(name, |memory| memory.attempts = None);
        Ok(atomic_file::remove(&self.path(name, ATTEMPTS))?)
    }

    /// The operator wants it tried now. Which identifiers failed for how long is still known.
    pub fn retry_now(&self, name: &CertificateName) -> Result<(), LedgerError> {
        let known = self.attempts_of(name).ok().flatten();
        match known.and_then(Attempts::retried_now) {
            Some(attempts) => self.record_failure(name, &attempts),
            None => self.forget_failures(name),
        }
    }

    /// What was used of what the CA allows. A file that cannot be parsed is as none: the CA counts,
    /// too.
    pub fn budget(&self, directory: &str) -> Result<Budget, LedgerError> {
        if let Some(unwritten) = self.budgets().get(directory) {
            return Ok(unwritten.clone());
        }
        let budget = read(&self.budget_path(directory))?;
        Ok(budget.unwrap_or_default())
    }

    /// Changes it, one at a time in all processes. What cannot be written is remembered.
    pub fn update_budget<T>(
        &self,
        directory: &str,
        change: impl FnOnce(&mut Budget) -> T,
    ) -> Result<T, LedgerError> {
        let _lock = self.lock_budgets()?;
        let before = self.budget(directory)?;
        let mut budget = before.clone();
        let result = change(&mut budget);
        if budget != before {
            self.budgets().insert(directory.to_owned(), budget.clone());
            atomic_file::write_json(&self.budget_path(directory), &budget, 0o644)?;
            self.budgets().remove(directory);
        }
        Ok(result)
    }

    fn budget_path(&self, directory: &str) -> PathBuf {
        let file_name = format!("{}{BUDGET}", home_name(directory));
        self.directory.join(file_name)
    }

    fn lock_budgets(&self) -> Result<File, LedgerError> {
        self.prepare()?;
        let path = self.directory.join("budget.lock");
        let file = atomic_file::lock_file(&path)?;
        match file.lock() {
            Ok(()) => Ok(file),
            Err(source) => Err(LedgerError::Lock { path, source }),
        }
    }

    fn budgets(&self) -> MutexGuard<'_, BTreeMap<String, Budget>> {
        let budgets = self.budgets.lock();
        budgets.unwrap_or_else(PoisonError::into_inner)
    }

    /// The order that was under way. One that cannot be parsed is as none: a new order is made.
    pub fn pending(&self, name: &CertificateName) -> Result<Option<PendingOrder>, LedgerError> {
        let written: Option<WrittenOrder> = self.read(name, ORDER)?;
        Ok(written.map(|order| PendingOrder {
            directory: order.directory,
            url: order.order,
            identifiers: order.identifiers,
            profile: order.profile,
            key: PrivateKeyPem::new(order.key),
        }))
    }

    /// Durable when it returns.
    pub fn record_order(
        &self,
        name: &CertificateName,
        order: &PendingOrder,
    ) -> Result<(), LedgerError> {
        let written = WrittenOrder {
            directory: order.directory.clone(),
            order: order.url.clone(),
            identifiers: order.identifiers.clone(),
            profile: order.profile.clone(),
            key: order.key.expose().to_owned(),
        };
        self.write(name, ORDER, &written, 0o600)
    }

    /// When the order that is under way was made; `None` where there is none.
    pub fn order_written_at(&self, name: &CertificateName) -> Option<OffsetDateTime> {
        let written = fs::metadata(self.path(name, ORDER)).and_then(|it| it.modified());
        written.ok().map(OffsetDateTime::from)
    }

    /// One that comes back after a power cut is asked for once more, and ended by then.
    pub fn forget_order(&self, name: &CertificateName) -> Result<(), LedgerError> {
        atomic_file::remove_unsynced(&self.path(name, ORDER))?;
        Ok(())
    }

    /// The lock, or `None` while somebody else has it.
    pub fn try_lock(&self, name: &CertificateName) -> Result<Option<CertificateLock>, LedgerError> {
        self.prepare()?;
        let path = self.path(name, LOCK);
        let failed = |source| LedgerError::Lock {
            path: path.clone(),
            source,
        };
        // never removed: a lock on a name that is gone excludes nobody
        let file = atomic_file::lock_file(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(CertificateLock {
                _file: Arc::new(file),
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Removes what interrupted writes left (a pending order has a key in it), but for those of
    /// certificates that somebody is obtaining.
    pub fn sweep(&self) -> Result<(), LedgerError> {
        for file_name in file_names(&self.directory)? {
            if file_name.starts_with(TEMPORARY_PREFIX) && file_name.ends_with(BUDGET) {
                let _lock = self.lock_budgets()?;
                atomic_file::remove(&self.directory.join(file_name))?;
                continue;
            }
            let Some(name) = certificate_of_temporary(&file_name) else {
                continue;
            };
            if let Some(_lock) = self.try_lock(&name)? {
                atomic_file::remove(&self.directory.join(file_name))?;
            }
        }
        Ok(())
    }

    /// Forgets what was remembered of certificates that are not needed any more: at once what the CA
    /// said and what looked odd, failures only after `failures_until`, lest a vhost file that comes
    /// and goes be tried without end.
    pub fn prune<E: From<LedgerError>>(
        &self,
        is_needed: impl Fn(&CertificateName) -> Result<bool, E>,
        failures_until: OffsetDateTime,
    ) -> Result<(), E> {
        for file_name in file_names(&self.directory)? {
            let suffixes = [ATTEMPTS, REMARKS, RENEWAL].into_iter();
            let mut found = suffixes.filter_map(|suffix| {
                let name = CertificateName::from_file_name(file_name.strip_suffix(suffix)?)?;
                Some((name, suffix))
            });
            let Some((name, suffix)) = found.next() else {
                continue;
            };
            if is_needed(&name)? {
                continue;
            }
            let recent = |attempts: &Attempts| attempts.failed_at > failures_until;
            let keep = suffix == ATTEMPTS && self.attempts_of(&name)?.as_ref().is_some_and(recent);
            if !keep && let Some(_lock) = self.try_lock(&name)? {
                atomic_file::remove(&self.path(&name, suffix)).map_err(LedgerError::from)?;
            }
        }
        Ok(())
    }

    fn remember(&self, name: &CertificateName, change: impl FnOnce(&mut Memory)) {
        let mut unwritten = self.unwritten();
        let memory = unwritten.entry(name.clone()).or_default();
        change(memory);
        if *memory == Memory::default() {
            unwritten.remove(name);
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, BTreeMap<CertificateName, Memory>> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(&self) -> Result<(), LedgerError> {
        Ok(atomic_file::create_directory(&self.directory, 0o700)?)
    }

    fn path(&self, name: &CertificateName, suffix: &str) -> PathBuf {
        self.directory.join(format!("{name}{suffix}"))
    }

    fn read<T: DeserializeOwned>(
        &self,
        name: &CertificateName,
        suffix: &str,
    ) -> Result<Option<T>, LedgerError> {
        read(&self.path(name, suffix))
    }

    fn write<T: Serialize>(
        &self,
        name: &CertificateName,
        suffix: &str,
        value: &T,
        mode: u32,
    ) -> Result<(), LedgerError> {
        self.prepare()?;
        let path = self.path(name, suffix);
        Ok(atomic_file::write_json(&path, value, mode)?)
    }
}

#[derive(Deserialize, Serialize)]
struct WrittenOrder {
    directory: String,
    order: String,
    identifiers: Vec<Identifier>,
    profile: Option<String>,
    key: String,
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LedgerError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unread(path)(error)),
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "unreadable, taken as absent");
                Ok(None)
            }
        },
    }
}

fn or_none<T>(name: &CertificateName, read: Result<Option<T>, LedgerError>) -> Option<T> {
    read.unwrap_or_else(|error| {
        tracing::warn!(identifier = %name, "taken as absent: failed to {error}");
        None
    })
}

fn file_names(directory: &Path) -> Result<Vec<String>, LedgerError> {
    listing::names(directory).map_err(unread(directory))
}

/// Of `.vhostd-tmp-PROCESS-THREAD-NAME.order.json`.
fn certificate_of_temporary(file_name: &str) -> Option<CertificateName> {
    let target = file_name
        .strip_prefix(TEMPORARY_PREFIX)?
        .splitn(3, '-')
        .nth(2)?;
    let name = target
        .strip_suffix(ORDER)
        .or_else(|| target.strip_suffix(ATTEMPTS))
        .or_else(|| target.strip_suffix(PRESENTED))
        .or_else(|| target.strip_suffix(REMARKS))
        .or_else(|| target.strip_suffix(RENEWAL))?;
    CertificateName::from_file_name(name)
}

fn unread<'a>(path: &'a Path) -> impl Fn(io::Error) -> LedgerError + 'a {
    move |source| LedgerError::Read {
        path: path.to_path_buf(),
        source,
    }
}

const ATTEMPTS: &str = ".attempts.json";
const BUDGET: &str = ".budget.json";
const LOCK: &str = ".lock";
const ORDER: &str = ".order.json";
const PRESENTED: &str = ".dns.json";
const REMARKS: &str = ".remarks.json";
const RENEWAL: &str = ".renewal.json";

#[cfg(test)]
mod tests;
