//! Certificates from a real ACME server: ordered, resumed, refused, stored once.

mod limits;
mod rotation;
mod suggestion;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use vhostd::certificate::attempts::RetryAdvice;
use vhostd::certificate::internal::InternalCa;
use vhostd::certificate::ledger::{Ledger, PendingOrder};
use vhostd::certificate::order::{AcmeClient, OrderError};
use vhostd::certificate::renew::{Obtained, Tools, obtain};
use vhostd::certificate::schedule;
use vhostd::certificate::store::CertificateStore;
use vhostd::certificate::{
    CertificateRequest, Identifier, IssuedCertificate, Issuer, StoredCertificate, Terms,
    WantedCertificate,
};
use vhostd::settings::{AcmeSettings, KeyType};

use crate::support::challenges::ChallengeServer;
use crate::support::pebble::Pebble;

/// One vhostd state directory, and what stands in for nginx on port 80.
struct Host {
    directory: tempfile::TempDir,
    challenges: ChallengeServer,
}

impl Host {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            challenges: ChallengeServer::start(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn store(&self) -> CertificateStore {
        CertificateStore::new(self.path())
    }

    fn ledger(&self) -> Ledger {
        Ledger::new(self.path())
    }

    /// A client as a new process would have it; its thumbprint is what port 80 answers.
    fn client(&self, settings: &AcmeSettings) -> AcmeClient {
        let client = AcmeClient::new(settings, self.path()).unwrap();
        self.challenges.set(Some(client.thumbprint()));
        client
    }

    /// Only the order: nothing is stored.
    async fn order(
        &self,
        request: &CertificateRequest,
        client: &AcmeClient,
    ) -> Result<IssuedCertificate, OrderError> {
        let lock = self.ledger().try_lock(&request.name).unwrap().unwrap();
        client.order(request, &self.ledger(), &lock).await
    }

    async fn obtain(&self, request: &CertificateRequest, client: &AcmeClient) -> Obtained {
        self.obtain_at(now(), request, client).await
    }

    /// As [`Host::obtain`], at another time.
    async fn obtain_at(
        &self,
        at: OffsetDateTime,
        request: &CertificateRequest,
        client: &AcmeClient,
    ) -> Obtained {
        let (store, ledger) = (self.store(), self.ledger());
        let tools = Tools {
            store: &store,
            ledger: &ledger,
            acme: Some(client),
            internal: &InternalCa::new(self.path()),
            limits: None,
            checks: None,
            slot: None,
            clock: &move || at,
            chance: &|| 0.0,
        };
        obtain(request, tools).await
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn settings(pebble: &Pebble) -> AcmeSettings {
    AcmeSettings {
        directory: pebble.directory_url(),
        ca_file: Some(pebble.ca_file()),
        ..AcmeSettings::default()
    }
}

fn wanted(names: &[&str]) -> WantedCertificate {
    let identifiers = names
        .iter()
        .map(|name| Identifier::Dns((*name).into()))
        .collect();
    WantedCertificate::new(identifiers, Issuer::Acme).unwrap()
}

fn request(names: &[&str]) -> CertificateRequest {
    CertificateRequest::new(&wanted(names), None, None)
}

fn stored(obtained: Obtained) -> StoredCertificate {
    match obtained {
        Obtained::Stored(stored) => stored,
        other => panic!("{other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Every file below `directory` that holds a private key.
fn keys_below(directory: &Path) -> Vec<PathBuf> {
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            keys.extend(keys_below(&path));
        } else if std::fs::read_to_string(&path)
            .unwrap()
            .contains("PRIVATE KEY")
        {
            keys.push(path);
        }
    }
    keys
}

#[tokio::test]
async fn a_certificate_is_ordered_verifies_and_only_root_can_read_its_keys() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let settings = AcmeSettings {
        email: Some("admin@example.com".into()),
        ..settings(&pebble)
    };
    let client = host.client(&settings);
    let request = request(&["a.example", "b.example"]);
    let stored = stored(host.obtain(&request, &client).await);
    pebble.verify(&stored.chain, "a.example");
    pebble.verify(&stored.chain, "b.example");
    assert_eq!(stored.issuer, Issuer::Acme);
    let keys = keys_below(host.path());
    assert_eq!(
        keys.len(),
        2,
        "the account's and the certificate's: {keys:?}"
    );
    assert!(keys.iter().all(|key| mode(key) == 0o600), "{keys:?}");
    assert!(host.ledger().pending(&request.name).unwrap().is_none());
    let (inventory, problems) = host.store().inventory().unwrap();
    assert_eq!(problems, []);
    let schedule = schedule::due(
        &[wanted(&["a.example", "b.example"])],
        &inventory,
        &Default::default(),
        &Terms::from(&settings),
        now(),
    );
    assert_eq!(schedule.due, []);
    let days = (schedule.next.unwrap() - now()).whole_days();
    assert!((59..=60).contains(&days), "{days}");
}

#[tokio::test]
async fn a_short_certificate_is_renewed_after_half_of_its_life_by_a_new_version() {
    let host = Host::new();
    let six_days = Duration::from_secs(6 * 86400);
    let pebble = Pebble::builder(host.challenges.port)
        .validity(six_days)
        .start();
    let settings = settings(&pebble);
    let client = host.client(&settings);
    let first = stored(host.obtain(&request(&["a.example"]), &client).await);
    let wanted = [wanted(&["a.example"])];
    let due = |now| {
        let (inventory, _) = host.store().inventory().unwrap();
        let terms = Terms::from(&settings);
        schedule::due(&wanted, &inventory, &Default::default(), &terms, now).due
    };
    assert_eq!(due(now() + Duration::from_secs(71 * 3600)), []);
    let renewal = due(now() + Duration::from_secs(73 * 3600)).remove(0);
    assert_eq!(renewal.replaces.as_deref(), Some(first.serial.as_str()));
    assert!(renewal.by_age);
    // it is not that late yet
    assert_eq!(host.obtain(&renewal, &client).await, Obtained::Postponed);
    let renewal = CertificateRequest {
        by_age: false,
        ..renewal
    };
    let second = stored(host.obtain(&renewal, &client).await);
    assert_ne!(second.serial, first.serial);
    assert!(first.chain.exists(), "a generation may name it");
    let current = host.path().join("certificates/a.example/current");
    assert_eq!(
        std::fs::read_link(current).unwrap(),
        Path::new(&second.serial)
    );
}

#[tokio::test]
async fn every_key_type_is_issued() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let client = host.client(&settings(&pebble));
    for key_type in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Rsa2048] {
        let mut request = request(&["a.example"]);
        request.key_type = key_type;
        request.replaces = host
            .store()
            .newest(&request.name)
            .unwrap()
            .map(|stored| stored.serial);
        let stored = stored(host.obtain(&request, &client).await);
        pebble.verify(&stored.chain, "a.example");
    }
}

#[tokio::test]
async fn a_ca_that_refuses_most_nonces_still_issues() {
    let host = Host::new();
    let pebble = Pebble::builder(host.challenges.port)
        .refused_nonces(60)
        .start();
    let client = host.client(&settings(&pebble));
    for name in [
        "a.example",
        "b.example",
        "c.example",
        "d.example",
        "e.example",
        "f.example",
    ] {
        let stored = stored(host.obtain(&request(&[name]), &client).await);
        pebble.verify(&stored.chain, name);
    }
}

#[tokio::test]
async fn the_ca_validates_nothing_that_is_not_in_the_journal() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let client = host.client(&settings(&pebble));
    let request = request(&["a.example"]);
    let lock = host.ledger().try_lock(&request.name).unwrap().unwrap();
    let unwritable = Ledger::new(Path::new("/proc/self"));
    let error = client
        .order(&request, &unwritable, &lock)
        .await
        .unwrap_err();
    assert!(matches!(error, OrderError::Ledger(_)), "{error:?}");
    let log = pebble.log();
    assert!(log.contains("POST /order-plz"), "{log}");
    assert!(!log.contains("POST /chalZ/"), "{log}");
}

