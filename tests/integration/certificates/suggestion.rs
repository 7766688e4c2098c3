//! When the CA suggests to renew (RFC 9773), by a later Pebble, and by a CA that does it badly.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use vhostd::certificate::inquire::inquire;
use vhostd::certificate::renewal_info::{Inquiry, RenewalInfo};
use vhostd::certificate::schedule::{Schedule, renew_at};

use super::*;
use crate::support::mock_ca::wire::Reply;
use crate::support::mock_ca::{Asked, MockCa, Resource, edit};

const DAY: time::Duration = time::Duration::DAY;

fn later_pebble(host: &Host) -> Option<Pebble> {
    let builder = Pebble::builder(host.challenges.port).later()?;
    Some(builder.start())
}

impl Host {
    /// What is due at `now`, as far as is known.
    fn schedule(&self, terms: &Terms, now: OffsetDateTime) -> Schedule {
        let (inventory, _) = self.store().inventory().unwrap();
        let memories = self.ledger().memories().unwrap();
        schedule::due(&[wanted(&[NAME])], &inventory, &memories, terms, now)
    }

    async fn ask(&self, stored: &StoredCertificate, client: &AcmeClient) -> RenewalInfo {
        let inquiry = Inquiry::about(stored, client.directory()).unwrap();
        inquire(&inquiry, client, &self.ledger(), &now, 0.5).await
    }
}

const NAME: &str = "a.example";

fn window(start: OffsetDateTime, end: OffsetDateTime) -> serde_json::Value {
    let words = |at: OffsetDateTime| {
        let at = at.replace_nanosecond(0).unwrap();
        at.format(&time::format_description::well_known::Rfc3339)
            .unwrap()
    };
    json!({"suggestedWindow": {"start": words(start), "end": words(end)}})
}

#[tokio::test]
async fn a_certificate_is_renewed_when_the_ca_suggests_and_the_new_order_says_what_it_replaces() {
    let host = Host::new();
    let Some(pebble) = later_pebble(&host) else {
        return;
    };
    let settings = settings(&pebble);
    let (client, terms) = (host.client(&settings), Terms::from(&settings));
    let first = stored(host.obtain(&request(&[NAME]), &client).await);
    // nobody was asked yet, and it is asked about at once
    let schedule = host.schedule(&terms, now());
    assert_eq!((schedule.due, schedule.inquiries.len()), (Vec::new(), 1));
    let info = host.ask(&first, &client).await;
    let suggestion = info.suggestion.clone().unwrap();
    assert!(suggestion.start < suggestion.renew_at && suggestion.renew_at < suggestion.end);
    let schedule = host.schedule(&terms, now());
    assert_eq!((schedule.due, schedule.inquiries), (Vec::new(), Vec::new()));
    assert_eq!(schedule.next, Some(info.ask_again.min(suggestion.renew_at)));
    // an incident: it is to be replaced tomorrow
    let mut incident = window(now() + DAY, now() + 2 * DAY);
    incident["explanationURL"] = "https://ca.example/incident".into();
    pebble.suggest(&first.chain, &incident);
    let info = host.ask(&first, &client).await;
    let suggestion = info.suggestion.unwrap();
    assert_eq!(
        suggestion.explanation_url.as_deref(),
        Some("https://ca.example/incident")
    );
    let then = suggestion.renew_at + time::Duration::SECOND;
    let renewal = host.schedule(&terms, then).due.remove(0);
    assert!(renewal.by_age);
    let second = stored(host.obtain_at(then, &renewal, &client).await);
    assert_ne!(second.serial, first.serial);
    assert!(host.schedule(&terms, then).due.is_empty());
    // replaced once, it cannot be replaced again (RFC 9773 §5): then the order does not say so
    let again = CertificateRequest {
        replaces: Some(second.serial.clone()),
        by_age: false,
        ..renewal
    };
    let third = stored(host.obtain_at(then, &again, &client).await);
    assert_ne!(third.serial, second.serial);
    // the first, the second, and the third twice
    assert_eq!(pebble.log().matches("POST /order-plz").count(), 4);
}

#[tokio::test]
async fn right_before_the_order_the_ca_is_asked_once_more() {
    let host = Host::new();
    let Some(pebble) = later_pebble(&host) else {
        return;
    };
    let settings = settings(&pebble);
    let (client, terms) = (host.client(&settings), Terms::from(&settings));
    let first = stored(host.obtain(&request(&[NAME]), &client).await);
    pebble.suggest(&first.chain, &window(now() + DAY, now() + 2 * DAY));
    host.ask(&first, &client).await;
    let then = now() + 2 * DAY;
    let renewal = host.schedule(&terms, then).due.remove(0);
    pebble.suggest(&first.chain, &window(now() + 30 * DAY, now() + 31 * DAY));
    let obtained = host.obtain_at(then, &renewal, &client).await;
    assert_eq!(obtained, Obtained::Postponed);
    assert_eq!(host.schedule(&terms, then).due, []);
    assert_eq!(pebble.finalized(), 1);
}

