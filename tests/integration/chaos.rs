//! A CA that refuses nonces, is slow, strict, killed, busy or talks rubbish: as long as it issues at
//! all, a certificate is obtained; once it is well again, the next attempt obtains one, with nobody's
//! help, when the schedule or the CA's own word says.

mod answers; // what a CA says instead of an answer, at each of its resources
mod killed; // a CA that dies in the middle of an order, and forgets everything
mod nonces; // whose nonces an order begins with
mod pebble; // what Pebble can be made to do

use std::cell::Cell;

use time::OffsetDateTime;
use vhostd::certificate::attempts::Attempts;
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
use crate::support::pebble::{Pebble, PebbleBuilder};

/// A state directory, port 80, and the time.
struct Fixture {
    directory: tempfile::TempDir,
    challenges: ChallengeServer,
    now: Cell<OffsetDateTime>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            challenges: ChallengeServer::start(),
            now: Cell::new(OffsetDateTime::now_utc()),
        }
    }

    /// As a process has it from its start to its end.
    fn client(&self, settings: &AcmeSettings) -> AcmeClient {
        let path = self.directory.path();
        let client = AcmeClient::with_patience(settings, path, Patience::default()).unwrap();
        self.challenges.set(Some(client.thumbprint()));
        client
    }

    /// One attempt, if the schedule and the CA's limits allow one.
    async fn obtain(&self, client: &AcmeClient, names: &[&str]) -> Obtained {
        let path = self.directory.path();
        let (store, ledger) = (CertificateStore::new(path), self.ledger());
        let wanted = wanted(names);
        let stored = store.newest(&wanted.name).unwrap();
        let attempts = ledger.attempts_of(&wanted.name).unwrap();
        let at = self.now.get();
        if let Some(next) = attempts.as_ref().and_then(|attempts| attempts.next) {
            assert!(next <= at, "too early: {attempts:?}");
        }
        let request = CertificateRequest::new(&wanted, stored.as_ref(), attempts.as_ref());
        let tools = Tools {
            store: &store,
            ledger: &ledger,
            acme: Some(client),
            internal: &InternalCa::new(path),
            limits: None,
            checks: None,
            slot: None,
            clock: &move || at,
            chance: &|| 0.5,
        };
        obtain(&request, tools).await
    }

    /// As [`Fixture::obtain`], and it comes to something.
    async fn issues(&self, client: &AcmeClient, names: &[&str]) -> StoredCertificate {
        match self.obtain(client, names).await {
            Obtained::Stored(stored) => stored,
            other => panic!("{names:?}: {other:?}"),
        }
    }

    fn attempts(&self, names: &[&str]) -> Option<Attempts> {
        self.ledger().attempts_of(&wanted(names).name).unwrap()
    }

    fn ledger(&self) -> Ledger {
        Ledger::new(self.directory.path())
    }
}

fn wanted(names: &[&str]) -> WantedCertificate {
    let identifiers = names.iter().map(|name| Identifier::Dns((*name).into()));
    WantedCertificate::new(identifiers.collect(), Issuer::Acme).unwrap()
}

fn settings(pebble: &Pebble) -> AcmeSettings {
    AcmeSettings {
        directory: pebble.directory_url(),
        ca_file: Some(pebble.ca_file()),
        ..AcmeSettings::default()
    }
}

fn mock_settings(ca: &MockCa) -> AcmeSettings {
    AcmeSettings {
        directory: ca.directory_url(),
        ca_file: Some(ca.ca_file()),
        ..AcmeSettings::default()
    }
}

/// Debian 12's, and the later one where there is one, each with a state directory for itself.
fn pebbles(change: impl Fn(PebbleBuilder) -> PebbleBuilder) -> Vec<(Fixture, Pebble)> {
    let mut started = Vec::new();
    for later in [false, true] {
        let fixture = Fixture::new();
        let builder = Pebble::builder(fixture.challenges.port);
        let builder = match later {
            true => builder.later(),
            false => Some(builder),
        };
        started.extend(builder.map(|builder| (fixture, change(builder).start())));
    }
    started
}
