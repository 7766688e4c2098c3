//! What Pebble can be made to do. Each issues at the first attempt: nothing of it is a failure, and
//! no retry of the schedule is spent.

use super::*;
use crate::support::app::App;
use crate::support::host::{Host, acme};
use crate::support::nginx::NginxHost;

const NAMES: [&str; 3] = ["a.example", "b.example", "c.example"];

/// Twice: the second time the CA may know of the names already.
async fn issues_twice(fixture: &Fixture, pebble: &Pebble) {
    let client = fixture.client(&settings(pebble));
    let first = fixture.issues(&client, &NAMES).await;
    pebble.verify(&first.chain, NAMES[0]);
    let second = fixture.issues(&client, &NAMES).await;
    pebble.verify(&second.chain, NAMES[2]);
    assert_ne!(first.serial, second.serial);
    assert_eq!(fixture.attempts(&NAMES), None);
}

#[tokio::test]
async fn whatever_share_of_nonces_is_refused_it_issues_at_the_first_attempt() {
    let mut asked = Vec::new();
    for per_cent in [0, 25, 50, 75, 90] {
        for (fixture, pebble) in pebbles(|pebble| pebble.refused_nonces(per_cent)) {
            issues_twice(&fixture, &pebble).await;
            asked.push(pebble.log().matches("POST /").count());
        }
    }
    // some were refused indeed
    assert!(asked[asked.len() - 1] > 2 * asked[0], "{asked:?}");
}

#[tokio::test]
async fn with_nine_of_ten_nonces_refused_a_certificate_of_many_names_is_issued() {
    let names: Vec<String> = (0..25).map(|n| format!("n{n}.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (fixture, pebble) in pebbles(|pebble| pebble.refused_nonces(90)) {
        let client = fixture.client(&settings(&pebble));
        let stored = fixture.issues(&client, &names).await;
        pebble.verify(&stored.chain, names[24]);
    }
}

#[tokio::test]
async fn authorizations_may_be_reused_or_not() {
    for per_cent in [0, 50, 100] {
        for (fixture, pebble) in pebbles(|pebble| pebble.reused_authorizations(per_cent)) {
            issues_twice(&fixture, &pebble).await;
            let validated = pebble.log().matches("POST /chalZ/").count();
            let expected = match per_cent {
                // of a hundred, Pebble reuses one even then
                0 => 4..=6,
                100 => 3..=3,
                _ => 3..=6,
            };
            assert!(expected.contains(&validated), "{per_cent} %: {validated}");
        }
    }
}

#[tokio::test]
async fn a_ca_that_takes_its_time_to_validate_is_waited_for() {
    let pebbles = pebbles(|pebble| pebble.slow(3));
    let orders = pebbles.iter().map(|(fixture, pebble)| async move {
        let client = fixture.client(&settings(pebble));
        let stored = fixture.issues(&client, &NAMES).await;
        pebble.verify(&stored.chain, NAMES[0]);
    });
    // each for itself, and all at once
    let mut orders: Vec<_> = orders.map(Box::pin).collect();
    match orders.as_mut_slice() {
        [first, second] => drop(tokio::join!(first, second)),
        others => {
            for order in others {
                order.await;
            }
        }
    }
}

#[tokio::test]
async fn a_strict_ca_issues() {
    for (fixture, pebble) in pebbles(PebbleBuilder::strict) {
        issues_twice(&fixture, &pebble).await;
    }
}

#[test]
fn a_daemon_beside_a_ca_that_does_all_of_that_at_once_serves_without_a_retry() {
    for later in [false, true] {
        let nginx = NginxHost::new();
        let builder = Pebble::builder(nginx.http_port);
        let builder = match later {
            true => builder.later(),
            false => Some(builder),
        };
        let Some(builder) = builder else { continue };
        let pebble = builder
            .refused_nonces(75)
            .reused_authorizations(50)
            .slow(2)
            .strict()
            .start();
        let (host, app) = (Host::on(nginx, &acme(&pebble)), App::start());
        let daemon = host.daemon();
        host.drop_app("hello", "[hello.example.com, www.hello.example.com]", &app);
        let trust = crate::support::client::Trust::Root(pebble.issuing_root());
        host.wait_for_https("www.hello.example.com", "/", &trust);
        let certificate = host.certificate("hello.example.com").unwrap();
        assert_eq!(certificate["attempts"], 0, "{certificate}");
        assert!(!daemon.log().contains("failed to "), "{}", daemon.log());
        assert_eq!(daemon.stop(), 0);
    }
}
