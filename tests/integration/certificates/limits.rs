//! What the CA allows is known before it is asked, and what it refuses is not asked for again.

use std::cell::Cell;
use std::fs;

use serde_json::json;
use vhostd::certificate::budget::LETS_ENCRYPT;
use vhostd::certificate::key::PrivateKeyPem;

use super::*;
use crate::support::mock_ca::wire::Reply;
use crate::support::mock_ca::{Asked, MockCa, Resource};

/// A CA of which Let's Encrypt's limits are known.
struct Limited {
    host: Host,
    ca: MockCa,
    /// Whether port 80 gives the right answers.
    answers: Cell<bool>,
}

impl Limited {
    fn new() -> Self {
        let host = Host::new();
        let ca = MockCa::start(host.challenges.port);
        Self {
            host,
            ca,
            answers: Cell::new(true),
        }
    }

    /// As a new process would, at that time. Whether it is due, nobody asks.
    async fn obtain_at(
        &self,
        names: &[&str],
        at: OffsetDateTime,
        change: impl FnOnce(&mut CertificateRequest),
    ) -> Obtained {
        let settings = AcmeSettings {
            directory: self.ca.directory_url(),
            ca_file: Some(self.ca.ca_file()),
            ..AcmeSettings::default()
        };
        let client = self.host.client(&settings);
        let thumbprint = self.answers.get().then(|| client.thumbprint());
        self.host.challenges.set(thumbprint);
        let (store, ledger) = (self.host.store(), self.host.ledger());
        let wanted = wanted(names);
        let stored = store.newest(&wanted.name).unwrap();
        let attempts = ledger.attempts_of(&wanted.name).unwrap();
        let mut request = CertificateRequest::new(&wanted, stored.as_ref(), attempts.as_ref());
        change(&mut request);
        let tools = Tools {
            store: &store,
            ledger: &ledger,
            acme: Some(&client),
            internal: &InternalCa::new(self.host.path()),
            limits: Some(&LETS_ENCRYPT),
            checks: None,
            slot: None,
            clock: &move || at,
            chance: &|| 0.0,
        };
        obtain(&request, tools).await
    }

    async fn obtain(&self, names: &[&str]) -> Obtained {
        self.obtain_at(names, now(), |_| {}).await
    }

    fn orders(&self) -> usize {
        self.ca.asked(Resource::NewOrder)
    }

    /// From now on every new order is refused.
    fn refuse(&self, detail: &'static str, retry_after: Option<&'static str>) {
        self.ca
            .answer_otherwise(move |asked: &Asked, reply: &mut Reply| {
                if asked.resource == Resource::NewOrder {
                    let problem = json!({"type": "urn:ietf:params:acme:error:rateLimited",
                    "detail": detail});
                    let nonce = reply
                        .headers
                        .iter()
                        .find(|(name, _)| name == "Replay-Nonce");
                    let nonce = nonce.cloned();
                    *reply = Reply::new(429, problem.to_string());
                    reply.set("Content-Type", "application/problem+json");
                    reply.headers.extend(nonce);
                    if let Some(retry_after) = retry_after {
                        reply.set("Retry-After", retry_after);
                    }
                }
            });
    }
}

