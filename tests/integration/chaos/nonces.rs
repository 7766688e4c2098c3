//! Whose nonces an order begins with (RFC 8555 §6.5).

use super::*;
use crate::support::mock_ca::{MockCa, Resource};

#[tokio::test]
async fn an_order_begins_with_the_nonce_that_an_earlier_one_has_left() {
    let fixture = Fixture::new();
    let ca = MockCa::start(fixture.challenges.port);
    let client = fixture.client(&mock_settings(&ca));
    fixture.issues(&client, &["a.example"]).await;
    let asked = ca.asked(Resource::NewNonce);
    assert!(asked > 0);
    for name in ["b.example", "c.example", "d.example"] {
        fixture.issues(&client, &[name]).await;
    }
    assert_eq!(ca.asked(Resource::NewNonce), asked);
}

#[tokio::test]
async fn a_ca_that_has_forgotten_its_nonces_issues_at_the_first_attempt() {
    let fixture = Fixture::new();
    let ca = MockCa::start(fixture.challenges.port);
    let client = fixture.client(&mock_settings(&ca));
    for name in ["a.example", "b.example", "c.example"] {
        fixture.issues(&client, &[name]).await;
        ca.forget_nonces();
    }
}
