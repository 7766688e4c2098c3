//! nginx is down, dies, comes back, or is not who the pid file says.

use std::fs;
use std::time::Duration;

use super::support::app::App;
use super::support::client;
use super::support::faults::{
    Innocent, Stopped, children, kill_nginx, processes_of, signal, state_in, wait_long,
};
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::wait_for;

fn plain() -> (Host, App) {
    let app = App::start();
    let host = Host::with_settings("tls: off\n");
    host.drop_app("hello", "hello.example.com", &app);
    assert_eq!(host.json(&["reload"]).0, 0);
    assert_eq!(host.active(), 1);
    (host, app)
}

fn answers(host: &Host, name: &str) -> Option<()> {
    (host.plain(name)?.0 == 200).then_some(())
}

#[test]
fn a_reload_while_nginx_is_down_leaves_a_valid_generation_that_serves_when_it_starts() {
    let (host, app) = plain();
    host.nginx.stop();
    host.drop_app("next", "next.example.com", &app);
    let report = host.reload_ends(1, "activated");
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("nginx is not running"),
        "{report}"
    );
    let status = host.assert_sound(2);
    assert_eq!(
        status["generation"]["serving"],
        serde_json::Value::Null,
        "{status}"
    );
    assert_eq!(status["nginx"]["running"], false, "{status}");
    assert_eq!(state_in(&status, "next"), "pending", "{status}");
    assert_eq!(host.newest_history()["result"], "nginx_down");
    let again = host.json(&["reload"]);
    assert_eq!(
        (again.0, &again.1["outcome"]),
        (1, &"unchanged".into()),
        "{again:?}"
    );
    let (_, history) = host.json(&["history"]);
    assert_eq!(
        history["generations"].as_array().unwrap().len(),
        2,
        "{history}"
    );
    host.nginx.start();
    wait_for("the new generation", || answers(&host, "next.example.com"));
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    let status = host.assert_sound(2);
    assert_eq!(state_in(&status, "next"), "serving", "{status}");
    assert_eq!(host.newest_history()["result"], "proven");
}

#[test]
fn no_empty_pid_file_is_left_by_our_test_while_nginx_is_down() {
    let (host, app) = plain();
    host.nginx.stop();
    assert!(!host.path("nginx.pid").exists());
    host.drop_app("next", "next.example.com", &app);
    host.json(&["reload"]);
    assert!(
        !host.path("nginx.pid").exists(),
        "an accepted test left a pid file"
    );
    host.nginx.site("broken", "nonsense;\n");
    host.drop_app("third", "third.example.com", &app);
    host.reload_ends(1, "rejected");
    assert!(
        !host.path("nginx.pid").exists(),
        "a refused test left a pid file"
    );
}

#[test]
fn the_daemon_notices_by_itself_that_nginx_is_back_and_keeps_its_history_meanwhile() {
    let (host, app) = plain();
    let daemon = host.daemon();
    host.nginx.stop();
    host.drop_app("next", "next.example.com", &app);
    wait_for("generation 2", || (host.active() == 2).then_some(()));
    wait_for("the status", || {
        (host.state("next") == "pending").then_some(())
    });
    // several looks of the daemon, one a second
    let down = || daemon.log().matches("nginx is not running").count();
    wait_for("three looks", || (down() > 3).then_some(()));
    let (_, history) = host.json(&["history"]);
    assert_eq!(
        history["generations"].as_array().unwrap().len(),
        2,
        "{history}"
    );
    host.nginx.start();
    wait_for("the new generation", || answers(&host, "next.example.com"));
    wait_for("the status", || {
        (host.state("next") == "serving").then_some(())
    });
    host.assert_sound(2);
    wait_for("the history", || {
        (host.newest_history()["result"] == "proven").then_some(())
    });
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn nginx_starts_again_with_what_we_left_after_it_was_killed() {
    let (host, app) = plain();
    let text = format!(
        "server_name: tls.example.com\nproxy_pass_url: {}\ntls: internal\n",
        app.url()
    );
    host.drop_file("tls.yml", &text);
    assert_eq!(host.json(&["reload"]).0, 0);
    kill_nginx(&host);
    host.drop_app("next", "next.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 1, "{report}");
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("nginx is not running"),
        "{report}"
    );
    host.assert_sound(3);
    host.nginx.start();
    for name in ["hello", "next"] {
        wait_for(name, || answers(&host, &format!("{name}.example.com")));
    }
    assert!(host.serves("tls.example.com"));
    assert_eq!(host.json(&["reload"]).0, 0);
}

#[test]
fn a_killed_master_whose_worker_lives_on_is_said_to_be_down() {
    let (host, app) = plain();
    let master = host.nginx.pid().unwrap();
    let workers = children(master);
    signal(master, "KILL");
    wait_for("the kill", || host.nginx.pid().is_none().then_some(()));
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(
        exit, 1,
        "an orphan answers, and nobody can reload it: {report}"
    );
    assert!(host.status()["generation"]["serving"].is_null());
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("nginx is not running"),
        "{report}"
    );
    assert!(
        report["hint"].as_str().unwrap().contains("worker"),
        "{report}"
    );
    let status = host.status();
    assert_eq!(status["nginx"]["running"], false, "{status}");
    assert!(status["generation"]["serving"].is_null(), "{status}");
    host.drop_app("next", "next.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 1, "{report}");
    assert_eq!(host.active(), 2);
    assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
    for worker in workers {
        signal(worker, "KILL");
    }
    wait_for("a free port", || {
        host.plain("hello.example.com").is_none().then_some(())
    });
    host.nginx.start();
    wait_for("next", || answers(&host, "next.example.com"));
}

#[test]
fn nginx_that_is_restarted_while_a_reload_is_proven_serves_what_it_reports() {
    let (host, app) = plain();
    host.drop_app("next", "next.example.com", &app);
    let stopped = Stopped::new(host.nginx.pid().unwrap());
    let (exit, report) = std::thread::scope(|scope| {
        let reload = scope.spawn(|| host.json(&["reload"]));
        wait_for("the signal", || stopped.has_pending_hang_up().then_some(()));
        kill_nginx(&host);
        host.nginx.start();
        reload.join().unwrap()
    });
    drop(stopped);
    assert_eq!(exit, 0, "{report}");
    host.assert_sound(2);
    assert_eq!(host.plain("next.example.com").unwrap().0, 200);
}

#[test]
fn nginx_that_dies_while_a_reload_is_proven_leaves_something_that_starts() {
    let (host, app) = plain();
    host.drop_app("next", "next.example.com", &app);
    let _stopped = Stopped::new(host.nginx.pid().unwrap());
    let (exit, report) = std::thread::scope(|scope| {
        let reload = scope.spawn(|| host.json(&["reload"]));
        wait_for("the activation", || (host.active() == 2).then_some(()));
        kill_nginx(&host);
        reload.join().unwrap()
    });
    assert_eq!(exit, 1, "{report}");
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("nginx is not running"),
        "{report}"
    );
    host.assert_sound(report["generation"].as_u64().unwrap());
    host.nginx.start();
    assert_eq!(host.json(&["reload"]).0, 0);
    assert_eq!(host.plain("next.example.com").unwrap().0, 200);
}

