//! W: where a certificate's versions are: `NAME/SERIAL`, and those of a further type of key
//! `NAME/TYPE/SERIAL`. Beside such a level the first type has one too, a link to `NAME` itself: both
//! have the path that their type says, and nothing moves when a type is added.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CertificateStore, StoreError, entries};
use crate::atomic_file;
use crate::certificate::CertificateName;
use crate::settings::KeyType;

/// The directory that has its versions and `current`.
pub(super) fn home(base: &Path, name: &CertificateName) -> PathBuf {
    let home = base.join(name.base());
    match name.further() {
        Some(key_type) => home.join(key_type.as_str()),
        None => home,
    }
}

/// Creates it, at the place of a link that was the first type's.
pub(super) fn create_home(base: &Path, name: &CertificateName) -> Result<PathBuf, StoreError> {
    atomic_file::create_directory(base, 0o700)?;
    atomic_file::create_directory(&base.join(name.base()), 0o700)?;
    let home = home(base, name);
    if name.further().is_some() {
        if home.is_symlink() {
            atomic_file::remove(&home)?;
        }
        atomic_file::create_directory(&home, 0o700)?;
    }
    Ok(home)
}

/// Whether it is no version: a level of a type, or the link of one.
pub(super) fn is_level(entry: &str) -> bool {
    KeyType::named(entry).is_some()
}

/// The directory of the certificate that `home` is of, which has a short path.
pub(super) fn top(home: &Path) -> &Path {
    let name = home.file_name().and_then(|name| name.to_str());
    match (name.is_some_and(is_level), home.parent()) {
        (true, Some(top)) => top,
        _ => home,
    }
}

/// The certificates below `base`, each after those of its further types.
pub(super) fn names_in(base: &Path) -> Result<Vec<CertificateName>, StoreError> {
    let mut names = Vec::new();
    for (name, top) in tops_in(base)? {
        names.extend(further_in(&top).map(|key_type| name.of_further(key_type)));
        names.push(name);
    }
    Ok(names)
}

/// Those of the first type, each with its directory.
pub(super) fn tops_in(base: &Path) -> Result<Vec<(CertificateName, PathBuf)>, StoreError> {
    let entries = entries(base)?;
    let top = |entry: &String| {
        let name = CertificateName::from_file_name(entry)?;
        name.further().is_none().then(|| (name, base.join(entry)))
    };
    Ok(entries.iter().filter_map(top).collect())
}

/// Those of further types, of which one of the first type has `entries` in its directory `top`.
pub(super) fn further_among(
    entries: &[String],
    name: &CertificateName,
    top: &Path,
) -> Vec<(CertificateName, PathBuf)> {
    // a further type has none
    if name.further().is_some() || !entries.iter().any(|entry| is_level(entry)) {
        return Vec::new();
    }
    let further = further_in(top).map(|it| (name.of_further(it), top.join(it.as_str())));
    further.collect()
}

fn further_in(top: &Path) -> impl Iterator<Item = KeyType> {
    KeyType::ALL.into_iter().filter(|key_type| {
        let level = fs::symlink_metadata(top.join(key_type.as_str()));
        level.is_ok_and(|level| level.is_dir())
    })
}

impl CertificateStore {
    /// Gives the first type its level where a further one has one, and takes it away where none has.
    pub(super) fn name_first_type(&self, name: &CertificateName) -> Result<(), StoreError> {
        let top = self.shared.certificates.join(name.base());
        for (link, target) in self.misnamed(name)? {
            let link = top.join(link.as_str());
            match target {
                Some(target) => atomic_file::symlink(&link, Path::new(target))?,
                None => atomic_file::remove(&link)?,
            }
        }
        Ok(())
    }

