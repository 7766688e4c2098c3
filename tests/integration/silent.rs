//! `nginx -t` and the signal both say yes, and the old configuration keeps serving: each is seen,
//! rolled back, and said in nginx's own words.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::app::App;
use super::support::faults::{Stopped, state_in, take_port};
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::wait_for;

/// A host on which `hello` serves over plain HTTP from generation 1.
fn plain_host(app: &App) -> Host {
    plain_host_on(NginxHost::new(), "", app)
}

fn plain_host_on(nginx: NginxHost, settings: &str, app: &App) -> Host {
    let host = Host::on(nginx, &format!("tls: off\n{settings}"));
    host.drop_app("hello", "hello.example.com", app);
    let (status, report) = host.json(&["reload"]);
    assert_eq!(status, 0, "{report}");
    assert_eq!(host.active(), 1);
    host
}

/// What every rolled back reload leaves; returns the error.
fn assert_rolled_back(host: &Host, (exit, report): &(i32, Value), to: u64) -> String {
    assert_eq!(*exit, 1, "{report}");
    assert_eq!(report["outcome"], "rolled_back", "{report}");
    assert_eq!(report["generation"], to, "{report}");
    let status = host.assert_sound(to);
    assert_eq!(state_in(&status, "hello"), "serving", "{status}");
    assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
    let newest = host.newest_history();
    assert_eq!(newest["result"], "rolled_back", "{newest}");
    assert!(newest["generation"].as_u64().unwrap() > to, "{newest}");
    report["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_port_held_by_another_process_is_reported_and_healed_when_it_is_free() {
    let app = App::start();
    let host = plain_host(&app);
    let taken = take_port(host.nginx.https_port);
    let text = format!(
        "server_name: tls.example.com\nproxy_pass_url: {}\ntls: internal\n",
        app.url()
    );
    host.drop_file("tls.yml", &text);
    let begin = Instant::now();
    let report = host.json(&["reload"]);
    // nginx itself tries for 2.5 s
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    let error = assert_rolled_back(&host, &report, 1);
    assert!(
        error.contains("bind() to 0.0.0.0:") && error.contains("Address already in use"),
        "{error}"
    );
    assert!(
        report.1["hint"]
            .as_str()
            .unwrap()
            .contains("holds the port"),
        "{report:?}"
    );
    assert_eq!(host.state("tls"), "pending");
    // a person is told the same
    let told = host.vhostd(&["reload"]);
    assert_eq!(told.status, 1, "{told:?}");
    assert!(told.stderr.contains("Address already in use"), "{told:?}");
    assert!(
        told.stderr.contains("generation 1 is still active"),
        "{told:?}"
    );
    drop(taken);
    host.reload_ends(0, "activated");
    assert!(host.serves("tls.example.com"));
    assert_eq!(host.state("tls"), "serving");
}

#[test]
fn a_candidate_that_did_not_serve_is_not_tried_at_every_look_and_a_changed_one_is_at_once() {
    let app = App::start();
    let host = plain_host(&app);
    let _taken = take_port(host.nginx.https_port);
    let daemon = host.daemon();
    let text = |name: &str| {
        let url = app.url();
        format!("server_name: {name}\nproxy_pass_url: {url}\ntls: internal\n")
    };
    let failures = || {
        let (_, history) = host.json(&["history"]);
        let entries = history["generations"].as_array().unwrap();
        let failed = entries.iter().filter(|it| it["result"] == "rolled_back");
        failed.count()
    };
    host.drop_file("tls.yml", &text("tls.example.com"));
    wait_for("a rollback", || (failures() == 1).then_some(()));
    // each touch is a look, and an attempt would take nginx's 2.5 s
    for _ in 0..20 {
        host.drop_file("tls.yml", &text("tls.example.com"));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(host.state("tls"), "pending");
    let (_, status) = host.json(&["status"]);
    let error = status["error"].as_str().unwrap();
    assert!(error.contains("Address already in use"), "{error}");
    assert_eq!(failures(), 1, "{}", daemon.log());
    host.drop_file("tls.yml", &text("other.example.com"));
    wait_for("another rollback", || (failures() == 2).then_some(()));
}

#[test]
fn a_port_that_is_freed_while_nginx_retries_is_no_failure() {
    let app = App::start();
    let host = plain_host(&app);
    let taken = take_port(host.nginx.https_port);
    let text = format!(
        "server_name: tls.example.com\nproxy_pass_url: {}\ntls: internal\n",
        app.url()
    );
    host.drop_file("tls.yml", &text);
    let running = std::thread::scope(|scope| {
        let reload = scope.spawn(|| host.json(&["reload"]));
        wait_for("nginx's complaint", || {
            host.nginx
                .error_log()
                .contains("Address already in use")
                .then_some(())
        });
        drop(taken);
        reload.join().unwrap()
    });
    assert_eq!(running.0, 0, "{}", running.1);
    assert!(host.serves("tls.example.com"));
}

#[test]
fn a_listen_address_that_nginx_cannot_change_by_a_reload_is_rolled_back() {
    let app = App::start();
    let host = plain_host(&app);
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let changed = settings.replace("nginx: {", "nginx: {listen: [127.0.0.1], ");
    fs::write(host.path("vhostd.yml"), &changed).unwrap();
    let report = host.json(&["reload"]);
    let error = assert_rolled_back(&host, &report, 1);
    assert!(error.contains("Address already in use"), "{error}");
    assert!(
        report.1["hint"].as_str().unwrap().contains("restart"),
        "{report:?}"
    );
    // the way that the hint names
    host.nginx.stop();
    let down = host.json(&["reload"]);
    assert_eq!(down.0, 1, "{down:?}");
    host.nginx.start();
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
}

#[test]
fn a_shared_zone_that_a_hand_written_file_redefines_is_seen_within_a_second() {
    let app = App::start();
    let nginx = NginxHost::new();
    nginx.site(
        "zone",
        "limit_req_zone $binary_remote_addr zone=hand:1m rate=9r/s;\n",
    );
    let host = plain_host_on(nginx, "", &app);
    host.nginx.site(
        "zone",
        "limit_req_zone $request_uri zone=hand:1m rate=9r/s;\n",
    );
    host.drop_app("next", "next.example.com", &app);
    let report = host.json(&["reload"]);
    let error = assert_rolled_back(&host, &report, 1);
    assert!(error.contains("limit_req \"hand\""), "{error}");
    let steps = report.1["steps"].as_array().unwrap();
    let verify = steps.iter().find(|step| step["step"] == "verify").unwrap();
    assert!(verify["ms"].as_f64().unwrap() < 1000.0, "{verify}");
    let hint = report.1["hint"].as_str().unwrap();
    // nginx names the zone and no file
    assert!(
        hint.contains("a hand-written file changed what `hand` is"),
        "{hint}"
    );
    host.nginx.site(
        "zone",
        "limit_req_zone $binary_remote_addr zone=hand:1m rate=9r/s;\n",
    );
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
}

#[test]
fn a_file_limit_of_the_running_master_that_is_too_low_is_rolled_back() {
    let app = App::start();
    let host = plain_host(&app);
    let master = host.nginx.pid().unwrap();
    let open = fs::read_dir(format!("/proc/{master}/fd")).unwrap().count();
    let limited = Command::new("prlimit")
        .args([
            "--pid",
            &master.to_string(),
            &format!("--nofile={open}:4096"),
        ])
        .status()
        .unwrap();
    assert!(limited.success());
    host.drop_app("next", "next.example.com", &app);
    let report = host.json(&["reload"]);
    let error = assert_rolled_back(&host, &report, 1);
    assert!(error.contains("Too many open files"), "{error}");
    assert!(
        report.1["hint"].as_str().unwrap().contains("LimitNOFILE"),
        "{report:?}"
    );
}

/// A copy of nginx in which a directive has another name of the same length.
fn older_nginx(host: &NginxHost, unknown: &str) -> std::path::PathBuf {
    let real = Command::new("sh")
        .args(["-c", "command -v nginx"])
        .output()
        .unwrap();
    let real = String::from_utf8(real.stdout).unwrap();
    let mut bytes = fs::read(real.trim()).unwrap();
    let name = [b"\0", unknown.as_bytes(), b"\0"].concat();
    let at: Vec<usize> = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, window)| *window == name)
        .map(|(at, _)| at)
        .collect();
    assert!(!at.is_empty(), "{unknown} is not in this nginx");
    for at in at {
        bytes[at + 1] = b'q';
    }
    let path = host.path("nginx-binary");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_directive_that_only_the_upgraded_binary_knows_is_rolled_back() {
    let app = App::start();
    let nginx = NginxHost::new();
    let binary = older_nginx(&nginx, "gzip_static");
    let nginx = nginx.with_binary(&binary);
    let host = Host::on(nginx, "tls: off\n");
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    host.drop_app("hello", "hello.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report} {settings}");
    // the package upgrade: a new file in the place of the running one
    let real = Command::new("sh")
        .args(["-c", "command -v nginx"])
        .output()
        .unwrap();
    let real = String::from_utf8(real.stdout).unwrap();
    let new = host.path("nginx-new");
    fs::copy(real.trim(), &new).unwrap();
    fs::rename(&new, &binary).unwrap();
    fs::create_dir(host.path("srv/files")).unwrap();
    let text = "server_name: files.example.com\nroot: ROOT\ncache_assets: true\n";
    host.drop_file(
        "files.yml",
        &text.replace("ROOT", host.path("srv/files").to_str().unwrap()),
    );
    let report = host.json(&["reload"]);
    let error = assert_rolled_back(&host, &report, 1);
    assert!(
        error.contains("unknown directive \"gzip_static\""),
        "{error}"
    );
    assert!(
        report.1["hint"].as_str().unwrap().contains("restart"),
        "{report:?}"
    );
    host.nginx.stop();
    host.nginx.start();
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
}

#[test]
fn a_hand_written_listener_that_takes_our_names_is_named_and_rolled_back() {
    let app = App::start();
    let host = plain_host(&app);
    let port = host.nginx.http_port;
    // not yet read by nginx: our own signal will make it so
    host.nginx.site(
        "taker",
        &format!("# a site\nserver {{ listen 127.0.0.1:{port}; server_name taker.example.org; return 404; }}\n"),
    );
    host.drop_app("next", "next.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 1, "{report}");
    assert_eq!(report["outcome"], "rolled_back", "{report}");
    let hint = report["hint"].as_str().unwrap();
    assert!(hint.contains("sites/taker:2"), "{hint}");
    assert_eq!(host.active(), 1);
    assert!(host.nginx.test().status.success());
    fs::remove_file(host.path("sites/taker")).unwrap();
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    assert_eq!(host.plain("next.example.com").unwrap().0, 200);
}

#[test]
fn a_missing_log_directory_changes_nothing_and_is_named() {
    let app = App::start();
    let host = plain_host(&app);
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let logs = host.path("access");
    let changed = settings.replace(
        &format!("log_dir: {}", host.path("logs").display()),
        &format!("log_dir: {}", logs.display()),
    );
    fs::write(host.path("vhostd.yml"), changed).unwrap();
    let report = host.reload_ends(1, "rejected");
    let words = report.to_string();
    assert!(words.contains(logs.to_str().unwrap()), "{words}");
    assert!(
        report["hint"].as_str().unwrap().contains("log_dir"),
        "{report}"
    );
    let status = host.assert_sound(1);
    assert_eq!(state_in(&status, "hello"), "serving", "{status}");
    fs::create_dir(&logs).unwrap();
    assert_eq!(host.json(&["reload"]).0, 0);
}

#[test]
fn a_stopped_master_is_rolled_back_and_right_when_it_continues() {
    let app = App::start();
    let host = plain_host(&app);
    host.drop_app("next", "next.example.com", &app);
    let stopped = Stopped::new(host.nginx.pid().unwrap());
    let report = host.json(&["reload"]);
    assert_rolled_back(&host, &report, 1);
    drop(stopped);
    // the signals that waited are delivered now; what they lead to is generation 1
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    assert_eq!(host.plain("next.example.com").unwrap().0, 200);
}

#[test]
fn a_reload_that_nobody_can_prove_does_not_go_back_to_an_older_generation() {
    let app = App::start();
    let host = plain_host(&app);
    host.drop_app("hello", "hello.example.com", &App::start());
    assert_eq!(host.json(&["reload"]).0, 0);
    assert_eq!(host.active(), 2);
    let port = host.nginx.http_port;
    let site = format!(
        "server {{ listen 127.0.0.1:{port}; server_name other.example.org; return 404; }}\n"
    );
    host.nginx.site("taker", &site);
    host.nginx.reload();
    // workers of before answer for a while
    let mut in_a_row = 0;
    wait_for("the taker alone", || {
        let taken = host.plain("hello.example.com")?.0 == 404;
        in_a_row = if taken { in_a_row + 1 } else { 0 };
        (in_a_row == 50).then_some(())
    });
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 1, "{report}");
    assert_eq!(
        host.active(),
        2,
        "generation 1 is older and would serve no better: {report}"
    );
    assert!(
        report["hint"].as_str().unwrap().contains("sites/taker:1"),
        "{report}"
    );
}

#[test]
fn when_a_reload_returns_no_old_worker_answers_any_more() {
    let app = App::start();
    let host = plain_host(&app);
    for round in 0..12 {
        let name = format!("n{round}.example.com");
        host.drop_app("next", &name, &app);
        assert_eq!(host.vhostd(&["reload"]).status, 0);
        for request in 0..40 {
            // an old worker knows no such name and closes
            let answer = host.plain(&name);
            assert!(
                answer.is_some_and(|it| it.0 == 200),
                "round {round}, {request}"
            );
        }
    }
}
