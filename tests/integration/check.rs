//! `vhostd check`: parses and resolves, without nginx.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use nix::unistd::geteuid;

use super::support::host::{Ended, Host};

const GOOD: &str = "server_name: hello.example.com\nproxy_pass_url: http://127.0.0.1:8000\n";

/// A host whose nginx is stopped: nothing here may need it.
fn host() -> Host {
    let host = Host::new();
    host.nginx.stop();
    host
}

fn from_standard_input(host: &Host, text: &str) -> Ended {
    let mut child = host
        .command(&["check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Ended {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn good_files_are_status_0_and_an_empty_directory_is_good() {
    let host = host();
    let empty = host.vhostd(&["check"]);
    assert_eq!(empty.status, 0, "{empty:?}");
    host.drop_file("hello.yml", GOOD);
    let check = host.vhostd(&["check"]);
    assert_eq!(check.status, 0, "{check:?}");
    assert!(
        check.stdout.contains("1 file checked, no errors"),
        "{check:?}"
    );
    assert_eq!(check.stderr, "");
}

#[test]
fn all_errors_of_all_files_are_told_with_their_places() {
    let host = host();
    host.drop_file("good.yml", GOOD);
    host.drop_file(
        "one.yml",
        "server_name: a$b.example.com\nprxy_pass_url: http://127.0.0.1:1\ncache_assets: maybe\n",
    );
    host.drop_file(
        "two.yml",
        "server_name: two.example.com\nproxy_pass_url: http://app:1\n",
    );
    let check = host.vhostd(&["check"]);
    assert_eq!(check.status, 3, "{check:?}");
    for place in ["one.yml:1:", "one.yml:2:", "one.yml:3:", "two.yml:2:"] {
        assert!(check.stderr.contains(place), "{place} {}", check.stderr);
    }
    assert!(!check.stderr.contains("good.yml"), "{}", check.stderr);
    assert!(check.stderr.contains("3 files checked"), "{}", check.stderr);
    let (status, shown) = host.json(&["check"]);
    assert_eq!((status, &shown["checked"]), (3, &3.into()));
    let rejected = shown["rejected"].as_array().unwrap();
    assert!(rejected.len() >= 4, "{shown}");
    assert_eq!(rejected[0]["name"], "one");
    assert_eq!(
        rejected[0]["file"],
        host.path("vhosts.d/one.yml").to_str().unwrap()
    );
    assert_eq!(rejected[0]["line"], 1);
    assert!(rejected[0]["column"].is_u64() && rejected[0]["reason"].is_string());
}

#[test]
fn two_files_with_one_name_are_a_conflict_of_the_later() {
    let host = host();
    host.drop_file("one.yml", GOOD);
    host.drop_file("two.yml", GOOD);
    let (status, shown) = host.json(&["check"]);
    assert_eq!(status, 3);
    let rejected = shown["rejected"].as_array().unwrap();
    assert_eq!(rejected.len(), 1, "{shown}");
    assert_eq!(rejected[0]["name"], "two");
    assert!(
        rejected[0]["reason"]
            .as_str()
            .unwrap()
            .contains("one.yml:1"),
        "{shown}"
    );
}

#[test]
fn a_file_may_have_any_name_and_place_and_replaces_the_one_with_its_names() {
    let host = host();
    host.drop_file("hello.yml", GOOD);
    host.drop_file("shop.yml", &GOOD.replace("hello", "shop"));
    let elsewhere = host.path("temp/.ansible_tmp_x1-source");
    fs::write(&elsewhere, GOOD).unwrap();
    let elsewhere = elsewhere.to_str().unwrap();
    let check = host.vhostd(&["check", elsewhere]);
    assert_eq!(check.status, 0, "{check:?}");
    assert_eq!(from_standard_input(&host, GOOD).status, 0);
    // its own place, too
    let own = host.path("vhosts.d/hello.yml");
    assert_eq!(host.vhostd(&["check", own.to_str().unwrap()]).status, 0);
    // the names of two others can replace neither
    let both = GOOD.replace("hello.example.com", "[hello.example.com, shop.example.com]");
    fs::write(elsewhere, both).unwrap();
    let check = host.vhostd(&["check", elsewhere]);
    assert_eq!(check.status, 3, "{check:?}");
}

#[test]
fn a_file_under_its_own_name_that_takes_anothers_name_is_a_conflict() {
    let host = host();
    host.drop_file("hello.yml", GOOD);
    host.drop_file("shop.yml", &GOOD.replace("hello", "shop"));
    assert_eq!(host.vhostd(&["reload"]).status, 1);
    let next = host.path("temp/shop.yml");
    fs::write(&next, GOOD).unwrap();
    let check = host.vhostd(&["check", next.to_str().unwrap()]);
    assert_eq!(check.status, 3, "{check:?}");
    assert!(check.stderr.contains("hello.yml:1"), "{check:?}");
}

#[test]
fn a_file_that_wants_the_name_of_an_owner_that_is_broken_now_is_rejected_as_by_a_reload() {
    let host = Host::new();
    host.drop_file("owner.yml", &format!("{GOOD}tls: off\n"));
    host.reload_ends(0, "activated");
    // the owner is edited, and its last good version is not the newcomer's to take
    host.drop_file("owner.yml", "server_name: [\n");
    host.drop_file("new.yml", GOOD);
    let place = host.path("vhosts.d/new.yml");
    let check = host.vhostd(&["check", place.to_str().unwrap()]);
    assert_eq!(check.status, 3, "{check:?}");
    let words = format!(
        "already belongs to owner ({}",
        host.path("vhosts.d/owner.yml").display()
    );
    assert!(check.stderr.contains(&words), "{check:?}");
    assert_eq!(host.json(&["reload"]).0, 3);
    // what mends the owner is checked under any name
    host.remove_file("new.yml");
    let elsewhere = host.path("temp/.ansible_tmp_x1-source");
    fs::write(&elsewhere, GOOD).unwrap();
    let check = host.vhostd(&["check", elsewhere.to_str().unwrap()]);
    assert_eq!(check.status, 0, "{check:?}");
}

#[test]
fn standard_input_with_an_error_is_status_3_with_its_line() {
    let host = host();
    let check = from_standard_input(&host, "server_name: a.example.com\nroot: relative\n");
    assert_eq!(check.status, 3, "{check:?}");
    assert!(check.stderr.contains("-:2:"), "{check:?}");
}

#[test]
fn what_cannot_be_read_is_status_1() {
    let host = host();
    let missing = host.path("nowhere.yml");
    let check = host.vhostd(&["check", missing.to_str().unwrap()]);
    assert_eq!(check.status, 1, "{check:?}");
    assert!(check.stderr.contains("nowhere.yml"), "{check:?}");
    assert!(!check.stdout.contains("no errors"), "{check:?}");
    let check = host.vhostd(&["check", missing.to_str().unwrap(), "--json"]);
    assert_eq!(check.status, 1, "{check:?}");
    assert!(check.stderr.contains("nowhere.yml"), "{check:?}");
    fs::remove_dir_all(host.path("vhosts.d")).unwrap();
    let check = host.vhostd(&["check"]);
    assert_eq!(check.status, 1, "{check:?}");
}

#[test]
fn a_file_name_that_no_app_can_have_is_rejected() {
    let host = host();
    host.drop_file("a b.yml", GOOD);
    let check = host.vhostd(&["check"]);
    assert_eq!(check.status, 3, "{check:?}");
    assert!(check.stderr.contains("a b.yml"), "{check:?}");
    host.nginx.start();
    assert_eq!(host.vhostd(&["reload"]).status, 3);
    assert_eq!(host.vhost("a b").unwrap()["state"], "rejected");
}

#[test]
fn a_file_name_that_is_not_utf8_keeps_nothing_else_from_being_told() {
    let host = host();
    host.drop_file("hello.yml", GOOD);
    let odd = OsStr::from_bytes(b"caf\xe9.yml");
    fs::write(host.path("vhosts.d").join(odd), GOOD).unwrap();
    let (status, shown) = host.json(&["check"]);
    assert_eq!(status, 3, "{shown}");
    assert_eq!(
        shown["rejected"][0]["reason"],
        "the file's name is not UTF-8"
    );
    host.nginx.start();
    let (status, report) = host.json(&["reload"]);
    assert_eq!(status, 3, "{report}");
    let _daemon = host.daemon();
    let (status, report) = host.json(&["reload"]);
    assert_eq!((status, &report["outcome"]), (3, &"unchanged".into()));
    assert_eq!(host.vhost("hello").unwrap()["state"], "serving");
    assert_eq!(host.vhost("caf\u{fffd}").unwrap()["state"], "rejected");
}

#[test]
fn a_socket_and_a_link_that_nginxs_user_cannot_follow_are_told_by_check_and_status() {
    let host = Host::new();
    let (socket, root) = (host.path("srv/app.sock"), host.path("srv/public"));
    fs::create_dir(&root).unwrap();
    let keys = format!(
        "server_name: hello.example.com\nproxy_pass_url: http://unix:{}\nroot: {}\n",
        socket.display(),
        root.display()
    );
    host.drop_file("hello.yml", &keys);
    host.reload_ends(0, "activated");
    let told = || {
        let ((exit, checked), (_, status)) = (host.json(&["check"]), host.json(&["status"]));
        assert_eq!(exit, 0, "{checked}");
        [checked, status].map(|it| it["warnings"].to_string())
    };
    let all_say = |words: &str| {
        for told in told() {
            assert!(
                told.contains(words) && told.contains("hello.yml:1:1"),
                "{told}"
            );
        }
    };
    all_say("there is no socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    if geteuid().is_root() {
        all_say("nginx's user may not connect to");
        symlink(host.path("srv"), root.join("storage")).unwrap();
        lchown(root.join("storage"), Some(1), None).unwrap();
        for told in told() {
            assert!(told.contains("does not follow the symbolic link"), "{told}");
        }
        fs::remove_file(root.join("storage")).unwrap();
    }
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    for told in told() {
        assert!(
            !told.contains("nginx's user") && !told.contains("socket"),
            "{told}"
        );
    }
}
