//! The operator hears of it: of changes, once, whoever finds out, and whatever is killed.

mod receivers;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::app::App;
use super::support::host::{Host, acme};
use super::support::nginx::{NginxHost, free_port};
use super::support::pebble::Pebble;
use super::support::receiver::Receiver;
use super::support::{wait_for, wait_within};

const NAME: &str = "hello.example.com";

fn webhook(receiver: &Receiver) -> String {
    let url = receiver.url("/hook");
    format!("hooks: {{on_change: [{{webhook: {{url: \"{url}\"}}}}]}}\n")
}

/// A CA that nobody is at.
fn no_ca() -> String {
    format!(
        "acme: {{directory: \"https://127.0.0.1:{}/dir\"}}\n",
        free_port()
    )
}

fn secret(host: &Host, name: &str, text: &str) -> PathBuf {
    let path = host.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn unsent(host: &Host) -> usize {
    let text = fs::read(host.path("state/notices/memory.json")).unwrap_or_default();
    let memory: Value = serde_json::from_slice(&text).unwrap_or_default();
    memory["unsent"].as_array().map_or(0, Vec::len)
}

#[test]
fn the_first_failure_the_recovery_and_each_renewal_are_told_once_with_what_comes_next() {
    let receiver = Receiver::start();
    let nginx = NginxHost::new();
    let pebble = Pebble::start(nginx.http_port);
    let host = Host::on(nginx, &format!("{}{}", no_ca(), webhook(&receiver)));
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    receiver.wait_for_events(&["certificate_failing"]);
    let failing = receiver.requests()[0].json();
    assert_eq!(failing["subject"]["name"], NAME);
    assert_eq!(failing["type"], "failure", "{failing}");
    let certificate = host.certificate(NAME).unwrap();
    let next_at = failing["next_at"].as_str().unwrap();
    let renew_at = certificate["renew_at"].as_str().unwrap();
    // one of them has fractions of a second
    assert_eq!(next_at[..19], renew_at[..19], "{failing}");
    let message = failing["message"].as_str().unwrap();
    assert!(
        message.contains("there is none yet, so browsers warn\nNext: vhostd tries again at"),
        "{message}"
    );
    // it fails once more, which is no news
    assert_eq!(host.vhostd(&["renew", NAME]).status, 4);
    host.configure(&format!("{}{}", acme(&pebble), webhook(&receiver)));
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let renew = host.vhostd(&["renew", NAME]);
    assert_eq!(renew.status, 0, "{renew:?} {}", daemon.log());
    receiver.wait_for_events(&["certificate_failing", "certificate_recovered"]);
    assert_eq!(host.vhostd(&["renew", NAME, "--force"]).status, 0);
    let all = [
        "certificate_failing",
        "certificate_recovered",
        "certificate_renewed",
    ];
    receiver.wait_for_events(&all);
    wait_for("the record", || (unsent(&host) == 0).then_some(()));
    // a restart repeats nothing, and neither does a command
    assert_eq!(daemon.stop(), 0);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let daemon = host.daemon();
    assert_eq!(host.vhostd(&["renew", NAME, "--force"]).status, 0);
    receiver.wait_for_events(&[&all[..], &["certificate_renewed"]].concat());
    assert!(!daemon.log().contains("failed to deliver"));
}

#[test]
fn commands_without_a_daemon_tell_too() {
    let receiver = Receiver::start();
    let host = Host::with_settings(&format!("{}{}", no_ca(), webhook(&receiver)));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(host.vhostd(&["renew"]).status, 4);
    assert_eq!(receiver.events(), ["certificate_failing"]);
    host.drop_file("shop.yml", "server_name: shop.example.com\nrot: /srv\n");
    assert_eq!(host.vhostd(&["reload"]).status, 3);
    assert_eq!(host.vhostd(&["reload"]).status, 3);
    // which reads no file, and so knows nothing about any
    assert_eq!(host.vhostd(&["renew"]).status, 4);
    assert_eq!(receiver.events(), ["certificate_failing", "vhost_rejected"]);
    let message = receiver.requests()[1].json()["happened"].clone();
    let message = message.as_str().unwrap();
    assert!(
        message.contains("shop.yml:2: unknown key `rot`") && message.contains("it is not served"),
        "{message}"
    );
    host.remove_file("shop.yml");
    host.nginx.stop();
    assert_eq!(host.vhostd(&["reload"]).status, 1);
    host.nginx.start();
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(
        receiver.events()[2..],
        ["nginx_down", "vhost_recovered", "nginx_recovered"]
    );
}

#[test]
fn a_command_is_run_with_the_words_in_its_environment_and_the_data_on_its_input() {
    let host = Host::new();
    let app = App::start();
    let script = host.path("tell");
    let out = host.path("told");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\n{{ echo \"$1|$VHOSTD_EVENT|$VHOSTD_SUBJECT|$VHOSTD_NAMES\"; cat; echo; }} >> {}\n",
            out.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    host.configure(&format!(
        "tls: internal\nhooks: {{on_change: [{{command: [{}, \"$(id) ; *\"]}}]}}\n",
        script.display()
    ));
    let daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    let told = wait_for("the command", || {
        let told = fs::read_to_string(&out).ok()?;
        told.ends_with("}\n").then_some(told)
    });
    let (line, data) = told.split_once('\n').unwrap();
    // there is no shell between
    assert_eq!(
        line,
        "$(id) ; *|certificate_obtained|hello.example.com|hello.example.com",
        "{}",
        daemon.log()
    );
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["event"], "certificate_obtained");
}

#[test]
fn what_was_not_sent_before_a_kill_is_sent_after_the_restart() {
    let receiver = Receiver::start();
    receiver.fall_silent();
    let host = Host::with_settings(&format!("{}{}", no_ca(), webhook(&receiver)));
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    wait_for("the message to be on its way", || {
        (!receiver.requests().is_empty()).then_some(())
    });
    daemon.kill();
    assert_eq!(unsent(&host), 1);
    receiver.take_messages_again();
    let first = receiver.requests()[0].json();
    let before = receiver.requests().len();
    let _daemon = host.daemon();
    wait_for("it to be sent again", || {
        (receiver.requests().len() > before && unsent(&host) == 0).then_some(())
    });
    let again = receiver.requests()[before].json();
    assert_eq!(first["id"], again["id"]);
    assert_eq!(receiver.requests().len(), before + 1);
}

#[test]
fn what_failed_before_anybody_looked_is_told_at_the_next_look() {
    let receiver = Receiver::start();
    let ca = no_ca();
    let host = Host::with_settings(&format!("{ca}{}", webhook(&receiver)));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    // a command that cannot tell stands for one that is killed before it does
    let lock = fs::File::open(host.path("state/notices/lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(host.vhostd(&["renew"]).status, 4);
    assert_eq!(receiver.events(), [""; 0]);
    lock.unlock().unwrap();
    let _daemon = host.daemon();
    receiver.wait_for_events(&["certificate_failing"]);
}

#[test]
fn a_receiver_that_never_answers_delays_neither_a_reload_nor_a_command() {
    let receiver = Receiver::start();
    receiver.fall_silent();
    let host = Host::with_settings(&format!("tls: internal\n{}", webhook(&receiver)));
    let app = App::start();
    let broken = "server_name: shop.example.com\nrot: /srv\n";
    host.drop_file("shop.yml", broken);
    let daemon = host.daemon();
    wait_for("the message to be on its way", || {
        (!receiver.requests().is_empty()).then_some(())
    });
    // the receiver is given fifteen seconds
    let begin = Instant::now();
    for round in 0..3 {
        host.drop_app("hello", &format!("hello{round}.example.com"), &app);
        assert_eq!(host.vhostd(&["reload", "--wait"]).status, 3);
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_eq!(daemon.stop(), 0);
    let begin = Instant::now();
    let reload = host.vhostd(&["reload"]);
    let took = begin.elapsed();
    assert_eq!(reload.status, 3);
    assert!(took < Duration::from_secs(14), "{took:?}");
    assert!(
        reload
            .stderr
            .contains(" for hooks.on_change[0] (webhook): failed to"),
        "{reload:?}"
    );
}

#[test]
fn a_dead_hook_is_logged_once_and_catches_up_when_it_lives_again() {
    let receiver = Receiver::start();
    receiver.answer("503 Service Unavailable", "busy");
    let host = Host::with_settings(&format!("tls: internal\n{}", webhook(&receiver)));
    host.drop_file("shop.yml", "server_name: shop.example.com\nrot: /srv\n");
    let daemon = host.daemon();
    wait_for("two attempts", || {
        (receiver.requests().len() >= 2).then_some(())
    });
    // the next attempt is ten seconds away, but for somebody who has mended it
    let before = receiver.requests().len();
    let begin = Instant::now();
    assert_eq!(host.vhostd(&["reload"]).status, 3);
    wait_for("another one", || {
        (receiver.requests().len() > before).then_some(())
    });
    assert!(begin.elapsed() < Duration::from_secs(9));
    let log = daemon.log();
    let logged = log.matches("; it is tried again").count();
    assert_eq!(logged, 1, "{log}");
    assert!(log.contains("HTTP 503: busy"), "{log}");
    let (_, status) = host.json(&["status"]);
    let warning = status["warnings"][0]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        warning.contains(
            "1 message waits for hooks.on_change[0] (webhook): failed to deliver it: HTTP 503"
        ),
        "{status}"
    );
    receiver.take_messages_again();
    wait_for("it to catch up", || {
        daemon.log().contains("takes messages again").then_some(())
    });
    wait_for("the record", || (unsent(&host) == 0).then_some(()));
}

/// Every file below, as text.
fn all_text(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            text.push_str(&all_text(&path));
        } else if path.is_file() {
            text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap()));
        }
    }
    text
}

