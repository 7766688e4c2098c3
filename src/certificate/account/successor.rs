//! W: from one account key to the next (RFC 8555 §7.3.5).
//!
//! The new key is on disk before the CA is told of it. Killed in between, the next user of the account
//! asks the CA which of the two it knows. `former`: nginx may still answer with the key before.

use std::fs::{File, TryLockError};

use super::{AccountError, AccountKey};
use crate::atomic_file;
use crate::certificate::key::PrivateKeyPem;
use crate::settings::KeyType;

/// As long as it lives, the key is not changed (or, of [`AccountKey::try_change`], not used).
#[must_use = "the lock is dropped with this value"]
#[derive(Debug)]
pub struct KeyLock {
    _file: File,
}

impl AccountKey {
    /// The key that follows, where a change has begun.
    pub fn successor(&self) -> Option<&PrivateKeyPem> {
        self.successor.as_ref()
    }

    /// Whether the CA knows a newer key than nginx may answer with.
    pub fn has_former(&self) -> bool {
        self.former
    }

    /// Whether nginx may be asked about another key than the one that it answers with.
    pub fn is_changing(&self) -> bool {
        self.successor.is_some() || self.former
    }

    /// Makes the key that follows, unless there is one.
    pub fn prepare_successor(&self) -> Result<(), AccountError> {
        let made = PrivateKeyPem::generate(KeyType::EcdsaP256)?;
        self.update(|written| {
            written
                .successor
                .get_or_insert_with(|| made.expose().to_owned());
        })
    }

    /// The CA knows the successor, and the key before no more.
    pub fn adopt_successor(&self) -> Result<(), AccountError> {
        let known = self.successor.as_ref().map(PrivateKeyPem::expose);
        self.update(|written| {
            if let Some(successor) = written.successor.take_if(|it| Some(it.as_str()) == known) {
                written.key = successor;
                written.former = true;
            }
        })
    }

    /// nginx answers with the new key, and nothing else is asked about.
    pub fn settle(&self) -> Result<(), AccountError> {
        self.update(|written| written.former = false)
    }

    /// For who signs with the key; `None` while it is being changed.
    pub fn try_use(&self) -> Result<Option<KeyLock>, AccountError> {
        self.try_lock(File::try_lock_shared)
    }

    /// For who changes it; `None` while somebody uses it.
    pub fn try_change(&self) -> Result<Option<KeyLock>, AccountError> {
        self.try_lock(File::try_lock)
    }

    fn try_lock(
        &self,
        lock: impl FnOnce(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<KeyLock>, AccountError> {
        // another file than that of each write, which who uses the key does as well
        let path = self.path.with_file_name("use.lock");
        let file = atomic_file::lock_file(&path)?;
        match lock(&file) {
            Ok(()) => Ok(Some(KeyLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(AccountError::Read { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_followed_by_the_one_that_was_prepared_whoever_is_killed_in_between() {
        let directory = tempfile::tempdir().unwrap();
        let open = || AccountKey::open(directory.path(), "https://ca.example/dir").unwrap();
        let first = open();
        assert!(!first.is_changing());
        first.prepare_successor().unwrap();
        let successor = open().successor().unwrap().expose().to_owned();
        // killed, and begun again: the same one follows
        open().prepare_successor().unwrap();
        assert_eq!(open().successor().unwrap().expose(), successor);
        assert_eq!(open().thumbprint(), first.thumbprint());
        let prepared = open();
        prepared.adopt_successor().unwrap();
        // by another process, too, and with what was read before
        prepared.adopt_successor().unwrap();
        first.adopt_successor().unwrap();
        let adopted = open();
        assert_eq!(adopted.key().expose(), successor);
        assert!(adopted.has_former() && adopted.successor().is_none());
        // who has read the key before it was changed does not write it back
        first.record_registration(None).unwrap();
        assert_eq!(open().thumbprint(), adopted.thumbprint());
        adopted.settle().unwrap();
        assert!(!open().is_changing());
    }

    #[test]
    fn a_key_that_is_used_is_not_changed_and_one_that_is_being_changed_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let key = AccountKey::open(directory.path(), "https://ca.example/dir").unwrap();
        let (one, two) = (key.try_use().unwrap(), key.try_use().unwrap());
        assert!(one.is_some() && two.is_some());
        assert!(key.try_change().unwrap().is_none());
        drop((one, two));
        let change = key.try_change().unwrap();
        assert!(change.is_some() && key.try_use().unwrap().is_none());
    }
}
