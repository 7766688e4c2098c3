//! The third way in which vhostd is used: the manual reload.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use serde_json::Value;

use super::support::app::App;
use super::support::client::{self, Trust};
use super::support::host::{Ended, Host, acme};
use super::support::nginx::free_port;
use super::support::wait_for;

const HELLO: &str = "hello.example.com";
const STEPS: [&str; 6] = ["read", "render", "test", "activate", "reload", "verify"];

/// The first word of each step's line.
fn steps(ended: &Ended) -> Vec<&str> {
    let lines = ended.stdout.lines().filter(|line| line.starts_with("  "));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

fn json_steps(report: &Value) -> Vec<&str> {
    let steps = report["steps"].as_array().unwrap().iter();
    steps.map(|step| step["step"].as_str().unwrap()).collect()
}

#[test]
fn without_a_daemon_it_prints_the_steps_in_order_and_the_vhost_serves() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(steps(&reload), STEPS);
    assert!(reload.stdout.contains("generation 1 serves"), "{reload:?}");
    assert_eq!(reload.stderr, "");
    let answer = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(answer.unwrap().status, 200);
}

#[test]
fn through_the_daemon_it_prints_the_steps_in_order_and_takes_changed_settings() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", HELLO, &app);
    host.wait_for_serving("hello");
    host.configure("tls: internal\n");
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}\n{}", daemon.log());
    assert_eq!(steps(&reload), STEPS);
    let answer = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(answer.unwrap().status, 200);
}

#[test]
fn settings_that_need_a_restart_of_the_daemon_are_said_to_who_reloads() {
    let host = Host::with_settings("tls: off\n");
    let _daemon = host.daemon();
    let elsewhere = host.path("elsewhere");
    // the last of a key that is there twice would be an error
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let here = host.path("vhosts.d").display().to_string();
    assert!(settings.contains(&here), "{settings}");
    let settings = settings.replace(&here, &elsewhere.display().to_string());
    fs::write(host.path("vhostd.yml"), settings).unwrap();
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.contains("`vhosts_dir` changed"), "{warning}");
    assert!(warning.contains("systemctl restart vhostd"), "{warning}");
}

#[test]
fn a_second_daemon_is_refused_and_the_socket_is_for_root_and_the_group_alone() {
    let host = Host::with_settings("tls: off\n");
    let _daemon = host.daemon();
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let second = host.vhostd(&["run"]);
    assert_eq!(second.status, 1, "{second:?}");
    assert!(
        second.stderr.contains("another vhostd runs already"),
        "{second:?}"
    );
    let mode = fs::metadata(host.path("run/control.sock")).unwrap().mode() & 0o777;
    let group = nix::unistd::Group::from_name("vhostd").unwrap();
    assert_eq!(mode, if group.is_some() { 0o660 } else { 0o600 });
    assert_eq!(host.vhostd(&["reload"]).status, 0);
}

#[test]
fn nothing_to_change_is_unchanged_and_nginx_is_not_reloaded() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let (active, workers) = (host.active(), host.nginx.workers());
    let by_itself = host.json(&["reload"]);
    let _daemon = host.daemon();
    let through_the_daemon = host.json(&["reload"]);
    for (status, report) in [by_itself, through_the_daemon] {
        assert_eq!((status, &report["outcome"]), (0, &"unchanged".into()));
        assert_eq!(report["generation"], active);
        assert_eq!(json_steps(&report), STEPS[..3]);
    }
    let words = host.vhostd(&["reload"]);
    assert!(words.stdout.contains("already up to date"), "{words:?}");
    assert_eq!(host.nginx.workers(), workers);
    assert_eq!(host.active(), active);
}

#[test]
fn the_json_has_the_contracts_shape() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.drop_file(
        "shop.yml",
        "server_name: shop.example.com\nprxy_pass_url: http://127.0.0.1:1\n",
    );
    let (status, report) = host.json(&["reload"]);
    assert_eq!(status, 3);
    assert_eq!(report["outcome"], "activated");
    assert_eq!(report["generation"], 1);
    assert_eq!(json_steps(&report), STEPS);
    assert!(report["steps"][0]["ms"].is_f64());
    let rejected = &report["rejected"][0];
    assert_eq!(rejected["name"], "shop");
    assert_eq!(
        rejected["file"],
        host.path("vhosts.d/shop.yml").to_str().unwrap()
    );
    assert_eq!(
        (&rejected["line"], &rejected["column"]),
        (&2.into(), &1.into())
    );
    assert!(
        rejected["reason"]
            .as_str()
            .unwrap()
            .contains("prxy_pass_url")
    );
    assert!(
        rejected["hint"]
            .as_str()
            .unwrap()
            .contains("proxy_pass_url")
    );
    let nobody = serde_json::json!({"ordered": [], "pending": [], "failed": []});
    assert_eq!(report["certificates"], nobody);
}