#[test]
fn no_secret_is_in_any_output_log_or_state() {
    let receiver = Receiver::start();
    // as an error page that shows the path, and a proxy that shows the headers
    receiver.answer(
        "404 Not Found",
        "<h1>{path} was not found</h1> tk-hunter2 key-hunter2",
    );
    let host = Host::new();
    let slack = secret(
        &host,
        "slack.url",
        &receiver.url("/services/T0/url-hunter2"),
    );
    let token = secret(&host, "ntfy.token", "tk-hunter2\n");
    let key = secret(&host, "webhook.key", "key-hunter2\n");
    let (url, dead) = (receiver.url("/topic"), free_port());
    let gone = secret(
        &host,
        "gone.url",
        &format!("http://127.0.0.1:{dead}/url-hunter2"),
    );
    let hooks = format!(
        "tls: internal\nhooks:\n  on_failure:\n    - slack: {{url_file: {}}}\n    - discord: {{url_file: {}}}\n    - ntfy: {{url: \"{url}\", token_file: {}}}\n    - webhook: {{url: \"{url}\", secret_file: {}}}\n",
        slack.display(),
        gone.display(),
        token.display(),
        key.display()
    );
    host.configure(&hooks);
    let daemon = host.daemon();
    host.drop_file("shop.yml", "server_name: shop.example.com\nrot: /srv\n");
    wait_for("all to fail", || {
        (daemon.log().matches("; it is tried again").count() == 4).then_some(())
    });
    let mut seen = daemon.log();
    for arguments in [
        &["hooks", "test"][..],
        &["hooks", "test", "--json"],
        &["status"],
    ] {
        let ended = host.vhostd(arguments);
        seen.push_str(&format!("{ended:?}"));
    }
    assert_eq!(daemon.stop(), 0);
    seen.push_str(&format!("{:?}", host.vhostd(&["reload"])));
    fs::write(&slack, "https://exa mple/url-hunter2").unwrap();
    seen.push_str(&format!("{:?}", host.vhostd(&["hooks", "test"])));
    seen.push_str(&all_text(&host.path("state")));
    seen.push_str(&all_text(&host.path("logs")));
    assert!(seen.contains("HTTP 404"), "{seen}");
    assert!(!seen.contains("hunter2"), "{seen}");
    // and yet they were used
    let requests = receiver.requests();
    let has = |name: &str, value: &str| {
        let mut requests = requests.iter();
        requests.any(|request| request.header(name).is_some_and(|it| it.contains(value)))
    };
    assert!(has("Authorization", "Bearer tk-hunter2"));
    assert!(has("X-Hub-Signature-256", "sha256="));
    assert!(requests.iter().any(|it| it.path.ends_with("url-hunter2")));
}

