use super::*;
use crate::certificate::{Identifier, WantedCertificate};

struct Fixture {
    directory: tempfile::TempDir,
    store: CertificateStore,
    ledger: Ledger,
    internal: InternalCa,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    Fixture {
        store: CertificateStore::new(directory.path()),
        ledger: Ledger::new(directory.path()),
        internal: InternalCa::new(directory.path()),
        directory,
    }
}

impl Fixture {
    fn tools(&self) -> Tools<'_> {
        Tools {
            store: &self.store,
            ledger: &self.ledger,
            acme: None,
            internal: &self.internal,
            clock: &now,
            limits: None,
            checks: None,
            slot: None,
            chance: &|| 0.0,
        }
    }

    async fn obtain(&self, request: &CertificateRequest) -> Obtained {
        obtain(request, self.tools()).await
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000)
}

fn request(issuer: Issuer) -> CertificateRequest {
    let identifiers = vec![Identifier::Dns("a.example".into())];
    let wanted = WantedCertificate::new(identifiers, issuer).unwrap();
    CertificateRequest::new(&wanted, None, None)
}

#[tokio::test(flavor = "current_thread")]
async fn two_callers_obtain_a_certificate_once() {
    let fixture = fixture();
    let request = request(Issuer::Internal);
    let (one, two) = tokio::join!(fixture.obtain(&request), fixture.obtain(&request));
    let stored = [&one, &two]
        .iter()
        .filter(|obtained| matches!(obtained, Obtained::Stored(_)))
        .count();
    assert_eq!(stored, 1, "{one:?} {two:?}");
    assert!([one, two].contains(&Obtained::AlreadyDone));
}

#[tokio::test(flavor = "current_thread")]
async fn a_failure_is_scheduled_and_not_repeated_by_the_caller_who_waited() {
    let fixture = fixture();
    let request = request(Issuer::Acme);
    let first = fixture.obtain(&request).await;
    let Obtained::Failed { next, .. } = &first else {
        panic!("{first:?}")
    };
    assert_eq!(*next, now() + time::Duration::MINUTE);
    assert_eq!(fixture.obtain(&request).await, first);
    let attempts = fixture.ledger.attempts_of(&request.name).unwrap().unwrap();
    assert_eq!(attempts.failures, 1);
}

#[tokio::test(flavor = "current_thread")]
#[allow(clippy::disallowed_methods)]
async fn a_lock_that_cannot_be_made_is_not_tried_again_at_once() {
    let fixture = fixture();
    // no directory: as on a disk that went read-only
    std::fs::write(fixture.directory.path().join("orders"), "").unwrap();
    let request = request(Issuer::Acme);
    let obtained = fixture.obtain(&request).await;
    assert!(matches!(obtained, Obtained::Failed { .. }));
    let attempts = fixture.ledger.attempts_of(&request.name).unwrap().unwrap();
    assert_eq!(attempts.next, Some(now() + time::Duration::MINUTE));
}

#[tokio::test(flavor = "current_thread")]
#[allow(clippy::disallowed_methods)]
async fn an_order_that_a_full_disk_kept_from_being_made_is_not_counted() {
    let fixture = fixture();
    let directory = "https://127.0.0.1:1/directory";
    let settings = crate::settings::AcmeSettings {
        directory: directory.into(),
        ..Default::default()
    };
    let acme = AcmeClient::new(&settings, fixture.directory.path()).unwrap();
    let home = crate::certificate::account::home_name(directory);
    let orders = fixture.directory.path().join("orders");
    let budget = orders.join(format!("{home}.budget.json"));
    // nothing can be written there
    let temporary = crate::atomic_file::temporary_beside(&budget).unwrap();
    std::fs::create_dir_all(&temporary).unwrap();
    let tools = Tools {
        acme: Some(&acme),
        limits: Some(&crate::certificate::budget::LETS_ENCRYPT),
        ..fixture.tools()
    };
    let mut request = request(Issuer::Acme);
    for failures in 0..6 {
        request.failures = failures;
        let name = request.name.clone();
        let known = fixture.ledger.attempts_of(&name).unwrap();
        assert_eq!(known.map_or(0, |known| known.failures), failures);
        let obtained = obtain(&request, tools).await;
        let Obtained::Failed { error, .. } = obtained else {
            panic!("{obtained:?}")
        };
        assert!(error.contains("budget.json"), "{error}");
    }
    let planned = crate::certificate::budget::Planned {
        identifiers: &request.identifiers,
        renewing: crate::certificate::budget::Renewing::Nothing,
    };
    std::fs::remove_dir(&temporary).unwrap();
    let known = fixture.ledger.budget(directory).unwrap();
    assert_eq!(known.wait(&planned, tools.limits, now()), None);
}

#[tokio::test(flavor = "current_thread")]
async fn a_success_ends_the_failures() {
    let fixture = fixture();
    let mut request = request(Issuer::Internal);
    let failure =
        Attempts::after_failure(None, &request, "x".into(), RetryAdvice::Retry, now(), 0.0);
    fixture
        .ledger
        .record_failure(&request.name, &failure)
        .unwrap();
    request.failures = 1;
    assert!(matches!(
        fixture.obtain(&request).await,
        Obtained::Stored(_)
    ));
    assert_eq!(fixture.ledger.attempts_of(&request.name).unwrap(), None);
}

#[tokio::test(flavor = "current_thread")]
async fn a_new_certificate_that_is_due_at_once_is_followed_by_the_next_a_day_later() {
    let fixture = fixture();
    let request = request(Issuer::Internal);
    // the CA's clock is right, ours is four days ahead when the certificate is there
    let asked = std::sync::atomic::AtomicI64::new(0);
    let jumping = || match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 | 1 => now(),
        _ => now() + time::Duration::days(4),
    };
    let tools = Tools {
        clock: &jumping,
        ..fixture.tools()
    };
    let obtained = obtain(&request, tools).await;
    assert!(matches!(obtained, Obtained::Stored(_)), "{obtained:?}");
    let later = jumping();
    let memories = fixture.ledger.memories().unwrap();
    let identifiers = request.identifiers.clone();
    let wanted = WantedCertificate::new(identifiers, Issuer::Internal).unwrap();
    let (inventory, _) = fixture.store.inventory().unwrap();
    let terms = crate::certificate::Terms::from(&crate::settings::AcmeSettings::default());
    let schedule =
        crate::certificate::schedule::due(&[wanted], &inventory, &memories, &terms, later);
    assert_eq!(schedule.due, []);
    assert_eq!(schedule.next, Some(later + time::Duration::DAY));
}

#[test]
fn obtaining_can_be_spawned() {
    fn is_send<T: Send>(_: &T) {}
    let fixture = fixture();
    let request = request(Issuer::Internal);
    is_send(&fixture.obtain(&request));
}
