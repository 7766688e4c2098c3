//! Names have owners: the first app that had one keeps it.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::support::app::App;
use super::support::client::Trust;
use super::support::faults::Stopped;
use super::support::host::Host;
use super::support::mock_ca::{MockCa, Resource, edit};
use super::support::nginx::NginxHost;
use super::support::wait_for;

const HELLO: &str = "hello.example.com";

/// Why `name` is rejected.
fn reason(report: &Value, name: &str) -> String {
    let mut all = report["rejected"].as_array().unwrap().iter();
    let found = all.find(|rejected| rejected["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name} is not rejected: {report}"));
    assert!(found["line"].is_u64(), "{found}");
    found["reason"].as_str().unwrap().to_owned()
}

/// As if the file were from last year.
fn make_old(host: &Host, file: &str) {
    let path = host.path("vhosts.d").join(file);
    let file = fs::File::options().write(true).open(path).unwrap();
    let year = Duration::from_secs(365 * 86400);
    file.set_modified(SystemTime::now() - year).unwrap();
}

fn owner(host: &Host, name: &str) -> Option<String> {
    let bytes = fs::read(host.path("state/owners.json")).unwrap();
    let owners: Value = serde_json::from_slice(&bytes).unwrap();
    owners[name].as_str().map(str::to_owned)
}

/// `NAME.yml` for `count` names, with further lines.
fn drop_many(host: &Host, name: &str, count: usize, further: &str) {
    let names: String = (1..=count)
        .map(|n| format!("- n{n}.example.com\n"))
        .collect();
    let root = host.page(name, name);
    let text = format!("root: {}\n{further}server_name:\n{names}", root.display());
    host.drop_file(&format!("{name}.yml"), &text);
}

#[test]
fn a_hundred_names_of_one_vhost_are_one_order_and_one_more_is_refused_before_the_ca_is_asked() {
    let (host, pebble) = Host::with_pebble();
    drop_many(&host, "many", 100, "");
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    let trust = Trust::Root(pebble.issuing_root());
    for name in ["n1.example.com", "n50.example.com", "n100.example.com"] {
        host.wait_for_https(name, "/", &trust);
    }
    let certificate = host.certificate("n1.example.com").unwrap();
    assert_eq!(certificate["identifiers"].as_array().unwrap().len(), 100);
    assert_eq!(pebble.finalized(), 1);
    drop_many(&host, "many", 101, "");
    let report = host.reload_ends(3, "unchanged");
    let words = reason(&report, "many");
    assert_eq!(words, "a certificate holds at most 100 names");
    host.wait_for_https("n100.example.com", "/", &trust);
    assert_eq!(pebble.finalized(), 1);
}

#[test]
fn how_many_names_a_profile_takes_the_ca_says() {
    const WORDS: &str = "Order cannot contain more than 25 identifiers";
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    ca.answer_otherwise(|asked, reply| match asked.resource {
        Resource::Directory => edit(reply, |it| {
            it["meta"]["profiles"] = serde_json::json!({"tlsserver": "t"});
        }),
        Resource::NewOrder => {
            let problem = serde_json::json!({
                "type": "urn:ietf:params:acme:error:malformed", "detail": WORDS, "status": 400,
            });
            reply.status = 400;
            reply.body = problem.to_string().into();
            reply.set("Content-Type", "application/problem+json");
        }
        _ => {}
    });
    let settings = format!(
        "acme: {{directory: {}, ca_file: {}}}\n",
        ca.directory_url(),
        ca.ca_file().display()
    );
    let host = Host::on(nginx, &settings);
    drop_many(&host, "many", 26, "tls: {profile: tlsserver}\n");
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    let certificate = host.certificate("n1.example.com").unwrap();
    let error = certificate["last_error"].as_str().unwrap();
    assert!(error.contains(WORDS), "{certificate}");
    let shown = host.vhostd(&["status"]);
    assert!(shown.stderr.contains(WORDS), "{shown:?}");
}

