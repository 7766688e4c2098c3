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

/// `a.yml` and `b.yml` with page 1 and then page 2, each change a generation of its own.
fn two_apps() -> Host {
    let host = Host::with_settings("tls: off\n");
    for page in 1..=3 {
        host.page(&page.to_string(), &page.to_string());
    }
    for page in 1..=2 {
        for app in ["a", "b"] {
            drop_app_page(&host, app, page);
            host.reload_ends(0, "activated");
        }
    }
    assert_eq!(host.active(), 4);
    host
}

fn drop_app_page(host: &Host, app: &str, page: u8) {
    let root = host.path("srv").join(page.to_string());
    let text = format!("server_name: {app}.example.com\nroot: {}\n", root.display());
    host.drop_file(&format!("{app}.yml"), &text);
}

/// What the apps answer, and whether a rollback holds them; `-`: nothing of theirs is served.
fn pages(host: &Host, apps: &[&str]) -> String {
    let vhosts = host.status()["vhosts"].clone();
    let page = |app: &&str| {
        let answer = client::get(host.http(), &format!("{app}.example.com"), "/");
        let answer = answer.ok().filter(|answer| answer.status == 200);
        let page = answer.map_or_else(|| "-".to_owned(), |answer| answer.text().to_owned());
        let mut vhosts = vhosts.as_array().unwrap().iter();
        let held = vhosts.any(|vhost| vhost["name"] == **app && vhost["pinned"] == true);
        format!("{app}{page}{}", if held { " held" } else { "" })
    };
    apps.iter().map(page).collect::<Vec<_>>().join(", ")
}

fn wait_for_pages(host: &Host, apps: &[&str], expected: &str) {
    wait_for(expected, || (pages(host, apps) == expected).then_some(()));
}

#[test]
fn one_app_is_brought_back_by_its_name_and_the_others_stay_as_they_serve() {
    for with_daemon in [false, true] {
        let host = two_apps();
        let _daemon = with_daemon.then(|| host.daemon());
        let rollback = host.vhostd(&["rollback", "a"]);
        assert_eq!(rollback.status, 0, "{rollback:?}");
        assert!(
            rollback.stderr.contains("`vhostd reload a`"),
            "{rollback:?}"
        );
        assert_eq!(pages(&host, &["a", "b"]), "a1 held, b2");
        // that generation has b's page 1, too
        assert_eq!(host.status()["pinned"], 2);
        assert_eq!(host.vhostd(&["rollback", "b", "--to", "3"]).status, 0);
        assert_eq!(pages(&host, &["a", "b"]), "a1 held, b1 held");
        assert_eq!(host.status()["pinned"], 3);
        assert_eq!(host.vhostd(&["reload", "b"]).status, 0);
        assert_eq!(pages(&host, &["a", "b"]), "a1 held, b2");
        assert_eq!(host.status()["pinned"], 2);
        assert_eq!(host.vhostd(&["reload"]).status, 0);
        assert_eq!(pages(&host, &["a", "b"]), "a2, b2");
        assert!(host.status()["pinned"].is_null());
    }
}

#[test]
fn an_edit_a_new_file_and_a_removal_end_no_other_apps_rollback() {
    let host = two_apps();
    let _daemon = host.daemon();
    assert_eq!(host.vhostd(&["rollback", "2"]).status, 0);
    wait_for_pages(&host, &["a", "b"], "a1 held, b1 held");
    drop_app_page(&host, "c", 1);
    wait_for_pages(&host, &["a", "b", "c"], "a1 held, b1 held, c1");
    drop_app_page(&host, "b", 3);
    wait_for_pages(&host, &["a", "b", "c"], "a1 held, b3, c1");
    host.remove_file("a.yml");
    wait_for_pages(&host, &["a", "b", "c"], "a-, b3, c1");
    wait_for("the end of the rollback", || {
        host.status()["pinned"].is_null().then_some(())
    });
}

