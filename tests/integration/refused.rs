//! What is wrong is refused alone: everything else serves on, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::support::app::App;
use super::support::faults::{state_in, wait_long};
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::wait_for;

/// The rendered files of the active generation but for the entry, which holds the number.
fn rendered(host: &Host) -> BTreeMap<String, Vec<u8>> {
    let directory = host.path("state/current/vhosts");
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, fs::read(entry.path()).unwrap());
    }
    files
}

fn text(server_name: &str, app: &App) -> String {
    format!(
        "server_name: {server_name}\nproxy_pass_url: {}\n",
        app.url()
    )
}

fn two_apps(settings: &str) -> (Host, App) {
    let app = App::start();
    let host = Host::with_settings(settings);
    host.drop_app("hello", "hello.example.com", &app);
    host.drop_app("shop", "shop.example.com", &app);
    assert_eq!(host.json(&["reload"]).0, 0);
    (host, app)
}

#[test]
fn a_broken_file_leaves_every_byte_and_the_last_good_version_serving() {
    let (host, app) = two_apps("tls: internal\n");
    let (before, active) = (rendered(&host), host.active());
    host.drop_file(
        "shop.yml",
        "server_name: shop.example.com\nprxy_pass_url: http://127.0.0.1:1\n",
    );
    let report = host.reload_ends(3, "unchanged");
    assert_eq!(report["rejected"][0]["name"], "shop", "{report}");
    assert_eq!(report["rejected"][0]["line"], 2, "{report}");
    assert_eq!((rendered(&host), host.active()), (before.clone(), active));
    // another app goes on beside it
    host.drop_app("third", "third.example.com", &app);
    host.reload_ends(3, "activated");
    let mut after = rendered(&host);
    assert!(after.remove("third.conf").is_some());
    assert_eq!(after, before);
    let status = host.assert_sound(active + 1);
    assert_eq!(state_in(&status, "shop"), "stale", "{status}");
    assert_eq!(state_in(&status, "hello"), "serving", "{status}");
    for name in ["hello", "shop", "third"] {
        assert!(host.serves(&format!("{name}.example.com")), "{name}");
    }
}

#[test]
fn the_last_good_version_serves_on_after_the_daemon_is_restarted() {
    let (host, app) = two_apps("tls: internal\n");
    let before = rendered(&host);
    let daemon = host.daemon();
    host.drop_file("shop.yml", "server_name: [\n");
    wait_for("the refusal", || {
        (host.state("shop") == "stale").then_some(())
    });
    daemon.kill();
    let daemon = host.daemon();
    assert_eq!(host.state("shop"), "stale");
    assert_eq!(rendered(&host), before);
    assert!(host.serves("shop.example.com"));
    host.drop_app("third", "third.example.com", &app);
    wait_for("third", || host.serves("third.example.com").then_some(()));
    let mut after = rendered(&host);
    after.remove("third.conf");
    assert_eq!(after, before);
    // mended, it is as any other
    host.drop_app("shop", "shop2.example.com", &app);
    wait_for("shop", || host.serves("shop2.example.com").then_some(()));
    wait_for("its state", || {
        (host.state("shop") == "serving").then_some(())
    });
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_certificate_of_a_stale_vhost_is_renewed_and_served() {
    let (host, _app) = two_apps("tls: internal\n");
    host.drop_file("shop.yml", "nonsense\n");
    assert_eq!(host.json(&["reload"]).0, 3);
    let before = host.rendered("shop").unwrap();
    let (exit, renewed) = host.json(&["renew", "--force", "shop"]);
    assert_eq!(exit, 0, "{renewed}");
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 3, "{report}");
    let after = host.rendered("shop").unwrap();
    assert_ne!(before, after, "the new version of the certificate is named");
    assert_eq!(state_in(&host.assert_sound(host.active()), "shop"), "stale");
    assert!(host.serves("shop.example.com"));
}

#[test]
fn a_broken_file_of_a_new_app_hurts_nobody() {
    let (host, app) = two_apps("tls: off\n");
    let before = rendered(&host);
    host.drop_file("new.yml", "server_name: new.example.com\nroot: relative\n");
    host.drop_file("empty.yml", "");
    host.drop_app("third", "third.example.com", &app);
    host.reload_ends(3, "activated");
    let mut after = rendered(&host);
    assert!(after.remove("third.conf").is_some());
    assert_eq!(after, before);
    let status = host.assert_sound(2);
    assert_eq!(state_in(&status, "new"), "rejected", "{status}");
    assert_eq!(state_in(&status, "empty"), "rejected", "{status}");
    let (exit, _) = host.json(&["reload", "third"]);
    assert_eq!(exit, 0, "the exit status speaks of the named vhost only");
}

