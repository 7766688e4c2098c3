//! What could not be taken out of DNS, and who is told.

use std::fs;

use serde_json::Value;

use super::{KEY_NAME, Scene};
use crate::support::client::Trust;
use crate::support::wait_for;

fn left(scene: &Scene) -> Vec<Value> {
    scene.host.status()["texts_in_dns"]
        .as_array()
        .unwrap()
        .clone()
}

/// A scene whose hook runs `before`, in which `FLAG` is that file's path, and then Knot's own.
fn scene_with_hook(flag: &str, before: &str, options: &str) -> Scene {
    let scene = Scene::new("{own}");
    let knots = scene.knot.hook(&scene.host.path("knot.log"));
    let before = before.replace("FLAG", &scene.host.path(flag).display().to_string());
    let hook = scene.hook(&format!("{before}\nexec {} \"$@\"", knots.display()));
    scene.configure(&[], &format!("exec: {}{options}", hook.display()));
    scene
}

/// A scene whose hook takes nothing out while `broken` is there, and that has its certificate.
fn broken() -> Scene {
    let scene = scene_with_hook(
        "broken",
        "test $1 = present || test ! -e FLAG || { echo no quota; exit 1; }",
        "",
    );
    scene.drop_vhost("shop.test");
    fs::write(scene.host.path("broken"), "").unwrap();
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?} {}", scene.error("shop.test"));
    scene
}

#[test]
fn what_is_left_in_dns_is_shown_until_renew_has_taken_it_out() {
    for by_daemon in [false, true] {
        let scene = broken();
        let daemon = by_daemon.then(|| scene.host.daemon());
        let [text] = &left(&scene)[..] else {
            panic!("{:?}", left(&scene))
        };
        let ours = scene.texts("_acme-challenge.shop.test");
        let ours = ours.iter().find(|it| *it != "somebody else's").unwrap();
        assert_eq!(text["certificate"], "shop.test");
        assert_eq!(text["name"], "_acme-challenge.shop.test");
        assert_eq!(text["zone"], "shop.test");
        assert_eq!(text["provider"], "p");
        assert_eq!(text["value"], **ours);
        let why = text["error"].as_str().unwrap();
        assert!(why.ends_with("exit status: 1: no quota"), "{why}");
        let status = scene.host.vhostd(&["status", "shop"]);
        let said = format!("{}{}", status.stdout, status.stderr);
        let expected = format!(
            "shop.test: still in DNS: TXT {ours} at _acme-challenge.shop.test: failed to run"
        );
        assert!(said.contains(&expected), "{said}");
        assert!(said.contains("`vhostd renew` tries again"), "{said}");
        // the daemon has tried, and is asked by a person to try again
        assert_eq!(scene.host.vhostd(&["renew"]).status, 0);
        assert_eq!(left(&scene).len(), 1);
        fs::remove_file(scene.host.path("broken")).unwrap();
        assert_eq!(scene.host.vhostd(&["renew"]).status, 0);
        assert_eq!(left(&scene), Vec::<Value>::new());
        assert_eq!(
            scene.texts("_acme-challenge.shop.test"),
            ["somebody else's"]
        );
        let status = scene.host.vhostd(&["status"]);
        let said = format!("{}{}", status.stdout, status.stderr);
        assert!(!said.contains("in DNS"), "{said}");
        if let Some(daemon) = daemon {
            let log = daemon.log();
            assert!(log.matches("failed to remove a text").count() <= 1, "{log}");
        }
    }
}

#[test]
fn what_a_provider_that_is_gone_has_left_is_shown_until_somebody_has_removed_it() {
    let mut scene = broken();
    let knot = scene.knot.address();
    let own = format!("rfc2136: {{server: '{knot}', key_name: {KEY_NAME}, secret_file: {{key}}}}");
    scene.configure_named("other", &own);
    scene.host.drop_file(
        "shop.yml",
        &format!(
            "server_name: shop.test\nroot: {}\ntls: {{dns: other}}\n",
            scene.root()
        ),
    );
    assert_eq!(scene.host.vhostd(&["renew"]).status, 0);
    let left_by_it = left(&scene);
    assert_eq!(
        left_by_it[0]["error"],
        "ask the DNS provider p for it: the settings have none of that name any more"
    );
    scene.knot.rewrite("shop.test", "");
    assert_eq!(scene.host.vhostd(&["renew"]).status, 0);
    assert_eq!(left(&scene), Vec::<Value>::new());
}

#[test]
fn a_wildcard_is_served_while_what_proved_it_is_still_being_taken_out() {
    let scene = scene_with_hook(
        "held",
        "while test $1 = cleanup -a -e FLAG; do sleep 0.05; done",
        ", timeout: 1h",
    );
    let held = scene.host.path("held");
    fs::write(&held, "").unwrap();
    scene.host.page("shop", "hello");
    let daemon = scene.host.daemon();
    scene.drop_vhost("'*.shop.test'");
    let trust = Trust::pem(&scene.pebble.issuing_root_pem(0));
    let page = scene.host.wait_for_https("any.shop.test", "/", &trust);
    assert_eq!(page.status, 200);
    assert_eq!(scene.noted(), ["_wildcard.shop.test.dns.json"]);
    fs::remove_file(&held).unwrap();
    wait_for("the text to be gone", || {
        scene.noted().is_empty().then_some(())
    });
    assert_eq!(
        scene.texts("_acme-challenge.shop.test"),
        ["somebody else's"]
    );
    assert_eq!(daemon.stop(), 0);
}
