//! The control socket against who means no good, or does not know better.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::app::App;
use super::support::host::{Daemon, Host, reachable_vhostd};
use super::support::wait_for;

const HELLO: &str = "hello.example.com";

fn host_with_daemon() -> (Host, Daemon) {
    let host = Host::with_settings("tls: off\n");
    let daemon = host.daemon();
    (host, daemon)
}

fn connect(host: &Host) -> UnixStream {
    let stream = UnixStream::connect(host.path("run/control.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

/// Says `bytes`, as far as anybody listens; what is answered until the end.
fn said(host: &Host, bytes: &[u8]) -> String {
    let mut stream = connect(host);
    // who is cut off in the middle has been answered already, or never will be
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(host: &Host, path: &str) -> (String, Value) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: vhostd\r\n\r\n");
    let answer = said(host, request.as_bytes());
    let (head, _) = answer.split_once("\r\n").unwrap();
    let body = answer.lines().find(|line| line.starts_with('{'));
    let body = body.unwrap_or_else(|| panic!("{answer}"));
    (head[9..12].to_owned(), serde_json::from_str(body).unwrap())
}

/// In KiB.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

fn handles(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count()
}

#[test]
fn garbage_and_megabytes_get_an_error_or_nothing_and_the_daemon_stays_as_it_was() {
    let (host, daemon) = host_with_daemon();
    let mega = vec![b'a'; 1 << 20];
    let post = "POST /v1/reload HTTP/1.1\r\nhost: vhostd\r\n";
    let large = format!("{post}content-length: {}\r\n\r\n", mega.len());
    let header = format!("{post}x: ");
    let many: String = (0..5000).map(|n| format!("x{n}: y\r\n")).collect();
    let many = format!("{post}{many}\r\n");
    let deep = "[".repeat(60_000);
    let deep = format!("{post}content-length: {}\r\n\r\n{deep}", deep.len());
    let endless = format!("{post}transfer-encoding: chunked\r\n\r\n100000\r\n");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("zeros", vec![0; 4096]),
        ("every byte", (0..=255).cycle().take(4096).collect()),
        (
            "a TLS handshake",
            [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].repeat(64),
        ),
        (
            "HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        ),
        ("no HTTP", b"reload please\n\n".to_vec()),
        (
            "a wrong length",
            format!("{post}content-length: -1\r\n\r\n").into(),
        ),
        (
            "two lengths",
            format!("{post}content-length: 1\r\ncontent-length: 2\r\n\r\nx").into(),
        ),
        ("a megabyte without an end", mega.clone()),
        (
            "a header of a megabyte",
            [header.as_bytes(), &mega, b"\r\n\r\n"].concat(),
        ),
        ("five thousand headers", many.into()),
        ("a body of a megabyte", [large.as_bytes(), &mega].concat()),
        ("an endless body", [endless.as_bytes(), &mega].concat()),
        ("deep nesting", deep.into()),
        (
            "no request",
            format!("{post}content-length: 4\r\n\r\nnull").into(),
        ),
        (
            "half a request",
            format!("{post}content-length: 9\r\n\r\n{{\"rel").into(),
        ),
    ];
    let round = || {
        for (name, bytes) in cases.iter().filter(|case| case.0 != "half a request") {
            let answer = said(&host, bytes);
            let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
            assert!(refused, "{name}: {answer}");
            assert!(!answer.contains("\"report\""), "{name}: {answer}");
        }
    };
    round();
    let (active, before) = (host.active(), memory(&daemon));
    for _ in 0..10 {
        round();
    }
    let after = memory(&daemon);
    assert!(after < before + 4096, "{before} → {after} KiB");
    // and who hangs up half way
    for (_, bytes) in &cases {
        drop(connect(&host).write_all(&bytes[..bytes.len() / 2]));
    }
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(host.active(), active);
    let reloads = daemon.log().matches("nothing to change (reload)").count();
    assert_eq!(reloads, 1, "{}", daemon.log());
}

#[test]
fn two_hundred_idle_peers_keep_nobody_out_and_hold_few_handles() {
    let (host, daemon) = host_with_daemon();
    let before = handles(&daemon);
    let idle: Vec<_> = (0..200)
        .map(|index| {
            let mut stream = connect(&host);
            if index % 2 == 0 {
                let _ = stream.write_all(b"POST /v1/reload HTTP/1.1\r\nhost: v");
            }
            stream
        })
        .collect();
    let begin = Instant::now();
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(get(&host, "/v1/daemon").0, "200");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let held = handles(&daemon);
    assert!(held < before + 100, "{before} → {held} handles");
    drop(idle);
    wait_for("the handles back", || {
        (handles(&daemon) <= before + 2).then_some(())
    });
}

#[test]
fn a_peer_that_is_slow_with_its_request_is_cut_off_and_others_are_served_meanwhile() {
    let (host, _daemon) = host_with_daemon();
    let begin = Instant::now();
    let starts = [
        "POST /v1/reload HTT",
        "POST /v1/reload HTTP/1.1\r\nhost: vhostd\r\ncontent-length: 20\r\n\r\n{\"reload\"",
    ];
    let slow = starts.map(|start| {
        let mut stream = connect(&host);
        stream.write_all(start.as_bytes()).unwrap();
        stream
    });
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    for mut stream in slow {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(25),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_stranger_is_refused_also_where_the_file_mode_lets_him_in() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let (host, _daemon) = host_with_daemon();
    host.drop_app("hello", HELLO, &App::start());
    host.wait_for_serving("hello");
    // where anybody can reach it
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = reachable_vhostd(directory.path());
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .env("VHOSTD_CONFIG", host.path("vhostd.yml"));
        let output = command.uid(65534).gid(65534).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), words)
    };
    let (exit, words) = as_nobody(&["reload"]);
    assert_eq!(exit, Some(1), "{words}");
    assert!(
        words.contains("permission denied") && words.contains("adduser"),
        "{words}"
    );
    let socket = host.path("run/control.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    for command in [
        &["reload"][..],
        &["rollback"],
        &["renew", "--force"],
        &["status"],
        &["history"],
    ] {
        let (exit, words) = as_nobody(command);
        assert_eq!(exit, Some(1), "{command:?}: {words}");
        assert!(
            words.contains("for root and the group vhostd"),
            "{command:?}: {words}"
        );
    }
    assert_eq!(host.vhostd(&["reload"]).status, 0);
}

/// As a member of the socket's group: the state directory is root's.
#[test]
fn status_and_history_are_told_to_who_may_ask_the_daemon_and_not_read_its_files() {
    let (host, daemon) = host_with_daemon();
    host.drop_app("hello", HELLO, &App::start());
    host.wait_for_serving("hello");
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let state = host.path("state").display().to_string();
    let hidden = settings.replace(&state, "/proc/nowhere");
    fs::write(host.path("member.yml"), hidden).unwrap();
    let config = host.path("member.yml").display().to_string();
    let member = |command: &str| host.json(&["--config", &config, command]);
    let answers = ["status", "history"].map(|command| {
        let (exit, answer) = member(command);
        assert_eq!(exit, 0, "{answer}");
        assert_eq!(
            get(&host, &format!("/v1/{command}")),
            ("200".to_owned(), answer.clone())
        );
        answer
    });
    let words = host.vhostd(&["--config", &config, "status"]);
    assert!(words.stdout.contains(HELLO), "{words:?}");
    assert_eq!(
        host.vhostd(&["--config", &config, "status", "nobody"])
            .status,
        2
    );
    assert_eq!(daemon.stop(), 0);
    // the same as from the files
    for (command, answer) in ["status", "history"].iter().zip(answers) {
        assert_eq!(host.json(&[command]), (0, answer));
        assert_eq!(host.vhostd(&["--config", &config, command]).status, 1);
    }
}