#[test]
fn a_wrong_pid_file_never_leads_to_a_signal_for_somebody_else_and_the_right_master_is_found() {
    let (host, app) = plain();
    let mut innocent = Innocent::sleep();
    let (of_innocent, of_test) = (innocent.pid(), std::process::id());
    let files = [
        ("recycled", format!("{of_innocent}\n")),
        ("empty", String::new()),
        ("garbage", "no number\n".into()),
        ("stale", "4194303\n".into()),
        ("ourselves", format!("{of_test}\n")),
        ("init", "1\n".into()),
    ];
    for (count, (what, text)) in files.iter().enumerate() {
        fs::write(host.path("nginx.pid"), text).unwrap();
        let name = format!("next{count}.example.com");
        host.drop_app("next", &name, &app);
        let reload = host.vhostd(&["reload"]);
        assert_eq!(reload.status, 0, "{what}: {reload:?}");
        assert!(
            reload
                .stderr
                .contains("pid file does not lead to its master"),
            "{what}: {reload:?}"
        );
        assert_eq!(host.plain(&name).unwrap().0, 200, "{what}");
        assert_eq!(host.status()["nginx"]["running"], true, "{what}");
        assert!(innocent.lives(), "{what}");
    }
}

#[test]
fn a_wrong_pid_file_of_an_nginx_that_is_down_leads_to_nobody() {
    let (host, app) = plain();
    kill_nginx(&host);
    let mut innocent = Innocent::sleep();
    let files = [
        (format!("{}\n", innocent.pid()), "is not this nginx"),
        (format!("{}\n", std::process::id()), "is not this nginx"),
        (String::new(), "nginx is not running"),
        ("no number\n".into(), "nginx is not running"),
        ("4194303\n".into(), "nginx is not running"),
        ("1\n".into(), "nginx is not running"),
    ];
    for (count, (text, words)) in files.iter().enumerate() {
        fs::write(host.path("nginx.pid"), text).unwrap();
        host.drop_app("next", &format!("next{count}.example.com"), &app);
        let (exit, report) = host.json(&["reload"]);
        assert_eq!(exit, 1, "{text}: {report}");
        let error = report["error"].as_str().unwrap();
        assert!(error.contains(words), "{text}: {report}");
        assert!(innocent.lives(), "{text}");
        assert!(host.nginx.test().status.success(), "{text}");
    }
    fs::remove_file(host.path("nginx.pid")).unwrap();
    host.nginx.start();
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    assert_eq!(host.plain("next5.example.com").unwrap().0, 200);
    assert!(innocent.lives());
}

