//! The whole daemon beside such a CA.

use std::fs;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::app::App;
use crate::support::host::{Daemon, Host};
use crate::support::mock_ca::wire::Manner;
use crate::support::mock_ca::{MockCa, Resource, edit};
use crate::support::nginx::NginxHost;
use crate::support::traffic::Traffic;
use crate::support::wait_for;

const GOOD: &str = "good.example.com";
/// So long that a socket's path beside its certificate would be too long for nginx.
const BAD: &str =
    "bad.a-name-of-many-letters-as-they-are-met-in-the-field.test-environments.example.com";

fn host() -> (Host, MockCa, App) {
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    let settings = format!(
        "acme: {{directory: {}, ca_file: {}}}\n",
        ca.directory_url(),
        ca.ca_file().display()
    );
    (Host::on(nginx, &settings), ca, App::start())
}

/// In KiB.
fn resident(daemon: &Daemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().nth(1));
    size.unwrap().parse().unwrap()
}

#[test]
fn one_certificate_that_the_ca_gets_wrong_holds_up_no_other() {
    let (host, ca, app) = host();
    ca.answer_otherwise(|asked, reply| {
        let bad = asked.names.iter().any(|name| name == BAD);
        if bad && asked.resource == Resource::Order && reply.status < 300 {
            edit(reply, |it| {
                it["status"] = "\u{1b}[2J\u{1b}]0;owned\u{7}".into()
            });
        }
    });
    let daemon = host.daemon();
    host.drop_app("bad", BAD, &app);
    wait_for("the failure", || {
        (host.certificate(BAD)?["state"] == "failing").then_some(())
    });
    host.drop_app("good", GOOD, &app);
    host.wait_for_https(GOOD, "/", &ca.root());
    let certificate = host.certificate(BAD).unwrap();
    let error = certificate["last_error"].as_str().unwrap();
    assert!(error.contains("ask for the order"), "{certificate}");
    // what a person sees of it
    let shown = host.vhostd(&["status"]);
    for text in [error, &shown.stdout, &shown.stderr, &daemon.log()] {
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{7}'),
            "{text:?}"
        );
    }
    ca.behave();
    let renewed = host.vhostd(&["renew", BAD]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    host.wait_for_https(BAD, "/", &ca.root());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn orders_that_the_ca_never_finishes_hold_up_no_other() {
    let (host, ca, app) = host();
    ca.answer_otherwise(|asked, reply| {
        let hangs = asked.names.iter().any(|name| name.starts_with("hangs"));
        if hangs && asked.resource == Resource::Order {
            edit(reply, |it| it["status"] = "pending".into());
        }
    });
    let daemon = host.daemon();
    // more than are under way at a time
    for nth in 0..12 {
        host.drop_app(
            &format!("hangs{nth}"),
            &format!("hangs.of-{nth}.example"),
            &app,
        );
    }
    wait_for("the orders that hang", || {
        (ca.asked(Resource::NewOrder) >= 8).then_some(())
    });
    host.drop_app("good", GOOD, &app);
    host.wait_for_https(GOOD, "/", &ca.root());
    assert_eq!(
        host.certificate("hangs.of-0.example").unwrap()["state"],
        "placeholder"
    );
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn what_serves_serves_on_beside_a_hostile_ca_and_the_daemons_memory_is_steady() {
    let (host, ca, app) = host();
    let daemon = host.daemon();
    host.drop_app("good", GOOD, &app);
    host.wait_for_https(GOOD, "/", &ca.root());
    host.wait_for_serving("good");
    let current = || fs::read_link(host.path("state/certificates/good.example.com/current"));
    let (serial, generation) = (current().unwrap(), host.active());
    let traffic = Traffic::https(&host, GOOD, ca.root());
    let attempt = |resource: Resource, manner: Manner| {
        ca.answer_otherwise(move |asked, reply| {
            if asked.resource == resource {
                reply.manner = manner;
            }
        });
        let renewed = host.vhostd(&["renew", "--force", GOOD]);
        assert_eq!(renewed.status, 4, "{manner:?}: {renewed:?}");
    };
    // what is allocated once
    attempt(Resource::Certificate, Manner::EndlessBody);
    let before = resident(&daemon);
    for _ in 0..5 {
        attempt(Resource::Certificate, Manner::EndlessBody);
        attempt(Resource::NewOrder, Manner::EndlessHeaders);
        attempt(Resource::Order, Manner::EndlessBody);
    }
    let grown = resident(&daemon).saturating_sub(before);
    assert!(grown < 3000, "{grown} KiB more than {before}");
    traffic.assert_unbroken();
    assert_eq!(
        (current().unwrap(), host.active()),
        (serial.clone(), generation)
    );
    ca.behave();
    let renewed = host.vhostd(&["renew", "--force", GOOD]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert_ne!(current().unwrap(), serial);
    assert_eq!(daemon.stop(), 0);
}

/// The chain with an intermediate whose signature is of no known kind: its own algorithm
/// identifier, the last in it, is changed, and nobody of the chain has to verify it.
fn with_unknown_algorithm(chain: &[u8]) -> Vec<u8> {
    let parts = CertificateDer::pem_slice_iter(chain).map(|part| part.unwrap().to_vec());
    let mut parts: Vec<_> = parts.collect();
    // ecdsa-with-SHA256 (RFC 5758 §3.2)
    let oid = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let at = parts[1]
        .windows(oid.len())
        .rposition(|window| window == oid);
    parts[1][at.unwrap() + oid.len() - 1] = 0x06;
    let encoded = parts.iter().map(|part| {
        let text = BASE64_STANDARD.encode(part);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    });
    encoded.collect::<String>().into_bytes()
}

#[test]
fn a_chain_that_only_nginx_refuses_is_not_stored_and_holds_up_nobody() {
    let (host, ca, app) = host();
    ca.answer_otherwise(|asked, reply| {
        let bad = asked.names.iter().any(|name| name == BAD);
        if bad && asked.resource == Resource::Certificate {
            reply.body = with_unknown_algorithm(&reply.body);
        }
    });
    let daemon = host.daemon();
    host.drop_app("bad", BAD, &app);
    let error = wait_for("the failure", || {
        let certificate = host.certificate(BAD)?;
        Some(certificate["last_error"].as_str()?.to_owned())
    });
    assert!(error.contains("nginx cannot load"), "{error}");
    let stored = host.path("state/certificates").join(BAD);
    assert_eq!(fs::read_dir(&stored).unwrap().count(), 0, "a version");
    let beside = fs::read_dir(stored.parent().unwrap()).unwrap();
    let left: Vec<_> = beside.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().contains("trial")),
        "{left:?}"
    );
    host.drop_app("good", GOOD, &app);
    host.wait_for_https(GOOD, "/", &ca.root());
    ca.behave();
    assert_eq!(host.vhostd(&["renew", BAD]).status, 0);
    host.wait_for_https(BAD, "/", &ca.root());
    assert_eq!(daemon.stop(), 0);
}
