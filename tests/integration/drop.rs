//! The first way in which vhostd is used: drop a file.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::support::app::App;
use super::support::client::{self, Response, Trust};
use super::support::gate::Gate;
use super::support::host::{Host, acme};
use super::support::nginx::{NginxHost, free_port};
use super::support::pebble::Pebble;
use super::support::scripted::Scripted;
use super::support::traffic::Traffic;
use super::support::wait_for;

const HELLO: &str = "hello.example.com";

#[test]
fn a_dropped_file_is_served_over_https_that_verifies() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", HELLO, &app);
    let trust = Trust::Root(pebble.issuing_root());
    let answer = host.wait_for_https(HELLO, "/", &trust);
    assert_eq!(answer.status, 200);
    println!("{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_changed_file_is_served_changed() {
    let host = Host::new();
    let (old, new) = (App::start(), App::start());
    let _daemon = host.daemon();
    host.drop_app("hello", HELLO, &old);
    let trust = wait_for_root(&host);
    let answer = host.wait_for_https(HELLO, "/", &trust);
    assert_eq!(
        answer.header("X-App"),
        Some(old.address.to_string().as_str())
    );
    host.drop_app("hello", HELLO, &new);
    wait_for("the new upstream", || answers(&host, &trust, &new));
}

/// As a CDN does that is told to use HTTPS always (certbot#7275, caddy#2898).
#[test]
fn behind_an_edge_that_redirects_all_of_port_80_to_https_a_certificate_is_obtained() {
    let edge = free_port();
    let pebble = Pebble::start(edge);
    let host = Host::with_settings(&acme(&pebble));
    let https = host.nginx.https_port;
    let edge = Scripted::at(([127, 0, 0, 1], edge).into(), move |request, stream| {
        let name = request.header("host").unwrap_or_default();
        let name = name.split(':').next().unwrap_or_default();
        let path = &request.path;
        write!(
            stream,
            "HTTP/1.1 301 Moved Permanently\r\nLocation: https://{name}:{https}{path}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        Ok(false)
    });
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let renew = host.vhostd(&["renew", HELLO]);
    assert_eq!(renew.status, 0, "{renew:?}");
    assert!(edge.requests() > 0);
    host.wait_for_https(HELLO, "/", &Trust::Root(pebble.issuing_root()));
}

/// While the vhost is one of `tls: internal`, it leaves challenges to others: an order that began then
/// would fail.
#[test]
fn a_vhost_that_is_switched_to_http01_gets_its_certificate_with_the_first_order() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let daemon = host.daemon();
    let keys = format!("server_name: {HELLO}\nproxy_pass_url: \"{}\"\n", app.url());
    host.drop_file("hello.yml", &format!("{keys}tls: internal\n"));
    host.wait_for_serving("hello");
    let challenge = || client::get(host.http(), HELLO, "/.well-known/acme-challenge/x").unwrap();
    assert!(!challenge().text().starts_with("x."));
    host.drop_file("hello.yml", &keys);
    let trust = Trust::Root(pebble.issuing_root());
    host.wait_for_https(HELLO, "/", &trust);
    assert!(challenge().text().starts_with("x."));
    let log = daemon.log();
    assert!(!log.contains("failed"), "{log}");
}

#[test]
fn a_removed_files_vhost_goes_after_a_second_and_its_names_answer_444_and_no_handshake() {
    let host = Host::new();
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", HELLO, &app);
    host.drop_app("other", "other.example.com", &app);
    let trust = wait_for_root(&host);
    host.wait_for_https(HELLO, "/", &trust);
    host.wait_for_https("other.example.com", "/", &trust);
    host.wait_for_serving("hello");
    host.wait_for_serving("other");
    let removed = Instant::now();
    host.remove_file("hello.yml");
    wait_for("the vhost to go", || {
        let answer = client::get_tls(host.https(), HELLO, "/", &trust);
        match answer {
            Ok(answer) => {
                assert_eq!(answer.status, 200);
                None
            }
            Err(_) => Some(()),
        }
    });
    assert!(
        removed.elapsed() >= Duration::from_secs(1),
        "{}",
        daemon.log()
    );
    // an old worker may still answer for a moment
    wait_for("444", || closes_without_a_word(host.http(), HELLO));
    wait_for("a refused handshake", || {
        let refused = client::connect_tls(host.https(), HELLO, &Trust::Anyone, &[]).err()?;
        refused.to_string().contains("alert").then_some(())
    });
    host.wait_for_https("other.example.com", "/", &trust);
}

#[test]
fn a_save_by_unlink_and_create_drops_no_request() {
    let host = Host::new();
    let apps = [App::start(), App::start()];
    let _daemon = host.daemon();
    host.drop_app("hello", HELLO, &apps[0]);
    let trust = wait_for_root(&host);
    host.wait_for_serving("hello");
    let traffic = Traffic::https(&host, HELLO, trust.clone());
    for round in 1..5 {
        let app = &apps[round % 2];
        // at rest: what is removed in a flood waits for its turn anyway
        thread::sleep(Duration::from_millis(1200));
        host.remove_file("hello.yml");
        // a slow editor
        thread::sleep(Duration::from_millis(300));
        let text = format!("server_name: {HELLO}\nproxy_pass_url: {}\n", app.url());
        fs::write(host.path("vhosts.d/hello.yml"), text).unwrap();
        wait_for("the saved file", || answers(&host, &trust, app));
    }
    traffic.assert_unbroken();
}