#[test]
fn another_nginx_in_the_pid_file_is_not_told_to_reload() {
    let (host, app) = plain();
    let other = NginxHost::new();
    let site = |word: &str| {
        let port = other.http_port;
        other.site(
            "a",
            &format!("server {{ listen {port}; return 200 {word}; }}\n"),
        );
    };
    site("old");
    other.start();
    site("new");
    let address = ([127, 0, 0, 1], other.http_port).into();
    let untouched = || client::get(address, "x", "/").unwrap().text() == "old";
    fs::copy(other.path("nginx.pid"), host.path("nginx.pid")).unwrap();
    host.drop_app("next", "next.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "ours runs, too: {report}");
    assert_eq!(host.plain("next.example.com").unwrap().0, 200);
    assert!(untouched());
    let ours = processes_of(&host.path("nginx.conf"));
    let master = ours.iter().find(|(_, line)| line.contains("master"));
    signal(master.unwrap().0, "TERM");
    wait_for("our nginx to end", || {
        // it answers no more before it removes the pid file, which it takes for its own
        processes_of(&host.path("nginx.conf"))
            .is_empty()
            .then_some(())
    });
    fs::copy(other.path("nginx.pid"), host.path("nginx.pid")).unwrap();
    host.drop_app("next", "third.example.com", &app);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 1, "{report}");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("is not this nginx"), "{report}");
    assert!(error.contains(other.config().to_str().unwrap()), "{report}");
    assert_eq!(host.active(), 2, "{report}");
    assert!(untouched());
}

#[test]
fn a_reload_leaves_no_mount_and_no_process_and_changes_no_owner() {
    let (host, app) = plain();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    // a host as systemd makes it: what is mounted anywhere reaches everybody
    let namespace = || {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "shared"]);
        command
    };
    let shared = || {
        let script = "\"$0\" reload; echo exit $?; cat /proc/self/mountinfo";
        let mut command = namespace();
        command.args(["sh", "-c", script]);
        command.arg(env!("CARGO_BIN_EXE_vhostd"));
        let output = command
            .env("VHOSTD_CONFIG", host.path("vhostd.yml"))
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let owners = || {
        use std::os::unix::fs::MetadataExt;
        [
            "state",
            "vhosts.d",
            "conf.d",
            "logs",
            "nginx.conf",
            "vhosts.d/hello.yml",
            "nginx.pid",
        ]
        .map(|name| {
            let metadata = fs::metadata(host.path(name)).unwrap();
            (name, metadata.uid(), metadata.gid(), metadata.mode())
        })
    };
    let of_host = || {
        let mounts = mounts();
        let here = host.path("").display().to_string();
        mounts.lines().filter(|line| line.contains(&here)).count()
    };
    let (before, owned) = (of_host(), owners());
    host.drop_app("next", "next.example.com", &app);
    assert_eq!(host.json(&["reload"]).0, 0);
    host.drop_app("next", "next2.example.com", &app);
    // nobody may mount in a chroot, or without privileges: vhostd cannot either, and does not
    if namespace().arg("true").status().unwrap().success() {
        let seen = shared();
        assert!(seen.contains("exit 0"), "{seen}");
        assert!(
            seen.contains(" shared:") && !seen.contains("/generations/"),
            "{seen}"
        );
    }
    host.nginx.site("broken", "nonsense;\n");
    host.drop_app("third", "third.example.com", &app);
    assert_eq!(host.json(&["reload"]).0, 1);
    assert_eq!(before, 0);
    assert_eq!(of_host(), 0, "{}", mounts());
    assert_eq!(owners(), owned);
    wait_long("nginx's master alone", Duration::from_secs(5), || {
        let left = processes_of(&host.path(""));
        let master = left
            .iter()
            .filter(|(_, line)| line.starts_with("nginx: master process"));
        (master.count() == left.len()).then_some(())
    });
}

#[test]
fn a_reload_by_the_daemon_leaves_no_child_and_no_mount() {
    let (host, app) = plain();
    let daemon = host.daemon();
    host.drop_app("next", "next.example.com", &app);
    assert_eq!(host.json(&["reload"]).0, 0);
    wait_for("next", || answers(&host, "next.example.com"));
    wait_for("no child", || {
        children(daemon.pid()).is_empty().then_some(())
    });
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid())).unwrap();
    assert!(!mounts.contains("/generations/"), "{mounts}");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_daemon_says_that_a_pid_file_names_a_stranger_and_recovers() {
    let (host, app) = plain();
    let mut innocent = Innocent::sleep();
    let daemon = host.daemon();
    kill_nginx(&host);
    fs::write(host.path("nginx.pid"), format!("{}\n", innocent.pid())).unwrap();
    host.drop_app("next", "next.example.com", &app);
    wait_for("the words", || {
        daemon.log().contains("is not this nginx").then_some(())
    });
    wait_for("the old generation", || (host.active() == 1).then_some(()));
    assert!(innocent.lives());
    fs::remove_file(host.path("nginx.pid")).unwrap();
    host.nginx.start();
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    wait_for("next", || answers(&host, "next.example.com"));
    assert!(innocent.lives());
    assert_eq!(daemon.stop(), 0);
}
