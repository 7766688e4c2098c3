//! Several CAs: one that fails is replaced by the next, each with an account of its own.

mod account;
mod alternate;
mod external;
mod roll_over;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::support::app::App;
use super::support::client;
use super::support::host::Host;
use super::support::mock_ca::{Asked, MockCa, Resource};
use super::support::nginx::{NginxHost, free_port};
use super::support::pebble::Pebble;
use super::support::wait_for;

const NAME: &str = "hello.example.com";
const CHALLENGE: &str = "/.well-known/acme-challenge/";

/// Settings lines: `first` and then `second`, which `ca_file` is trusted for.
fn several(first: &str, second: &Pebble) -> String {
    let ca_file = second.ca_file();
    let second = second.directory_url();
    format!(
        "acme:\n  directory:\n    - {first}\n    - {{directory: {second}, ca_file: {}}}\n",
        ca_file.display()
    )
}

fn of(pebble: &Pebble) -> String {
    let (directory, ca_file) = (pebble.directory_url(), pebble.ca_file());
    format!("{{directory: {directory}, ca_file: {}}}", ca_file.display())
}

/// A directory where nobody listens.
fn nobody() -> (u16, String) {
    let port = free_port();
    (port, format!("https://127.0.0.1:{port}/dir"))
}

fn attempts(host: &Host) -> Value {
    let path = format!("state/orders/{NAME}.attempts.json");
    serde_json::from_slice(&fs::read(host.path(&path)).unwrap()).unwrap()
}

/// As if the time of the next attempt had come.
fn let_the_next_attempt_come(host: &Host) {
    let mut attempts = attempts(host);
    let now = OffsetDateTime::now_utc() - time::Duration::SECOND;
    attempts["next"] = now.format(&Rfc3339).unwrap().into();
    let path = format!("state/orders/{NAME}.attempts.json");
    fs::write(host.path(&path), attempts.to_string()).unwrap();
}

fn chain(host: &Host) -> std::path::PathBuf {
    host.path(&format!("state/certificates/{NAME}/current/fullchain.pem"))
}

fn failed(host: &Host) -> String {
    let certificate = host.certificate(NAME).unwrap();
    certificate["last_error"].as_str().unwrap().to_owned()
}

