#![allow(clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;

use time::OffsetDateTime;

use super::*;
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::{CertificateRequest, Issuer, WantedCertificate};
use crate::settings::KeyType;

fn wanted() -> WantedCertificate {
    WantedCertificate::new(vec![Identifier::Dns("a.example".into())], Issuer::Acme).unwrap()
}

fn failure() -> Attempts {
    let request = CertificateRequest::new(&wanted(), None, None);
    let advice = RetryAdvice::After(std::time::Duration::from_secs(7));
    Attempts::after_failure(
        None,
        &request,
        "no".into(),
        advice,
        OffsetDateTime::UNIX_EPOCH,
        0.0,
    )
}

#[test]
fn failures_are_read_back_and_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let name = wanted().name;
    assert!(ledger.memories().unwrap().is_empty());
    ledger.record_failure(&name, &failure()).unwrap();
    assert_eq!(ledger.memories().unwrap()[&name].attempts, Some(failure()));
    ledger.forget_failures(&name).unwrap();
    assert!(ledger.memories().unwrap().is_empty());
}

#[test]
fn a_failure_that_cannot_be_written_counts_until_it_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let name = wanted().name;
    // nothing can be renamed over it
    let taken = directory.path().join("orders/a.example.attempts.json/x");
    fs::create_dir_all(&taken).unwrap();
    ledger.record_failure(&name, &failure()).unwrap_err();
    assert_eq!(ledger.attempts_of(&name).unwrap(), Some(failure()));
    assert_eq!(
        ledger.clone().memory_of(&name).unwrap().attempts,
        Some(failure())
    );
    ledger.forget_failures(&name).unwrap();
    assert!(ledger.memories().unwrap().is_empty());
}

#[test]
fn a_record_that_cannot_be_read_hides_that_of_no_other_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let name = wanted().name;
    ledger.record_failure(&name, &failure()).unwrap();
    for suffix in [ATTEMPTS, REMARKS, RENEWAL] {
        let unreadable = directory.path().join(format!("orders/b.example{suffix}"));
        fs::create_dir(unreadable).unwrap();
    }
    let memories = ledger.memories().unwrap();
    assert_eq!(memories[&name].attempts, Some(failure()));
    let other = CertificateName::from_file_name("b.example").unwrap();
    assert_eq!(memories[&other], Memory::default());
}

#[test]
fn a_damaged_record_is_as_none() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    ledger.record_failure(&wanted().name, &failure()).unwrap();
    fs::write(directory.path().join("orders/a.example.attempts.json"), "{").unwrap();
    assert_eq!(ledger.memory_of(&wanted().name).unwrap(), Memory::default());
}

#[test]
fn a_pending_order_is_readable_by_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let key = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
    let order = PendingOrder {
        directory: "https://ca.example/dir".into(),
        url: "https://ca.example/order/1".into(),
        identifiers: wanted().identifiers,
        profile: None,
        key: key.clone(),
    };
    ledger.record_order(&wanted().name, &order).unwrap();
    let path = directory.path().join("orders/a.example.order.json");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let read = ledger.pending(&wanted().name).unwrap().unwrap();
    assert_eq!(read.url, order.url);
    assert_eq!(read.key.expose(), key.expose());
    ledger.forget_order(&wanted().name).unwrap();
    assert!(ledger.pending(&wanted().name).unwrap().is_none());
}

#[test]
fn a_budget_is_changed_by_one_at_a_time_and_read_back_by_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, other) = ("https://ca.example/dir", "https://other.example/dir");
    let names = wanted().identifiers;
    let planned = crate::certificate::budget::Planned {
        identifiers: &names,
        renewing: crate::certificate::budget::Renewing::Nothing,
    };
    let (limits, now) = (
        crate::certificate::budget::LETS_ENCRYPT,
        OffsetDateTime::UNIX_EPOCH,
    );
    let admitted = std::thread::scope(|scope| {
        let orders: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    // each as a process of its own
                    let ledger = Ledger::new(directory.path());
                    let admit =
                        |budget: &mut Budget| budget.admit(&planned, Some(&limits), now).is_ok();
                    ledger.update_budget(ca, admit).unwrap()
                })
            })
            .collect();
        let ended = orders.into_iter().map(|order| order.join().unwrap());
        ended.filter(|admitted| *admitted).count()
    });
    assert_eq!(admitted, 5);
    let ledger = Ledger::new(directory.path());
    assert!(
        ledger
            .budget(ca)
            .unwrap()
            .wait(&planned, Some(&limits), now)
            .is_some()
    );
    assert_eq!(ledger.budget(other).unwrap(), Budget::default());
}

#[test]
fn the_lock_of_a_certificate_is_held_by_one_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let name = wanted().name;
    let held = ledger.try_lock(&name).unwrap().unwrap();
    assert!(ledger.try_lock(&name).unwrap().is_none());
    drop(held);
    assert!(ledger.try_lock(&name).unwrap().is_some());
}

#[test]
fn the_sweep_removes_what_a_crash_left_but_nothing_of_a_locked_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let name = wanted().name;
    ledger.record_failure(&name, &failure()).unwrap();
    let path = directory.path().join("orders/a.example.order.json");
    let left = atomic_file::temporary_beside(&path).unwrap();
    fs::write(&left, "a key").unwrap();
    let held = ledger.try_lock(&name).unwrap().unwrap();
    ledger.sweep().unwrap();
    assert!(left.exists());
    drop(held);
    let budget = ledger.budget_path("https://ca.example/dir");
    let budget = atomic_file::temporary_beside(&budget).unwrap();
    fs::write(&budget, "").unwrap();
    ledger.sweep().unwrap();
    assert!(!left.exists() && !budget.exists());
    assert_eq!(ledger.memories().unwrap().len(), 1);
}

#[test]
fn what_was_remembered_of_what_is_gone_is_forgotten_and_its_failures_a_month_later() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let (kept, gone) = ("kept.example", "gone.example");
    let name = |text: &str| CertificateName::from_file_name(text).unwrap();
    let path = |of: &str, what: &str| directory.path().join(format!("orders/{of}.{what}.json"));
    for of in [kept, gone] {
        ledger.record_failure(&name(of), &failure()).unwrap();
        fs::write(path(of, "renewal"), "{}").unwrap();
        fs::write(path(of, "remarks"), "{}").unwrap();
    }
    let needed = BTreeSet::from([name(kept)]);
    let failed_at = failure().failed_at;
    let there = |of: &str| ["attempts", "remarks", "renewal"].map(|it| path(of, it).exists());
    let held = ledger.try_lock(&name(gone)).unwrap();
    let is_needed = |name: &CertificateName| Ok::<_, LedgerError>(needed.contains(name));
    let prune = |until| ledger.prune(is_needed, until).unwrap();
    prune(failed_at);
    assert_eq!(there(gone), [true; 3]);
    drop(held);
    prune(failed_at - time::Duration::DAY);
    assert_eq!(there(gone), [true, false, false]);
    prune(failed_at);
    assert_eq!(there(gone), [false; 3]);
    assert_eq!(there(kept), [true; 3]);
}