#[test]
fn with_names_the_status_speaks_of_those_vhosts_only() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.drop_app("shop", "shop.example.com", &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    host.drop_file("shop.yml", "server_name: shop.example.com\n");
    let _daemon = host.daemon();
    for (names, status) in [
        (&[][..], 3),
        (&["hello"], 0),
        (&[HELLO], 0),
        (&["shop"], 3),
        (&["shop.example.com"], 3),
        (&["hello", "shop"], 3),
        (&["nobody"], 2),
    ] {
        let reload = host.vhostd(&[&["reload"], names].concat());
        assert_eq!(reload.status, status, "{names:?} {reload:?}");
    }
}

/// As the members of the socket's group: the state directory is root's.
#[test]
fn with_names_the_daemon_is_believed_by_who_cannot_read_the_state() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.drop_file("shop.yml", "server_name: shop.example.com\n");
    let _daemon = host.daemon();
    let state = host.path("state").display().to_string();
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let elsewhere = settings.replace(&state, &format!("{state}-of-nobody"));
    fs::write(host.path("member.yml"), elsewhere).unwrap();
    let member = host.path("member.yml").display().to_string();
    for (name, status) in [("hello", 0), (HELLO, 0), ("shop", 3), ("nobody", 2)] {
        let reload = host.vhostd(&["--config", &member, "reload", name]);
        assert_eq!(reload.status, status, "{name}: {reload:?}");
    }
}

#[test]
fn with_names_and_wait_another_vhosts_certificate_does_not_fail_the_status() {
    let nobody = format!("https://127.0.0.1:{}/dir", free_port());
    let host = Host::with_settings(&format!("acme: {{directory: \"{nobody}\"}}\n"));
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let text = format!(
        "server_name: shop.example.com\nproxy_pass_url: {}\ntls: internal\n",
        app.url()
    );
    host.drop_file("shop.yml", &text);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    assert_eq!(host.vhostd(&["reload", "--wait", "hello"]).status, 4);
    let shop = host.vhostd(&["reload", "--wait", "shop"]);
    assert_eq!(shop.status, 0, "{shop:?}");
    assert!(!shop.stderr.contains(HELLO), "{shop:?}");
}

#[test]
fn with_wait_it_returns_when_the_certificate_serves() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let trust = Trust::Root(pebble.issuing_root());
    host.drop_app("one", "one.example.com", &app);
    let (status, report) = host.json(&["reload", "--wait"]);
    assert_eq!(status, 0, "{report}");
    assert_eq!(
        report["certificates"]["ordered"],
        serde_json::json!(["one.example.com"])
    );
    let answer = client::get_tls(host.https(), "one.example.com", "/", &trust);
    assert_eq!(answer.unwrap().status, 200);
    let daemon = host.daemon();
    host.drop_app("two", "two.example.com", &app);
    let (status, report) = host.json(&["reload", "--wait"]);
    assert_eq!(status, 0, "{report} {}", daemon.log());
    let answer = client::get_tls(host.https(), "two.example.com", "/", &trust);
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(report["generation"], host.active());
}

#[test]
fn with_wait_a_ca_that_does_not_answer_is_status_4() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let settings = acme(&pebble);
    std::mem::drop(pebble);
    host.configure(&settings);
    let _daemon = host.daemon();
    let (status, report) = host.json(&["reload", "--wait"]);
    assert_eq!(status, 4, "{report}");
    assert_eq!(report["certificates"]["failed"], serde_json::json!([HELLO]));
    // and without, it is done
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0);
    assert!(reload.stderr.contains(HELLO), "{reload:?}");
}

