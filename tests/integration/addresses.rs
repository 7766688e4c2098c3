//! Addresses over HTTPS: a client of one names no host, and gets its certificate all the same.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};

use super::support::app::App;
use super::support::client::{self, Trust};
use super::support::host::{Host, acme};
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;
use super::support::{later, wait_for};

const ADDRESS: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";
const NAME: &str = "hello.example.com";

fn at(host: &Host, address: &str) -> SocketAddr {
    format!("{address}:{}", host.nginx.https_port)
        .parse()
        .unwrap()
}

/// What a client that verifies gets from `https://ADDRESS/`: status and text.
fn visit(host: &Host, address: &str, trust: &Trust) -> Option<(u16, String)> {
    let bare = address.trim_matches(['[', ']']);
    let stream = client::connect_tls(at(host, address), bare, trust, &[]).ok()?;
    let response = client::exchange(stream, "GET", address, "/", &[]).ok()?;
    Some((response.status, response.text().to_owned()))
}

fn leaf(host: &Host, sni: &str, trust: &Trust) -> Vec<u8> {
    let stream = client::connect_tls(host.https(), sni, trust, &[]).unwrap();
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

fn has_ipv6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn drop_page(host: &Host, name: &str, server_name: &str) {
    let page = host.page(name, name);
    let text = format!("server_name: {server_name}\nroot: {}\n", page.display());
    host.drop_file(&format!("{name}.yml"), &text);
}

#[test]
fn an_address_has_a_certificate_that_a_client_without_sni_verifies() {
    let (host, pebble) = Host::with_pebble();
    is_served(&host, &pebble);
}

#[test]
fn a_newer_nginx_serves_an_address_likewise() {
    let Some(binary) = later("nginx") else {
        return eprintln!("no newer nginx here");
    };
    let nginx = NginxHost::new().with_binary(&binary);
    let pebble = Pebble::start(nginx.http_port);
    let host = Host::on(nginx, &acme(&pebble));
    is_served(&host, &pebble);
}

fn is_served(host: &Host, pebble: &Pebble) {
    let trust = Trust::Root(pebble.issuing_root());
    drop_page(host, "hello", NAME);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    // nobody speaks for unknown names, and the CA's question for an address is answered already
    assert!(visit(host, ADDRESS, &Trust::Anyone).is_none());
    let path = "/.well-known/acme-challenge/token";
    let challenge = client::get(host.http(), ADDRESS, path).unwrap();
    assert_eq!(challenge.status, 200);
    assert!(challenge.text().starts_with("token."));
    drop_page(host, "address", ADDRESS);
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(visit(host, ADDRESS, &trust), Some((200, "address".into())));
    host.wait_for_https(NAME, "/", &trust);
    let plain = client::get(host.http(), ADDRESS, "/x").unwrap();
    let target = format!("https://{ADDRESS}/x");
    assert_eq!(
        (plain.status, plain.header("Location")),
        (301, Some(&*target))
    );
    // what is nobody's gets no answer of a vhost's
    let stream = client::connect_tls(host.https(), ADDRESS, &trust, &[]).unwrap();
    let nobody = client::exchange(stream, "GET", "nobody.example.com", "/", &[]).unwrap();
    assert_eq!(nobody.status, 421);
    let first = leaf(host, ADDRESS, &trust);
    let renewed = host.vhostd(&["renew", ADDRESS, "--force"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert_ne!(leaf(host, ADDRESS, &trust), first);
    host.remove_file("address.yml");
    host.reload_ends(0, "activated");
    assert!(visit(host, ADDRESS, &Trust::Anyone).is_none());
}

#[test]
fn an_address_of_an_app_whose_bytes_are_kept_is_spoken_for() {
    let host = Host::new();
    drop_page(&host, "address", ADDRESS);
    host.reload_ends(0, "activated");
    let trust = host.internal_root();
    let app = App::start();
    host.drop_app("hello", "hello.internal", &app);
    // what the app says is no vhost file any more
    host.outdate("address");
    let report = host.reload_ends(3, "activated");
    assert_eq!(report["rejected"][0]["stale"], true, "{report}");
    assert_eq!(visit(&host, ADDRESS, &trust), Some((200, "address".into())));
    host.wait_for_https("hello.internal", "/", &trust);
    let renewed = host.vhostd(&["renew", "hello", "--force"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    host.drop_app("second", OTHER, &app);
    let report = host.reload_ends(3, "unchanged");
    let rejected = report["rejected"].as_array().unwrap().iter();
    let reasons = rejected.filter_map(|rejected| rejected["reason"].as_str());
    let mut reasons = reasons.filter(|reason| reason.contains("which serves on though"));
    assert!(reasons.next().is_some(), "{report}");
    assert_eq!(visit(&host, ADDRESS, &trust), Some((200, "address".into())));
}

#[test]
fn a_name_and_an_address_of_one_vhost_share_a_certificate() {
    let (host, pebble) = Host::with_pebble();
    let trust = Trust::Root(pebble.issuing_root());
    let app = App::start();
    host.drop_app("hello", &format!("[{NAME}, {ADDRESS}]"), &app);
    let daemon = host.daemon();
    let both = || {
        let named = client::connect_tls(host.https(), NAME, &trust, &[]).ok()?;
        let bare = client::connect_tls(host.https(), ADDRESS, &trust, &[]).ok()?;
        Some([named, bare].map(|it| it.conn.peer_certificates().unwrap()[0].to_vec()))
    };
    let [named, bare] = wait_for("both to verify", both);
    assert_eq!(named, bare, "{}", daemon.log());
    let certificate = host.certificate(NAME).unwrap();
    assert_eq!(
        certificate["identifiers"],
        serde_json::json!([NAME, ADDRESS])
    );
    assert_eq!(pebble.finalized(), 1);
}

#[test]
fn addresses_of_both_kinds_have_a_socket_and_a_certificate_each() {
    if !has_ipv6() {
        return eprintln!("no IPv6 here");
    }
    let (host, pebble) = Host::with_pebble();
    let trust = Trust::Root(pebble.issuing_root());
    drop_page(&host, "four", ADDRESS);
    drop_page(&host, "six", "\"[::1]\"");
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(visit(&host, ADDRESS, &trust), Some((200, "four".into())));
    assert_eq!(visit(&host, "[::1]", &trust), Some((200, "six".into())));
    assert_eq!(pebble.finalized(), 2);
    // with brackets or without
    for name in ["::1", "[::1]"] {
        let (status, shown) = host.json(&["status", name]);
        let vhosts = shown["vhosts"].as_array().unwrap();
        assert_eq!((status, vhosts.len()), (0, 1), "{shown}");
        let (status, renewed) = host.json(&["renew", name]);
        assert_eq!(
            (status, &renewed["certificates"][0]["name"]),
            (0, &"__1".into())
        );
    }
}

#[test]
fn two_certificates_for_addresses_of_one_socket_are_refused_and_the_first_serves_on() {
    let host = Host::new();
    drop_page(&host, "first", ADDRESS);
    host.reload_ends(0, "activated");
    let trust = host.internal_root();
    drop_page(&host, "second", OTHER);
    let report = host.reload_ends(3, "unchanged");
    let rejected = &report["rejected"][0];
    let reason = rejected["reason"].as_str().unwrap();
    let expected = format!(
        "clients of `{OTHER}` name no host, and can only get the certificate of `{ADDRESS}`"
    );
    assert!(reason.starts_with(&expected), "{reason}");
    assert!(reason.contains("first.yml:1"), "{reason}");
    assert_eq!(
        (&rejected["name"], &rejected["line"]),
        (&"second".into(), &1.into())
    );
    assert_eq!(visit(&host, ADDRESS, &trust), Some((200, "first".into())));
    // also in one file; and `check` says so before
    host.remove_file("second.yml");
    let page = host.page("first", "first");
    let vhost = |name: &str| format!("- {{server_name: {name}, root: {}}}\n", page.display());
    host.drop_file("first.yml", &(vhost(ADDRESS) + &vhost(OTHER)));
    assert_eq!(host.vhostd(&["check"]).status, 3);
    let report = host.reload_ends(3, "unchanged");
    assert_eq!(report["rejected"][0]["line"], 2, "{report}");
    // one certificate for both is what a socket can speak with
    drop_page(&host, "first", &format!("[{ADDRESS}, {OTHER}]"));
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    for address in [ADDRESS, OTHER] {
        assert_eq!(visit(&host, address, &trust), Some((200, "first".into())));
    }
}

#[test]
fn addresses_that_have_a_socket_each_have_a_certificate_each() {
    let host = Host::new();
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let listen = format!("nginx: {{listen: [{ADDRESS}, {OTHER}], ");
    fs::write(
        host.path("vhostd.yml"),
        settings.replace("nginx: {", &listen),
    )
    .unwrap();
    drop_page(&host, "first", ADDRESS);
    drop_page(&host, "second", OTHER);
    host.reload_ends(0, "activated");
    let trust = host.internal_root();
    assert_eq!(visit(&host, ADDRESS, &trust), Some((200, "first".into())));
    assert_eq!(visit(&host, OTHER, &trust), Some((200, "second".into())));
}

#[test]
fn an_address_behind_a_hand_written_default_server_is_rejected_with_its_place() {
    let host = Host::new();
    drop_page(&host, "hello", NAME);
    drop_page(&host, "address", ADDRESS);
    host.reload_ends(0, "activated");
    let trust = host.internal_root();
    assert_eq!(visit(&host, ADDRESS, &trust), Some((200, "address".into())));
    let site = format!(
        "# mine\nserver {{\n    listen {} ssl default_server;\n    ssl_reject_handshake on;\n}}\n",
        host.nginx.https_port
    );
    host.nginx.site("mine.conf", &site);
    let report = host.reload_ends(3, "activated");
    let reason = report["rejected"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("the default server of 0.0.0.0:"),
        "{reason}"
    );
    assert!(reason.ends_with("sites/mine.conf:2"), "{reason}");
    assert_eq!(host.vhost("address").unwrap()["state"], "rejected");
    assert_eq!(host.vhost("hello").unwrap()["state"], "serving");
    assert!(visit(&host, ADDRESS, &Trust::Anyone).is_none());
    fs::remove_file(host.path("sites/mine.conf")).unwrap();
    host.reload_ends(0, "activated");
    assert_eq!(visit(&host, ADDRESS, &trust), Some((200, "address".into())));
}