/// Once the pending order is in the ledger.
async fn journalled(ledger: Ledger, request: &CertificateRequest) {
    while ledger.pending(&request.name).unwrap().is_none() {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

#[tokio::test]
async fn a_crash_in_the_middle_of_an_order_resumes_it() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let request = request(&["a.example"]);
    let first = host.client(&settings(&pebble));
    tokio::select! {
        obtained = host.obtain(&request, &first) => panic!("too fast: {obtained:?}"),
        () = journalled(host.ledger(), &request) => {}
    }
    drop(first);
    let PendingOrder { key, url, .. } = host.ledger().pending(&request.name).unwrap().unwrap();
    let orders_before = pebble.log().matches("/order-plz").count();
    let second = host.client(&settings(&pebble));
    let stored = stored(host.obtain(&request, &second).await);
    pebble.verify(&stored.chain, "a.example");
    // the same order: its key is in the certificate, and no other was asked for
    assert_eq!(std::fs::read_to_string(&stored.key).unwrap(), key.expose());
    let log = pebble.log();
    assert_eq!(log.matches("/order-plz").count(), orders_before, "{log}");
    let finished = format!("for order {}", url.rsplit('/').next().unwrap());
    assert!(log.contains(&finished), "{finished}: {log}");
    assert!(host.ledger().pending(&request.name).unwrap().is_none());
}

#[tokio::test]
async fn a_crash_at_any_moment_is_followed_by_a_certificate_from_the_journalled_order() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let whole = {
        let client = host.client(&settings(&pebble));
        let begin = std::time::Instant::now();
        stored(host.obtain(&request(&["whole.example"]), &client).await);
        begin.elapsed()
    };
    let (mut resumed, mut n) = (0, 0);
    // at least once over the whole time of an order; longer on a machine that is busy now and then
    while n < 40 || (resumed < 3 && n < 400) {
        let request = request(&[&format!("n{n}.example")]);
        let first = host.client(&settings(&pebble));
        let moment = whole * (n % 40) / 40;
        let _ = tokio::time::timeout(moment, host.obtain(&request, &first)).await;
        let pending = host.ledger().pending(&request.name).unwrap();
        let second = host.client(&settings(&pebble));
        match host.obtain(&request, &second).await {
            Obtained::AlreadyDone => {}
            Obtained::Stored(stored) => {
                pebble.verify(&stored.chain, &format!("n{n}.example"));
                if let Some(pending) = pending {
                    resumed += 1;
                    assert_eq!(
                        std::fs::read_to_string(&stored.key).unwrap(),
                        pending.key.expose()
                    );
                }
            }
            failed => panic!("after {moment:?}: {failed:?}"),
        }
        assert!(host.ledger().pending(&request.name).unwrap().is_none());
        n += 1;
    }
    assert!(resumed > 2, "{resumed}");
}