#[test]
fn a_first_ca_that_keeps_failing_is_replaced_by_the_second_and_comes_back_with_the_next_renewal() {
    let nginx = NginxHost::new();
    let http_port = nginx.http_port;
    let second = Pebble::builder(http_port)
        .validity(Duration::from_secs(8))
        .start();
    let (port, nobody) = nobody();
    let host = Host::on(nginx, &several(&nobody, &second));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    // one failure is none that lasts
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    let error = failed(&host);
    let by = format!("(by 127.0.0.1:{port})");
    assert!(error.ends_with(&by), "{error}");
    assert_eq!(second.finalized(), 0);
    let_the_next_attempt_come(&host);
    let renew = host.vhostd(&["renew"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    let by = second
        .directory_url()
        .replace("https://", "renewed by ")
        .replace("/dir", ",");
    assert!(renew.stdout.contains(&by), "{renew:?}");
    let directory = host.certificate(NAME).unwrap()["directory"].clone();
    assert_eq!(directory, second.directory_url());
    assert_eq!(second.finalized(), 1);
    second.verify(&chain(&host), NAME);
    assert!(
        !host
            .path(&format!("state/orders/{NAME}.attempts.json"))
            .exists()
    );
    let left = fs::read_dir(host.path("run/challenges")).unwrap().count();
    assert_eq!(left, 0, "an answer is removed with its order");
    // the first recovers
    let first = Pebble::builder(http_port).port(port).start();
    host.configure(&several(&of(&first), &second));
    wait_for("the certificate to be due", || {
        let at = host.certificate(NAME)?["renew_at"].as_str()?.to_owned();
        let at = OffsetDateTime::parse(&at, &Rfc3339).ok()?;
        (OffsetDateTime::now_utc() > at + time::Duration::SECOND).then_some(())
    });
    let renew = host.vhostd(&["renew"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    assert_eq!((first.finalized(), second.finalized()), (1, 1));
    first.verify(&chain(&host), NAME);
}

#[test]
fn what_others_found_out_of_reach_for_a_minute_a_new_name_does_not_try_again() {
    let nginx = NginxHost::new();
    let second = Pebble::start(nginx.http_port);
    let (_, nobody) = nobody();
    let host = Host::on(nginx, &several(&nobody, &second));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    assert_eq!(second.finalized(), 0);
    let budgets = fs::read_dir(host.path("state/orders")).unwrap();
    let mut budgets = budgets.map(|entry| entry.unwrap().path());
    let path = budgets.find(|path| path.to_string_lossy().ends_with(".budget.json"));
    let path = path.unwrap();
    let mut budget: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // as if it had begun earlier
    let since = OffsetDateTime::now_utc() - time::Duration::minutes(5);
    assert!(budget["outage"]["since"].is_string(), "{budget}");
    budget["outage"]["since"] = since.format(&Rfc3339).unwrap().into();
    fs::write(&path, budget.to_string()).unwrap();
    host.drop_app("more", "more.example.com", &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    let more = host.certificate("more.example.com").unwrap();
    assert_eq!(more["directory"], second.directory_url());
    assert_eq!(more["last_error"], Value::Null);
    assert_eq!(second.finalized(), 1);
}

#[test]
fn who_asks_for_a_certificate_now_is_not_kept_waiting_for_a_ca_that_is_out_of_reach() {
    let nginx = NginxHost::new();
    let second = Pebble::start(nginx.http_port);
    let (_, nobody) = nobody();
    let host = Host::on(nginx, &several(&nobody, &second));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let daemon = host.daemon();
    wait_for("the first failure", || {
        host.certificate(NAME)?["last_error"].as_str().map(drop)
    });
    let renew = host.vhostd(&["renew", "hello"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    second.verify(&chain(&host), NAME);
    // it is what was wanted: nothing is due
    let (status, renewed) = host.json(&["renew"]);
    assert_eq!(
        (status, &renewed["certificates"][0]["result"]),
        (0, &"not_due".into())
    );
    assert!(
        daemon.log().contains("keeps failing: asking"),
        "{}",
        daemon.log()
    );
}

/// A first CA that answers each new order with `problem`, a second one, and a vhost.
fn refused_by_the_first(
    status: u16,
    problem: serde_json::Value,
    retry_after: Option<&'static str>,
) -> (Host, MockCa, Pebble, App) {
    let nginx = NginxHost::new();
    let (ca, second) = (
        MockCa::start(nginx.http_port),
        Pebble::start(nginx.http_port),
    );
    ca.answer_otherwise(move |asked: &Asked, reply| {
        if asked.resource == Resource::NewOrder {
            reply.body = problem.to_string().into_bytes();
            reply.status = status;
            reply.set("Content-Type", "application/problem+json");
            if let Some(seconds) = retry_after {
                reply.set("Retry-After", seconds);
            }
        }
    });
    let (directory, ca_file) = (ca.directory_url(), ca.ca_file());
    let first = format!("{{directory: {directory}, ca_file: {}}}", ca_file.display());
    let host = Host::on(nginx, &several(&first, &second));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    (host, ca, second, app)
}

#[test]
fn a_ca_that_allows_no_order_for_hours_is_passed_over_at_once_where_nothing_good_is_served() {
    let limited = serde_json::json!({
        "type": "urn:ietf:params:acme:error:rateLimited",
        "detail": "too many",
    });
    let (host, ca, second, _app) = refused_by_the_first(429, limited, Some("7200"));
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!((ca.asked(Resource::NewOrder), second.finalized()), (1, 1));
    second.verify(&chain(&host), NAME);
}

#[test]
fn a_first_ca_that_has_closed_our_account_is_replaced_by_the_second() {
    // Boulder's words
    let closed = serde_json::json!({
        "type": "urn:ietf:params:acme:error:unauthorized",
        "detail": "Account is not valid, has status \"deactivated\"",
    });
    let (host, _ca, second, _app) = refused_by_the_first(403, closed, None);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    let_the_next_attempt_come(&host);
    let renew = host.vhostd(&["renew"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    second.verify(&chain(&host), NAME);
}

#[test]
fn a_name_that_nobody_answers_for_is_no_reason_to_ask_another_ca() {
    let nginx = NginxHost::new();
    // nobody answers challenges there
    let (first, second) = (Pebble::start(free_port()), Pebble::start(nginx.http_port));
    let host = Host::on(nginx, &several(&of(&first), &second));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    assert_eq!(host.vhostd(&["renew", "hello"]).status, 4);
    assert!(
        failed(&host).contains("prove control of"),
        "{}",
        failed(&host)
    );
    assert_eq!(attempts(&host)["troubles"], serde_json::json!({}));
    assert!(!second.log().contains("POST /order-plz"));
}

#[test]
fn nginx_answers_challenges_from_files_first_and_by_itself_where_there_is_none() {
    let nginx = NginxHost::new();
    let second = Pebble::start(nginx.http_port);
    let (_, nobody) = nobody();
    let host = Host::on(nginx, &several(&nobody, &second));
    let app = App::start();
    host.drop_file(
        "hello.yml",
        &format!("server_name: {NAME}\nproxy_pass_url: {}\n", app.url()),
    );
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let ask = |name: &str, token: &str| {
        client::get(host.http(), name, &format!("{CHALLENGE}{token}")).unwrap()
    };
    let said = |name: &str, token: &str| {
        let answer = ask(name, token);
        assert_eq!(answer.status, 200);
        String::from_utf8(answer.body).unwrap()
    };
    // the directory is not even there, as after a restart of the host
    assert!(!host.path("run/challenges").exists());
    let own = said(NAME, "abc");
    assert!(own.starts_with("abc.") && own.len() == 4 + 43, "{own}");
    fs::create_dir_all(host.path("run/challenges")).unwrap();
    let file = |name: &str| host.path("run/challenges").join(name);
    fs::write(file("abc"), "abc.other").unwrap();
    fs::write(host.path("secret"), "secret").unwrap();
    symlink(host.path("secret"), file("link")).unwrap();
    // and for names that have no vhost yet
    for name in [NAME, "new.example.com"] {
        assert_eq!(said(name, "abc"), "abc.other", "{name}");
        assert_eq!(said(name, "abd")[4..], own[4..], "{name}");
        // a link is no file: nginx answers by itself
        assert_eq!(said(name, "link")[5..], own[4..], "{name}");
        assert_eq!(ask(name, "a%2fb").status, 404, "{name}");
    }
    fs::remove_file(file("abc")).unwrap();
    assert_eq!(said(NAME, "abc"), own);
}

#[test]
fn with_one_ca_nothing_is_looked_for_in_files() {
    let (host, _pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    assert!(!host.rendered("hello").unwrap().contains("challenges"));
    assert!(!host.path("run/challenges").exists());
}
