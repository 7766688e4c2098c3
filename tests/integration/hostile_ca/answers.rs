//! What the CA says on the way to a certificate.

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use vhostd::certificate::attempts::RetryAdvice;
use vhostd::certificate::key::PrivateKeyPem;
use vhostd::certificate::ledger::{Ledger, PendingOrder};
use vhostd::certificate::renew::Obtained;
use vhostd::certificate::{CertificateName, Identifier};
use vhostd::settings::KeyType;

use super::{Fixture, NAME};
use crate::support::mock_ca::wire::{Manner, Reply};
use crate::support::mock_ca::{Asked, Resource, edit};

/// Changes the answers about one kind of resource.
fn at(
    wanted: Resource,
    change: impl Fn(&mut Reply) + Send + 'static,
) -> impl Fn(&Asked, &mut Reply) + Send + 'static {
    move |asked, reply| {
        if asked.resource == wanted && reply.status < 300 {
            change(reply);
        }
    }
}

/// Changes the JSON of the answers about one kind of resource.
fn json_at(
    wanted: Resource,
    change: impl Fn(&mut Value) + Send + 'static,
) -> impl Fn(&Asked, &mut Reply) + Send + 'static {
    at(wanted, move |reply| edit(reply, &change))
}

#[tokio::test]
async fn the_proper_ca_issues_again_and_again() {
    let fixture = Fixture::new();
    let first = fixture.issues().await;
    let second = fixture.issues().await;
    assert_ne!(first.serial, second.serial);
    assert_eq!(fixture.ca.asked(Resource::NewAccount), 1);
    assert_eq!(fixture.ca.asked(Resource::Challenge), 2);
}

#[tokio::test]
async fn a_token_that_is_no_token_is_never_answered() {
    let fixture = Fixture::new();
    fixture.issues().await;
    for token in ["", "a/../../b", "a b", "$host", "é", "a\u{1b}[31m", "x;}"] {
        let challenges = fixture.ca.asked(Resource::Challenge);
        fixture
            .ca
            .answer_otherwise(json_at(Resource::Authorization, move |it| {
                it["challenges"][0]["token"] = token.into();
            }));
        let failure = fixture.fails(token, "its token is not base64url").await;
        assert_eq!(failure.retry, RetryAdvice::Useless);
        // the one of the proper CA
        assert_eq!(fixture.ca.asked(Resource::Challenge), challenges + 1);
    }
}

#[tokio::test]
async fn control_of_a_name_that_was_not_asked_for_is_not_proven() {
    let fixture = Fixture::new();
    fixture.issues().await;
    for name in ["b.example", "sub.a.example", "a\u{1b}[2J.example"] {
        fixture
            .ca
            .answer_otherwise(json_at(Resource::Authorization, move |it| {
                it["identifier"]["value"] = name.into();
            }));
        fixture.fails(name, "which was not asked for").await;
    }
    for count in [0, 2, 5000] {
        let change = move |it: &mut Value| {
            let one = it["authorizations"][0].clone();
            it["authorizations"] = vec![one; count].into();
        };
        fixture
            .ca
            .answer_otherwise(json_at(Resource::NewOrder, change));
        let words = format!("order with {count} authorizations for 1 identifiers");
        fixture.fails("another number", &words).await;
    }
}

