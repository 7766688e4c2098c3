//! W: what no generation names any more.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::{CURRENT, CertificateStore, StoreError, checked, home, names_in, newest};
use crate::atomic_file;
use crate::certificate::{CertificateName, Issuer};

impl CertificateStore {
    /// Removes versions that nothing needs, and returns their directories.
    ///
    /// `keep`: the version directories that kept generations name. `wanted`: the certificates that
    /// some vhost wants. What stays: everything in `keep`; the newest good version and `current` of
    /// each certificate that is wanted or not yet expired; the newest placeholder of each that is
    /// wanted; and what could not be verified, which a person should look at.
    pub fn prune(
        &self,
        keep: &BTreeSet<PathBuf>,
        wanted: &BTreeSet<CertificateName>,
        now: OffsetDateTime,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let mut removed = Vec::new();
        for name in names_in(&self.shared.certificates)? {
            let directory = home(&self.shared.certificates, &name);
            let expired = self
                .newest(&name)?
                .is_none_or(|newest| newest.validity.not_after < now);
            let forgotten = expired && !wanted.contains(&name);
            self.name_first_type(&name)?;
            self.prune_versions(&directory, &name, keep, forgotten, &mut removed)?;
        }
        for name in names_in(&self.shared.placeholders)? {
            let directory = home(&self.shared.placeholders, &name);
            let forgotten = !wanted.contains(&name);
            self.prune_versions(&directory, &name, keep, forgotten, &mut removed)?;
        }
        Ok(removed)
    }

    /// Removes a certificate from files that no vhost file names any more, but for versions that nginx
    /// still reads.
    pub fn abandon(
        &self,
        name: &CertificateName,
        serving: &BTreeSet<PathBuf>,
    ) -> Result<(), StoreError> {
        let directory = home(&self.shared.certificates, checked(name)?);
        let versions = self.versions(&directory, name, &mut Vec::new())?;
        let from_files = versions
            .iter()
            .filter(|it| it.certificate.issuer == Issuer::File);
        let paths = from_files.map(|it| directory.join(&it.certificate.serial));
        for path in paths.filter(|path| !serving.contains(path)) {
            self.remove(&path)?;
        }
        self.settle(&directory, name)
    }

    /// `forgotten`: even the newest version is not needed.
    fn prune_versions(
        &self,
        directory: &Path,
        name: &CertificateName,
        keep: &BTreeSet<PathBuf>,
        forgotten: bool,
        removed: &mut Vec<PathBuf>,
    ) -> Result<(), StoreError> {
        let versions = self.versions(directory, name, &mut Vec::new())?;
        let newest = newest(&versions).map(|version| version.certificate.serial.as_str());
        let current = fs::read_link(directory.join(CURRENT)).ok();
        for version in &versions {
            let serial = version.certificate.serial.as_str();
            let path = directory.join(serial);
            let named = newest == Some(serial) || current.as_deref() == Some(Path::new(serial));
            if keep.contains(&path) || (named && !forgotten) {
                continue;
            }
            self.remove(&path)?;
            removed.push(path);
        }
        if forgotten
            && super::entries(directory)?
                .iter()
                .all(|entry| entry == CURRENT)
        {
            atomic_file::remove(directory)?;
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        atomic_file::remove(path)?;
        let mut verified = self
            .shared
            .verified
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        verified.remove(path);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::certificate::{
        CertificateRequest, Identifier, Issuer, StoredCertificate, WantedCertificate,
    };

    struct Fixture {
        _directory: tempfile::TempDir,
        store: CertificateStore,
        request: CertificateRequest,
        wanted: BTreeSet<CertificateName>,
        now: OffsetDateTime,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let identifiers = vec![Identifier::Dns("a.example".into())];
        let wanted = WantedCertificate::new(identifiers, Issuer::Acme).unwrap();
        Fixture {
            store: CertificateStore::new(directory.path()),
            request: CertificateRequest::new(&wanted, None, None),
            wanted: BTreeSet::from([wanted.name]),
            now: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
            _directory: directory,
        }
    }

    impl Fixture {
        fn store_one(&self) -> StoredCertificate {
            let issued = super::super::placeholder::self_signed(&self.request, self.now).unwrap();
            self.store.store(&issued, &self.request, self.now).unwrap()
        }
    }

    fn directory_of(stored: &StoredCertificate) -> PathBuf {
        stored.chain.parent().unwrap().to_path_buf()
    }

    #[test]
    fn only_versions_that_no_generation_names_go_and_never_the_newest() {
        let fixture = fixture();
        let [first, second, third] = [
            fixture.store_one(),
            fixture.store_one(),
            fixture.store_one(),
        ];
        let keep = BTreeSet::from([directory_of(&second)]);
        let removed = fixture
            .store
            .prune(&keep, &fixture.wanted, fixture.now)
            .unwrap();
        assert_eq!(removed, [directory_of(&first)]);
        assert!(!first.chain.exists());
        assert!(second.chain.exists());
        assert!(third.chain.exists());
    }

    #[test]
    fn a_certificate_that_nobody_wants_is_kept_until_it_expires() {
        let fixture = fixture();
        let stored = fixture.store_one();
        let nobody = BTreeSet::new();
        let prune =
            |keep: &BTreeSet<PathBuf>, now| fixture.store.prune(keep, &nobody, now).unwrap();
        assert!(prune(&BTreeSet::new(), fixture.now).is_empty());
        let expired = stored.validity.not_after + Duration::DAY;
        assert!(prune(&BTreeSet::from([directory_of(&stored)]), expired).is_empty());
        assert_eq!(prune(&BTreeSet::new(), expired), [directory_of(&stored)]);
        assert!(!directory_of(&stored).parent().unwrap().exists());
    }

    #[test]
    fn an_expired_certificate_that_is_wanted_stays() {
        let fixture = fixture();
        let stored = fixture.store_one();
        let expired = stored.validity.not_after + Duration::DAY;
        let removed = fixture
            .store
            .prune(&BTreeSet::new(), &fixture.wanted, expired)
            .unwrap();
        assert!(removed.is_empty());
    }

    #[test]
    fn the_placeholder_of_an_unknown_name_goes() {
        let fixture = fixture();
        let wanted =
            WantedCertificate::new(fixture.request.identifiers.clone(), Issuer::Acme).unwrap();
        let placeholder = fixture
            .store
            .ensure_placeholder(&wanted, fixture.now)
            .unwrap();
        let prune =
            |wanted: &BTreeSet<_>| fixture.store.prune(&BTreeSet::new(), wanted, fixture.now);
        assert!(prune(&fixture.wanted).unwrap().is_empty());
        assert_eq!(
            prune(&BTreeSet::new()).unwrap(),
            [directory_of(&placeholder)]
        );
    }
}
