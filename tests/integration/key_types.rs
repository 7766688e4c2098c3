//! An ECDSA and an RSA certificate for the same names, served together.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use rustls::{SignatureScheme, SupportedProtocolVersion};

use super::support::app::App;
use super::support::client::{ECDSA, RSA, leaf_for};
use super::support::host::{Host, acme};
use super::support::mock_ca::{MockCa, Resource};
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;
use super::support::wait_for;

const NAME: &str = "hello.example.com";
const FURTHER: &str = "hello.example.com+rsa-2048";

/// What clients get who know ECDSA, or RSA, alone.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Leaves {
    ecdsa: Option<Vec<u8>>,
    rsa: Option<Vec<u8>>,
}

fn leaves(host: &Host, root: &CertificateDer<'static>) -> Leaves {
    leaves_in(host, root, &TLS13)
}

fn leaves_in(
    host: &Host,
    root: &CertificateDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> Leaves {
    let leaf = |schemes: &'static [SignatureScheme]| {
        leaf_for(host.https(), NAME, root, schemes, &[version]).ok()
    };
    Leaves {
        ecdsa: leaf(ECDSA),
        rsa: leaf(RSA),
    }
}

/// `acme`, with a list of two types.
fn both(pebble: &Pebble) -> String {
    let one = acme(pebble);
    one.replace("}\n", ", key_type: [ecdsa-p256, rsa-2048]}\n")
}

fn host_with_both() -> (Host, Pebble) {
    let nginx = NginxHost::new();
    let pebble = Pebble::start(nginx.http_port);
    let settings = both(&pebble);
    (Host::on(nginx, &settings), pebble)
}

#[test]
fn each_client_gets_the_certificate_of_the_kind_that_it_can_verify() {
    let (host, pebble) = host_with_both();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    let root = pebble.issuing_root();
    let served = leaves(&host, &root);
    assert!(served.ecdsa.is_some() && served.rsa.is_some(), "{served:?}");
    assert_ne!(served.ecdsa, served.rsa);
    // what knows RSA alone is old
    assert_eq!(leaves_in(&host, &root, &TLS12), served);
    assert_eq!(pebble.finalized(), 2);
    let status = host.status();
    for (name, key_type) in [(NAME, "ecdsa-p256"), (FURTHER, "rsa-2048")] {
        let certificate = host.certificate(name).unwrap();
        assert_eq!(
            (&certificate["state"], &certificate["key_type"]),
            (&"valid".into(), &key_type.into()),
            "{status}"
        );
        let level = host.path(&format!("state/certificates/{NAME}/{key_type}/current"));
        pebble.verify(&level.join("fullchain.pem"), NAME);
        assert_eq!(
            fs::metadata(level.join("privkey.pem")).unwrap().mode() & 0o777,
            0o600
        );
    }
    let words = host.vhostd(&["status", "hello"]).stdout;
    assert!(
        words.contains("acme, 89 days left; rsa-2048: acme, 89 days left"),
        "{words}"
    );
}