#[tokio::test]
async fn no_url_leads_anywhere_but_to_the_directorys_origin() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let urls = [
        format!("https://127.0.0.1:{port}/x"),
        format!("http://127.0.0.1:{port}/x"),
        format!("https://user@127.0.0.1:{port}/"),
        "file:///etc/passwd".to_owned(),
        "/relative".to_owned(),
        "no url\u{7f} at all".to_owned(),
    ];
    for url in &urls {
        let of = |resource: Resource, pointer: &'static str| {
            let url = url.clone();
            json_at(resource, move |it| {
                *it.pointer_mut(pointer).unwrap() = url.as_str().into();
            })
        };
        for (resource, pointer) in [
            (Resource::NewOrder, "/authorizations/0"),
            (Resource::Authorization, "/challenges/0/url"),
            (Resource::Order, "/finalize"),
            (Resource::Finalize, "/certificate"),
            (Resource::Directory, "/newNonce"),
            (Resource::Directory, "/newAccount"),
            (Resource::Directory, "/newOrder"),
        ] {
            fixture.ca.answer_otherwise(of(resource, pointer));
            let failure = fixture
                .fails(&format!("{resource:?}{pointer}: {url}"), "")
                .await;
            let words = ["not at the origin", "invalid"];
            assert!(
                words.iter().any(|it| failure.error.contains(it)),
                "{}",
                failure.error
            );
        }
        let location = url.clone();
        fixture
            .ca
            .answer_otherwise(at(Resource::NewOrder, move |reply| {
                reply.set("Location", location.as_str());
            }));
        fixture.fails(&format!("Location: {url}"), "").await;
    }
    let visitor = elsewhere.accept();
    assert_eq!(visitor.unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[tokio::test]
async fn an_account_elsewhere_is_not_remembered() {
    for location in [
        "https://127.0.0.1:1/account/7",
        "http://127.0.0.1/a",
        "\u{1}",
        "x",
    ] {
        let fixture = Fixture::new();
        fixture
            .ca
            .answer_otherwise(at(Resource::NewAccount, move |reply| {
                reply.set("Location", location);
            }));
        fixture.fails(location, "register the account").await;
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let fixture = Fixture::new();
    fixture.issues().await;
    for resource in [
        Resource::Directory,
        Resource::NewNonce,
        Resource::Order,
        Resource::Certificate,
    ] {
        fixture.ca.answer_otherwise(at(resource, |reply| {
            reply.status = 302;
            reply.body.clear();
            // to itself, and to whatever answers
            reply.set("Location", "/directory");
        }));
        let failure = fixture.fails(&format!("{resource:?}"), "HTTP 302").await;
        assert!(failure.error.contains("HTTP 302"), "{}", failure.error);
    }
}

#[tokio::test]
async fn an_answer_without_end_is_given_up_in_bounded_time() {
    let fixture = Fixture::new();
    fixture.issues().await;
    for resource in [
        Resource::Directory,
        Resource::NewOrder,
        Resource::Certificate,
    ] {
        fixture
            .ca
            .answer_otherwise(at(resource, |reply| reply.manner = Manner::EndlessBody));
        let what = format!("{resource:?}");
        fixture
            .fails(&what, "an answer of more than 262144 bytes")
            .await;
    }
    for (manner, words) in [
        (Manner::EndlessHeaders, "the CA is out of reach"),
        (Manner::HangUp, "the CA is out of reach"),
        (Manner::Silence, "no whole answer within 3 s"),
        (Manner::EndlessPatience, "no whole answer within 3 s"),
        (
            Manner::Dripping(Duration::from_secs(1)),
            "no whole answer within 3 s",
        ),
    ] {
        fixture
            .ca
            .answer_otherwise(at(Resource::Order, move |reply| reply.manner = manner));
        fixture.fails(&format!("{manner:?}"), words).await;
    }
}

#[tokio::test]
async fn what_is_no_answer_at_all_is_shown_as_such() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let deep = "[".repeat(100_000);
    let bodies: [(&[u8], &str); 7] = [
        (b"", "ask for a new order: "),
        (b"{", "ask for a new order: "),
        (b"<html>busy</html>", "ask for a new order: "),
        (b"[1,2]", "ask for a new order: "),
        (b"\xff\xfe\x00", "ask for a new order: "),
        (b"null", "ask for a new order: "),
        (deep.as_bytes(), "ask for a new order: "),
    ];
    for (body, words) in bodies {
        let answer = body.to_vec();
        fixture
            .ca
            .answer_otherwise(at(Resource::NewOrder, move |reply| {
                reply.body.clone_from(&answer);
            }));
        fixture
            .fails(&String::from_utf8_lossy(&body[..body.len().min(9)]), words)
            .await;
    }
    let change = |it: &mut Value| it["status"] = "sideways\u{1b}[31m\u{202e}".into();
    for resource in [Resource::NewOrder, Resource::Order, Resource::Authorization] {
        fixture.ca.answer_otherwise(json_at(resource, change));
        fixture
            .fails("a status that is none", "unknown variant `sideways")
            .await;
    }
    fixture.ca.answer_otherwise(at(Resource::Order, |reply| {
        reply.set("Content-Encoding", "gzip");
    }));
    fixture.fails("gzip", "in the encoding `gzip`").await;
    fixture
        .ca
        .answer_otherwise(json_at(Resource::Finalize, |it| {
            it.as_object_mut().unwrap().remove("certificate");
        }));
    fixture.fails("no certificate", "no certificate URL").await;
}

#[tokio::test]
async fn odd_nonces_are_not_sent_back() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let long = vec![b'n'; 5000];
    for odd in [
        b"a\"b".to_vec(),
        b"\x80\xff".to_vec(),
        b"a b".to_vec(),
        long,
    ] {
        fixture
            .ca
            .answer_otherwise(move |_, reply| reply.set("Replay-Nonce", odd.clone()));
        fixture.fails("an odd nonce", "no nonce found").await;
    }
    // where there is none, one is asked for
    fixture.ca.answer_otherwise(|asked, reply| {
        if asked.resource != Resource::NewNonce {
            reply.unset("Replay-Nonce");
        }
    });
    fixture.issues().await;
}

#[tokio::test]
async fn metadata_that_nobody_reads_hinders_nobody() {
    let fixture = Fixture::new();
    for meta in [
        json!(7),
        json!([]),
        json!({"profiles": 3, "termsOfService": {}}),
        json!(null),
    ] {
        fixture
            .ca
            .answer_otherwise(json_at(Resource::Directory, move |it| {
                it["meta"] = meta.clone();
                it["renewalInfo"] = json!([1]);
            }));
        fixture.issues().await;
    }
    fixture
        .ca
        .answer_otherwise(json_at(Resource::Directory, |it| it["newNonce"] = json!(1)));
    fixture
        .fails("a URL of another type", "use the CA's directory")
        .await;
}