#[test]
fn one_app_that_nginx_refuses_is_named_and_the_others_are_applied_in_the_same_pass() {
    let (host, app) = two_apps("tls: off\n");
    let before = rendered(&host);
    host.override_template("bad.example.com", "send_timeout nonsense;");
    host.drop_app("bad", "bad.example.com", &app);
    host.drop_app("third", "third.example.com", &app);
    let report = host.reload_ends(3, "activated");
    let rejected = &report["rejected"][0];
    assert_eq!(rejected["name"], "bad", "{report}");
    assert!(
        rejected["file"]
            .as_str()
            .unwrap()
            .ends_with("vhosts.d/bad.yml"),
        "{report}"
    );
    assert!(
        rejected["reason"]
            .as_str()
            .unwrap()
            .contains("nginx refuses it"),
        "{report}"
    );
    let mut after = rendered(&host);
    assert!(after.remove("third.conf").is_some());
    assert_eq!(after, before);
    assert_eq!(host.plain("third.example.com").unwrap().0, 200);
    let status = host.assert_sound(host.active());
    assert_eq!(state_in(&status, "bad"), "rejected", "{status}");
}

#[test]
fn an_app_whose_change_nginx_refuses_keeps_its_last_good_version() {
    let (host, app) = two_apps("tls: off\n");
    let before = rendered(&host);
    host.override_template("shop2.example.com", "send_timeout nonsense;");
    host.drop_app("shop", "shop2.example.com", &app);
    let report = host.reload_ends(3, "unchanged");
    assert_eq!(report["rejected"][0]["stale"], true, "{report}");
    assert_eq!(rendered(&host), before);
    assert_eq!(host.plain("shop.example.com").unwrap().0, 200);
    assert_eq!(host.state("shop"), "stale");
}

#[test]
fn a_generation_that_nginx_refuses_is_never_current() {
    let (host, app) = two_apps("tls: off\n");
    // refused in the file of all, where no app can be blamed
    let shipped = include_str!("../../templates/base.conf");
    fs::create_dir_all(host.path("templates")).unwrap();
    let broken = shipped.replacen(
        "access_log off;",
        "access_log off;\n    send_timeout nonsense;",
        1,
    );
    fs::write(host.path("templates/base.conf"), broken).unwrap();
    host.drop_app("third", "third.example.com", &app);
    let seen = watch_current(&host, || {
        let report = host.reload_ends(1, "rejected");
        let error = report["error"].as_str().unwrap();
        assert!(error.contains("send_timeout"), "{report}");
        let hint = report["hint"].as_str().unwrap();
        assert!(
            hint.contains("base.conf:") && hint.contains("vhostd's own file"),
            "{report}"
        );
    });
    assert_eq!(seen, ["generations/1"]);
    let status = host.assert_sound(1);
    assert_eq!(state_in(&status, "hello"), "serving", "{status}");
    assert_eq!(state_in(&status, "third"), "pending", "{status}");
}

/// Every target that `current` has while `during` runs.
fn watch_current(host: &Host, during: impl FnOnce()) -> Vec<String> {
    use std::sync::atomic::{AtomicBool, Ordering};
    let over = AtomicBool::new(false);
    let current = host.path("state/current");
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen: Vec<String> = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let target = fs::read_link(&current).unwrap().display().to_string();
                if seen.last() != Some(&target) {
                    seen.push(target);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            seen
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        over.store(true, Ordering::SeqCst);
        let seen = watching.join().unwrap();
        result.map_or_else(|panic| std::panic::resume_unwind(panic), |()| seen)
    })
}

#[test]
fn a_broken_hand_written_file_is_named_with_its_line_and_nothing_changes() {
    let (host, app) = two_apps("tls: off\n");
    host.nginx
        .site("blog", "# the blog\nserver {\n    listen 8099\n}\n");
    host.drop_app("third", "third.example.com", &app);
    let report = host.reload_ends(1, "rejected");
    let words = format!("{} {}", report["error"], report["hint"]);
    assert!(
        words.contains("hand-written") && words.contains("sites/blog:4"),
        "{words}"
    );
    assert_eq!(host.active(), 1);
    let (_, status) = host.json(&["status"]);
    assert_eq!(state_in(&status, "hello"), "serving", "{status}");
    assert_eq!(state_in(&status, "third"), "pending", "{status}");
    fs::remove_file(host.path("sites/blog")).unwrap();
    assert_eq!(host.json(&["reload"]).0, 0);
    assert_eq!(host.plain("third.example.com").unwrap().0, 200);
}

