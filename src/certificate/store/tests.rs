#![allow(clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;

use time::Duration;

use super::placeholder::self_signed;
use super::*;
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::{Identifier, WantedCertificate};
use crate::settings::KeyType;

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

fn request(names: &[&str]) -> CertificateRequest {
    let identifiers = names
        .iter()
        .map(|name| Identifier::Dns((*name).into()))
        .collect();
    let wanted = WantedCertificate::new(identifiers, Issuer::Acme).unwrap();
    CertificateRequest::new(&wanted, None, None)
}

fn with_a_certificate() -> (Fixture, CertificateRequest, StoredCertificate) {
    let fixture = fixture();
    let (request, now) = (request(&["a.example"]), fixture.now);
    let issued = self_signed(&request, now).unwrap();
    let stored = fixture.store.store(&issued, &request, now).unwrap();
    (fixture, request, stored)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_stored_certificate_is_current_and_only_its_owner_can_read_the_key() {
    let (fixture, request, stored) = with_a_certificate();
    let Fixture {
        directory, store, ..
    } = fixture;
    let home = directory.path().join("certificates/a.example");
    assert_eq!(
        fs::read_link(home.join("current")).unwrap(),
        Path::new(&stored.serial)
    );
    assert_eq!(mode(&stored.key), 0o600);
    assert_eq!(mode(&home), 0o700);
    assert_eq!(mode(&home.join(&stored.serial)), 0o700);
    assert_eq!(mode(&directory.path().join("certificates")), 0o700);
    let (inventory, problems) = store.inventory().unwrap();
    assert_eq!(inventory.certificates[&request.name], stored);
    assert_eq!(problems, []);
    // and by a process that has verified nothing yet
    let (fresh, _) = CertificateStore::new(directory.path()).inventory().unwrap();
    assert_eq!(fresh, inventory);
}

#[test]
fn a_file_that_somebody_has_left_in_the_store_hides_no_certificate() {
    let (fixture, request, stored) = with_a_certificate();
    let Fixture {
        directory,
        store,
        now,
    } = fixture;
    fs::write(directory.path().join("certificates/backup.tar.gz"), "x").unwrap();
    let (inventory, _) = store.inventory().unwrap();
    assert_eq!(inventory.certificates[&request.name], stored);
    store.sweep(&Ledger::new(directory.path())).unwrap();
    let wanted = std::collections::BTreeSet::from([request.name]);
    let removed = store.prune(&Default::default(), &wanted, now).unwrap();
    assert!(removed.is_empty());
}

#[test]
fn a_chain_for_another_key_is_refused_and_nothing_is_stored() {
    let Fixture {
        directory,
        store,
        now,
    } = fixture();
    let request = request(&["a.example"]);
    let mut issued = self_signed(&request, now).unwrap();
    issued.key_pem = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
    let error = store.store(&issued, &request, now).unwrap_err();
    assert!(matches!(error, StoreError::Chain(ChainError::Key)));
    assert!(!directory.path().join("certificates").exists());
}

#[test]
fn the_last_stored_version_is_the_newest_even_if_an_older_one_lasts_longer() {
    let Fixture { store, now, .. } = fixture();
    let request = request(&["a.example"]);
    let later = now + Duration::days(30);
    let second = self_signed(&request, now).unwrap();
    store
        .store(&self_signed(&request, later).unwrap(), &request, later)
        .unwrap();
    let second = store.store(&second, &request, now).unwrap();
    assert_eq!(store.newest(&request.name).unwrap().unwrap(), second);
}

#[test]
fn storing_the_same_certificate_again_changes_nothing() {
    let Fixture { store, now, .. } = fixture();
    let request = request(&["a.example"]);
    let issued = self_signed(&request, now).unwrap();
    let first = store.store(&issued, &request, now).unwrap();
    assert_eq!(store.store(&issued, &request, now).unwrap(), first);
}

#[test]
fn a_version_whose_key_does_not_match_is_reported_and_the_one_before_it_is_used() {
    let Fixture {
        directory,
        store,
        now,
    } = fixture();
    let request = request(&["a.example"]);
    let first = store
        .store(&self_signed(&request, now).unwrap(), &request, now)
        .unwrap();
    let second = store
        .store(&self_signed(&request, now).unwrap(), &request, now)
        .unwrap();
    let other = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
    fs::write(&second.key, other.expose()).unwrap();
    let store = CertificateStore::new(directory.path());
    let (inventory, problems) = store.inventory().unwrap();
    assert_eq!(inventory.certificates[&request.name], first);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].reason.contains("key"), "{problems:?}");
}

#[test]
fn a_version_that_is_changed_under_a_running_daemon_is_noticed() {
    let Fixture { store, now, .. } = fixture();
    let request = request(&["a.example"]);
    let stored = store
        .store(&self_signed(&request, now).unwrap(), &request, now)
        .unwrap();
    assert_eq!(store.inventory().unwrap().0.certificates.len(), 1);
    fs::write(&stored.chain, "").unwrap();
    assert_eq!(store.inventory().unwrap().0.certificates.len(), 0);
}

#[test]
fn what_a_crash_left_is_not_read_and_swept() {
    let Fixture {
        directory,
        store,
        now,
    } = fixture();
    let request = request(&["a.example"]);
    let stored = store
        .store(&self_signed(&request, now).unwrap(), &request, now)
        .unwrap();
    let left = directory
        .path()
        .join("certificates/a.example/.vhostd-tmp-9999999-x");
    fs::create_dir(&left).unwrap();
    let (inventory, problems) = store.inventory().unwrap();
    assert_eq!(inventory.certificates[&request.name], stored);
    assert_eq!(problems, []);
    store.sweep(&Ledger::new(directory.path())).unwrap();
    assert!(!left.exists());
    assert!(stored.chain.exists());
}

#[test]
fn a_name_that_would_leave_the_store_is_refused() {
    let Fixture { store, now, .. } = fixture();
    let mut request = request(&["a.example"]);
    let issued = self_signed(&request, now).unwrap();
    request.name = CertificateName("../a".into());
    let error = store.store(&issued, &request, now).unwrap_err();
    assert!(matches!(error, StoreError::Name(_)));
}

#[test]
fn a_certificate_without_its_first_name_is_stored_where_that_one_is_and_read_again() {
    let Fixture {
        directory,
        store,
        now,
    } = fixture();
    let whole = request(&["a.example", "b.example"]);
    let request = whole.without(&[Identifier::Dns("a.example".into())]);
    let issued = self_signed(&request, now).unwrap();
    let stored = store.store(&issued, &request, now).unwrap();
    let home = directory.path().join("certificates/a.example");
    assert!(stored.chain.starts_with(&home));
    let again = CertificateStore::new(directory.path());
    let (inventory, problems) = again.inventory().unwrap();
    assert_eq!((problems, inventory.certificates.len()), (Vec::new(), 1));
    let mut wanted = request.to_wanted();
    assert!(inventory.serving(&wanted, now).is_some());
    // of none of the names any more
    wanted.identifiers = vec![Identifier::Dns("c.example".into())];
    assert!(inventory.serving(&wanted, now).is_none());
}