#[test]
fn a_renamed_file_keeps_serving_without_a_failed_request() {
    let host = Host::new();
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("a", HELLO, &app);
    let trust = wait_for_root(&host);
    host.wait_for_serving("a");
    let traffic = Traffic::https(&host, HELLO, trust);
    let directory = host.path("vhosts.d");
    fs::rename(directory.join("a.yml"), directory.join("b.yml")).unwrap();
    wait_for("the new name", || {
        (host.rendered("b").is_some() && host.rendered("a").is_none()).then_some(())
    });
    wait_for("the status", || {
        (host.vhost("b")?["state"] == "serving").then_some(())
    });
    assert!(host.vhost("a").is_none());
    traffic.assert_unbroken();
    assert!(!daemon.log().contains("rejected"), "{}", daemon.log());
}

#[test]
fn a_list_of_mappings_is_served() {
    let host = Host::new();
    let app = App::start();
    let page = host.page("docs", "the docs\n");
    let _daemon = host.daemon();
    let text = format!(
        "- server_name: {HELLO}\n  proxy_pass_url: {}\n- server_name: docs.example.com\n  root: {}\n",
        app.url(),
        page.display()
    );
    host.drop_file("hello.yml", &text);
    let trust = wait_for_root(&host);
    host.wait_for_https(HELLO, "/", &trust);
    let docs = host.wait_for_https("docs.example.com", "/", &trust);
    assert_eq!(docs.text(), "the docs\n");
    host.wait_for_serving("hello#1");
    host.wait_for_serving("hello#2");
}

#[test]
fn the_form_of_ansible_users_is_served_with_one_certificate_for_both_vhosts() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let _daemon = host.daemon();
    let text = format!(
        "pki__realms:\n  - domains: [\"hello.example.com\", \"shop.example.com\"]\n\
         nginx__vhosts:\n  - server_name: \"hello.example.com\"\n    proxy_pass_url: \"{url}\"\n    cache_assets: true\n\
         \x20 - server_name: \"shop.example.com\"\n    proxy_pass_url: \"{url}\"\n",
        url = app.url()
    );
    host.drop_file("hello.yml", &text);
    let trust = Trust::Root(pebble.issuing_root());
    host.wait_for_https(HELLO, "/", &trust);
    host.wait_for_https("shop.example.com", "/", &trust);
    assert_eq!(leaf(&host, HELLO), leaf(&host, "shop.example.com"));
    assert_eq!(pebble.finalized(), 1);
}

#[test]
fn redirect_from_answers_301_with_path_and_query_on_both_ports_and_is_in_the_certificate() {
    let host = Host::new();
    let app = App::start();
    let _daemon = host.daemon();
    let text = format!(
        "server_name: {HELLO}\nredirect_from: www.example.com\nproxy_pass_url: {}\n",
        app.url()
    );
    host.drop_file("hello.yml", &text);
    let trust = wait_for_root(&host);
    host.wait_for_serving("hello");
    let location = format!("https://{HELLO}/a/b?c=d&e=%20");
    let path = "/a/b?c=d&e=%20";
    for answer in [
        client::get(host.http(), "www.example.com", path).unwrap(),
        client::get_tls(host.https(), "www.example.com", path, &trust).unwrap(),
    ] {
        assert_eq!(answer.status, 301);
        assert_eq!(answer.header("Location"), Some(location.as_str()));
    }
}

#[test]
fn redirect_from_beside_a_wildcard_leads_to_the_first_exact_name_and_is_refused_without_one() {
    let host = Host::new();
    let app = App::start();
    let text = |names: &str| {
        format!(
            "server_name: [{names}]\nredirect_from: old.example.org\nproxy_pass_url: {}\n",
            app.url()
        )
    };
    host.drop_file("hello.yml", &text(&format!("\"*.example.com\", {HELLO}")));
    host.reload_ends(0, "activated");
    let trust = Trust::Anyone;
    for answer in [
        client::get(host.http(), "old.example.org", "/a?b").unwrap(),
        client::get_tls(host.https(), "old.example.org", "/a?b", &trust).unwrap(),
    ] {
        assert!([301, 308].contains(&answer.status), "{}", answer.status);
        let location = answer.header("Location").unwrap();
        let rest = location.strip_prefix(&format!("https://{HELLO}"));
        assert!(
            rest.is_some_and(|rest| rest.ends_with("/a?b")),
            "{location}"
        );
    }
    host.drop_file("hello.yml", &text("\"*.example.com\""));
    let report = host.reload_ends(3, "unchanged");
    let rejected = &report["rejected"][0];
    assert_eq!(
        (&rejected["line"], &rejected["column"]),
        (&2.into(), &16.into()),
        "{report}"
    );
    assert!(
        rejected["hint"]
            .as_str()
            .unwrap()
            .contains("a name without `*`"),
        "{report}"
    );
}