#[test]
fn two_at_once_are_one_after_the_other() {
    let host = Host::new();
    let app = App::start();
    let at_once = || {
        let children: Vec<_> = (0..3)
            .map(|_| {
                let mut command = host.command(&["reload", "--json"]);
                command.stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let reports = children.into_iter().map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            serde_json::from_slice(&output.stdout).unwrap()
        });
        reports.collect::<Vec<Value>>()
    };
    host.drop_app("one", "one.example.com", &app);
    let reports = at_once();
    let activated = reports
        .iter()
        .filter(|report| report["outcome"] == "activated");
    assert_eq!(activated.count(), 1, "{reports:?}");
    for report in &reports {
        assert_eq!(report["generation"], 1);
        let steps = json_steps(report);
        assert!(steps == STEPS || steps == STEPS[..3], "{report}");
    }
    let _daemon = host.daemon();
    host.drop_app("two", "two.example.com", &app);
    for report in at_once() {
        assert_eq!(report["generation"], 2, "{report}");
    }
    host.wait_for_serving("two");
}

#[test]
fn the_time_of_waiting_for_another_is_no_steps_time() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("one", "one.example.com", &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let lock = fs::File::open(host.path("state/lock")).unwrap();
    lock.lock().unwrap();
    let waiting = host
        .command(&["reload", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // it takes a few milliseconds until it stands at the lock
    std::thread::sleep(std::time::Duration::from_millis(1500));
    lock.unlock().unwrap();
    let output = waiting.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["steps"][0]["ms"].as_f64().unwrap() < 1000.0,
        "{report}"
    );
}

/// As an older daemon would be asked by a newer command.
#[test]
fn the_daemon_says_404_to_requests_that_it_does_not_know_whatever_their_body() {
    let host = Host::new();
    let _daemon = host.daemon();
    let ask = |request: &str, body: &str| {
        let mut stream = UnixStream::connect(host.path("run/control.sock")).unwrap();
        let length = body.len();
        let head = format!("{request} HTTP/1.1\r\nhost: vhostd\r\nconnection: close\r\n");
        // in one piece: what is not known is answered before its body is read
        let request = format!("{head}content-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[9..12].to_owned()
    };
    assert_eq!(ask("POST /v1/plan", "{\"plan\":{}}"), "404");
    assert_eq!(ask("POST /v2/reload", "what comes in ten years"), "404");
    assert_eq!(ask("GET /v1/reload", ""), "404");
    assert_eq!(ask("POST /v1/reload", "nonsense"), "400");
    let unknown_key = "{\"reload\":{\"wait\":false,\"restart_nginx\":true}}";
    assert_eq!(ask("POST /v1/reload", unknown_key), "200");
}

#[test]
fn an_error_in_the_settings_is_status_2_with_file_line_and_suggestion() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let daemon = host.daemon();
    host.wait_for_serving("hello");
    host.configure("tlss: internal\n");
    let line = fs::read_to_string(host.path("vhostd.yml"))
        .unwrap()
        .lines()
        .count();
    for command in ["reload", "check", "status", "renew", "history", "rollback"] {
        let ended = host.vhostd(&[command]);
        assert_eq!(ended.status, 2, "{ended:?}");
        let place = format!("{}:{line}", host.path("vhostd.yml").display());
        assert!(ended.stderr.contains(&place), "{ended:?}");
        assert!(ended.stderr.contains("`tls`"), "{ended:?}");
    }
    // the daemon keeps the old ones
    daemon.signal("HUP");
    wait_for("the daemon's word", || {
        daemon.log().contains("tlss").then_some(())
    });
    let answer = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(answer.unwrap().status, 200);
}

#[test]
fn a_name_is_known_to_who_may_ask_the_daemon_and_not_read_its_files() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    let _daemon = host.daemon();
    // as for a member of the socket's group: nothing of the state directory is there to be read
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let hidden = settings.replace(
        &host.path("state").display().to_string(),
        &host.path("unreadable").display().to_string(),
    );
    fs::write(host.path("member.yml"), hidden).unwrap();
    let config = host.path("member.yml").display().to_string();
    for (name, status) in [("hello", 0), ("hello.example.com", 0), ("other", 2)] {
        let reload = host.vhostd(&["--config", &config, "reload", name]);
        assert_eq!(reload.status, status, "{reload:?}");
    }
}
