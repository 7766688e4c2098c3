//! Keys that take long to compute hold up nothing but their own vhosts.

use std::fs;
use std::time::{Duration, Instant};

use super::support::app::App;
use super::support::client::{self, Trust};
use super::support::host::Host;
use super::support::{wait_for, wait_within};

/// A file of so many vhosts with this type of key.
fn many(count: usize, key_type: &str, app: &App) -> String {
    let vhost = |number: usize| {
        format!(
            "- {{server_name: n{number}.many.example, proxy_pass_url: \"{}\", tls: {{key_type: {key_type}}}}}\n",
            app.url()
        )
    };
    (0..count).map(vhost).collect()
}

/// The certificates of `many` that are stored.
fn stored(host: &Host) -> usize {
    let entries = fs::read_dir(host.path("state/certificates"));
    let names = entries.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names
        .filter(|name| name.ends_with(".many.example"))
        .collect();
    names.retain(|name| {
        host.path(&format!("state/certificates/{name}/current"))
            .exists()
    });
    names.len()
}

fn serves(host: &Host, name: &str, trust: &Trust) -> bool {
    let answer = client::get_tls(host.https(), name, "/", trust);
    answer.is_ok_and(|answer| answer.status == 200)
}

/// How long it takes until a new file is served with its certificate.
fn first_serving(host: &Host, name: &str, key_type: &str, app: &App) -> Duration {
    let text = format!(
        "server_name: {name}\nproxy_pass_url: {}\ntls: {{key_type: {key_type}}}\n",
        app.url()
    );
    let (begin, trust) = (Instant::now(), host.internal_root());
    host.drop_file(&format!("{name}.yml"), &text);
    let limit = Duration::from_secs(120);
    wait_within(limit, name, || serves(host, name, &trust).then_some(()));
    begin.elapsed()
}

#[test]
fn a_file_of_150_vhosts_with_rsa_keys_does_not_hold_up_the_first_serving_of_another_app() {
    const MANY: usize = 150;
    let host = Host::new();
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("first", "first.example", &app);
    wait_for("the internal CA", || {
        host.path("state/internal-ca/root.pem")
            .exists()
            .then_some(())
    });
    host.wait_for_https("first.example", "/", &host.internal_root());
    host.drop_file("many.yml", &many(MANY, "rsa-2048", &app));
    std::thread::sleep(Duration::from_millis(500));
    let late = |name: &str, key_type: &str| {
        let took = first_serving(&host, name, key_type, &app);
        let stored = stored(&host);
        println!("{name} after {took:?}: {stored} of {MANY} keys were there");
        stored
    };
    assert!(late("late.example", "ecdsa-p256") < MANY / 2);
    // the turn of a key that takes as long comes after a few, not after all of them
    assert!(late("rsa.example", "rsa-2048") < MANY);
    // another type of key for all of them: what serves serves on
    host.drop_file("many.yml", &many(MANY, "[ecdsa-p384, rsa-2048]", &app));
    std::thread::sleep(Duration::from_millis(500));
    late("later.example", "ecdsa-p256");
    assert!(serves(&host, "late.example", &host.internal_root()));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_reload_that_waits_ends_with_every_certificate_in_place_with_a_daemon_and_without() {
    // more than are made at once
    const MANY: usize = 80;
    for with_daemon in [true, false] {
        let host = Host::new();
        let app = App::start();
        let daemon = with_daemon.then(|| host.daemon());
        let text = many(MANY, "ecdsa-p256", &app) + &many(1, "rsa-2048", &app).replace("n0", "rsa");
        host.drop_file("many.yml", &text);
        let (exit, report) = match with_daemon {
            true => host.json(&["reload", "--wait"]),
            false => host.json(&["reload"]),
        };
        assert_eq!(
            (exit, &report["error"]),
            (0, &serde_json::Value::Null),
            "{report}"
        );
        assert_eq!(stored(&host), MANY + 1, "{report}");
        let trust = host.internal_root();
        let names = (0..MANY).map(|number| format!("n{number}.many.example"));
        for name in names.chain(["rsa.many.example".into()]) {
            assert!(
                serves(&host, &name, &trust),
                "{name}, daemon: {with_daemon}"
            );
        }
        if let Some(daemon) = daemon {
            assert_eq!(daemon.stop(), 0);
        }
    }
}

#[test]
fn vhosts_whose_keys_are_not_made_when_the_daemon_is_killed_get_them_after_a_restart() {
    const MANY: usize = 12;
    let host = Host::new();
    let app = App::start();
    let daemon = host.daemon();
    host.drop_file("many.yml", &many(MANY, "rsa-2048", &app));
    wait_for("the vhosts, and some of the keys", || {
        let serves = host.plain("n11.many.example")?.0 == 200;
        (serves && stored(&host) > 1).then_some(())
    });
    let half = stored(&host);
    daemon.kill();
    assert!(half < MANY, "{half}");
    let daemon = host.daemon();
    let trust = host.internal_root();
    wait_within(Duration::from_secs(120), "all of the keys", || {
        let mut names = (0..MANY).map(|number| format!("n{number}.many.example"));
        names.all(|name| serves(&host, &name, &trust)).then_some(())
    });
    assert_eq!(daemon.stop(), 0);
}
