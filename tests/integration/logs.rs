//! Access logs: who may read what visitors asked for.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::support::app::App;
use super::support::host::Host;
use super::support::wait_for;

/// Mode, owner and group of a log.
fn rights(host: &Host, name: &str) -> (u32, u32, u32) {
    let log = fs::metadata(host.path("logs").join(name)).unwrap();
    (log.mode() & 0o7777, log.uid(), log.gid())
}

/// A host whose log directory is of a group of its own, where root may say so; its group.
fn host() -> (Host, u32) {
    let host = Host::with_settings("tls: off\n");
    let logs = host.path("logs");
    if nix::unistd::geteuid().is_root() {
        chown(&logs, None, Some(4)).unwrap();
    }
    let group = fs::metadata(&logs).unwrap().gid();
    (host, group)
}

#[test]
fn a_new_access_log_is_for_its_owner_and_the_group_of_its_directory_alone() {
    let (host, group) = host();
    let (app, own) = (App::start(), nix::unistd::geteuid().as_raw());
    let private = (0o640, own, group);
    // by a command
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    assert_eq!(rights(&host, "hello.access.log"), private);
    // nginx writes to it
    assert!(host.plain("hello.example.com").is_some());
    wait_for("a line", || {
        let log = fs::metadata(host.path("logs/hello.access.log")).unwrap();
        (log.len() > 0).then_some(())
    });
    // by the daemon
    let daemon = host.daemon();
    let text = format!(
        "- {{server_name: a.example.com, proxy_pass_url: '{0}'}}\n\
         - {{server_name: b.example.com, proxy_pass_url: '{0}'}}\n",
        app.url()
    );
    host.drop_file("shop.yml", &text);
    host.wait_for_serving("shop#1");
    for name in ["shop#1.access.log", "shop#2.access.log"] {
        assert_eq!(rights(&host, name), private, "{name}");
    }
    assert_eq!(daemon.stop(), 0);
    // for an nginx that is started later
    host.nginx.stop();
    host.drop_app("late", "late.example.com", &app);
    host.reload_ends(1, "activated");
    assert_eq!(rights(&host, "late.access.log"), private);
    host.nginx.start();
    assert_eq!(host.plain("late.example.com").unwrap().0, 200);
    assert_eq!(rights(&host, "late.access.log"), private);
}

#[test]
fn an_access_log_that_is_there_keeps_its_mode_its_owner_and_its_place() {
    let (host, _) = host();
    let app = App::start();
    let at = |name: &str| host.path("logs").join(name);
    fs::write(at("hello.access.log"), "kept\n").unwrap();
    fs::set_permissions(at("hello.access.log"), fs::Permissions::from_mode(0o604)).unwrap();
    fs::write(host.path("elsewhere"), "").unwrap();
    fs::set_permissions(host.path("elsewhere"), fs::Permissions::from_mode(0o604)).unwrap();
    symlink(host.path("elsewhere"), at("shop.access.log")).unwrap();
    let before = rights(&host, "hello.access.log");
    for name in ["hello", "shop"] {
        host.drop_app(name, &format!("{name}.example.com"), &app);
    }
    host.reload_ends(0, "activated");
    assert_eq!(rights(&host, "hello.access.log"), before);
    assert_eq!(rights(&host, "shop.access.log"), before);
    assert!(at("shop.access.log").is_symlink());
    assert!(
        fs::read_to_string(at("hello.access.log"))
            .unwrap()
            .starts_with("kept")
    );
}