fn failure(obtained: Obtained) -> (String, OffsetDateTime, RetryAdvice) {
    match obtained {
        Obtained::Failed { error, next, retry } => (error, next, retry),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn after_five_failed_authorizations_an_hour_the_next_order_waits_until_the_ca_allows_it() {
    let limited = Limited::new();
    limited.answers.set(false);
    let begin = now();
    for _ in 0..4 {
        let (error, next, _) = failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
        assert!(error.starts_with("prove control of a.example"), "{error}");
        assert!(next > begin);
    }
    // the fifth says already when a sixth is possible
    let (_, next, _) = failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    assert!(next >= begin + Duration::from_secs(12 * 60));
    let orders = limited.orders();
    let (error, next, _) = failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    assert!(
        error.contains("5 failed authorizations an hour for a.example"),
        "{error}"
    );
    assert_eq!(next, begin + Duration::from_secs(12 * 60));
    assert_eq!(limited.orders(), orders, "nothing was asked for");
    let attempts = limited
        .host
        .ledger()
        .attempts_of(&wanted(&["a.example"]).name);
    assert_eq!(attempts.unwrap().unwrap().failures, 5, "and nothing failed");
    // another name is not concerned, and this one is tried when it is time
    limited.answers.set(true);
    stored(limited.obtain_at(&["b.example"], begin, |_| {}).await);
    stored(limited.obtain_at(&["a.example"], next, |_| {}).await);
}

#[tokio::test]
async fn the_sixth_certificate_for_the_same_names_in_a_week_waits_unless_a_person_insists() {
    let limited = Limited::new();
    let begin = now();
    for _ in 0..5 {
        stored(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    }
    let orders = limited.orders();
    let (error, next, retry) = failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    assert!(
        error.contains("5 certificates a week for exactly the same names"),
        "{error}"
    );
    assert_eq!(next, begin + Duration::from_secs(34 * 3600));
    assert_eq!(retry, RetryAdvice::After(Duration::from_secs(34 * 3600)));
    assert_eq!(limited.orders(), orders);
    let insisted = |request: &mut CertificateRequest| request.insisted = true;
    stored(limited.obtain_at(&["a.example"], begin, insisted).await);
    assert_eq!(limited.orders(), orders + 1);
}

#[tokio::test]
async fn the_record_of_an_order_whose_certificate_is_stored_lets_no_further_one_pass() {
    let limited = Limited::new();
    let begin = now();
    let mut last = None;
    for _ in 0..5 {
        last = Some(stored(
            limited.obtain_at(&["a.example"], begin, |_| {}).await,
        ));
    }
    let (last, ledger, orders) = (last.unwrap(), limited.host.ledger(), limited.orders());
    // as a kill leaves it between storing the one and removing the other
    let left = PendingOrder {
        directory: limited.ca.directory_url(),
        url: limited.ca.url(&format!("order/{}", orders - 1)),
        identifiers: last.identifiers.clone(),
        profile: None,
        key: PrivateKeyPem::new(fs::read_to_string(&last.key).unwrap()),
    };
    ledger.record_order(&last.name, &left).unwrap();
    let (error, ..) = failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    assert!(error.contains("5 certificates a week"), "{error}");
    assert_eq!(limited.orders(), orders);
    assert!(ledger.pending(&last.name).unwrap().is_none());
}

#[tokio::test]
async fn a_certificate_of_a_further_type_of_key_counts_for_the_same_names() {
    let limited = Limited::new();
    let begin = now();
    for _ in 0..4 {
        stored(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    }
    let further = |request: &mut CertificateRequest| {
        *request = CertificateRequest::new(
            &wanted(&["a.example"]).further(KeyType::Rsa2048),
            None,
            None,
        );
    };
    let fifth = stored(limited.obtain_at(&["a.example"], begin, further).await);
    assert_eq!(fifth.key_type, Some(KeyType::Rsa2048));
    let (error, ..) = failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    assert!(
        error.contains("5 certificates a week for exactly the same names"),
        "{error}"
    );
}

#[tokio::test]
async fn a_429_pauses_what_its_limit_covers_to_the_second_and_nothing_else() {
    let limited = Limited::new();
    limited.refuse(
        "too many certificates (50) already issued for \"example.com\" in the last 168h0m0s, \
         retry after 2099-01-01 00:00:00 UTC: see https://letsencrypt.org/docs/rate-limits/",
        Some("7200"),
    );
    let begin = now();
    let (error, next, _) = failure(limited.obtain_at(&["a.example.com"], begin, |_| {}).await);
    assert!(error.contains("too many certificates (50)"), "{error}");
    assert_eq!(next, begin + Duration::from_secs(7200));
    limited.ca.behave();
    let orders = limited.orders();
    // the same registered domain, and another vhost
    let (error, next, _) = failure(limited.obtain_at(&["b.example.com"], begin, |_| {}).await);
    assert!(
        error.contains("already issued for \"example.com\""),
        "{error}"
    );
    assert_eq!(next, begin + Duration::from_secs(7200));
    assert_eq!(limited.orders(), orders);
    stored(limited.obtain_at(&["a.example.org"], begin, |_| {}).await);
    stored(limited.obtain_at(&["b.example.com"], next, |_| {}).await);
}

#[tokio::test]
async fn a_busy_cas_503_is_for_everybody_until_it_said() {
    let limited = Limited::new();
    stored(limited.obtain(&["a.example"]).await);
    limited
        .ca
        .answer_otherwise(|asked: &Asked, reply: &mut Reply| {
            if asked.resource == Resource::NewOrder {
                *reply = Reply::new(503, "<html>busy</html>").with("Retry-After", "90");
            }
        });
    let begin = now();
    let (_, next, _) = failure(limited.obtain_at(&["b.example"], begin, |_| {}).await);
    assert_eq!(next, begin + Duration::from_secs(90));
    let orders = limited.orders();
    let (error, next, _) = failure(limited.obtain_at(&["c.example"], begin, |_| {}).await);
    assert!(error.contains("the CA is busy"), "{error}");
    assert_eq!(
        (next, limited.orders()),
        (begin + Duration::from_secs(90), orders)
    );
    limited.ca.behave();
    stored(limited.obtain_at(&["c.example"], next, |_| {}).await);
}

#[tokio::test]
async fn a_paused_name_stops_shows_where_it_is_unpaused_and_goes_on_when_a_person_says_so() {
    let limited = Limited::new();
    limited.refuse(
        "Your account is temporarily prevented from requesting certificates for a.example and \
         possibly others. Please visit: https://portal.example/sfe/v1/unpause?jwt=abc.def",
        None,
    );
    let begin = now();
    let (error, next, retry) = failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    assert!(
        error.ends_with("unpause the names at https://portal.example/sfe/v1/unpause?jwt=abc.def"),
        "{error}"
    );
    assert_eq!(retry, RetryAdvice::Useless);
    assert!(next >= begin + Duration::from_secs(7 * 86400));
    limited.ca.behave();
    let orders = limited.orders();
    failure(limited.obtain_at(&["a.example"], begin, |_| {}).await);
    assert_eq!(limited.orders(), orders);
    let insisted = |request: &mut CertificateRequest| request.insisted = true;
    stored(limited.obtain_at(&["a.example"], begin, insisted).await);
    // and from then on as ever
    stored(limited.obtain_at(&["a.example"], begin, |_| {}).await);
}
