//! Others handle the same nginx: its binary is upgraded, its logs are rotated, it is restarted, or
//! reloaded by hand. No signal goes to the wrong process, and in the end what was asked for serves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::support::app::App;
use super::support::faults::{children, signal, take_port};
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::traffic::Traffic;
use super::support::wait_for;

/// nginx's own file, so that it can be replaced; it is executed again by this path.
fn host() -> (Host, App) {
    let nginx = NginxHost::new();
    let binary = nginx.path("nginx-binary");
    install(&binary);
    let host = Host::on(nginx.with_binary(&binary), "tls: off\n");
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    (host, app)
}

/// As dpkg does: a second name for the old file, the new one renamed over it, the old one gone.
fn install(binary: &Path) {
    let found = Command::new("sh").args(["-c", "command -v nginx"]).output();
    let real = String::from_utf8(found.unwrap().stdout).unwrap();
    let new = binary.with_extension("dpkg-new");
    fs::copy(real.trim(), &new).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    let backup = binary.with_extension("dpkg-tmp");
    if binary.exists() {
        fs::hard_link(binary, &backup).unwrap();
    }
    fs::rename(&new, binary).unwrap();
    let _ = fs::remove_file(backup);
}

/// SIGUSR2, until both masters run; the old one and the new one.
fn begin_upgrade(host: &Host) -> (u32, u32) {
    let old = host.nginx.pid().unwrap();
    signal(old, "USR2");
    let new = wait_for("the new master", || {
        host.path("nginx.pid.oldbin").exists().then_some(())?;
        host.nginx.pid().filter(|pid| *pid != old)
    });
    wait_for("its workers", || (!children(new).is_empty()).then_some(()));
    (old, new)
}

fn ended(pid: u32) -> Option<()> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let gone = stat
        .rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'));
    gone.then_some(())
}

fn answers(host: &Host, name: &str) -> Option<()> {
    (host.plain(name)?.0 == 200).then_some(())
}