#[test]
fn each_type_is_renewed_by_itself_and_a_name_renews_both() {
    let (host, pebble) = host_with_both();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let root = pebble.issuing_root();
    let first = leaves(&host, &root);
    let renewed = host.vhostd(&["renew", FURTHER, "--force"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    let second = leaves(&host, &root);
    assert_eq!(second.ecdsa, first.ecdsa);
    assert!(second.rsa.is_some() && second.rsa != first.rsa);
    let daemon = host.daemon();
    let (status, renewed) = host.json(&["renew", "hello", "--force"]);
    assert_eq!(status, 0, "{renewed} {}", daemon.log());
    assert_eq!(
        renewed["certificates"].as_array().unwrap().len(),
        2,
        "{renewed}"
    );
    let third = leaves(&host, &root);
    assert!(third.ecdsa.is_some() && third.ecdsa != second.ecdsa);
    assert!(third.rsa.is_some() && third.rsa != second.rsa);
    assert_eq!(pebble.finalized(), 5);
}

#[test]
fn a_second_type_comes_and_goes_without_another_order_for_the_first() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let daemon = host.daemon();
    let reload = |settings: &str| {
        host.configure(settings);
        let reload = host.vhostd(&["reload", "--wait"]);
        assert_eq!(reload.status, 0, "{reload:?} {}", daemon.log());
    };
    reload(&acme(&pebble));
    let root = pebble.issuing_root();
    let one = leaves(&host, &root);
    assert!(one.ecdsa.is_some() && one.rsa.is_none(), "{one:?}");
    reload(&both(&pebble));
    let two = leaves(&host, &root);
    assert_eq!(two.ecdsa, one.ecdsa);
    assert!(two.rsa.is_some());
    reload(&acme(&pebble));
    assert_eq!(leaves(&host, &root), one);
    let kept = host.path(&format!(
        "state/certificates/{NAME}/rsa-2048/current/fullchain.pem"
    ));
    pebble.verify(&kept, NAME);
    assert_eq!(
        host.certificate(FURTHER).unwrap()["renew_at"],
        serde_json::Value::Null
    );
    // what was kept is served again
    reload(&both(&pebble));
    assert_eq!(leaves(&host, &root), two);
    assert_eq!(pebble.finalized(), 2);
}

#[test]
fn the_two_orders_are_made_one_after_the_other() {
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    let settings = format!(
        "acme: {{directory: {}, ca_file: {}, key_type: [ecdsa-p256, rsa-2048]}}\n",
        ca.directory_url(),
        ca.ca_file().display()
    );
    let steps: Arc<Mutex<Vec<Resource>>> = Arc::default();
    let noted = Arc::clone(&steps);
    ca.answer_otherwise(move |asked, _| {
        if matches!(asked.resource, Resource::NewOrder | Resource::Certificate) {
            noted.lock().unwrap().push(asked.resource);
        }
    });
    let host = Host::on(nginx, &settings);
    let app = App::start();
    let _daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    wait_for("both certificates", || {
        let valid = |name| Some(host.certificate(name)?["state"] == "valid");
        (valid(NAME)? && valid(FURTHER)?).then_some(())
    });
    let order = [Resource::NewOrder, Resource::Certificate];
    assert_eq!(*steps.lock().unwrap(), [order, order].concat());
}

/// No order of that certificate can be written down.
fn block(host: &Host, name: &str) {
    let order = host.path(&format!("state/orders/{name}.order.json"));
    fs::create_dir_all(order.join("blocked")).unwrap();
}

#[test]
fn a_further_type_that_fails_does_not_hold_up_the_first() {
    let (host, pebble) = host_with_both();
    let app = App::start();
    block(&host, FURTHER);
    let daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    let (status, report) = host.json(&["reload", "--wait"]);
    assert_eq!(status, 4, "{report}");
    assert_eq!(
        report["certificates"]["failed"],
        serde_json::json!([FURTHER]),
        "{report}"
    );
    let named = host.vhostd(&["reload", "hello", "--wait"]);
    assert_eq!(named.status, 4, "{named:?}");
    let served = leaves(&host, &pebble.issuing_root());
    assert!(served.ecdsa.is_some() && served.rsa.is_none(), "{served:?}");
    let failing = host.certificate(FURTHER).unwrap();
    assert_eq!(failing["state"], "failing", "{failing} {}", daemon.log());
    assert_eq!(host.vhost("hello").unwrap()["state"], "serving");
    let words = host.vhostd(&["status"]).stdout;
    assert!(
        words.contains("days left; rsa-2048: missing, failing"),
        "{words}"
    );
}

#[test]
fn nobody_gets_a_placeholder_while_the_certificate_of_a_further_type_is_good() {
    let (host, pebble) = host_with_both();
    let app = App::start();
    block(&host, NAME);
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    let served = leaves(&host, &pebble.issuing_root());
    assert!(served.ecdsa.is_none() && served.rsa.is_some(), "{served:?}");
    let either = leaf_for(
        host.https(),
        NAME,
        &pebble.issuing_root(),
        &[
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::RSA_PSS_SHA256,
        ],
        &[&TLS13],
    );
    assert_eq!(either.ok(), served.rsa);
}

#[test]
fn the_internal_ca_signs_both_types_before_the_vhost_serves() {
    let host = Host::new();
    let app = App::start();
    let text = format!(
        "server_name: {NAME}\nproxy_pass_url: {}\ntls: {{key_type: [ecdsa-p256, rsa-2048]}}\n",
        app.url()
    );
    host.drop_file("hello.yml", &text);
    host.reload_ends(0, "activated");
    let root = fs::read(host.path("state/internal-ca/root.pem")).unwrap();
    let root = rustls::pki_types::pem::PemObject::from_pem_slice(&root).unwrap();
    let served = wait_for("both certificates", || {
        let served = leaves(&host, &root);
        (served.ecdsa.is_some() && served.rsa.is_some()).then_some(served)
    });
    assert_ne!(served.ecdsa, served.rsa);
}

#[test]
fn a_name_that_shows_one_of_two_certificates_only_differs_for_whom_it_shows_none() {
    let host = Host::with_settings("tls: internal\nacme: {key_type: [ecdsa-p256, rsa-2048]}\n");
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let daemon = host.daemon();
    let served = |is_right: &dyn Fn(&serde_json::Value) -> bool| {
        wait_for("a look at what is served", || {
            let served = host.certificate(NAME)?["served"].clone();
            (served["checked_at"].is_string() && is_right(&served["differs"])).then_some(served)
        })
    };
    served(&|differs| *differs == serde_json::json!([]));
    // somebody takes the name, with the very certificate, but one
    let stored = host.path(&format!("state/certificates/{NAME}/current"));
    let site = format!(
        "server {{\n  listen {} ssl http2;\n  server_name {NAME};\n  ssl_certificate {};\n  ssl_certificate_key {};\n}}\n",
        host.nginx.https_port,
        stored.join("fullchain.pem").display(),
        stored.join("privkey.pem").display()
    );
    fs::write(host.path("conf.d/own.conf"), site).unwrap();
    assert_eq!(daemon.stop(), 0);
    host.nginx.stop();
    host.nginx.start();
    // it looks for all names when it starts
    let _daemon = host.daemon();
    let served = served(&|differs| *differs != serde_json::json!([]));
    let found = served["differs"][0]["found"].as_str().unwrap();
    assert!(
        found.starts_with("to clients of RSA alone, no certificate at all"),
        "{served}"
    );
}
