//! A CA that is hostile, broken, or somebody else: each answer that is not what RFC 8555 allows is
//! an error that says what and where, nothing is stored, what was stored stays, and as soon as the
//! CA is itself again it issues, with nobody's help.
//!
//! Every deviation is one change of a proper CA, which is seen to issue before and after it.

mod answers;
mod chains;
mod daemon;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use vhostd::certificate::attempts::RetryAdvice;
use vhostd::certificate::internal::InternalCa;
use vhostd::certificate::ledger::Ledger;
use vhostd::certificate::order::{AcmeClient, Patience};
use vhostd::certificate::renew::{Obtained, Tools, obtain};
use vhostd::certificate::store::CertificateStore;
use vhostd::certificate::{
    CertificateRequest, Identifier, Issuer, StoredCertificate, WantedCertificate,
};
use vhostd::settings::AcmeSettings;

use crate::support::challenges::ChallengeServer;
use crate::support::mock_ca::MockCa;

const NAME: &str = "a.example";

/// Long enough for a busy machine, short enough to be waited for.
const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(3),
    order: Duration::from_secs(6),
};

/// A state directory, and a proper CA.
struct Fixture {
    directory: tempfile::TempDir,
    challenges: ChallengeServer,
    ca: MockCa,
}

/// An attempt that came to nothing.
struct Failure {
    error: String,
    retry: RetryAdvice,
    next: OffsetDateTime,
}

impl Fixture {
    fn new() -> Self {
        let challenges = ChallengeServer::start();
        Self {
            directory: tempfile::tempdir().unwrap(),
            ca: MockCa::start(challenges.port),
            challenges,
        }
    }

    /// One attempt, as a new process would make it; `insisted`: whatever the CA refused before.
    async fn obtain(&self, insisted: bool) -> Obtained {
        let path = self.directory.path();
        let settings = AcmeSettings {
            directory: self.ca.directory_url(),
            ca_file: Some(self.ca.ca_file()),
            ..AcmeSettings::default()
        };
        let client = AcmeClient::with_patience(&settings, path, PATIENCE).unwrap();
        self.challenges.set(Some(client.thumbprint()));
        let (store, ledger) = (CertificateStore::new(path), Ledger::new(path));
        let identifiers = vec![Identifier::Dns(NAME.into())];
        let wanted = WantedCertificate::new(identifiers, Issuer::Acme).unwrap();
        let stored = store.newest(&wanted.name).unwrap();
        let attempts = ledger.attempts_of(&wanted.name).unwrap();
        let request = CertificateRequest {
            insisted,
            ..CertificateRequest::new(&wanted, stored.as_ref(), attempts.as_ref())
        };
        let tools = Tools {
            store: &store,
            ledger: &ledger,
            acme: Some(&client),
            internal: &InternalCa::new(path),
            limits: None,
            checks: None,
            slot: None,
            clock: &OffsetDateTime::now_utc,
            chance: &|| 0.5,
        };
        obtain(&request, tools).await
    }

    /// The proper CA issues, and the certificate is another one than before.
    async fn issues(&self) -> StoredCertificate {
        match self.obtain(true).await {
            Obtained::Stored(stored) => stored,
            other => panic!("the CA behaves, and yet: {other:?}"),
        }
    }

    /// With the CA as it is now an attempt fails with `words` in its error, in bounded time, and
    /// leaves everything as it was; then the CA behaves, and issues.
    async fn fails(&self, what: &str, words: &str) -> Failure {
        let before = self.stored();
        let begin = Instant::now();
        let obtained = self.obtain(false).await;
        let took = begin.elapsed();
        let Obtained::Failed { error, next, retry } = obtained else {
            panic!("{what}: {obtained:?}")
        };
        assert!(error.contains(words), "{what}: {error}");
        assert!(error.len() < 5000, "{what}: {} bytes", error.len());
        let obeyed = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!error.contains(obeyed), "{what}: {error:?}");
        // what has no bound takes for ever; a busy machine, a while
        assert!(
            took < PATIENCE.order + Duration::from_secs(20),
            "{what}: {took:?}"
        );
        assert_eq!(self.stored(), before, "{what}");
        self.ca.behave();
        self.issues().await;
        Failure { error, retry, next }
    }

    /// Everything below `certificates/`.
    fn stored(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        walk(&self.directory.path().join("certificates"), &mut found);
        found
    }
}

fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            found.insert(path, target.as_os_str().as_encoded_bytes().to_vec());
        } else if path.is_dir() {
            walk(&path, found);
            found.insert(path, Vec::new());
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
}
