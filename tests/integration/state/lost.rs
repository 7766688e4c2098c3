//! What is lost together: nothing tells which generations served, or whose names were.

use std::fs;

use serde_json::Value;

use super::super::support::app::App;
use super::super::support::host::Host;
use super::super::support::wait_for;
use super::{assert_serves, relink, three_generations};

#[test]
fn where_the_history_is_lost_with_current_the_newest_generation_that_nginx_accepts_serves() {
    for dangling in [false, true] {
        let (host, app) = three_generations();
        fs::remove_file(host.path("state/history.json")).unwrap();
        match dangling {
            true => relink(&host, "generations/7"),
            false => fs::remove_file(host.path("state/current")).unwrap(),
        }
        let (exit, report) = host.json(&["reload"]);
        assert_eq!(exit, 0, "{report}");
        let warnings = report["warnings"].to_string();
        assert!(
            warnings.contains("`current` is generation 3 again"),
            "{warnings}"
        );
        assert_serves(&host, &app);
    }
}

#[test]
fn where_nginx_accepts_none_because_of_a_hand_written_file_nothing_is_taken_down() {
    let (host, app) = three_generations();
    let current = host.path("state/current");
    fs::remove_file(host.path("state/history.json")).unwrap();
    fs::remove_file(&current).unwrap();
    host.nginx.site("blog", "server {\n nonsense on;\n}\n");
    for _ in 0..2 {
        let ended = host.vhostd(&["reload"]);
        assert_eq!(ended.status, 1, "{ended:?}");
        for words in ["sites/blog:2", "nonsense", "generation 3", "vhostd reload"] {
            assert!(ended.stderr.contains(words), "{words}: {ended:?}");
        }
        assert!(!current.exists(), "{ended:?}");
    }
    fs::remove_file(host.path("sites/blog")).unwrap();
    let (exit, report): (i32, Value) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    assert_eq!(host.active(), 3, "{report}");
    assert_serves(&host, &app);
}

#[test]
fn with_lost_owners_the_names_of_an_app_that_no_setting_allows_any_more_are_its_own_all_the_same() {
    let host = Host::with_settings("tls: off\n");
    let root = host.page("site", "hello");
    let text = |name: &str| format!("server_name: {name}\nroot: {}\n", root.display());
    host.drop_file("site.yml", &text("hello.example.com"));
    host.drop_file("zone.yml", &text("\"*.zone.example.com\""));
    host.reload_ends(0, "activated");
    // its root is not allowed any more, its owners are lost, and somebody else wants its names
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let roots = |name: &str| format!("roots: [{}]", host.path(name).display());
    fs::create_dir(host.path("other")).unwrap();
    let others = settings.replace(&roots("srv"), &roots("other"));
    assert_ne!(others, settings);
    fs::write(host.path("vhostd.yml"), others).unwrap();
    fs::remove_file(host.path("state/owners.json")).unwrap();
    let newcomer = App::start();
    host.drop_app("aaa", "hello.example.com", &newcomer);
    host.drop_app("bbb", "deep.zone.example.com", &newcomer);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 3, "{report}");
    let rejected = report["rejected"].to_string();
    for owner in ["belongs to site", "belongs to zone"] {
        assert!(rejected.contains(owner), "{owner}: {report}");
    }
    assert!(
        report["warnings"].to_string().contains("2 names"),
        "{report}"
    );
    assert_eq!(newcomer.connections(), 0);
}

#[test]
fn an_earlier_generation_that_cannot_be_read_is_named_with_the_directory_to_remove() {
    let (host, app) = three_generations();
    let first = host.path("state/generations/1");
    let manifest = first.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let newer = text.replace("\"format\": 1", "\"format\": 999");
    assert_ne!(newer, text);
    let words = format!("nothing can return to it: remove {}", first.display());
    for unreadable in [&text[..text.len() / 2], &newer] {
        fs::write(&manifest, unreadable).unwrap();
        let rollback = host.vhostd(&["rollback", "1"]);
        assert_eq!(rollback.status, 1, "{rollback:?}");
        assert!(rollback.stderr.contains(&words), "{rollback:?}");
        assert!(!rollback.stderr.contains("vhostd reload"), "{rollback:?}");
        let daemon = host.daemon();
        wait_for("the hint in the log", || {
            daemon.log().contains(&words).then_some(())
        });
        assert_eq!(daemon.stop(), 0);
    }
    assert_serves(&host, &app);
    fs::remove_dir_all(&first).unwrap();
    let daemon = host.daemon();
    host.drop_app("more", "more.example.com", &app);
    host.wait_for_serving("more");
    assert!(!daemon.log().contains("tidy up"), "{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}
