//! A CA that takes only customers (RFC 8555 §7.3.4).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;

const KEY_ID: &str = "kid-1";
/// RFC 4648 §5.
const MAC_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
const OTHER_MAC_KEY: &str = "b10lLJs8l1GPIzsLP0s6pMt8O0XVGnfTaCeROxQM0BIt2XrJMDHJZBM5NuQmQJQH";

fn customers_only(host: NginxHost) -> (Host, Pebble) {
    let pebble = Pebble::builder(host.http_port)
        .external_account(KEY_ID, MAC_KEY)
        .start();
    let host = Host::on(host, &format!("acme: {}\n", of(&pebble)));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    (host, pebble)
}

fn key_file(host: &Host, text: &str) -> PathBuf {
    let path = host.path("mac.key");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn bound(host: &Host, pebble: &Pebble) {
    let account = format!(
        "{{key_id: {KEY_ID}, hmac_key_file: {}}}",
        host.path("mac.key").display()
    );
    let (directory, ca_file) = (pebble.directory_url(), pebble.ca_file());
    host.configure(&format!(
        "acme: {{directory: {directory}, ca_file: {}, external_account: {account}}}\n",
        ca_file.display()
    ));
}

#[test]
fn a_ca_that_takes_only_customers_says_what_is_missing_and_gets_the_binding_once_it_is_set() {
    let (host, pebble) = customers_only(NginxHost::new());
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    let error = failed(&host);
    assert!(error.contains("set `external_account`"), "{error}");
    assert_eq!(host.certificate(NAME).unwrap()["state"], "invalid");
    // a key of somebody else's
    key_file(&host, OTHER_MAC_KEY);
    bound(&host, &pebble);
    assert_eq!(host.vhostd(&["renew", "hello"]).status, 4);
    let error = failed(&host);
    assert!(
        error.contains("are `key_id` and `hmac_key_file` right"),
        "{error}"
    );
    // padded, as some give it
    let path = key_file(&host, &format!("{MAC_KEY}==\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(host.vhostd(&["renew", "hello"]).status, 4);
    assert!(
        failed(&host).contains("everybody may read it"),
        "{}",
        failed(&host)
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let renew = host.vhostd(&["renew", "hello"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    pebble.verify(&chain(&host), NAME);
    // it is needed once
    fs::remove_file(path).unwrap();
    assert_eq!(host.vhostd(&["renew", "hello", "--force"]).status, 0);
}

#[test]
fn a_later_ca_takes_the_binding_a_key_change_and_an_order_by_the_new_key_too() {
    let nginx = NginxHost::new();
    let builder = Pebble::builder(nginx.http_port).external_account(KEY_ID, MAC_KEY);
    let Some(builder) = builder.later() else {
        return;
    };
    let pebble = builder.alternate_roots(1).start();
    let host = Host::on(nginx, "tls: internal\n");
    key_file(&host, MAC_KEY);
    bound(&host, &pebble);
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let rolled = host.vhostd(&["account", "roll-over", "127.0.0.1"]);
    assert_eq!(rolled.status, 0, "{rolled:?}");
    let renew = host.vhostd(&["renew", "hello", "--force"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    pebble.verify(&chain(&host), NAME);
}