#[test]
fn during_a_binary_upgrade_nobody_is_told_to_reload_and_it_is_said() {
    let (host, app) = host();
    install(&host.path("nginx-binary"));
    let (old, new) = begin_upgrade(&host);
    let workers = || (children(old), children(new));
    let before = workers();
    host.drop_app("next", "next.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 1, "{report}");
    let error = report["error"].as_str().unwrap();
    let words = format!("being upgraded (master {old} and its successor {new})");
    assert!(error.contains(&words), "{report}");
    let hint = report["hint"].as_str().unwrap();
    assert!(
        hint.contains(&format!("`kill -QUIT {old}` finishes")),
        "{report}"
    );
    assert_eq!(workers(), before, "somebody has reloaded");
    let status = host.assert_sound(1);
    assert_eq!(status["nginx"]["running"], true, "{status}");
    assert_eq!(status["nginx"]["pid"], new, "{status}");
    signal(old, "QUIT");
    wait_for("the old master's end", || ended(old));
    host.reload_ends(0, "activated");
    assert!(answers(&host, "next.example.com").is_some());
}

#[test]
fn the_daemon_converges_by_itself_when_an_upgrade_is_finished_and_when_it_is_taken_back() {
    let (host, app) = host();
    let daemon = host.daemon();
    let traffic = Traffic::http(&host, "hello.example.com");
    for (name, taken_back) in [("one.example.com", false), ("two.example.com", true)] {
        let (old, new) = begin_upgrade(&host);
        let said = || daemon.log().matches("is being upgraded").count();
        let before = said();
        host.drop_app("next", name, &app);
        wait_for("the words", || (said() > before).then_some(()));
        assert!(host.plain(name).is_none_or(|it| it.0 != 200));
        let (ends, stays) = if taken_back { (new, old) } else { (old, new) };
        signal(ends, "QUIT");
        wait_for("its end", || ended(ends));
        wait_for(name, || answers(&host, name));
        wait_for("the status", || {
            (host.state("next") == "serving").then_some(())
        });
        assert_eq!(host.nginx.pid(), Some(stays));
    }
    traffic.assert_unbroken();
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_file_of_an_old_master_that_was_killed_holds_up_nothing() {
    let (host, app) = host();
    fs::write(host.path("nginx.pid.oldbin"), "4194303\n").unwrap();
    host.drop_app("next", "next.example.com", &app);
    host.reload_ends(0, "activated");
    // and one that names the master itself
    fs::copy(host.path("nginx.pid"), host.path("nginx.pid.oldbin")).unwrap();
    host.drop_app("next", "other.example.com", &app);
    host.reload_ends(0, "activated");
}

#[test]
fn a_pid_directive_that_nginx_has_not_read_yet_does_not_make_it_down() {
    let (host, app) = host();
    let main = fs::read_to_string(host.nginx.config()).unwrap();
    fs::write(
        host.nginx.config(),
        main.replace("nginx.pid;", "other.pid;"),
    )
    .unwrap();
    host.drop_app("next", "next.example.com", &app);
    // its test creates the new file, and nginx itself writes it only at a restart or a reload
    host.reload_ends(0, "activated");
    assert!(answers(&host, "next.example.com").is_some());
    assert_eq!(host.status()["nginx"]["running"], true);
}

#[test]
fn a_master_with_a_relative_configuration_is_known() {
    let (host, app) = host();
    host.nginx.stop();
    let directory = host.path("");
    let started = Command::new(host.nginx.binary())
        .args(["-p", ".", "-c", "nginx.conf", "-e", "logs/error.log"])
        .current_dir(&directory)
        .status();
    assert!(started.unwrap().success());
    let pid = wait_for("nginx", || {
        let pid: u32 = fs::read_to_string(host.path("nginx.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        answers(&host, "hello.example.com").map(|()| pid)
    });
    host.drop_app("next", "next.example.com", &app);
    let reload = host.json(&["reload"]);
    signal(pid, "TERM");
    assert_eq!(reload.0, 0, "{reload:?}");
}

#[test]
fn a_refused_reload_is_noticed_while_the_logs_are_rotated() {
    let (host, app) = host();
    let log = host.path("logs/error.log");
    let rotate = |tell: bool| {
        fs::rename(&log, host.path("logs/error.log.1")).unwrap();
        fs::write(&log, "").unwrap();
        if tell {
            assert!(host.nginx.signal("USR1"));
        }
    };
    // told, and not told yet: nginx writes to the new file, and to the renamed one
    for (round, tell) in [(0, true), (1, false)] {
        rotate(tell);
        let taken = take_port(host.nginx.https_port);
        let text = format!(
            "server_name: tls{round}.example.com\nproxy_pass_url: {}\ntls: internal\n",
            app.url()
        );
        host.drop_file("tls.yml", &text);
        let (exit, report) = thread::scope(|scope| {
            let reload = scope.spawn(|| host.json(&["reload"]));
            if !tell {
                wait_for("the first complaint", || {
                    let old = fs::read_to_string(host.path("logs/error.log.1")).unwrap();
                    old.contains("bind()").then_some(())
                });
                rotate(true);
            }
            reload.join().unwrap()
        });
        assert_eq!(exit, 1, "{report}");
        let error = report["error"].as_str().unwrap();
        assert!(error.contains("Address already in use"), "{report}");
        drop(taken);
    }
    rotate(true);
    host.reload_ends(0, "activated");
}

#[test]
fn a_reload_by_hand_in_the_middle_of_ours_disturbs_neither() {
    let (host, app) = host();
    let traffic = Traffic::http(&host, "hello.example.com");
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                host.nginx.reload();
                thread::sleep(Duration::from_millis(70));
            }
        });
        let results: Vec<_> = (0..8)
            .map(|round| {
                let name = format!("n{round}.example.com");
                host.drop_app("next", &name, &app);
                (host.json(&["reload"]), answers(&host, &name))
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        for ((exit, report), answer) in results {
            assert_eq!((exit, answer), (0, Some(())), "{report}");
        }
    });
    traffic.assert_unbroken();
    host.assert_sound(9);
}

#[test]
fn restarts_in_the_middle_of_reloads_converge() {
    let (host, app) = host();
    thread::scope(|scope| {
        let restarting = scope.spawn(|| {
            for _ in 0..4 {
                host.nginx.stop();
                host.nginx.start();
            }
        });
        for round in 0.. {
            host.drop_app("next", &format!("n{round}.example.com"), &app);
            // down, restarted meanwhile, or served: never a generation that nginx does not accept
            let (exit, report) = host.json(&["reload"]);
            assert!(exit <= 1, "{report}");
            assert!(host.nginx.test().status.success(), "{report}");
            if restarting.is_finished() {
                break;
            }
        }
    });
    host.drop_app("next", "last.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    assert!(answers(&host, "last.example.com").is_some());
    host.assert_sound(host.active());
}