#[test]
fn a_name_in_any_spelling_belongs_to_the_app_that_had_it_first() {
    let host = Host::with_settings("tls: off\n");
    let (first, other) = (App::start(), App::start());
    host.drop_app("zzz", "\"Bücher.example.com\"", &first);
    host.reload_ends(0, "activated");
    let spellings = [
        ("bücher.example.com", true),
        ("BÜCHER.EXAMPLE.COM", true),
        ("xn--bcher-kva.example.com", true),
        ("XN--BCHER-KVA.Example.Com", true),
        ("ｂücher.example.com", true),
        ("bücher。example。com", true),
        ("bu\u{308}cher.example.com", true),
        // no name at all
        ("bücher.example.com.", false),
    ];
    for (index, (spelling, _)) in spellings.iter().enumerate() {
        let app = format!("aaa{index}");
        host.drop_app(&app, &format!("\"{spelling}\""), &other);
        make_old(&host, &format!("{app}.yml"));
    }
    // what is remembered counts, not what this process saw
    let check = |report: &Value| {
        for (index, (spelling, is_name)) in spellings.iter().enumerate() {
            let reason = reason(report, &format!("aaa{index}"));
            let place = format!("zzz ({}:1)", host.path("vhosts.d/zzz.yml").display());
            assert_eq!(reason.contains(&place), *is_name, "{spelling}: {reason}");
        }
    };
    check(&host.reload_ends(3, "unchanged"));
    let daemon = host.daemon();
    check(&host.reload_ends(3, "unchanged"));
    assert_eq!(daemon.stop(), 0);
    let _daemon = host.daemon();
    check(&host.reload_ends(3, "unchanged"));
    assert!(host.is_answered_by("xn--bcher-kva.example.com", &first));
    assert_eq!(other.connections(), 0);
}

#[test]
fn redirecting_names_and_those_of_realms_and_wildcards_have_owners_too() {
    let host = Host::new();
    let app = App::start();
    let owners = format!(
        "nginx__vhosts:\n- server_name: {HELLO}\n  redirect_from: old.example.com\n  proxy_pass_url: {url}\n\
         - server_name: \"*.wild.example.com\"\n  proxy_pass_url: {url}\n\
         pki__realms:\n- domains: [{HELLO}, old.example.com]\n",
        url = app.url()
    );
    host.drop_file("zzz.yml", &owners);
    host.drop_app("yyy", "exact.own.example.com", &app);
    host.reload_ends(0, "activated");
    let other = App::start();
    let newcomers = [
        (
            "redirect",
            "old.example.com",
            "`old.example.com` already belongs to zzz",
        ),
        (
            "under",
            "deep.a.wild.example.com",
            "is under `*.wild.example.com`, which belongs to zzz",
        ),
        (
            "narrower",
            "\"*.a.wild.example.com\"",
            "is under `*.wild.example.com`",
        ),
        (
            "above",
            "\"*.own.example.com\"",
            "is above `exact.own.example.com`, which belongs to yyy",
        ),
        ("apex", "wild.example.com", ""),
    ];
    for (name, server_name, _) in newcomers {
        host.drop_app(name, server_name, &other);
        make_old(&host, &format!("{name}.yml"));
    }
    let realm = format!(
        "nginx__vhosts:\n- server_name: realm.example.com\n  redirect_from: {HELLO}\n  proxy_pass_url: {}\n\
         pki__realms:\n- domains: [realm.example.com, {HELLO}]\n",
        other.url()
    );
    host.drop_file("realm.yml", &realm);
    let report = host.reload_ends(3, "activated");
    for (name, _, words) in newcomers.iter().filter(|newcomer| !newcomer.2.is_empty()) {
        let reason = reason(&report, name);
        assert!(reason.contains(words), "{reason}");
        assert!(reason.contains(".yml:"), "{reason}");
    }
    assert!(reason(&report, "realm").contains("already belongs to zzz"));
    assert!(host.rendered("apex").is_some());
    // and nobody ordered a certificate for another's name
    assert!(host.certificate("realm.example.com").is_none());
    assert!(
        host.is_answered_by("any.wild.example.com", &app) || host.serves("any.wild.example.com")
    );
    assert_eq!(other.connections(), 0);
}

#[test]
fn a_public_suffix_is_nobodys_and_private_zones_are_free() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    for (index, name) in ["co.uk", "*.co.uk", "*.github.io", "公司.cn"]
        .iter()
        .enumerate()
    {
        host.drop_app(&format!("bad{index}"), &format!("\"{name}\""), &app);
    }
    for (name, server_name) in [
        ("a", "app.internal"),
        ("b", "x.test"),
        ("c", "a.localhost"),
        ("d", "\"*.zone.internal\""),
        ("e", "\"*.example.co.uk\""),
        // of the list's private section: a host like any other
        ("f", "ec2-192-0-2-1.compute-1.amazonaws.com"),
        ("g", "home.arpa"),
    ] {
        host.drop_app(name, server_name, &app);
    }
    let check = host.vhostd(&["check"]);
    assert_eq!(check.status, 3, "{check:?}");
    assert_eq!(
        check.stderr.matches("is a public suffix").count(),
        4,
        "{check:?}"
    );
    let report = host.reload_ends(3, "activated");
    for index in 0..4 {
        let reason = reason(&report, &format!("bad{index}"));
        assert!(reason.contains("is a public suffix"), "{reason}");
    }
    for name in [
        "app.internal",
        "x.test",
        "a.localhost",
        "y.zone.internal",
        "y.example.co.uk",
        "ec2-192-0-2-1.compute-1.amazonaws.com",
        "home.arpa",
    ] {
        assert!(host.is_answered_by(name, &app), "{name}");
    }
    assert!(!host.is_answered_by("shop.co.uk", &app));
}

