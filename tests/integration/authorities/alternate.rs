//! A CA with several chains (RFC 8555 §7.4.2).

use std::fs;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::*;

/// `vhostd renew --force`, where the system's roots are those in `roots`; whether what is stored then
/// leads to the Pebble's `nth` root, and what was logged.
fn renewed(host: &Host, pebble: &Pebble, roots: &str, nth: usize) -> (bool, String) {
    let file = host.path("system-roots.pem");
    fs::write(&file, roots).unwrap();
    let mut renew = host.command(&["renew", "hello", "--force"]);
    renew.env("SSL_CERT_FILE", &file).env("VHOSTD_LOG", "info");
    let output = renew.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    (
        is_issued_below(&chain(host), &pebble.issuing_root_pem(nth)),
        log,
    )
}

/// Whether the root signed the last certificate of the chain.
fn is_issued_below(chain: &std::path::Path, root: &str) -> bool {
    let chain: Vec<_> = CertificateDer::pem_file_iter(chain)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    let (_, root) = x509_parser::parse_x509_certificate(&root).unwrap();
    let (_, last) = x509_parser::parse_x509_certificate(chain.last().unwrap()).unwrap();
    last.verify_signature(Some(root.public_key())).is_ok()
}

#[test]
fn of_several_chains_the_first_that_leads_to_a_root_of_the_system_is_served() {
    let nginx = NginxHost::new();
    let pebble = Pebble::builder(nginx.http_port).alternate_roots(2).start();
    let host = Host::on(nginx, &format!("acme: {}\n", of(&pebble)));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    // the usual one where the system trusts it, or nothing of it
    let first = pebble.issuing_root_pem(0);
    let (usual, log) = renewed(&host, &pebble, &first, 0);
    assert!(usual && !log.contains("chain"), "{log}");
    let unknown = fs::read_to_string(pebble.ca_file()).unwrap();
    let (usual, log) = renewed(&host, &pebble, &unknown, 0);
    assert!(
        usual && log.contains("no chain of the CA leads to a root"),
        "{log}"
    );
    let third = pebble.issuing_root_pem(2);
    let (alternate, log) = renewed(&host, &pebble, &third, 2);
    assert!(alternate && log.contains("an alternate is served"), "{log}");
    // and it verifies for who has nothing else
    let trust = client::Trust::pem(&third);
    host.wait_for_https(NAME, "/", &trust);
}
