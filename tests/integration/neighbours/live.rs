//! The hand-written files change while vhostd runs, and no vhost file does.

use super::*;

/// 60 characters: nginx's default bucket holds 46.
const LONG: &str = "a-name-of-60-characters-which-does-not-fit-there.example.com";
const SIZE: &str = "server_names_hash_bucket_size";

fn with_a_long_name() -> (Host, App) {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("long", LONG, &app);
    (host, app)
}

fn is_accepted(host: &Host) -> bool {
    host.nginx.test().status.success()
}

#[test]
fn a_hash_size_that_a_later_package_brings_takes_the_place_of_ours_and_nginx_starts() {
    let (host, _app) = with_a_long_name();
    let _daemon = host.daemon();
    host.wait_for_serving("long");
    assert!(is_accepted(&host));
    // into a directory that nginx reads, and into the main file: each is a second one beside ours
    for place in ["conf.d/package.conf", "nginx.conf"] {
        let before = fs::read_to_string(host.path(place)).unwrap_or_default();
        let added = match before.is_empty() {
            true => format!("{SIZE} 128;\n"),
            false => before.replace("http {", &format!("http {{\n    {SIZE} 128;")),
        };
        fs::write(host.path(place), added).unwrap();
        assert!(!is_accepted(&host), "{place}");
        wait_for("nginx to take the configuration", || {
            is_accepted(&host).then_some(())
        });
        let long = client::get_tls(host.https(), LONG, "/", &host.internal_root());
        assert_eq!(long.unwrap().status, 200, "{place}");
        // and ours is back when theirs goes
        match before.is_empty() {
            true => fs::remove_file(host.path(place)).unwrap(),
            false => fs::write(host.path(place), before).unwrap(),
        }
        wait_for("the directive of ours", || {
            let base = fs::read_to_string(host.path("state/current/base.conf")).unwrap();
            (base.contains(SIZE) && is_accepted(&host)).then_some(())
        });
    }
    host.nginx.stop();
    host.nginx.start();
    assert!(own_answers(&host, OWN));
}

#[test]
fn a_default_server_that_is_written_while_the_daemon_runs_gets_the_unknown_names() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let _daemon = host.daemon();
    host.wait_for_serving("hello");
    host.nginx
        .site("own", &site(&host.nginx, " default_server"));
    wait_for("nginx to take the configuration", || {
        is_accepted(&host).then_some(())
    });
    wait_for("the hand-written default server", || {
        own_answers(&host, "unknown.example.com").then_some(())
    });
}

#[test]
fn a_hand_written_file_that_is_broken_by_itself_is_told_once_and_what_serves_serves() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let daemon = host.daemon();
    host.wait_for_serving("hello");
    let active = host.active();
    host.nginx.site("broken", "server {\n  lisen 80;\n}\n");
    let place = format!("{}:2", host.path("sites/broken").display());
    wait_for("the error in status", || {
        let error = host.status()["error"].to_string();
        error.contains(&place).then_some(())
    });
    let told = || daemon.log().matches(&place).count();
    wait_for("the error in the log", || (told() > 0).then_some(()));
    let hello = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(hello.unwrap().status, 200);
    assert_eq!(host.active(), active);
    fs::remove_file(host.path("sites/broken")).unwrap();
    wait_for("no error in status", || {
        host.status()["error"].is_null().then_some(())
    });
}

#[test]
fn files_that_do_not_change_are_not_tested_again() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let look = fs::read_to_string(host.path("state/hand_written.json")).unwrap();
    // nginx would fail, were it asked
    let wrapper = host.path("no-nginx");
    let text = "#!/bin/sh\ncase \"$*\" in *-T*) exit 1;; esac\nexec nginx \"$@\"\n";
    super::super::support::executable(&wrapper, text);
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let other = settings.replace("binary: nginx,", &format!("binary: {},", wrapper.display()));
    fs::write(host.path("vhostd.yml"), other).unwrap();
    let renew = host.vhostd(&["renew"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    let after = fs::read_to_string(host.path("state/hand_written.json")).unwrap();
    assert_eq!(after, look);
}