#[test]
fn a_name_that_a_hand_written_site_serves_is_refused_in_any_spelling_and_below_its_wildcard() {
    let nginx = NginxHost::new();
    let port = nginx.http_port;
    let site = format!(
        "server {{\n listen {port};\n server_name BLOG.example.com xn--bcher-kva.example.com *.wild.example.com;\n return 200 blog;\n}}\n"
    );
    nginx.site("blog", &site);
    let host = Host::on(nginx, "tls: off\n");
    let app = App::start();
    for (name, server_name) in [
        ("one", "blog.Example.com"),
        ("two", "bücher.example.com"),
        ("three", "new.wild.example.com"),
        ("hello", HELLO),
    ] {
        host.drop_app(name, server_name, &app);
    }
    let report = host.reload_ends(3, "activated");
    for name in ["one", "two", "three"] {
        let reason = reason(&report, name);
        let place = format!("{}:1", host.path("sites/blog").display());
        assert!(reason.contains(&place), "{reason}");
    }
    for name in [
        "blog.example.com",
        "xn--bcher-kva.example.com",
        "new.wild.example.com",
    ] {
        assert_eq!(host.plain(name).unwrap().1, "blog");
    }
    assert!(host.is_answered_by(HELLO, &app));
}

#[test]
fn a_hand_written_site_that_comes_later_takes_no_app_down_and_is_warned_of() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    host.drop_app("shop", "[shop.example.com, www.shop.example.com]", &app);
    host.reload_ends(0, "activated");
    // on a socket of its own, where it answers nobody else
    let port = host.nginx.http_port;
    let site = format!(
        "# status\nserver {{ listen 127.0.0.7:{port}; server_name shop.example.com; return 204; }}\n"
    );
    host.nginx.site("status", &site);
    host.nginx.reload();
    let newcomer = App::start();
    host.drop_app("hello", HELLO, &newcomer);
    let report = host.reload_ends(0, "activated");
    let place = format!("{}:2", host.path("sites/status").display());
    let warned = |warnings: &Value| {
        let words = format!("`shop.example.com` is also written by hand, at {place}");
        let warnings = warnings.as_array().unwrap().iter();
        let about = warnings.filter(|it| it.as_str().is_some_and(|it| it.contains(&words)));
        about.count()
    };
    assert_eq!(warned(&report["warnings"]), 1, "{report}");
    assert_eq!(warned(&host.status()["warnings"]), 1);
    for name in ["shop.example.com", "www.shop.example.com"] {
        assert!(host.is_answered_by(name, &app), "{name}");
    }
    assert!(host.is_answered_by(HELLO, &newcomer));
    // the daemon serves it on, too
    let daemon = host.daemon();
    host.drop_app("more", "more.example.com", &newcomer);
    host.wait_for_serving("more");
    assert!(host.is_answered_by("shop.example.com", &app));
    assert!(daemon.log().contains(&place), "{}", daemon.log());
    // and no other app gets it
    host.drop_app("thief", "shop.example.com", &newcomer);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 3, "{report}");
    assert!(reason(&report, "thief").contains("already"), "{report}");
    assert!(host.is_answered_by("shop.example.com", &app));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_removed_owners_name_is_free_after_a_second_and_the_newcomer_is_served_by_itself() {
    let host = Host::with_settings("tls: off\n");
    let (first, second) = (App::start(), App::start());
    let daemon = host.daemon();
    host.drop_app("owner", HELLO, &first);
    host.wait_for_serving("owner");
    host.drop_app("aaa", HELLO, &second);
    wait_for("the newcomer's rejection", || {
        (host.state("aaa") == "rejected").then_some(())
    });
    assert_eq!(owner(&host, HELLO).as_deref(), Some("owner"));
    host.remove_file("owner.yml");
    host.wait_for_serving("aaa");
    assert!(host.is_answered_by(HELLO, &second));
    assert_eq!(
        owner(&host, HELLO).as_deref(),
        Some("aaa"),
        "{}",
        daemon.log()
    );
}

#[test]
fn a_newcomer_gets_no_name_of_a_file_that_is_missing_for_less_than_a_second() {
    let host = Host::with_settings("tls: off\n");
    let (first, second) = (App::start(), App::start());
    let daemon = host.daemon();
    host.drop_app("owner", HELLO, &first);
    host.wait_for_serving("owner");
    // an unlink of a save, and a newcomer, seen at once
    let stopped = Stopped::new(daemon.pid());
    host.remove_file("owner.yml");
    host.drop_app("aaa", HELLO, &second);
    make_old(&host, "aaa.yml");
    drop(stopped);
    wait_for("the newcomer's rejection", || {
        daemon
            .log()
            .contains("already belongs to owner")
            .then_some(())
    });
    // it did not come back: it was a removal
    host.wait_for_serving("aaa");
    assert!(host.is_answered_by(HELLO, &second));
}

