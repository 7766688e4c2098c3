//! Back to an earlier generation, and the record of them.

use std::fs;
use std::time::SystemTime;

use super::support::client;
use super::support::host::Host;
use super::support::wait_for;

const NAME: &str = "hello.example.com";

/// Generations 1 and 2 serve page 1 and 2; no daemon runs.
fn two_generations(settings: &str) -> Host {
    let host = Host::with_settings(settings);
    for page in 1..=3 {
        host.page(&page.to_string(), &page.to_string());
    }
    for page in 1..=2 {
        drop_page(&host, page);
        let reload = host.vhostd(&["reload", "--wait"]);
        assert_eq!(reload.status, 0, "{reload:?}");
    }
    assert_eq!(host.active(), 2);
    host
}

fn drop_page(host: &Host, page: u8) {
    let root = host.path("srv").join(page.to_string());
    let text = format!("server_name: {NAME}\nroot: {}\n", root.display());
    host.drop_file("hello.yml", &text);
}

fn page(host: &Host) -> String {
    let answer = client::get(host.http(), NAME, "/").unwrap();
    answer.text().to_owned()
}

#[test]
fn it_serves_the_generation_before_and_says_how_long_that_holds() {
    let host = two_generations("tls: off\n");
    let rollback = host.vhostd(&["rollback"]);
    assert_eq!(rollback.status, 0, "{rollback:?}");
    assert_eq!(page(&host), "1");
    assert!(
        rollback.stderr.contains("until a vhost file changes"),
        "{rollback:?}"
    );
    assert_eq!(host.status()["pinned"], 1);
    let status = host.vhostd(&["status"]);
    assert!(status.stdout.contains("pinned"), "{status:?}");
}

#[test]
fn a_number_chooses_the_generation_and_an_unknown_one_changes_nothing() {
    let host = two_generations("tls: off\n");
    drop_page(&host, 3);
    let _daemon = host.daemon();
    host.wait_for_serving("hello");
    assert_eq!(page(&host), "3");
    let (status, report) = host.json(&["rollback", "1"]);
    assert_eq!(
        (status, &report["outcome"]),
        (0, &"activated".into()),
        "{report}"
    );
    assert_eq!(page(&host), "1");
    let active = host.active();
    for (number, reason) in [
        ("0", "there is no earlier generation"),
        ("99", "there is no generation 99"),
    ] {
        let ended = host.vhostd(&["rollback", number]);
        assert_eq!(ended.status, 1, "{ended:?}");
        assert!(ended.stderr.contains(reason), "{ended:?}");
    }
    assert_eq!((page(&host).as_str(), host.active()), ("1", active));
}

#[test]
fn a_touch_and_a_restart_keep_it_and_a_changed_file_ends_it() {
    let host = two_generations("tls: off\n");
    let daemon = host.daemon();
    assert_eq!(host.vhostd(&["rollback"]).status, 0);
    let looked = |log: String| log.matches("nothing to change").count();
    let before = looked(daemon.log());
    let file = fs::File::options()
        .write(true)
        .open(host.path("vhosts.d/hello.yml"))
        .unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    drop(file);
    wait_for("the daemon to look", || {
        (looked(daemon.log()) > before).then_some(())
    });
    assert_eq!(page(&host), "1");
    assert_eq!(daemon.stop(), 0);
    let daemon = host.daemon();
    assert_eq!(page(&host), "1");
    assert_eq!(host.status()["pinned"], 1);
    drop_page(&host, 3);
    wait_for("the changed file", || (page(&host) == "3").then_some(()));
    wait_for("the pin's end", || {
        host.status()["pinned"].is_null().then_some(())
    });
    println!("{}", daemon.log());
}

#[test]
fn while_nginx_is_down_it_holds_too_and_serves_when_nginx_starts() {
    let host = two_generations("tls: off\n");
    let daemon = host.daemon();
    host.nginx.stop();
    let rollback = host.vhostd(&["rollback"]);
    assert_eq!(rollback.status, 1, "{rollback:?}");
    assert_eq!(host.status()["pinned"], 1);
    let active = host.active();
    let looks = || daemon.log().matches("nginx is not running").count();
    let before = looks();
    wait_for("another look", || (looks() > before + 1).then_some(()));
    assert_eq!(host.active(), active, "{}", daemon.log());
    host.nginx.start();
    assert_eq!(page(&host), "1");
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(page(&host), "2");
}

