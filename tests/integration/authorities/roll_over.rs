//! `vhostd account roll-over`, also killed half-way.

use std::process::Stdio;
use std::time::Instant;

use vhostd::certificate::account::AccountKey;

use super::*;

fn account(host: &Host, pebble: &Pebble) -> AccountKey {
    AccountKey::open(&host.path("state"), &pebble.directory_url()).unwrap()
}

fn with_certificate() -> (Host, Pebble) {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    (host, pebble)
}

/// What nginx answers by itself: the thumbprint.
fn answered(host: &Host) -> String {
    let answer = client::get(host.http(), NAME, &format!("{CHALLENGE}abc")).unwrap();
    answer.text()["abc.".len()..].to_owned()
}

fn looks_for_files(host: &Host) -> bool {
    host.rendered("hello").unwrap().contains("challenges")
}

/// A new certificate, for which challenges were answered.
fn renew(host: &Host) {
    let renew = host.vhostd(&["renew", "hello", "--force"]);
    assert_eq!(renew.status, 0, "{renew:?}");
}

fn roll_over(host: &Host) {
    let rolled = host.vhostd(&["account", "roll-over"]);
    assert_eq!(rolled.status, 0, "{rolled:?}");
    assert!(rolled.stdout.contains("has another key"), "{rolled:?}");
}

#[test]
fn an_account_gets_another_key_and_keeps_its_url_under_a_running_daemon() {
    let (host, pebble) = with_certificate();
    let before = account(&host, &pebble);
    let daemon = host.daemon();
    roll_over(&host);
    let after = account(&host, &pebble);
    assert_ne!(before.thumbprint(), after.thumbprint());
    assert_eq!(
        before.registration().unwrap(),
        after.registration().unwrap()
    );
    assert_eq!(answered(&host), after.thumbprint());
    assert!(!looks_for_files(&host) && !after.is_changing());
    // the daemon has read the key before, and signs with the one of now
    let finalized = pebble.finalized();
    renew(&host);
    assert_eq!(pebble.finalized(), finalized + 1);
    pebble.verify(&chain(&host), NAME);
    // and changes nothing by itself
    let active = host.active();
    host.reload_ends(0, "unchanged");
    assert_eq!(host.active(), active);
    assert!(
        !daemon.log().contains("does not know our account"),
        "{}",
        daemon.log()
    );
}

#[test]
fn cut_short_before_the_ca_knows_the_old_key_is_used_and_the_same_successor_finishes_it() {
    let (host, pebble) = with_certificate();
    let before = account(&host, &pebble);
    before.prepare_successor().unwrap();
    let successor = account(&host, &pebble)
        .successor()
        .unwrap()
        .expose()
        .to_owned();
    renew(&host);
    host.reload_ends(0, "unchanged");
    assert!(looks_for_files(&host));
    renew(&host);
    assert_eq!(account(&host, &pebble).thumbprint(), before.thumbprint());
    roll_over(&host);
    let text = fs::read_to_string(account(&host, &pebble).path()).unwrap();
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["key"], successor);
    assert!(!looks_for_files(&host));
    renew(&host);
}

#[test]
fn cut_short_after_the_ca_knows_the_new_key_is_used_and_its_challenges_are_answered() {
    let (host, pebble) = with_certificate();
    let old = account(&host, &pebble);
    old.prepare_successor().unwrap();
    let half_way = fs::read(old.path()).unwrap();
    roll_over(&host);
    let new = account(&host, &pebble);
    // as if it had been killed right after the CA's answer: nginx answers for the old one
    fs::write(old.path(), half_way).unwrap();
    host.reload_ends(0, "activated");
    assert_eq!(
        (answered(&host).as_str(), looks_for_files(&host)),
        (old.thumbprint(), true)
    );
    renew(&host);
    let learnt = account(&host, &pebble);
    assert_eq!(learnt.thumbprint(), new.thumbprint());
    assert!(learnt.is_changing(), "nginx may not know it yet");
    let finish = host.vhostd(&["account", "roll-over"]);
    assert_eq!(finish.status, 0, "{finish:?}");
    // that one was finished, and none begun
    assert_eq!(account(&host, &pebble).thumbprint(), new.thumbprint());
    assert_eq!(
        (answered(&host).as_str(), looks_for_files(&host)),
        (new.thumbprint(), false)
    );
    renew(&host);
}

#[test]
fn killed_at_any_moment_certificates_are_renewed_on() {
    const KILLS: u32 = 8;
    let (host, pebble) = with_certificate();
    let begin = Instant::now();
    roll_over(&host);
    let whole = begin.elapsed();
    for kill in 0..KILLS {
        let mut child = host.command(&["account", "roll-over"]);
        let mut child = child
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * kill / KILLS);
        let _ = child.kill();
        child.wait().unwrap();
        renew(&host);
    }
    roll_over(&host);
    assert!(!account(&host, &pebble).is_changing() && !looks_for_files(&host));
    assert_eq!(answered(&host), account(&host, &pebble).thumbprint());
    renew(&host);
}

#[test]
fn a_fallbacks_account_rolls_over_alone_and_a_ca_without_a_key_change_is_left_alone() {
    let nginx = NginxHost::new();
    let (ca, second) = (
        MockCa::start(nginx.http_port),
        Pebble::start(nginx.http_port),
    );
    let first = format!(
        "{{directory: {}, ca_file: {}}}",
        ca.directory_url(),
        ca.ca_file().display()
    );
    let host = Host::on(nginx, &several(&first, &second));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let port = second.directory_url();
    let before = account(&host, &second);
    let rolled = host.vhostd(&["account", "roll-over", &port]);
    assert_eq!(rolled.status, 0, "{rolled:?}");
    let after = account(&host, &second);
    assert_ne!(before.thumbprint(), after.thumbprint());
    assert!(!after.is_changing());
    let (status, rolled) = host.json(&["account", "roll-over", &ca.directory_url()]);
    assert_eq!(status, 1);
    let error = rolled["accounts"][0]["error"].as_str().unwrap();
    assert!(error.contains("offers no such change"), "{error}");
    assert_eq!(
        host.vhostd(&["account", "roll-over", "ca.example"]).status,
        2
    );
}