#[test]
fn a_file_that_is_renamed_keeps_its_names_against_an_older_newcomer() {
    let host = Host::with_settings("tls: off\n");
    let (first, second) = (App::start(), App::start());
    host.drop_app("owner", HELLO, &first);
    host.reload_ends(0, "activated");
    let rename = |from: &str, to: &str| {
        let directory = host.path("vhosts.d");
        fs::rename(directory.join(from), directory.join(to)).unwrap();
    };
    rename("owner.yml", "renamed.yml");
    host.drop_app("aaa", HELLO, &second);
    make_old(&host, "aaa.yml");
    let report = host.reload_ends(3, "activated");
    assert!(
        reason(&report, "aaa").contains("already belongs to renamed"),
        "{report}"
    );
    // the same, seen by the daemon
    let daemon = host.daemon();
    let stopped = Stopped::new(daemon.pid());
    rename("renamed.yml", "again.yml");
    host.drop_app("bbb", HELLO, &second);
    make_old(&host, "bbb.yml");
    drop(stopped);
    host.wait_for_serving("again");
    wait_for("both rejections", || {
        (host.state("aaa") == "rejected" && host.state("bbb") == "rejected").then_some(())
    });
    assert!(host.is_answered_by(HELLO, &first));
    assert_eq!(second.connections(), 0);
}

#[test]
fn an_owner_that_no_version_of_can_be_served_keeps_its_names_for_the_day_it_is_mended() {
    let host = Host::with_settings("tls: off\n");
    let page = host.page("hello", "hello");
    let text = format!("server_name: {HELLO}\nroot: {}\n", page.display());
    host.drop_file("owner.yml", &text);
    host.reload_ends(0, "activated");
    // the admin's settings, not the app's file: also the last good version is refused now
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let roots = host.path("srv").display().to_string();
    let elsewhere = settings.replace(&format!("roots: [{roots}]"), "roots: [/opt/elsewhere]");
    assert_ne!(settings, elsewhere);
    fs::write(host.path("vhostd.yml"), elsewhere).unwrap();
    let second = App::start();
    host.drop_app("aaa", HELLO, &second);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 3, "{report}");
    let told = reason(&report, "aaa");
    assert!(told.contains("owner.yml, which is rejected now"), "{told}");
    fs::write(host.path("vhostd.yml"), settings).unwrap();
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 3, "{report}");
    assert!(reason(&report, "aaa").contains("owner.yml:1"), "{report}");
    assert_eq!(host.plain(HELLO).unwrap().1, "hello");
    assert_eq!(second.connections(), 0);
}

#[test]
fn a_rollback_transfers_no_name_and_serves_none_that_another_app_owns_by_now() {
    let host = Host::with_settings("tls: off\n");
    let (first, second) = (App::start(), App::start());
    let also = "first.example.com";
    let text = format!(
        "server_name: [{HELLO}, {also}]\nproxy_pass_url: {}\n",
        first.url()
    );
    host.drop_file("first.yml", &text);
    host.reload_ends(0, "activated");
    host.remove_file("first.yml");
    host.drop_app("second", HELLO, &second);
    host.reload_ends(0, "activated");
    assert_eq!(owner(&host, HELLO).as_deref(), Some("second"));
    // the first one serves what is free, and the second one what is its own
    let (status, report) = host.json(&["rollback", "1"]);
    assert_eq!(status, 0, "{report}");
    let warnings = report["warnings"].to_string();
    let left_out = format!("`{HELLO}` is left out of first");
    assert!(warnings.contains(&left_out), "{warnings}");
    assert!(warnings.contains("belongs to second now"), "{warnings}");
    let served = || {
        assert!(host.is_answered_by(also, &first));
        assert!(host.is_answered_by(HELLO, &second));
        assert_eq!(owner(&host, HELLO).as_deref(), Some("second"));
    };
    served();
    // a renewal reads no files, and a daemon does
    assert_eq!(host.vhostd(&["renew"]).status, 0);
    served();
    let daemon = host.daemon();
    served();
    assert_eq!(daemon.stop(), 0);
    host.drop_app("first", HELLO, &first);
    make_old(&host, "first.yml");
    let report = host.reload_ends(3, "activated");
    assert!(
        reason(&report, "first").contains("already belongs to second"),
        "{report}"
    );
    assert!(host.is_answered_by(HELLO, &second));
}