#[test]
fn a_reload_ends_it() {
    let host = two_generations("tls: off\n");
    let daemon = host.daemon();
    assert_eq!(host.vhostd(&["rollback"]).status, 0);
    assert_eq!(page(&host), "1");
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(page(&host), "2", "{}", daemon.log());
    assert!(host.status()["pinned"].is_null());
}

#[test]
fn the_certificate_is_todays() {
    let host = two_generations("tls: internal\n");
    let leaf = || {
        let stream = client::connect_tls(host.https(), NAME, &host.internal_root(), &[]).unwrap();
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let old = leaf();
    let renew = host.vhostd(&["renew", "hello", "--force"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    let new = leaf();
    assert_ne!(new, old);
    assert_eq!(host.vhostd(&["rollback", "1"]).status, 0);
    let answer = client::get_tls(host.https(), NAME, "/", &host.internal_root()).unwrap();
    assert_eq!(answer.text(), "1");
    assert_eq!(leaf(), new);
}

#[test]
fn a_renewal_does_not_end_it() {
    let host = two_generations("tls: internal\n");
    assert_eq!(host.vhostd(&["rollback", "1"]).status, 0);
    let renew = host.vhostd(&["renew", "hello", "--force"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    let answer = client::get_tls(host.https(), NAME, "/", &host.internal_root()).unwrap();
    assert_eq!(answer.text(), "1");
    assert_eq!(host.status()["pinned"], 1);
}

#[test]
fn history_tells_newest_first_what_changed_and_what_is_active() {
    let host = Host::with_settings("tls: off\n");
    let empty = host.vhostd(&["history"]);
    assert_eq!(empty.status, 0);
    assert!(empty.stdout.contains("no generation"), "{empty:?}");
    drop(host);
    let host = two_generations("tls: off\n");
    assert_eq!(host.vhostd(&["rollback"]).status, 0);
    let (status, history) = host.json(&["history"]);
    assert_eq!((status, &history["active"]), (0, &3.into()));
    let entries = history["generations"].as_array().unwrap();
    let told: Vec<_> = entries
        .iter()
        .map(|entry| {
            let word = |key: &str| entry[key].as_str().unwrap().to_owned();
            (
                entry["generation"].as_u64().unwrap(),
                word("reason"),
                word("changes"),
                word("result"),
            )
        })
        .collect();
    let entry = |number: u64, reason: &str, changes: &str| {
        (
            number,
            reason.to_owned(),
            changes.to_owned(),
            "proven".to_owned(),
        )
    };
    let expected = [
        entry(3, "rollback", "~hello"),
        entry(2, "reload", "~hello"),
        entry(1, "reload", "+hello"),
    ];
    assert_eq!(told, expected);
    assert_eq!(
        (&entries[0]["active"], &entries[1]["active"]),
        (&true.into(), &false.into())
    );
    let text = host.vhostd(&["history"]).stdout;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines[0].contains("rollback") && lines[0].ends_with("active"),
        "{text}"
    );
    assert!(lines[2].contains("+hello"), "{text}");
}

#[test]
fn while_nginx_is_down_the_history_does_not_grow_and_then_the_generation_is_proven() {
    let host = two_generations("tls: off\n");
    host.nginx.stop();
    drop_page(&host, 3);
    let entries = || {
        host.json(&["history"]).1["generations"]
            .as_array()
            .unwrap()
            .clone()
    };
    for _ in 0..4 {
        assert_eq!(host.vhostd(&["reload"]).status, 1);
        assert_eq!(entries().len(), 3);
    }
    assert_eq!(entries()[0]["result"], "nginx_down");
    host.nginx.start();
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(page(&host), "3");
    assert_eq!(
        (&entries()[0]["generation"], &entries()[0]["result"]),
        (&3.into(), &"proven".into())
    );
    assert_eq!(host.json(&["reload"]).1["outcome"], "unchanged");
    assert_eq!(host.vhostd(&["rollback"]).status, 0);
    assert_eq!(page(&host), "2");
}
