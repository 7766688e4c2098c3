//! The whole daemon beside such a CA.

use std::fs;

use crate::support::app::App;
use crate::support::host::{Daemon, Host};
use crate::support::mock_ca::wire::Manner;
use crate::support::mock_ca::{MockCa, Resource, edit};
use crate::support::nginx::NginxHost;
use crate::support::traffic::Traffic;
use crate::support::wait_for;

const GOOD: &str = "good.example.com";
const BAD: &str = "bad.example.com";

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