#[tokio::test]
async fn an_order_that_the_ca_does_not_know_any_more_is_replaced() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let request = request(&["a.example"]);
    let first = host.client(&settings(&pebble));
    tokio::select! {
        obtained = host.obtain(&request, &first) => panic!("too fast: {obtained:?}"),
        () = journalled(host.ledger(), &request) => {}
    }
    let mut pending = host.ledger().pending(&request.name).unwrap().unwrap();
    pending.url = format!("{}-gone", pending.url);
    host.ledger().record_order(&request.name, &pending).unwrap();
    let client = host.client(&settings(&pebble));
    let stored = stored(host.obtain(&request, &client).await);
    pebble.verify(&stored.chain, "a.example");
}

#[tokio::test]
async fn an_account_that_the_ca_has_forgotten_is_registered_again() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let client = host.client(&settings(&pebble));
    stored(host.obtain(&request(&["a.example"]), &client).await);
    let file = std::fs::read_dir(host.path().join("accounts"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let file = file.path().join("account.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("/my-account/", "/my-account/9")).unwrap();
    let client = host.client(&settings(&pebble));
    stored(host.obtain(&request(&["b.example"]), &client).await);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[tokio::test]
async fn two_callers_obtain_a_certificate_once() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let daemon = host.client(&settings(&pebble));
    let timer = host.client(&settings(&pebble));
    let request = request(&["a.example"]);
    let (one, two) = tokio::join!(
        host.obtain(&request, &daemon),
        host.obtain(&request, &timer)
    );
    let both = [one, two];
    assert_eq!(
        both.iter()
            .filter(|one| matches!(one, Obtained::Stored(_)))
            .count(),
        1,
        "{both:?}"
    );
    assert!(both.contains(&Obtained::AlreadyDone), "{both:?}");
    assert_eq!(pebble.log().matches("/order-plz").count(), 1);
}

#[tokio::test]
async fn a_failing_challenge_gives_the_cas_reason_and_schedules_the_retry() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let client = host.client(&settings(&pebble));
    host.challenges.set(None);
    let request = request(&["a.example", "b.example"]);
    let before = now();
    let obtained = host.obtain(&request, &client).await;
    let Obtained::Failed { error, next, retry } = obtained else {
        panic!("{obtained:?}")
    };
    assert!(error.starts_with("prove control of "), "{error}");
    assert!(
        error.contains("somebody else's page"),
        "the CA's own words: {error}"
    );
    assert!(
        error.contains("a.example: ") || error.contains("b.example: "),
        "{error}"
    );
    assert_eq!(retry, RetryAdvice::Retry);
    assert!(next >= before + Duration::from_secs(60) && next <= now() + Duration::from_secs(60));
    let memories = host.ledger().memories().unwrap();
    let attempts = memories[&request.name].attempts.clone().unwrap();
    assert_eq!(attempts.failures, 1);
    assert!(
        host.ledger().pending(&request.name).unwrap().is_none(),
        "a dead order is not resumed"
    );
    let wanted = [wanted(&["a.example", "b.example"])];
    let due = |now| {
        let terms = Terms::from(&settings(&pebble));
        schedule::due(&wanted, &Default::default(), &memories, &terms, now)
    };
    let schedule = due(now());
    assert_eq!((schedule.due.len(), schedule.next), (0, attempts.next));
    // and once the page is right, it is issued
    host.challenges.set(Some(client.thumbprint()));
    stored(host.obtain(&due(next).due[0], &client).await);
    assert_eq!(host.ledger().attempts_of(&request.name).unwrap(), None);
}

#[tokio::test]
async fn a_ca_out_of_reach_keeps_nobody_from_starting() {
    let host = Host::new();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // so that it does not depend on the roots that this machine has
    let root = InternalCa::new(host.path());
    let named = [Identifier::Dns("ca.test".into())];
    root.prepare([&named[..]], now()).unwrap();
    let settings = AcmeSettings {
        directory: format!("https://{closed}/dir"),
        ca_file: Some(root.root_path()),
        ..AcmeSettings::default()
    };
    let started = Instant::now();
    let client = host.client(&settings);
    assert_eq!(client.thumbprint().len(), 43);
    assert!(started.elapsed() < Duration::from_secs(1));
    let error = host
        .order(&request(&["a.example"]), &client)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("efused"), "{error}");
    assert_eq!(error.retry(), RetryAdvice::Retry);
}

#[tokio::test]
async fn a_ca_whose_tls_is_not_trusted_is_not_spoken_to() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let settings = AcmeSettings {
        ca_file: None,
        ..settings(&pebble)
    };
    let client = host.client(&settings);
    let error = host
        .order(&request(&["a.example"]), &client)
        .await
        .unwrap_err();
    assert!(matches!(error, OrderError::Shared(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("certificate") || text.contains("CA"),
        "{text}"
    );
}

/// Not a claim but a figure: run it with `--nocapture`.
#[tokio::test]
async fn a_warm_order_takes_milliseconds() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let client = host.client(&settings(&pebble));
    stored(host.obtain(&request(&["warm.example"]), &client).await);
    let mut times = Vec::new();
    for n in 0..9 {
        let request = request(&[&format!("n{n}.example")]);
        let started = Instant::now();
        host.order(&request, &client).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    println!("order(): median {:?}, all {times:?}", times[4]);
    assert!(times[4] < Duration::from_millis(500), "{times:?}");
}
