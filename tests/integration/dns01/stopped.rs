//! Who is stopped while a hook runs.

use std::fs;
use std::process::Command;

use super::{Scene, wait_within_end};
use crate::support::wait_for;

#[test]
fn who_is_stopped_ends_its_hook_and_the_next_run_takes_out_what_that_has_put_there() {
    for by_daemon in [true, false] {
        let scene = Scene::new("{own}");
        let knots = scene.knot.hook(&scene.host.path("knot.log"));
        let (hangs, pid) = (scene.host.path("hangs"), scene.host.path("pid"));
        let hook = scene.hook(&format!(
            "{} \"$@\"\ntest ! -e {hangs} || {{ echo $$ > {pid}; exec sleep 600; }}",
            knots.display(),
            hangs = hangs.display(),
            pid = pid.display(),
        ));
        scene.configure(&[], &format!("exec: {}, timeout: 1h", hook.display()));
        scene.drop_vhost("shop.test");
        fs::write(&hangs, "").unwrap();
        let hook_to_hang = || {
            wait_for("the hook to hang", || {
                let pid = fs::read_to_string(&pid).ok()?;
                pid.ends_with('\n').then(|| pid.trim().to_owned())
            })
        };
        // the hook itself has an hour
        let pid = if by_daemon {
            let daemon = scene.host.daemon();
            let pid = hook_to_hang();
            assert_eq!(daemon.stop(), 0);
            pid
        } else {
            let reload = scene.start(&["reload", "--wait"]);
            let pid = hook_to_hang();
            let kill = Command::new("kill").arg(reload.id().to_string()).status();
            assert!(kill.unwrap().success());
            let reload = wait_within_end(reload);
            assert_eq!(reload.status, 1, "{reload:?}");
            let said = "stopped before every certificate was there";
            assert!(reload.stderr.contains(said), "{reload:?}");
            pid
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        assert!(stat.is_err(), "the hook lives on: {stat:?}");
        assert_eq!(scene.noted(), ["shop.test.dns.json"]);
        assert_eq!(scene.texts("_acme-challenge.shop.test").len(), 2);
        fs::remove_file(&hangs).unwrap();
        // it is due again, or in a minute
        let renew = scene.host.vhostd(&["renew", "shop"]);
        assert_eq!(renew.status, 0, "{renew:?} {}", scene.error("shop.test"));
        assert_eq!(
            scene.texts("_acme-challenge.shop.test"),
            ["somebody else's"]
        );
        assert!(scene.noted().is_empty());
    }
}
