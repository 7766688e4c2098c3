//! An app that nginx does not take is found, named and left out, however nginx says it.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::support::app::App;
use super::support::faults::wait_long;
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::wait_for;

/// Serves `hello` over plain HTTP.
fn host() -> (Host, App) {
    on(NginxHost::new())
}

fn on(nginx: NginxHost) -> (Host, App) {
    let host = Host::on(nginx, "tls: off\n");
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    (host, app)
}

fn serves(host: &Host, name: &str) -> bool {
    host.plain(name).is_some_and(|(status, _)| status == 200)
}

fn only_rejected<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rejected = report["rejected"].as_array().unwrap();
    assert_eq!(rejected.len(), 1, "{report}");
    assert_eq!(rejected[0]["name"], name, "{report}");
    &rejected[0]
}

#[test]
fn what_nginx_refuses_is_shown_in_the_vhost_file_with_its_own_words_beneath() {
    let (host, app) = host();
    host.override_template("second.example.com", "send_timeout nonsense;");
    let text = format!(
        "- server_name: first.example.com\n  proxy_pass_url: {url}\n\
         - server_name: second.example.com\n  proxy_pass_url: {url}\n",
        url = app.url(),
    );
    host.drop_file("shop.yml", &text);
    let report = host.reload_ends(3, "unchanged");
    let rejected = only_rejected(&report, "shop");
    // the second vhost begins there
    assert_eq!(rejected["line"], 3, "{report}");
    assert_eq!(rejected["column"], 3, "{report}");
    let words = rejected["nginx"].as_str().unwrap();
    assert!(
        words.contains("\"send_timeout\" directive invalid value"),
        "{words}"
    );
    assert!(words.contains("vhosts/shop.conf:"), "{words}");
    let shown = host.vhostd(&["status", "shop"]);
    let text = shown.stdout + &shown.stderr;
    assert!(text.contains("shop.yml:3"), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn an_app_that_cannot_be_rendered_as_it_was_meant_is_left_out_alone() {
    let (host, app) = host();
    host.override_template("shop.example.com", "root /etc;");
    host.drop_app("shop", "shop.example.com", &app);
    host.drop_app("wiki", "wiki.example.com", &app);
    let report = host.reload_ends(3, "activated");
    let reason = only_rejected(&report, "shop")["reason"].as_str().unwrap();
    assert!(reason.contains("is not what was meant"), "{reason}");
    assert!(serves(&host, "hello.example.com") && serves(&host, "wiki.example.com"));
}

#[test]
fn an_app_that_fails_only_beside_the_others_is_found_though_nginx_names_nobody() {
    let (host, app) = host();
    // nginx cannot open it for writing, and does not say for whom it wanted to
    fs::create_dir(host.path("logs/shop.access.log")).unwrap();
    for name in ["blog", "shop", "wiki"] {
        host.drop_app(name, &format!("{name}.example.com"), &app);
    }
    let report = host.reload_ends(3, "activated");
    let rejected = only_rejected(&report, "shop");
    let reason = rejected["reason"].as_str().unwrap();
    assert!(reason.contains("shop.access.log"), "{reason}");
    for name in ["hello", "blog", "wiki"] {
        assert!(serves(&host, &format!("{name}.example.com")), "{name}");
    }
    // it was the directory's fault: a person who has removed it need not touch the file
    fs::remove_dir(host.path("logs/shop.access.log")).unwrap();
    host.reload_ends(0, "activated");
    assert!(serves(&host, "shop.example.com"));
}

#[test]
fn a_name_that_the_admins_hash_is_too_small_for_is_its_apps_fault_alone() {
    let nginx = NginxHost::new();
    fs::write(
        nginx.path("conf.d/hash.conf"),
        "server_names_hash_bucket_size 64;\n",
    )
    .unwrap();
    let (host, app) = on(nginx);
    let long = format!("{}.example.com", "a".repeat(60));
    host.drop_app("long", &long, &app);
    host.drop_app("shop", "shop.example.com", &app);
    let report = host.reload_ends(3, "activated");
    let rejected = only_rejected(&report, "long");
    let reason = rejected["reason"].as_str().unwrap();
    assert!(reason.contains("server_names_hash"), "{reason}");
    assert!(serves(&host, "hello.example.com") && serves(&host, "shop.example.com"));
}

#[test]
fn an_app_whose_name_does_not_answer_as_ours_is_left_out_and_the_others_are_served() {
    let (host, app) = host();
    // of all names below the wildcard, the one by which it is proven
    let port = host.nginx.http_port;
    host.nginx.site(
        "taker",
        &format!(
            "server {{ listen {port}; server_name vhostd-probe.shop.example.com; return 404; }}\n"
        ),
    );
    host.drop_app("shop", "\"*.shop.example.com\"", &app);
    host.drop_app("wiki", "wiki.example.com", &app);
    let report = host.reload_ends(3, "activated");
    let rejected = only_rejected(&report, "shop");
    assert_eq!(rejected["line"], 1, "{report}");
    let reason = rejected["reason"].as_str().unwrap();
    let expected = "vhostd-probe.shop.example.com at 127.0.0.1:";
    assert!(reason.contains(expected), "{reason}");
    assert!(serves(&host, "hello.example.com") && serves(&host, "wiki.example.com"));
    let status = host.assert_sound(host.active());
    assert_eq!(status["generation"]["serving"], host.active());
    fs::remove_file(host.path("sites/taker")).unwrap();
    host.reload_ends(0, "activated");
    assert!(serves(&host, "any.shop.example.com"));
}

#[test]
fn many_that_nginx_refuses_are_all_named_in_one_pass() {
    half_of_them_are_bad(20);
}

#[test]
fn so_are_more_than_are_tried_before_the_whole_is_tested() {
    half_of_them_are_bad(50);
}

fn half_of_them_are_bad(count: usize) {
    let (host, app) = host();
    host.override_template("bad.example.com", "send_timeout nonsense;");
    for number in 0..count {
        let text = format!(
            "server_name: [n{number}.example.com{}]\nproxy_pass_url: {}\n",
            if number % 2 == 0 {
                format!(", bad.n{number}.example.com")
            } else {
                String::new()
            },
            app.url()
        );
        host.drop_file(&format!("n{number}.yml"), &text);
    }
    // the template knows one name only: one that each even app has
    let template = host.path("templates/vhost.conf");
    let bent = fs::read_to_string(&template).unwrap();
    let bad: Vec<_> = (0..count)
        .map(|number| format!("bad.n{number}.example.com"))
        .collect();
    let bent = bent.replace("name == \"bad.example.com\"", &format!("name in {bad:?}"));
    fs::write(&template, bent).unwrap();
    let report = host.reload_ends(3, "activated");
    assert_eq!(
        report["rejected"].as_array().unwrap().len(),
        count / 2,
        "{report}"
    );
    for number in 0..count {
        let served = serves(&host, &format!("n{number}.example.com"));
        assert_eq!(served, number % 2 == 1, "{number}");
    }
}

#[test]
fn a_restarted_daemon_still_knows_why_and_tries_again_by_itself_or_when_asked() {
    let (host, app) = host();
    fs::create_dir(host.path("logs/shop.access.log")).unwrap();
    let daemon = host.daemon();
    host.drop_app("shop", "shop.example.com", &app);
    wait_long("the refusal", Duration::from_secs(10), || {
        (host.state("shop") == "rejected").then_some(())
    });
    let why = host.vhost("shop").unwrap()["reason"].clone();
    assert_eq!(daemon.stop(), 0);
    fs::remove_dir(host.path("logs/shop.access.log")).unwrap();
    let daemon = host.daemon();
    wait_for("the new daemon's first look", || {
        daemon.log().contains("watching").then_some(())
    });
    // half a minute has not passed: nobody has tried
    assert_eq!(host.state("shop"), "rejected");
    assert_eq!(host.vhost("shop").unwrap()["reason"], why);
    // the file as it is now says nothing else
    host.reload_ends(0, "activated");
    assert!(serves(&host, "shop.example.com"));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn an_app_of_which_nginx_takes_no_version_any_more_serves_on_as_it_does() {
    let (host, app) = host();
    host.drop_app("shop", "shop.example.com", &app);
    host.reload_ends(0, "activated");
    let before = host.rendered("shop");
    // a template that spoils every version of it
    host.override_template("shop.example.com", "send_timeout nonsense;");
    let text = format!(
        "server_name: [shop.example.com, new.example.com]\nproxy_pass_url: {}\n",
        app.url()
    );
    host.drop_file("shop.yml", &text);
    host.drop_app("wiki", "wiki.example.com", &app);
    let report = host.reload_ends(3, "activated");
    let rejected = only_rejected(&report, "shop");
    assert_eq!(rejected["stale"], true, "{report}");
    assert_eq!(host.rendered("shop"), before);
    for name in ["hello", "wiki", "shop"] {
        assert!(serves(&host, &format!("{name}.example.com")), "{name}");
    }
    assert!(!serves(&host, "new.example.com"));
    // and further changes of others are served beside it
    host.drop_app("blog", "blog.example.com", &app);
    host.reload_ends(3, "activated");
    assert!(serves(&host, "blog.example.com") && serves(&host, "shop.example.com"));
    let status = host.assert_sound(host.active());
    assert_eq!(host.state("shop"), "stale", "{status}");
    fs::remove_file(host.path("templates/vhost.conf")).unwrap();
    host.reload_ends(0, "activated");
    assert!(serves(&host, "new.example.com"));
}

#[test]
fn a_template_that_spoils_every_vhost_takes_no_site_away() {
    let (host, app) = host();
    host.drop_app("shop", "shop.example.com", &app);
    host.reload_ends(0, "activated");
    let active = host.active();
    let shipped = include_str!("../../templates/vhost.conf");
    let spoilt = shipped.replace("server_tokens off;", "server_tokens nonsense;");
    assert_ne!(spoilt, shipped);
    fs::create_dir_all(host.path("templates")).unwrap();
    fs::write(host.path("templates/vhost.conf"), spoilt).unwrap();
    let report = host.reload_ends(3, "unchanged");
    assert_eq!(report["rejected"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(host.active(), active);
    assert!(serves(&host, "hello.example.com") && serves(&host, "shop.example.com"));
}

#[test]
fn a_text_that_is_no_vhost_file_any_more_serves_on_through_a_renewal_a_rollback_and_a_reload() {
    let host = Host::with_settings("tls: internal\n");
    let app = App::start();
    let root = host.path("srv/files");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("index.html"), "files").unwrap();
    host.drop_file(
        "files.yml",
        &format!("server_name: files.example.com\nroot: {}\n", root.display()),
    );
    host.drop_app("shop", "shop.example.com", &app);
    host.reload_ends(0, "activated");
    host.drop_app("wiki", "wiki.example.com", &app);
    host.reload_ends(0, "activated");
    let before = host.rendered("files");
    host.outdate("files");
    let trust = host.internal_root();
    let all_serve = |names: &[&str]| {
        for name in names {
            let name = format!("{name}.example.com");
            assert!(host.serves_to(&name, &trust), "{name}");
        }
    };
    assert_eq!(
        host.vhostd(&["renew", "--force", "shop.example.com"])
            .status,
        0
    );
    all_serve(&["files", "shop", "wiki"]);
    assert_eq!(host.json(&["rollback"]).0, 3);
    all_serve(&["files", "shop"]);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 3, "{report}");
    let rejected = only_rejected(&report, "files");
    assert_eq!(rejected["stale"], true, "{report}");
    assert_eq!(rejected["line"], 2, "{report}");
    all_serve(&["files", "shop", "wiki"]);
    assert_eq!(host.rendered("files"), before);
    // nobody else gets its name
    host.drop_app("thief", "files.example.com", &app);
    let report = host.reload_ends(3, "unchanged");
    assert_eq!(report["rejected"].as_array().unwrap().len(), 2, "{report}");
    all_serve(&["files"]);
}