#[test]
fn a_certificate_that_cannot_be_renewed_is_told_before_and_at_its_end() {
    let receiver = Receiver::start();
    let nginx = NginxHost::new();
    let pebble = Pebble::builder(nginx.http_port)
        .validity(Duration::from_secs(40))
        .start();
    let host = Host::on(nginx, &format!("{}{}", acme(&pebble), webhook(&receiver)));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    drop(pebble);
    let _daemon = host.daemon();
    // nothing but the time changes
    wait_within(Duration::from_secs(90), "its end", || {
        (receiver.events().last()? == "certificate_expired").then_some(())
    });
    let told: Vec<Value> = receiver.requests().iter().map(|it| it.json()).collect();
    let of = |event: &str| told.iter().find(|it| it["event"] == event).unwrap();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(of("certificate_failing")["type"], "warning");
    assert_eq!(of("certificate_expired")["type"], "failure");
    let expiring = of("certificate_expiring")["happened"].as_str().unwrap();
    assert!(expiring.contains("its renewal failed to"), "{expiring}");
}

#[test]
fn the_daemon_tells_when_nginx_is_down_and_when_it_runs_again() {
    let receiver = Receiver::start();
    let host = Host::with_settings(&format!("tls: off\n{}", webhook(&receiver)));
    let _daemon = host.daemon();
    host.nginx.stop();
    // an edit, so that it does not take half a minute until it is seen
    host.drop_app("hello", NAME, &App::start());
    receiver.wait_for_events(&["nginx_down"]);
    host.nginx.start();
    receiver.wait_for_events(&["nginx_down", "nginx_recovered"]);
}