#[test]
fn the_daemon_says_whose_file_it_is_and_goes_on_when_that_is_mended() {
    let (host, app) = two_apps("tls: internal\n");
    let daemon = host.daemon();
    host.nginx.site("blog", "nonsense;\n");
    host.drop_app("third", "third.example.com", &app);
    wait_for("the words", || {
        daemon.log().contains("sites/blog:1").then_some(())
    });
    assert_eq!(host.active(), 1);
    assert!(host.serves("shop.example.com"));
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 1, "{report}");
    // nothing forgets what certificates are wanted
    let (_, status) = host.json(&["status"]);
    let certificates = status["certificates"].as_array().unwrap();
    let renewed = certificates
        .iter()
        .filter(|it| !it["renew_at"].is_null())
        .count();
    assert_eq!(renewed, 3, "{status}");
    fs::remove_file(host.path("sites/blog")).unwrap();
    assert_eq!(host.json(&["reload"]).0, 0);
    wait_for("third", || host.serves("third.example.com").then_some(()));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_first_owner_of_a_name_keeps_it_whatever_the_file_order() {
    let (host, _) = two_apps("tls: off\n");
    let other = App::start();
    host.drop_app("aaa", "shop.example.com", &other);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 3, "{report}");
    assert_eq!(report["rejected"][0]["name"], "aaa", "{report}");
    assert_eq!(host.plain("shop.example.com").unwrap().0, 200);
    assert_eq!(other.connections(), 0);
    // the owner goes, the name is free
    host.remove_file("shop.yml");
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
    host.plain("shop.example.com").unwrap();
    assert_eq!(other.connections(), 1);
}

#[test]
fn a_name_that_a_hand_written_site_serves_is_refused_with_its_place() {
    let app = App::start();
    let nginx = NginxHost::new();
    let port = nginx.http_port;
    nginx.site(
        "blog",
        &format!(
            "server {{\n listen {port};\n server_name blog.example.com;\n return 200 blog;\n}}\n"
        ),
    );
    let host = Host::on(nginx, "tls: off\n");
    host.drop_app("hello", "hello.example.com", &app);
    host.drop_app("blog", "blog.example.com", &app);
    let report = host.reload_ends(3, "activated");
    assert_eq!(report["rejected"][0]["name"], "blog", "{report}");
    assert!(
        report["rejected"][0].to_string().contains("sites/blog:1"),
        "{report}"
    );
    assert_eq!(host.plain("blog.example.com").unwrap().1, "blog");
    assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
}

#[test]
fn hello_yml_beside_hello_yaml_is_a_conflict_that_leaves_the_last_good_version() {
    let (host, app) = two_apps("tls: off\n");
    let before = rendered(&host);
    host.drop_file("hello.yaml", &text("other.example.com", &app));
    let report = host.reload_ends(3, "unchanged");
    assert!(
        report["rejected"].to_string().contains("hello.yaml"),
        "{report}"
    );
    assert_eq!(rendered(&host), before);
    assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
    assert!(host.plain("other.example.com").is_none());
    host.remove_file("hello.yaml");
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(exit, 0, "{report}");
}

#[test]
fn an_app_that_nginx_refuses_keeps_no_later_one_of_the_daemon_from_being_served() {
    let (host, app) = two_apps("tls: off\n");
    host.override_template("bad.example.com", "send_timeout nonsense;");
    let daemon = host.daemon();
    host.drop_app("bad", "bad.example.com", &app);
    wait_long("the refusal", Duration::from_secs(10), || {
        (host.state("bad") == "rejected").then_some(())
    });
    let active = host.active();
    host.drop_app("third", "third.example.com", &app);
    wait_for("third", || {
        (host.plain("third.example.com")?.0 == 200).then_some(())
    });
    assert!(host.active() > active);
    assert_eq!(host.state("bad"), "rejected");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_damaged_certificate_of_one_app_keeps_no_other_from_being_served() {
    let (host, app) = two_apps("tls: internal\n");
    let stored = host.path("state/certificates/shop.example.com");
    let version = fs::canonicalize(stored.join("current")).unwrap();
    fs::write(version.join("privkey.pem"), "").unwrap();
    host.drop_app("third", "third.example.com", &app);
    host.reload_ends(0, "activated");
    for name in ["hello", "shop", "third"] {
        assert!(host.serves(&format!("{name}.example.com")), "{name}");
    }
    host.assert_sound(host.active());
}

#[test]
fn an_internal_ca_without_its_key_keeps_no_app_from_being_served() {
    let (host, app) = two_apps("tls: internal\n");
    fs::remove_file(host.path("state/internal-ca/root.key")).unwrap();
    host.drop_app("third", "third.example.com", &app);
    let text = format!(
        "server_name: plain.example.com\nproxy_pass_url: {}\ntls: off\n",
        app.url()
    );
    host.drop_file("plain.yml", &text);
    let report = host.reload_ends(0, "activated");
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("third.example.com: "), "{report}");
    assert_eq!(host.plain("plain.example.com").unwrap().0, 200);
    for name in ["hello", "shop"] {
        assert!(host.serves(&format!("{name}.example.com")), "{name}");
    }
}

#[test]
fn a_name_as_long_as_a_name_can_be_is_served_like_any_other() {
    let host = Host::new();
    let app = App::start();
    let label = "a".repeat(60);
    let name = format!("{label}.{label}.{label}.{label}.example");
    host.drop_app("long", &name, &app);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    host.wait_for_https(&name, "/", &host.internal_root());
    let renew = host.vhostd(&["renew", "--force", "long"]);
    assert_eq!(renew.status, 0, "{renew:?}");
}