#[test]
fn tls_off_serves_plain_http_only() {
    let host = Host::new();
    let page = host.page("hello", "plain\n");
    let _daemon = host.daemon();
    let text = format!("server_name: {HELLO}\nroot: {}\ntls: off\n", page.display());
    host.drop_file("hello.yml", &text);
    let answer = wait_for_http(&host, HELLO, 200);
    assert_eq!(answer.text(), "plain\n");
    assert!(client::connect_tls(host.https(), HELLO, &Trust::Anyone, &[]).is_err());
}

#[test]
fn a_slow_ca_holds_nothing_up_and_plain_http_serves_until_the_certificate_is_there() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let daemon = host.daemon();
    let root = pebble.issuing_root();
    pebble.pause();
    host.drop_app("hello", HELLO, &app);
    // it answers nothing yet, so whatever is served was served without it
    wait_for_http(&host, HELLO, 200);
    client::get_tls(host.https(), HELLO, "/", &Trust::Anyone).unwrap();
    host.wait_for_serving("hello");
    let certificate = host.certificate(HELLO).unwrap();
    assert_eq!(certificate["state"], "placeholder", "{certificate}");
    pebble.resume();
    host.wait_for_https(HELLO, "/", &Trust::Root(root));
    let redirect = wait_for_http(&host, HELLO, 301);
    let secure = format!("https://{HELLO}/");
    assert_eq!(redirect.header("Location"), Some(secure.as_str()));
    assert_eq!(host.certificate(HELLO).unwrap()["state"], "valid");
    println!("{}", daemon.log());
}

#[test]
fn a_new_vhost_with_a_quick_ca_costs_one_generation() {
    let nginx = NginxHost::new();
    // slow enough that nobody has the certificate without waiting for it
    let look = Gate::slow(
        ([127, 0, 0, 1], nginx.http_port).into(),
        Duration::from_millis(50),
    );
    let pebble = Pebble::start(look.port);
    let host = Host::on(nginx, &acme(&pebble));
    let app = App::start();
    let _daemon = host.daemon();
    let trust = Trust::Root(pebble.issuing_root());
    let mut costs: Vec<u64> = Vec::new();
    // on a busy machine no CA is always quick
    let are_low = |costs: &[u64]| costs.iter().filter(|cost| **cost == 1).count() >= 3;
    while costs.len() < 8 && !are_low(&costs) {
        // at rest: in a flood the certificate would be there before nginx is told
        thread::sleep(Duration::from_millis(1200));
        let (before, vhost) = (host.active(), format!("app{}", costs.len()));
        let name = format!("{vhost}.example.com");
        host.drop_app(&vhost, &name, &app);
        host.wait_for_https(&name, "/", &trust);
        costs.push(host.active() - before);
    }
    assert!(are_low(&costs), "{costs:?}");
    assert!(costs.iter().all(|cost| *cost <= 2), "{costs:?}");
}

#[test]
fn many_new_vhosts_with_a_quick_ca_cost_one_generation() {
    // eight at a time: the last comes long after anybody would wait for one
    const FILES: usize = 30;
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let _daemon = host.daemon();
    let trust = Trust::Root(pebble.issuing_root());
    let mut costs: Vec<u64> = Vec::new();
    // on a busy machine no CA is always quick
    while costs.len() < 6 && !costs.contains(&1) {
        thread::sleep(Duration::from_millis(1300));
        let (before, round) = (host.active(), costs.len());
        let names: Vec<_> = (0..FILES)
            .map(|number| format!("r{round}n{number}"))
            .collect();
        for name in &names {
            host.drop_app(name, &format!("{name}.example.com"), &app);
        }
        for name in &names {
            host.wait_for_https(&format!("{name}.example.com"), "/", &trust);
        }
        costs.push(host.active() - before);
    }
    assert!(costs.contains(&1), "{costs:?}");
}

fn wait_for_root(host: &Host) -> Trust {
    wait_for("the internal CA", || {
        fs::metadata(host.path("state/internal-ca/root.pem")).ok()
    });
    host.internal_root()
}

fn answers(host: &Host, trust: &Trust, app: &App) -> Option<()> {
    let answer = client::get_tls(host.https(), HELLO, "/", trust).ok()?;
    (answer.header("X-App") == Some(app.address.to_string().as_str())).then_some(())
}

fn wait_for_http(host: &Host, name: &str, status: u16) -> Response {
    wait_for(&format!("{status} from http://{name}/"), || {
        client::get(host.http(), name, "/")
            .ok()
            .filter(|answer| answer.status == status)
    })
}

/// nginx's 444.
fn closes_without_a_word(address: SocketAddr, name: &str) -> Option<()> {
    let error = client::get(address, name, "/").err()?;
    let silent = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
    silent.contains(&error.kind()).then_some(())
}

fn leaf(host: &Host, name: &str) -> Vec<u8> {
    let stream = client::connect_tls(host.https(), name, &Trust::Anyone, &[]).unwrap();
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}
