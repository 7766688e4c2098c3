//! The certificate itself.

use rcgen::{DnType, ExtendedKeyUsagePurpose, SanType, SerialNumber};
use time::{Duration, OffsetDateTime};

use super::{Fixture, NAME};
use crate::support::mock_ca::{MockCa, Resource};

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[tokio::test]
async fn a_certificate_for_other_names_is_not_stored() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let cases = [
        vec![dns("b.example")],
        vec![dns(NAME), dns("b.example")],
        vec![dns("*.example")],
        vec![dns("a\u{1b}[31m.example")],
        vec![SanType::IpAddress([127, 0, 0, 1].into())],
        (0..500).map(|n| dns(&format!("n{n}.example"))).collect(),
    ];
    for names in cases {
        let what = format!("{:?}", names.first());
        fixture
            .ca
            .issue_otherwise(move |it| it.subject_alt_names.clone_from(&names));
        fixture.fails(&what, "for other names").await;
    }
    fixture.ca.issue_otherwise(|it| {
        it.subject_alt_names.clear();
        it.distinguished_name.push(DnType::CommonName, NAME);
    });
    fixture
        .fails("only a common name", "no subject alternative name")
        .await;
}

#[tokio::test]
async fn a_certificate_for_another_key_is_not_stored() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let other = fixture.ca.chain_for_another_key(NAME);
    fixture.ca.answer_otherwise(move |asked, reply| {
        if asked.resource == Resource::Certificate {
            reply.body = other.clone().into_bytes();
        }
    });
    fixture.fails("another key", "its key is not the one").await;
}

#[tokio::test]
async fn a_certificate_of_an_absurd_validity_is_not_stored() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let hour = Duration::HOUR;
    for (from, to, words) in [
        (-100 * hour, -hour, "now, at"),
        (hour, 1000 * hour, "now, at"),
        (hour, -hour, "now, at"),
        (-hour, Duration::days(40_000), "that lasts 40000 days"),
        // the stored one lasts for months
        (-1000 * hour, hour, "due for renewal at once"),
    ] {
        fixture.ca.issue_otherwise(move |it| {
            it.not_before = now() + from;
            it.not_after = now() + to;
        });
        fixture.fails(&format!("from {from} to {to}"), words).await;
    }
}

#[tokio::test]
async fn a_serial_number_that_was_given_before_replaces_nothing() {
    let fixture = Fixture::new();
    let stored = fixture.issues().await;
    let chain = std::fs::read(&stored.chain).unwrap();
    let serial: Vec<u8> = (0..stored.serial.len() / 2)
        .map(|at| u8::from_str_radix(&stored.serial[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    fixture.ca.issue_otherwise(move |it| {
        it.serial_number = Some(SerialNumber::from(serial.clone()));
    });
    fixture
        .fails(
            "the same serial number",
            "another certificate with the serial number",
        )
        .await;
    assert_eq!(std::fs::read(&stored.chain).unwrap(), chain);
}

#[tokio::test]
async fn a_certificate_that_browsers_refuse_for_a_server_is_not_stored() {
    let fixture = Fixture::new();
    fixture.issues().await;
    fixture.ca.issue_otherwise(|it| {
        it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    fixture.fails("for clients", "not for servers").await;
    fixture.ca.issue_otherwise(|it| {
        it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    fixture.issues().await;
}

#[tokio::test]
async fn a_chain_that_is_none_is_not_stored() {
    let fixture = Fixture::new();
    fixture.issues().await;
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let strangers = MockCa::strangers_intermediate();
    type Change = Box<dyn Fn(&str) -> String + Send>;
    // a chain is a leaf and an intermediate
    let end = "-----END CERTIFICATE-----\n";
    let split = move |chain: &str| {
        let chain = chain.replace('\r', "");
        let (leaf, rest) = chain.split_once(end).unwrap();
        (format!("{leaf}{end}"), rest.to_owned())
    };
    let cases: Vec<(&str, Change, &str)> = vec![
        (
            "a stranger's intermediate",
            Box::new(move |it| split(it).0 + &strangers),
            "the signature is another's",
        ),
        (
            "the leaf twice",
            Box::new(move |it| split(it).0.repeat(2)),
            "names another issuer",
        ),
        (
            "the wrong order",
            Box::new(move |it| {
                let (leaf, rest) = split(it);
                rest + &leaf
            }),
            "no subject alternative name",
        ),
        (
            "an endless chain",
            Box::new(move |it| {
                let (leaf, rest) = split(it);
                leaf + &rest.repeat(50)
            }),
            "more than 10 certificates",
        ),
        (
            "a private key",
            Box::new(move |it| format!("{it}{key}")),
            "not a certificate",
        ),
        (
            "no block",
            Box::new(|_| "hello".to_owned()),
            "without any certificate",
        ),
        (
            "nothing",
            Box::new(|_| String::new()),
            "without any certificate",
        ),
        ("half a block", Box::new(|it| it[..200].to_owned()), ""),
        (
            "no DER",
            Box::new(|_| {
                "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n".to_owned()
            }),
            "parse certificate 1",
        ),
        (
            "a terminal's words",
            Box::new(|_| {
                "-----BEGIN \u{1b}[31m-----\naGVsbG8=\n-----END \u{1b}[31m-----\n".to_owned()
            }),
            "",
        ),
    ];
    for (what, change, words) in cases {
        fixture.ca.answer_otherwise(move |asked, reply| {
            if asked.resource == Resource::Certificate {
                let chain = String::from_utf8(reply.body.clone()).unwrap();
                reply.body = change(&chain).into_bytes();
            }
        });
        fixture.fails(what, words).await;
    }
    fixture.ca.answer_otherwise(|asked, reply| {
        if asked.resource == Resource::Certificate {
            reply.body = vec![0xff; 1000];
        }
    });
    fixture.fails("no text", "UTF-8").await;
    // text around the blocks is dropped, whatever it is
    fixture.ca.answer_otherwise(|asked, reply| {
        if asked.resource == Resource::Certificate {
            reply.body = [
                b"; include /etc/passwd;\n".as_slice(),
                &reply.body,
                b"\n}\n",
            ]
            .concat();
        }
    });
    let stored = fixture.issues().await;
    let chain = std::fs::read_to_string(stored.chain).unwrap();
    assert!(!chain.contains("include"), "{chain}");
}