    /// The links that are not as they should be, and where each should lead.
    pub(super) fn misnamed(
        &self,
        name: &CertificateName,
    ) -> Result<Vec<(KeyType, Option<&'static str>)>, StoreError> {
        let top = self.shared.certificates.join(name.base());
        let mut links = KeyType::ALL.into_iter();
        let any = links.any(|key_type| {
            let level = fs::symlink_metadata(top.join(key_type.as_str()));
            level.is_ok()
        });
        // of nearly all
        if !any {
            return Ok(Vec::new());
        }
        let first = match further_in(&top).next() {
            Some(_) => CertificateName::from_file_name(name.base())
                .map(|first| self.newest(&first))
                .transpose()?
                .flatten()
                .and_then(|newest| newest.key_type),
            None => None,
        };
        let misnamed = KeyType::ALL.into_iter().filter_map(|key_type| {
            let level = fs::symlink_metadata(top.join(key_type.as_str()));
            let is_link = level.as_ref().is_ok_and(fs::Metadata::is_symlink);
            match first == Some(key_type) {
                true if level.is_err() => Some((key_type, Some("."))),
                false if is_link => Some((key_type, None)),
                _ => None,
            }
        });
        Ok(misnamed.collect())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::collections::BTreeSet;

    use time::{Duration, OffsetDateTime};

    use super::super::placeholder::self_signed_with;
    use super::*;
    use crate::certificate::{
        CertificateRequest, Identifier, Issuer, StoredCertificate, WantedCertificate,
    };

    struct Fixture {
        directory: tempfile::TempDir,
        store: CertificateStore,
        now: OffsetDateTime,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        Fixture {
            store: CertificateStore::new(directory.path()),
            now: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
            directory,
        }
    }

    fn wanted() -> WantedCertificate {
        let identifiers = vec![Identifier::Dns("a.example".into())];
        WantedCertificate::new(identifiers, Issuer::Acme).unwrap()
    }

    impl Fixture {
        fn store_one(&self, wanted: &WantedCertificate) -> StoredCertificate {
            let request = CertificateRequest::new(wanted, None, None);
            let issued = self_signed_with(wanted.key_type, &request, self.now).unwrap();
            self.store.store(&issued, &request, self.now).unwrap()
        }

        fn top(&self) -> PathBuf {
            self.directory.path().join("certificates/a.example")
        }

        fn link(&self, key_type: KeyType) -> Option<PathBuf> {
            fs::read_link(self.top().join(key_type.as_str())).ok()
        }
    }

    #[test]
    fn both_types_have_the_path_that_their_type_says_and_the_first_keeps_its_own() {
        let fixture = fixture();
        let first = fixture.store_one(&wanted());
        assert_eq!(fixture.link(KeyType::EcdsaP256), None);
        let further = fixture.store_one(&wanted().further(KeyType::Rsa2048));
        assert_eq!(further.name.as_str(), "a.example+rsa-2048");
        let top = fixture.top();
        let path = |path: &str| top.join(path).canonicalize().unwrap();
        assert_eq!(path("current/fullchain.pem"), first.chain);
        assert_eq!(path("ecdsa-p256/current/fullchain.pem"), first.chain);
        assert_eq!(path("rsa-2048/current/privkey.pem"), further.key);
        assert_eq!(further.chain, path("rsa-2048/current/fullchain.pem"));
        let (inventory, problems) = fixture.store.inventory().unwrap();
        assert_eq!(problems, []);
        let stored: Vec<_> = inventory.certificates.into_values().collect();
        assert_eq!(stored, [first, further]);
    }

    #[test]
    fn the_level_of_the_first_type_follows_its_type_and_goes_with_the_last_further_one() {
        let fixture = fixture();
        fixture.store_one(&wanted());
        let further = fixture.store_one(&wanted().further(KeyType::Rsa2048));
        let other = WantedCertificate {
            key_type: KeyType::EcdsaP384,
            ..wanted()
        };
        fixture.store_one(&other);
        assert_eq!(fixture.link(KeyType::EcdsaP256), None);
        assert_eq!(fixture.link(KeyType::EcdsaP384), Some(".".into()));
        let wanted = BTreeSet::from([other.name]);
        let prune = |now| fixture.store.prune(&BTreeSet::new(), &wanted, now).unwrap();
        prune(fixture.now);
        assert!(further.chain.exists(), "kept until it expires");
        prune(further.validity.not_after + Duration::DAY);
        assert!(!further.chain.exists());
        assert_eq!(fixture.link(KeyType::EcdsaP384), None);
        assert!(!fixture.top().join("rsa-2048").exists());
    }

    #[test]
    fn a_type_that_becomes_a_further_one_is_not_stored_through_the_link_of_the_first() {
        let fixture = fixture();
        fixture.store_one(&wanted());
        fixture.store_one(&wanted().further(KeyType::Rsa2048));
        let further = fixture.store_one(&wanted().further(KeyType::EcdsaP256));
        let level = fixture.top().join("ecdsa-p256");
        assert!(!level.is_symlink());
        assert_eq!(further.chain.parent().unwrap().parent(), Some(&*level));
    }

    #[test]
    fn a_level_that_a_crash_left_out_is_made_by_the_sweep() {
        let fixture = fixture();
        fixture.store_one(&wanted());
        fixture.store_one(&wanted().further(KeyType::Rsa2048));
        fs::remove_file(fixture.top().join("ecdsa-p256")).unwrap();
        let ledger = crate::certificate::ledger::Ledger::new(fixture.directory.path());
        fixture.store.sweep(&ledger).unwrap();
        assert_eq!(fixture.link(KeyType::EcdsaP256), Some(".".into()));
    }
}