#[tokio::test]
async fn a_problem_in_any_words_is_one_short_line() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let words = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nRejected \u{202e}".repeat(500);
    let part =
        json!({"type": words, "detail": words, "identifier": {"type": "dns", "value": words}});
    let problem = json!({"type": words, "detail": words, "subproblems": [part]});
    for (resource, status) in [
        (Resource::NewOrder, 400),
        (Resource::Finalize, 403),
        (Resource::Certificate, 500),
    ] {
        let body = problem.to_string();
        fixture.ca.answer_otherwise(at(resource, move |reply| {
            reply.status = status;
            reply.body = body.clone().into_bytes();
        }));
        fixture.fails(&format!("{resource:?}"), "Rejected").await;
    }
    // inside an order and its authorizations
    let inside = problem.clone();
    fixture
        .ca
        .answer_otherwise(move |asked, reply| match asked.resource {
            Resource::Order => edit(reply, |it| it["status"] = "invalid".into()),
            Resource::Authorization if reply.status < 300 => {
                let detail = inside["detail"].clone();
                edit(reply, |it| {
                    it["challenges"][0]["error"] = json!({"detail": detail})
                });
            }
            _ => {}
        });
    let failure = fixture.fails("an invalid order", "prove control of").await;
    assert!(failure.error.contains(NAME), "{}", failure.error);
}

#[tokio::test]
async fn an_absurd_delay_neither_holds_an_order_nor_ends_the_process() {
    let fixture = Fixture::new();
    fixture.issues().await;
    for asked in [
        "18446744073709551615",
        "31536000",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        fixture
            .ca
            .answer_otherwise(at(Resource::Order, move |reply| {
                edit(reply, |it| it["status"] = "processing".into());
                reply.set("Retry-After", asked);
                reply.set("Date", "Mon, 23 Nov 2026 12:00:00 GMT");
            }));
        let failure = fixture.fails(asked, "the CA asks to come back in").await;
        assert!(matches!(failure.retry, RetryAdvice::After(_)));
        let week = time::OffsetDateTime::now_utc() + time::Duration::WEEK;
        assert!(failure.next <= week, "{}", failure.next);
    }
    fixture.ca.answer_otherwise(at(Resource::NewOrder, |reply| {
        reply.status = 503;
        reply.set("Retry-After", "18446744073709551615");
    }));
    let failure = fixture.fails("busy for ever", "HTTP 503").await;
    let week = time::OffsetDateTime::now_utc() + time::Duration::WEEK;
    assert!(failure.next <= week, "{}", failure.next);
    for asked in ["-5", "0", "1e9", "soon", "Mon, 23 Nov 1999 12:00:00 GMT"] {
        fixture.ca.answer_otherwise(move |_, reply| {
            reply.set("Retry-After", asked);
            reply.set("Date", "Mon, 23 Nov 2026 12:00:00 GMT");
        });
        fixture.issues().await;
    }
}

#[tokio::test]
async fn an_order_that_the_ca_never_finishes_is_given_up_in_time_for_another() {
    let fixture = Fixture::new();
    fixture.ca.answer_otherwise(at(Resource::Order, |reply| {
        edit(reply, |it| {
            if it["finalize"].as_str().unwrap().ends_with("/0") {
                it["status"] = "processing".into();
            }
        });
    }));
    for _ in 0..2 {
        let obtained = fixture.obtain(true).await;
        let Obtained::Failed { error, .. } = obtained else {
            panic!("{obtained:?}")
        };
        assert!(error.contains("the order stays open"), "{error}");
        assert_eq!(fixture.ca.asked(Resource::NewOrder), 1);
    }
    let path = format!("orders/{NAME}.order.json");
    let path = fixture.directory.path().join(path);
    let order = File::options().append(true).open(path).unwrap();
    let long_ago = SystemTime::now() - 4 * 24 * Duration::from_secs(3600);
    order.set_modified(long_ago).unwrap();
    let obtained = fixture.obtain(true).await;
    assert!(matches!(obtained, Obtained::Stored(_)), "{obtained:?}");
    assert_eq!(fixture.ca.asked(Resource::NewOrder), 2);
}

#[tokio::test]
async fn an_order_in_the_journal_that_leads_elsewhere_is_given_up() {
    let fixture = Fixture::new();
    for url in [
        "https://127.0.0.1:1/order/1",
        "no url\u{7f}",
        "/order/0",
        "",
    ] {
        let pending = PendingOrder {
            directory: fixture.ca.directory_url(),
            url: url.to_owned(),
            identifiers: vec![Identifier::Dns(NAME.into())],
            profile: None,
            key: PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap(),
        };
        let ledger = Ledger::new(fixture.directory.path());
        let name = CertificateName::of(&pending.identifiers[0]);
        ledger.record_order(&name, &pending).unwrap();
        fixture.issues().await;
    }
}