/// A proper CA that also has renewal information: `body` for every certificate.
fn suggests(ca: &MockCa, status: u16, body: String, retry_after: &'static str) {
    let at = ca.directory_url().replace("/directory", "/renewal");
    ca.answer_otherwise(
        move |asked: &Asked, reply: &mut Reply| match asked.resource {
            Resource::Directory => edit(reply, |it| it["renewalInfo"] = at.clone().into()),
            Resource::Nothing => {
                *reply = Reply::new(status, body.clone()).with("Retry-After", retry_after);
            }
            _ => {}
        },
    );
}

fn mock_settings(ca: &MockCa) -> AcmeSettings {
    AcmeSettings {
        directory: ca.directory_url(),
        ca_file: Some(ca.ca_file()),
        ..AcmeSettings::default()
    }
}

#[tokio::test]
async fn without_an_answer_that_makes_sense_the_lifetime_decides() {
    let host = Host::new();
    let ca = MockCa::start(host.challenges.port);
    let client = host.client(&mock_settings(&ca));
    let first = stored(host.obtain(&request(&[NAME]), &client).await);
    // a new client reads the directory again
    let backwards = window(now() + 2 * DAY, now() + DAY).to_string();
    let good = window(now() + DAY, now() + 2 * DAY).to_string();
    for (status, body, retry_after, hours) in [
        (200, "<html>", "60", 0),
        (200, backwards.as_str(), "7200", 2),
        (200, "{}", "nonsense", 6),
        (404, good.as_str(), "", 6),
        (503, "busy", "999999999999", 24),
    ] {
        suggests(&ca, status, body.to_owned(), retry_after);
        let client = host.client(&mock_settings(&ca));
        let asked = now();
        let info = host.ask(&first, &client).await;
        assert_eq!(info.suggestion, None, "{status} {body}");
        let pause = info.ask_again - asked;
        assert_eq!(pause.whole_hours(), hours, "{status} {body}");
        let terms = Terms::from(&mock_settings(&ca));
        let usual = renew_at(first.validity, None);
        let next = host.schedule(&terms, now()).next.unwrap();
        assert!(next <= usual);
        assert_eq!(host.schedule(&terms, usual).due.len(), 1);
    }
    suggests(&ca, 200, good, "60");
    let info = host.ask(&first, &host.client(&mock_settings(&ca))).await;
    assert!(info.suggestion.is_some());
    // what was said holds while nobody answers
    suggests(&ca, 500, String::new(), "60");
    let later = host.ask(&first, &host.client(&mock_settings(&ca))).await;
    assert_eq!(later.suggestion, info.suggestion);
}

#[tokio::test]
async fn renewal_information_elsewhere_is_not_asked_for_and_keeps_nobody_from_a_certificate() {
    let host = Host::new();
    let ca = MockCa::start(host.challenges.port);
    ca.answer_otherwise(|asked: &Asked, reply: &mut Reply| {
        if asked.resource == Resource::Directory {
            edit(reply, |it| {
                it["renewalInfo"] = "https://127.0.0.1:9/renewal".into()
            });
        }
    });
    let client = host.client(&mock_settings(&ca));
    let first = stored(host.obtain(&request(&[NAME]), &client).await);
    let info = host.ask(&first, &client).await;
    assert_eq!(info.suggestion, None);
    // as of a CA that has none
    assert_eq!((info.ask_again - info.asked_at).whole_hours(), 24);
}

#[tokio::test]
async fn a_ca_that_does_not_take_what_is_replaced_is_asked_without() {
    let host = Host::new();
    let ca = MockCa::start(host.challenges.port);
    let good = window(now() + DAY, now() + 2 * DAY).to_string();
    suggests(&ca, 200, good, "60");
    let client = host.client(&mock_settings(&ca));
    let first = stored(host.obtain(&request(&[NAME]), &client).await);
    let renewal = CertificateRequest::new(&wanted(&[NAME]), Some(&first), None);
    // the mock ignores `replaces`, and does not repeat it as RFC 9773 §5 demands
    let orders = ca.asked(Resource::NewOrder);
    let second = stored(host.obtain(&renewal, &client).await);
    assert_eq!(ca.asked(Resource::NewOrder), orders + 2);
    // this one refuses it
    let seen = AtomicUsize::new(0);
    let at = ca.directory_url().replace("/directory", "/renewal");
    ca.answer_otherwise(
        move |asked: &Asked, reply: &mut Reply| match asked.resource {
            Resource::Directory => edit(reply, |it| it["renewalInfo"] = at.clone().into()),
            Resource::NewOrder if seen.fetch_add(1, Ordering::SeqCst) == 0 => {
                let problem = json!({"type": "urn:ietf:params:acme:error:alreadyReplaced",
                "detail": "replaced before"});
                reply.status = 409;
                reply.body = problem.to_string().into_bytes();
                reply.set("Content-Type", "application/problem+json");
            }
            _ => {}
        },
    );
    let client = host.client(&mock_settings(&ca));
    let renewal = CertificateRequest::new(&wanted(&[NAME]), Some(&second), None);
    let third = stored(host.obtain(&renewal, &client).await);
    assert_ne!(third.serial, second.serial);
}
