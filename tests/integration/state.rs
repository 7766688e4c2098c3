//! A state directory that is not as we left it: repaired from what is known elsewhere, or refused;
//! nothing is removed and nothing untested is served on a guess.

mod disk;
mod lost;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::Value;

use super::support::app::App;
use super::support::faults::take_port;
use super::support::host::Host;
use super::support::nginx::free_port;
use super::support::wait_for;

const HELLO: &str = "hello.example.com";

/// Three generations that served; the last has `hello` and `shop`.
fn three_generations() -> (Host, App) {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    let other = App::start();
    host.drop_app("hello", HELLO, &other);
    host.reload_ends(0, "activated");
    host.drop_app("shop", "shop.example.com", &app);
    host.reload_ends(0, "activated");
    host.drop_app("hello", HELLO, &app);
    host.reload_ends(0, "activated");
    assert_eq!(host.active(), 3);
    (host, app)
}

fn generations(host: &Host) -> BTreeSet<String> {
    let entries = fs::read_dir(host.path("state/generations")).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(|entry| name(entry.unwrap())).collect()
}

fn relink(host: &Host, target: impl AsRef<Path>) {
    let current = host.path("state/current");
    fs::remove_file(&current).unwrap();
    symlink(target, current).unwrap();
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Both apps are answered by nginx, which accepts and serves what is on disk.
fn assert_serves(host: &Host, app: &App) -> Value {
    let status = host.assert_sound(host.active());
    for name in [HELLO, "shop.example.com"] {
        assert!(
            host.is_answered_by(name, app),
            "{name}: {:?}",
            host.plain(name)
        );
    }
    status
}

/// `vhostd reload` ends well after `fault`, without a loss, and tells of it with these words.
fn assert_repaired(words: &str, fault: impl FnOnce(&Host)) {
    let (host, app) = three_generations();
    let before = generations(&host);
    fault(&host);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{words}: {report}");
    assert!(
        report["warnings"].to_string().contains(words),
        "{words}: {report}"
    );
    let after = generations(&host);
    assert!(after.is_superset(&before), "{words}: {after:?}");
    assert_serves(&host, &app);
    // said once
    let report = host.reload_ends(0, "unchanged");
    assert_eq!(report["warnings"], serde_json::json!([]), "{words}");
    // and the oldest can still be returned to
    let rollback = host.vhostd(&["rollback", "1"]);
    assert_eq!(rollback.status, 0, "{words}: {rollback:?}");
}

#[test]
fn a_missing_current_is_the_newest_generation_that_served() {
    assert_repaired("`current` is generation 3 again", |host| {
        fs::remove_file(host.path("state/current")).unwrap();
    });
}

#[test]
fn a_dangling_current_is_the_newest_generation_that_served() {
    assert_repaired("leads to generations/7, which is not whole", |host| {
        relink(host, "generations/7");
    });
}

#[test]
fn a_current_that_leads_elsewhere_is_not_followed() {
    assert_repaired(
        "which is no generation; `current` is generation 3 again",
        |host| {
            // it looks like ours, and nobody tested it
            let elsewhere = host.path("elsewhere/2");
            fs::create_dir_all(&elsewhere).unwrap();
            for file in ["http.conf", "manifest.json"] {
                fs::copy(
                    host.path("state/generations/2").join(file),
                    elsewhere.join(file),
                )
                .unwrap();
            }
            relink(host, elsewhere);
        },
    );
}

#[test]
fn a_current_that_leads_to_an_unfinished_generation_is_not_followed() {
    assert_repaired("`current` is generation 3 again", |host| {
        let unfinished = "generations/.vhostd-tmp-9999999-x-4";
        fs::create_dir(host.path("state").join(unfinished)).unwrap();
        fs::write(host.path("state").join(unfinished).join("http.conf"), "").unwrap();
        relink(host, unfinished);
    });
}

/// A copy of the third as generation 7, which neither nginx nor the history knows.
fn foreign_seventh(host: &Host, number: &str) {
    let seventh = host.path("state/generations/7");
    fs::create_dir_all(seventh.join("vhosts")).unwrap();
    fs::write(seventh.join("http.conf"), "nonsense;\n").unwrap();
    let manifest = host.path("state/generations/3/manifest.json");
    let text = fs::read_to_string(manifest).unwrap();
    let text = text.replace("\"number\": 3", &format!("\"number\": {number}"));
    fs::write(seventh.join("manifest.json"), text).unwrap();
    relink(host, "generations/7");
}

#[test]
fn a_current_that_leads_to_a_copy_is_not_followed() {
    assert_repaired("manifest.json is of 3; `current` is generation 3", |host| {
        foreign_seventh(host, "3");
    });
}

#[test]
fn a_generation_that_nginx_never_accepted_is_replaced_without_a_moment_of_its_own() {
    let (host, app) = three_generations();
    foreign_seventh(&host, "7");
    assert!(!host.nginx.test().status.success());
    host.reload_ends(0, "activated");
    assert_eq!(host.active(), 8);
    assert_serves(&host, &app);
}

#[test]
fn where_what_replaces_an_unknown_generation_does_not_serve_it_goes_back_to_one_that_did() {
    let (host, app) = three_generations();
    foreign_seventh(&host, "7");
    // a listen address is taken by a restart of nginx only
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let taken = take_port(free_port());
    let port = format!("http_port: {}", taken.local_addr().unwrap().port());
    let ours = format!("http_port: {}", host.nginx.http_port);
    fs::write(host.path("vhostd.yml"), settings.replace(&ours, &port)).unwrap();
    let report = host.reload_ends(1, "rolled_back");
    assert_eq!(host.active(), 3, "{report}");
    fs::write(host.path("vhostd.yml"), settings).unwrap();
    drop(taken);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    assert_serves(&host, &app);
}

#[test]
fn a_current_that_is_no_link_is_refused_and_kept() {
    let (host, app) = three_generations();
    let current = host.path("state/current");
    for directory in [true, false] {
        fs::remove_file(&current).unwrap();
        match directory {
            true => fs::create_dir(&current).unwrap(),
            false => fs::write(&current, "somebody's").unwrap(),
        }
        for command in ["reload", "status", "renew", "rollback", "run"] {
            let ended = host.vhostd(&[command]);
            assert_eq!(ended.status, 1, "{ended:?}");
            let path = current.display().to_string();
            assert!(ended.stderr.contains(&path), "{ended:?}");
            assert!(ended.stderr.contains("move it away"), "{ended:?}");
        }
        match directory {
            true => fs::remove_dir(&current).unwrap(),
            false => {
                assert_eq!(fs::read_to_string(&current).unwrap(), "somebody's");
                fs::remove_file(&current).unwrap();
            }
        }
        host.reload_ends(0, "unchanged");
        assert_serves(&host, &app);
    }
}

#[test]
fn an_active_generation_with_a_truncated_or_missing_manifest_is_replaced_by_one_that_served() {
    assert_repaired("failed to read generation 3", |host| {
        truncate(&host.path("state/generations/3/manifest.json"));
    });
    let (host, app) = three_generations();
    fs::remove_file(host.path("state/generations/3/manifest.json")).unwrap();
    let report = host.reload_ends(0, "activated");
    assert!(
        report["warnings"]
            .to_string()
            .contains("`current` is generation 2 again"),
        "{report}"
    );
    assert_serves(&host, &app);
}

#[test]
fn a_generation_whose_files_somebody_changed_or_removed_is_replaced() {
    for (file, words) in [
        (
            "vhosts/hello.conf",
            "vhosts/hello.conf was changed by somebody else",
        ),
        ("base.conf", "base.conf was changed by somebody else"),
        ("http.conf", "http.conf was changed by somebody else"),
    ] {
        assert_repaired(words, |host| {
            let path = host.path("state/generations/3").join(file);
            let mut file = fs::File::options().append(true).open(path).unwrap();
            file.write_all(b"# mine\n").unwrap();
        });
    }
    assert_repaired("vhosts/shop.conf is missing", |host| {
        fs::remove_file(host.path("state/generations/3/vhosts/shop.conf")).unwrap();
    });
}

#[test]
fn the_daemon_serves_what_the_files_say_after_an_edit_of_the_active_generation() {
    let (host, app) = three_generations();
    let daemon = host.daemon();
    fs::remove_file(host.path("state/current/vhosts/shop.conf")).unwrap();
    // any file is a hint to look
    host.drop_app("more", "more.example.com", &app);
    host.wait_for_serving("more");
    assert!(host.nginx.test().status.success());
    assert_serves(&host, &app);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn with_a_damaged_or_lost_history_no_generation_is_removed_and_no_number_used_again() {
    for damaged in [true, false] {
        let (host, app) = three_generations();
        let before = generations(&host);
        let path = host.path("state/history.json");
        match damaged {
            true => truncate(&path),
            false => fs::remove_file(&path).unwrap(),
        }
        let history = host.vhostd(&["history"]);
        assert_eq!(history.status, 1, "{history:?}");
        assert!(history.stderr.contains("history.json"), "{history:?}");
        assert!(history.stderr.contains("vhostd reload"), "{history:?}");
        let (exit, report) = host.json(&["reload"]);
        assert_eq!(exit, 0, "{report}");
        let warnings = report["warnings"].to_string();
        assert!(
            warnings.contains("begun anew with the 3 generations"),
            "{warnings}"
        );
        assert_eq!(host.path("state/history.json.damaged").exists(), damaged);
        assert!(generations(&host).is_superset(&before));
        assert_serves(&host, &app);
        let (_, history) = host.json(&["history"]);
        let results: Vec<_> = history["generations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["result"].as_str().unwrap().to_owned())
            .collect();
        assert!(results.contains(&"unknown".to_owned()), "{history}");
        // it serves, and it is seen to
        assert!(results.contains(&"proven".to_owned()), "{history}");
        assert_eq!(host.vhostd(&["rollback", "1"]).status, 0);
        assert!(host.active() > 100, "{}", host.active());
    }
}

#[test]
fn with_damaged_or_lost_owners_the_first_owner_still_keeps_its_names() {
    for damaged in [true, false] {
        let (host, app) = three_generations();
        let path = host.path("state/owners.json");
        match damaged {
            true => truncate(&path),
            false => fs::remove_file(&path).unwrap(),
        }
        let newcomer = App::start();
        host.drop_app("aaa", HELLO, &newcomer);
        let old = fs::File::options()
            .write(true)
            .open(host.path("vhosts.d/aaa.yml"))
            .unwrap();
        old.set_modified(std::time::UNIX_EPOCH).unwrap();
        let report = host.reload_ends(3, "unchanged");
        assert_eq!(report["rejected"][0]["name"], "aaa", "{report}");
        let warnings = report["warnings"].to_string();
        assert!(
            warnings.contains("owners.json") && warnings.contains("2 names"),
            "{warnings}"
        );
        assert_serves(&host, &app);
        assert_eq!(newcomer.connections(), 0);
    }
}

#[test]
fn a_rollback_holds_on_when_its_record_is_damaged_and_ends_as_any() {
    let (host, app) = three_generations();
    assert_eq!(host.vhostd(&["rollback", "1"]).status, 0);
    let serves_the_old = || {
        host.plain("shop.example.com")
            .is_none_or(|(status, _)| status != 200)
    };
    assert!(serves_the_old());
    truncate(&host.path("state/pin.json"));
    let daemon = host.daemon();
    assert!(
        daemon.log().contains("is held, until a vhost file changes"),
        "{}",
        daemon.log()
    );
    assert!(serves_the_old());
    assert!(host.status()["pinned"].is_u64());
    // a new file ends no other app's
    host.drop_app("more", "more.example.com", &app);
    host.wait_for_serving("more");
    assert!(serves_the_old());
    for file in ["hello.yml", "shop.yml"] {
        let path = host.path("vhosts.d").join(file);
        let text = fs::read_to_string(path).unwrap();
        host.drop_file(file, &format!("{text}# edited\n"));
    }
    wait_for("the end of the rollback", || {
        host.status()["pinned"].is_null().then_some(())
    });
    assert_serves(&host, &app);
    // and by a reload
    assert_eq!(host.vhostd(&["rollback", "1"]).status, 0);
    truncate(&host.path("state/pin.json"));
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_serves(&host, &app);
}

#[test]
fn what_can_be_found_out_again_is_found_out_again() {
    let (host, app) = three_generations();
    for name in [
        "status.json",
        "features.json",
        "probe-secret",
        "setback.json",
        "hand_written.json",
    ] {
        let path = host.path("state").join(name);
        fs::write(&path, "\0garbage").unwrap();
        let reload = host.vhostd(&["reload"]);
        assert_eq!(reload.status, 0, "{name}: {reload:?}");
        assert_serves(&host, &app);
        let left = fs::read(&path).unwrap_or_default();
        assert_ne!(left, b"\0garbage", "{name}");
    }
}

#[test]
fn a_damaged_account_key_is_refused_and_kept() {
    let (host, _app) = three_generations();
    let accounts = fs::read_dir(host.path("state/accounts")).unwrap();
    let account = accounts
        .last()
        .unwrap()
        .unwrap()
        .path()
        .join("account.json");
    truncate(&account);
    let damaged = fs::read(&account).unwrap();
    for command in ["reload", "status", "run"] {
        let ended = host.vhostd(&[command]);
        assert_eq!(ended.status, 1, "{ended:?}");
        assert!(
            ended.stderr.contains(&account.display().to_string()),
            "{ended:?}"
        );
        assert!(ended.stderr.contains("backup"), "{ended:?}");
    }
    assert_eq!(fs::read(&account).unwrap(), damaged);
    assert_eq!(host.plain(HELLO).unwrap().0, 200);
}

#[test]
fn foreign_things_among_the_generations_are_left_alone_and_hinder_nobody() {
    let (host, app) = three_generations();
    let generations = host.path("state/generations");
    let directories = ["18446744073709551615", "007", "4", "mine", "9"];
    for name in directories {
        fs::create_dir(generations.join(name)).unwrap();
        fs::write(generations.join(name).join("precious"), "x").unwrap();
    }
    fs::write(generations.join("6"), "a file").unwrap();
    symlink("/nowhere", generations.join("8")).unwrap();
    host.drop_app("more", "more.example.com", &app);
    host.reload_ends(0, "activated");
    assert_eq!(host.active(), 5);
    host.drop_app("yet", "yet.example.com", &app);
    host.reload_ends(0, "activated");
    assert_eq!(host.active(), 7);
    assert_serves(&host, &app);
    for name in directories {
        assert!(generations.join(name).join("precious").exists(), "{name}");
    }
    assert!(generations.join("6").exists());
    assert!(fs::symlink_metadata(generations.join("8")).is_ok());
}

#[test]
fn a_state_directory_that_others_can_write_is_said_at_every_reload() {
    let (host, _app) = three_generations();
    let state = host.path("state");
    let chmod = |mode| fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o770);
    for _ in 0..2 {
        let report = host.reload_ends(0, "unchanged");
        let warning = report["warnings"][0].as_str().unwrap();
        let advice = format!("chmod 700 {}", state.display());
        assert!(
            warning.contains("0770") && warning.contains(&advice),
            "{warning}"
        );
    }
    assert!(host.status()["warnings"].to_string().contains("chmod 700"));
    chmod(0o700);
    assert_eq!(
        host.reload_ends(0, "unchanged")["warnings"],
        serde_json::json!([])
    );
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&state, Some(65534), None).unwrap();
        let report = host.reload_ends(0, "unchanged");
        assert!(
            report["warnings"]
                .to_string()
                .contains("belongs to user 65534"),
            "{report}"
        );
    }
}

#[test]
fn the_daemon_repairs_by_itself_what_goes_while_it_runs() {
    let (host, app) = three_generations();
    let daemon = host.daemon();
    let path = |name: &str| host.path("state").join(name);
    let faults: [&dyn Fn(); 4] = [
        &|| fs::remove_file(path("current")).unwrap(),
        &|| truncate(&path("current/manifest.json")),
        &|| truncate(&path("history.json")),
        &|| truncate(&path("owners.json")),
    ];
    for (index, fault) in faults.iter().enumerate() {
        fault();
        let name = format!("more{index}");
        host.drop_app(&name, &format!("{name}.example.com"), &app);
        wait_for("the new vhost", || {
            let answer = host.plain(&format!("{name}.example.com"))?;
            (answer.0 == 200).then_some(())
        });
        host.wait_for_serving(&name);
        assert_serves(&host, &app);
    }
    let mended = daemon.log().matches("reconciles again").count();
    assert_eq!(mended, faults.len(), "{}", daemon.log());
}
