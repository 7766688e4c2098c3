//! Providers and zones that are not there.

use super::{KEY_NAME, Scene};
use crate::support::wait_for;

#[test]
fn an_unknown_provider_is_told_once_at_its_line_and_no_ca_is_asked() {
    let scene = Scene::new("{own}");
    scene.drop_vhost("[shop.test, '*.shop.test']");
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?} {}", scene.error("shop.test"));
    assert_eq!(scene.pebble.finalized(), 1);
    // what was good serves on, whoever proves it next
    let knot = scene.knot.address();
    let own = format!("rfc2136: {{server: '{knot}', key_name: {KEY_NAME}, secret_file: {{key}}}}");
    scene.configure_named("other", &own);
    let daemon = scene.host.daemon();
    let vhost = wait_for("the vhost to be stale", || {
        let vhost = scene.host.vhost("shop")?;
        (vhost["state"] == "stale").then_some(vhost)
    });
    assert_eq!(vhost["line"], 3);
    let reason = "there is no DNS provider `p`";
    assert!(
        vhost["reason"].as_str().unwrap().contains(reason),
        "{vhost}"
    );
    for arguments in [&["renew", "shop", "--force"][..], &["renew"], &["reload"]] {
        let ended = scene.host.vhostd(arguments);
        assert!(!ended.stderr.contains("prove control"), "{ended:?}");
    }
    assert_eq!(daemon.log().matches(reason).count(), 1, "{}", daemon.log());
    assert!(!daemon.log().contains("prove control"), "{}", daemon.log());
    assert_eq!(scene.pebble.finalized(), 1);
    let check = scene.host.vhostd(&["check"]);
    assert_eq!(check.status, 3, "{check:?}");
    assert_eq!(check.stderr.matches("-->").count(), 1, "{check:?}");
}

#[test]
fn a_record_outside_of_the_providers_zone_is_said_with_both_names() {
    let scene = Scene::new("{own}");
    let knot = scene.knot.address();
    scene.configure(
        &[],
        &format!(
            "rfc2136: {{server: '{knot}', key_name: {KEY_NAME}, secret_file: {{key}}, zone: shop.test}}"
        ),
    );
    scene.drop_vhost("away.shop.test");
    assert_eq!(scene.host.vhostd(&["reload", "--wait"]).status, 4);
    assert_eq!(
        scene.error("away.shop.test"),
        format!(
            "publish a text for dns-01 through p: change shop-away.acme.other.test at {knot}: it is outside of the zone shop.test"
        )
    );
    // what was never there cannot be left
    assert!(scene.noted().is_empty(), "{:?}", scene.noted());
}