#[test]
fn what_a_generation_does_not_have_waits_until_its_own_file_changes() {
    let host = two_apps();
    let _daemon = host.daemon();
    drop_app_page(&host, "c", 1);
    wait_for_pages(&host, &["a", "b", "c"], "a2, b2, c1");
    assert_eq!(host.vhostd(&["rollback", "1"]).status, 0);
    wait_for_pages(&host, &["a", "b", "c"], "a1 held, b-, c-");
    let rollback = host.vhostd(&["rollback", "c", "1"]);
    assert_eq!(rollback.status, 1, "{rollback:?}");
    assert!(
        rollback.stderr.contains("generation 1 has no such app"),
        "{rollback:?}"
    );
    drop_app_page(&host, "c", 2);
    wait_for_pages(&host, &["a", "b", "c"], "a1 held, b-, c2");
    // b's names are still its own
    drop_app_page(&host, "thief", 3);
    let text = fs::read_to_string(host.path("vhosts.d/thief.yml")).unwrap();
    host.drop_file("thief.yml", &text.replace("thief.example", "b.example"));
    let (status, report) = host.json(&["reload", "thief"]);
    assert_eq!(status, 3, "{report}");
    let reason = report["rejected"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("already belongs to b ("), "{report}");
    assert!(reason.contains("which a rollback holds"), "{report}");
    assert_eq!(host.vhostd(&["reload", "b"]).status, 0);
    assert_eq!(pages(&host, &["a", "b", "c"]), "a1 held, b2, c2");
}

#[test]
fn a_rollback_without_a_number_passes_over_renewals_and_other_apps_and_fails_where_nothing_differs()
{
    let host = two_generations("tls: internal\n");
    for _ in 0..2 {
        assert_eq!(host.vhostd(&["renew", "hello", "--force"]).status, 0);
    }
    let tls_page = || {
        let answer = client::get_tls(host.https(), NAME, "/", &host.internal_root());
        answer.unwrap().text().to_owned()
    };
    assert_eq!((host.active(), tls_page().as_str()), (4, "2"));
    assert_eq!(host.vhostd(&["rollback"]).status, 0);
    assert_eq!(tls_page(), "1");
    drop(host);
    let host = Host::with_settings("tls: off\n");
    host.page("1", "1");
    drop_app_page(&host, "a", 1);
    host.reload_ends(0, "activated");
    for app in [&[][..], &["a"]] {
        let rollback = host.vhostd(&[&["rollback"], app].concat());
        assert_eq!(rollback.status, 1, "{rollback:?}");
        assert!(
            rollback.stderr.contains("no generation that is kept has"),
            "{rollback:?}"
        );
    }
    drop_app_page(&host, "b", 1);
    host.reload_ends(0, "activated");
    // the app that came last has no other version, and the whole has
    assert_eq!(host.vhostd(&["rollback", "b"]).status, 1);
    assert_eq!(host.vhostd(&["rollback", "a"]).status, 1);
    let (status, told) = host.json(&["rollback", "a"]);
    assert_eq!((status, told["hint"].is_string()), (1, true), "{told}");
    assert_eq!(host.vhostd(&["rollback"]).status, 0);
    assert_eq!(pages(&host, &["a", "b"]), "a1 held, b-");
}

#[test]
fn a_rollback_of_an_older_vhostd_holds_on_and_is_kept_per_app_from_then_on() {
    let host = two_apps();
    assert_eq!(host.vhostd(&["rollback", "2"]).status, 0);
    let path = host.path("state/pin.json");
    let mut written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // as that version wrote it
    written.as_object_mut().unwrap().remove("apps").unwrap();
    fs::write(&path, written.to_string()).unwrap();
    assert_eq!(host.vhostd(&["renew"]).status, 0);
    let _daemon = host.daemon();
    assert_eq!(pages(&host, &["a", "b"]), "a1 held, b1 held");
    drop_app_page(&host, "b", 3);
    wait_for_pages(&host, &["a", "b"], "a1 held, b3");
}

#[test]
fn an_app_returns_to_its_version_before_however_often_another_was_changed_since() {
    let host = two_apps();
    let _daemon = host.daemon();
    for change in 0..22 {
        let root = host.path("srv/2");
        let text = format!(
            "server_name: [b.example.com, b{change}.example.com]\nroot: {}\n",
            root.display()
        );
        host.drop_file("b.yml", &text);
        assert_eq!(host.vhostd(&["reload"]).status, 0);
    }
    assert!(!host.path("state/generations/3").exists());
    let rollback = host.vhostd(&["rollback", "a"]);
    assert_eq!(rollback.status, 0, "{rollback:?}");
    assert_eq!(pages(&host, &["a", "b"]), "a1 held, b2");
    assert_eq!(host.vhostd(&["reload", "a"]).status, 0);
    assert_eq!(pages(&host, &["a", "b"]), "a2, b2");
}
