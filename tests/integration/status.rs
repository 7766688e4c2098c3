//! `vhostd status` in every state that a vhost can have.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::support::app::App;
use super::support::host::Host;
use super::support::wait_for;

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// The contract's keys are there, whatever else is.
fn assert_keys(value: &Value, expected: &[&str]) {
    let (all, expected) = (keys(value), expected.iter().copied().collect());
    assert!(all.is_superset(&expected), "{all:?}");
}

#[test]
fn it_has_the_contracts_shape() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let status = host.status();
    assert_keys(&status, &["generation", "nginx", "vhosts", "certificates"]);
    assert_eq!(status["generation"]["active"], 1);
    assert_eq!(status["generation"]["serving"], 1);
    assert!(
        status["generation"]["activated_at"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    assert_eq!(status["nginx"]["pid"], host.nginx.pid().unwrap());
    assert_eq!(status["nginx"]["running"], true);
    assert!(
        status["nginx"]["version"]
            .as_str()
            .unwrap()
            .starts_with("1.")
    );
    let vhost = &status["vhosts"][0];
    let wanted = serde_json::json!({
        "name": "hello", "file": host.path("vhosts.d/hello.yml"),
        "server_names": ["hello.example.com"], "state": "serving",
        "reason": null, "line": null, "column": null, "certificate": "hello.example.com",
    });
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(vhost[key], *value, "{key}");
    }
    let certificate = &status["certificates"][0];
    let wanted = serde_json::json!({
        "name": "hello.example.com", "identifiers": ["hello.example.com"],
        "state": "valid", "issuer": "internal", "attempts": 0, "last_error": null,
    });
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(certificate[key], *value, "{key}");
    }
    for key in ["not_before", "not_after", "renew_at"] {
        assert!(
            certificate[key].as_str().unwrap().ends_with('Z'),
            "{certificate}"
        );
    }
}

#[test]
fn a_new_file_with_an_error_is_rejected_with_its_place() {
    let host = Host::new();
    host.drop_file("shop.yml", "server_name: shop.example.com\nroot: [1]\n");
    assert_eq!(host.vhostd(&["reload"]).status, 3);
    let shop = host.vhost("shop").unwrap();
    assert_eq!(shop["state"], "rejected");
    assert_eq!(
        (&shop["line"], &shop["certificate"]),
        (&2.into(), &Value::Null)
    );
    assert!(
        shop["column"].is_u64() && shop["reason"].is_string(),
        "{shop}"
    );
}

#[test]
fn a_broken_change_is_stale_with_its_place_and_a_mended_one_serves() {
    let host = Host::new();
    let app = App::start();
    let _daemon = host.daemon();
    host.drop_app("hello", "hello.example.com", &app);
    host.wait_for_serving("hello");
    let bytes = host.rendered("hello").unwrap();
    host.drop_file(
        "hello.yml",
        "server_name: hello.example.com\nroot: /srv/../etc\n",
    );
    let (status, report) = host.json(&["reload"]);
    assert_eq!(status, 3, "{report}");
    let hello = host.vhost("hello").unwrap();
    assert_eq!(
        (&hello["state"], &hello["line"]),
        (&"stale".into(), &2.into())
    );
    assert_eq!(
        hello["server_names"],
        serde_json::json!(["hello.example.com"])
    );
    assert_eq!(host.rendered("hello").unwrap(), bytes);
    host.drop_app("hello", "hello.example.com", &app);
    host.wait_for_serving("hello");
    assert!(host.vhost("hello").unwrap()["reason"].is_null());
}

#[test]
fn while_the_vhosts_directory_is_missing_the_error_is_said() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    let _daemon = host.daemon();
    host.wait_for_serving("hello");
    fs::rename(host.path("vhosts.d"), host.path("moved")).unwrap();
    let error = wait_for("the error", || {
        host.status()["error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("vhosts.d"), "{error}");
    assert_eq!(host.state("hello"), "serving");
    fs::rename(host.path("moved"), host.path("vhosts.d")).unwrap();
    wait_for("its end", || host.status()["error"].is_null().then_some(()));
}

#[test]
fn while_nginx_is_down_a_new_vhost_is_pending_and_nothing_serves() {
    let host = Host::new();
    let app = App::start();
    host.nginx.stop();
    host.drop_app("hello", "hello.example.com", &app);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 1, "{reload:?}");
    assert!(reload.stderr.contains("nginx is not running"), "{reload:?}");
    let status = host.status();
    assert_eq!(status["generation"]["serving"], Value::Null);
    assert_eq!(status["nginx"]["running"], false);
    assert_eq!(status["nginx"]["pid"], Value::Null);
    assert_eq!(status["vhosts"][0]["state"], "pending");
    host.nginx.start();
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(host.vhost("hello").unwrap()["state"], "serving");
}

#[test]
fn a_vhost_that_served_is_pending_once_nginx_is_down() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    host.nginx.stop();
    let status = host.status();
    assert_eq!(status["generation"]["serving"], Value::Null);
    assert_eq!(status["vhosts"][0]["state"], "pending");
    let text = host.vhostd(&["status"]).stdout;
    assert!(
        text.contains("not running") && !text.contains("serving"),
        "{text}"
    );
}

#[test]
fn a_vhost_that_served_is_pending_once_nginx_does_not_read_it_any_more() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(host.vhostd(&["setup", "--undo"]).status, 0);
    wait_for("nothing to answer", || {
        host.status()["generation"]["serving"]
            .is_null()
            .then_some(())
    });
    assert_eq!(host.vhost("hello").unwrap()["state"], "pending");
}

#[test]
fn a_name_chooses_the_vhost_and_an_unknown_one_is_status_2() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    host.drop_app("shop", "shop.example.com", &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    for name in ["hello", "hello.example.com"] {
        let (status, shown) = host.json(&["status", name]);
        assert_eq!(status, 0);
        assert_eq!(shown["vhosts"].as_array().unwrap().len(), 1);
        assert_eq!(shown["certificates"].as_array().unwrap().len(), 1);
    }
    assert_eq!(host.vhostd(&["status", "nobody"]).status, 2);
}

#[test]
fn the_daemon_says_once_what_is_wrong_however_often_it_looks() {
    let host = Host::new();
    let daemon = host.daemon();
    let broken = "server_name: hello.example.com\nrot: /srv\n";
    host.drop_file("hello.yml", broken);
    let seen = |words: &str| daemon.log().matches(words).count();
    for round in 1..4 {
        wait_for("the daemon to look", || {
            (seen("nothing to change (file)") >= round).then_some(())
        });
        host.drop_file("hello.yml", broken);
    }
    assert_eq!(seen("hello.yml:2: unknown key"), 1, "{}", daemon.log());
    host.drop_app("hello", "hello.example.com", &App::start());
    host.wait_for_serving("hello");
    wait_for("its end", || {
        (seen("no longer rejected") == 1).then_some(())
    });
}

#[test]
fn a_new_file_is_not_rejected_while_its_writer_has_only_opened_it() {
    let host = Host::new();
    let app = App::start();
    let daemon = host.daemon();
    let path = host.path("vhosts.d/hello.yml");
    let mut file = fs::File::create(path).unwrap();
    thread::sleep(Duration::from_millis(200));
    writeln!(
        file,
        "server_name: hello.example.com\nproxy_pass_url: {}",
        app.url()
    )
    .unwrap();
    drop(file);
    host.wait_for_serving("hello");
    assert!(!daemon.log().contains("rejected"), "{}", daemon.log());
}