#[test]
fn a_name_that_is_served_with_another_certificate_is_told_and_shown_until_it_is_right_again() {
    let receiver = Receiver::start();
    let host = Host::with_settings(&format!("tls: internal\n{}", webhook(&receiver)));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    host.drop_app("other", "other.example.com", &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    // somebody writes a server block that has its name, too
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["own.example.com".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap();
    let certificate = certificate.self_signed(&key).unwrap().pem();
    fs::write(host.path("own.pem"), certificate).unwrap();
    fs::write(host.path("own.key"), key.serialize_pem()).unwrap();
    let site = format!(
        "server {{\n  listen {} ssl http2;\n  server_name {NAME} other.example.com;\n  ssl_certificate {};\n  ssl_certificate_key {};\n}}\n",
        host.nginx.https_port,
        host.path("own.pem").display(),
        host.path("own.key").display()
    );
    // nginx reads it first, and says no more than a warning about the second
    fs::write(host.path("conf.d/own.conf"), site).unwrap();
    host.nginx.stop();
    host.nginx.start();
    let daemon = host.daemon();
    receiver.wait_for_events(&["served_differs", "served_differs"]);
    let told = receiver.requests()[0].json();
    assert_eq!(
        told["subject"],
        serde_json::json!({"kind": "server_name", "name": NAME})
    );
    let happened = told["happened"].as_str().unwrap();
    let address = host.https();
    assert!(
        happened.starts_with(&format!(
            "at {address}: a certificate for own.example.com, valid"
        )),
        "{happened}"
    );
    let served = host.certificate(NAME).unwrap()["served"].clone();
    assert_eq!(served["differs"][0]["host"], NAME, "{served}");
    let status = host.vhostd(&["status"]);
    assert!(
        status
            .stderr
            .contains("hello.example.com is not served with its certificate"),
        "{status:?}"
    );
    fs::remove_file(host.path("conf.d/own.conf")).unwrap();
    host.nginx.stop();
    host.nginx.start();
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?} {}", daemon.log());
    wait_for("the end of it", || {
        let events = receiver.events();
        (events[2..] == ["served_recovered", "served_recovered"]).then_some(())
    });
    let served = host.certificate(NAME).unwrap()["served"].clone();
    assert_eq!(served["differs"], serde_json::json!([]));
    assert!(served["checked_at"].is_string(), "{served}");
}

#[test]
fn what_cannot_be_read_of_certificates_keeps_no_other_message_back() {
    let receiver = Receiver::start();
    let host = Host::with_settings(&format!("tls: internal\n{}", webhook(&receiver)));
    let app = App::start();
    let _daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    receiver.wait_for_events(&["certificate_obtained"]);
    fs::rename(host.path("state/orders"), host.path("orders")).unwrap();
    fs::write(host.path("state/orders"), "no directory").unwrap();
    host.drop_file("bad.yml", "server_nam: x\n");
    wait_for("the word of a rejected file", || {
        let events = receiver.events();
        events.contains(&"vhost_rejected".to_owned()).then_some(())
    });
}
