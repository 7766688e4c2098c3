//! The second way in which vhostd is used: certificates are renewed, once, whoever asks.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::support::app::App;
use super::support::client::{self, Trust};
use super::support::host::{Ended, Host, acme};
use super::support::nginx::{NginxHost, free_port};
use super::support::pebble::Pebble;
use super::support::traffic::Traffic;
use super::support::wait_for;

const NAME: &str = "hello.example.com";

fn leaf(host: &Host, trust: &Trust) -> Vec<u8> {
    let stream = client::connect_tls(host.https(), NAME, trust, &[]).unwrap();
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

fn start(host: &Host, arguments: &[&str]) -> Child {
    let mut command = host.command(arguments);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    Ended {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `hello` has a certificate of Pebble's that is due already, and from now on a second Pebble,
/// whose certificates live long, is the CA.
fn due() -> (Host, Pebble) {
    let nginx = NginxHost::new();
    let short = Pebble::builder(nginx.http_port)
        .validity(Duration::from_secs(4))
        .start();
    let long = Pebble::start(nginx.http_port);
    let host = Host::on(nginx, &acme(&short));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    wait_for("the certificate to be due", || {
        let at = host.certificate(NAME)?["renew_at"].as_str()?.to_owned();
        let at = OffsetDateTime::parse(&at, &Rfc3339).ok()?;
        // it is told in whole seconds
        (OffsetDateTime::now_utc() > at + time::Duration::SECOND).then_some(())
    });
    host.configure(&acme(&long));
    (host, long)
}

#[test]
fn what_is_not_due_is_not_renewed_and_says_until_when() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let by_itself = host.json(&["renew"]);
    let words = host.vhostd(&["renew"]);
    assert!(
        words.stdout.contains("hello.example.com is valid until"),
        "{words:?}"
    );
    let _daemon = host.daemon();
    let through_the_daemon = host.json(&["renew"]);
    for (status, renewed) in [by_itself, through_the_daemon] {
        assert_eq!(status, 0);
        let one = &renewed["certificates"][0];
        assert_eq!(
            (&one["name"], &one["result"]),
            (&NAME.into(), &"not_due".into())
        );
        assert!(
            one["not_after"].is_string() && one["next"].is_string(),
            "{one}"
        );
    }
    assert_eq!(pebble.finalized(), 1);
}

#[test]
fn a_forced_renewal_serves_a_new_certificate_with_the_daemon_and_without() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let trust = Trust::Root(pebble.issuing_root());
    host.drop_app("hello", NAME, &app);
    host.drop_app("other", "other.example.com", &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let first = leaf(&host, &trust);
    let renew = host.vhostd(&["renew", "hello", "--force"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    assert!(
        renew.stdout.contains("hello.example.com renewed"),
        "{renew:?}"
    );
    let second = leaf(&host, &trust);
    let daemon = host.daemon();
    let traffic = Traffic::https(&host, NAME, trust.clone());
    let (status, renewed) = host.json(&["renew", NAME, "--force"]);
    assert_eq!(status, 0, "{renewed} {}", daemon.log());
    assert_eq!(renewed["certificates"].as_array().unwrap().len(), 1);
    assert_eq!(renewed["certificates"][0]["result"], "renewed");
    let third = leaf(&host, &trust);
    traffic.assert_unbroken();
    assert!(first != second && second != third);
    assert_eq!(pebble.finalized(), 4);
}

#[test]
fn who_renews_by_name_is_told_what_it_risks_before_the_order() {
    let (host, _pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let refuse = || {
        let accounts = std::fs::read_dir(host.path("state/accounts")).unwrap();
        let ca = accounts.map(|entry| entry.unwrap().file_name()).next();
        let ca = ca.unwrap().into_string().unwrap();
        let until = OffsetDateTime::now_utc() + time::Duration::HOUR;
        let until = until.format(&Rfc3339).unwrap();
        let refused = serde_json::json!({"until": until, "why": "too many in this test"});
        let budget = serde_json::json!({"used": {}, "refused": {"account": refused}});
        let path = host.path(&format!("state/orders/{ca}.budget.json"));
        std::fs::write(path, budget.to_string()).unwrap();
    };
    let renew = || {
        refuse();
        let ended = host.vhostd(&["renew", "hello", "--force"]);
        assert_eq!(ended.status, 0, "{ended:?}");
        let told = "hello.example.com: ordered although the CA is known not to allow it before ";
        assert!(ended.stderr.contains(told), "{ended:?}");
        assert!(
            ended.stderr.contains(": too many in this test"),
            "{ended:?}"
        );
        // what the CA has allowed all the same is no risk any more
        let ended = host.vhostd(&["renew", "hello", "--force"]);
        assert_eq!(ended.status, 0, "{ended:?}");
        assert!(!ended.stderr.contains("too many"), "{ended:?}");
    };
    renew();
    let _daemon = host.daemon();
    host.wait_for_serving("hello");
    renew();
}

#[test]
fn without_a_daemon_it_leaves_unfinished_edits_and_a_rollback_as_they_are() {
    let host = Host::new();
    let app = App::start();
    for name in ["one", "two"] {
        host.drop_app(name, &format!("{name}.example.com"), &app);
        assert_eq!(host.vhostd(&["reload"]).status, 0);
    }
    // half of a checkout
    host.remove_file("one.yml");
    host.drop_file("two.yml", "server_name: two.example.com\nroo");
    host.drop_app("three", "three.example.com", &app);
    let (exit, renewed) = host.json(&["renew", "--force"]);
    assert_eq!(exit, 0, "{renewed}");
    assert_eq!(renewed["certificates"].as_array().unwrap().len(), 2);
    for name in ["one", "two"] {
        assert!(host.serves(&format!("{name}.example.com")), "{name}");
    }
    assert_eq!(host.rendered("three"), None);
    let (_, history) = host.json(&["history"]);
    assert_eq!(history["generations"][0]["reason"], "certificate");
    // nor does it end a rollback
    host.drop_app("two", "two.example.com", &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(host.vhostd(&["rollback", "1"]).status, 0);
    assert_eq!(host.vhostd(&["renew", "--force"]).status, 0);
    assert_eq!(host.status()["pinned"], 1);
    assert!(host.serves("one.example.com") && !host.serves("two.example.com"));
}

#[test]
fn force_without_a_name_renews_every_certificate() {
    let host = Host::new();
    let app = App::start();
    for name in ["one", "two"] {
        host.drop_app(name, &format!("{name}.example.com"), &app);
    }
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let (exit, renewed) = host.json(&["renew", "--force"]);
    assert_eq!(exit, 0, "{renewed}");
    let all = renewed["certificates"].as_array().unwrap();
    assert_eq!(all.len(), 2, "{renewed}");
    assert!(
        all.iter().all(|one| one["result"] == "renewed"),
        "{renewed}"
    );
}

#[test]
fn an_unknown_name_is_status_2_with_the_daemon_and_without() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    for _ in 0..2 {
        let renew = host.vhostd(&["renew", "nobody"]);
        assert_eq!(renew.status, 2, "{renew:?}");
        assert!(
            renew
                .stderr
                .contains("there is no vhost or certificate `nobody`"),
            "{renew:?}"
        );
        let daemon = host.daemon();
        let renew = host.vhostd(&["renew", "nobody"]);
        assert_eq!(renew.status, 2, "{renew:?}");
        assert_eq!(host.vhostd(&["renew", "hello"]).status, 0);
        assert_eq!(daemon.stop(), 0);
    }
}

#[test]
fn a_daemon_that_is_just_starting_knows_the_names_already() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    // its first reconcile waits for the lock
    let lock = std::fs::File::open(host.path("state/lock")).unwrap();
    lock.lock().unwrap();
    let mut daemon = start(&host, &["run"]);
    wait_for("the socket", || {
        std::fs::metadata(host.path("run/control.sock")).ok()
    });
    let renew = start(&host, &["renew", "hello", "--force", "--json"]);
    std::thread::sleep(Duration::from_millis(300));
    lock.unlock().unwrap();
    let renew = end(renew);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(renew.status, 0, "{renew:?}");
    let renewed: Value = serde_json::from_str(&renew.stdout).unwrap();
    assert_eq!(renewed["certificates"][0]["result"], "renewed", "{renewed}");
}

#[test]
fn many_at_once_renew_each_certificate_once() {
    let (host, pebble) = due();
    let all: Vec<_> = (0..4).map(|_| start(&host, &["renew"])).collect();
    for renew in all.into_iter().map(end) {
        println!("{renew:?}");
        assert_eq!(renew.status, 0, "{renew:?}");
    }
    assert_eq!(pebble.finalized(), 1, "{}", pebble.log());
    leaf(&host, &Trust::Root(pebble.issuing_root()));
}

#[test]
fn the_daemon_and_the_timer_at_once_renew_each_certificate_once() {
    let (host, pebble) = due();
    let daemon = host.daemon();
    let all: Vec<_> = (0..3).map(|_| start(&host, &["renew"])).collect();
    for renew in all.into_iter().map(end) {
        assert_eq!(renew.status, 0, "{renew:?} {}", daemon.log());
    }
    // what they said is served
    leaf(&host, &Trust::Root(pebble.issuing_root()));
    assert_eq!(pebble.finalized(), 1, "{}", daemon.log());
}

#[test]
fn the_daemon_renews_by_itself_without_a_failed_request() {
    let nginx = NginxHost::new();
    let pebble = Pebble::builder(nginx.http_port)
        .validity(Duration::from_secs(12))
        .start();
    let trust = Trust::Root(pebble.issuing_root());
    let host = Host::on(nginx, &acme(&pebble));
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    host.wait_for_https(NAME, "/", &trust);
    host.wait_for_serving("hello");
    wait_for("old workers to go", || {
        (host.certificate(NAME)?["state"] == "valid").then_some(())
    });
    let first = leaf(&host, &trust);
    // every answer must verify, and so must be of a certificate that is still valid
    let traffic = Traffic::https(&host, NAME, trust.clone());
    wait_for("the renewed certificate", || {
        (leaf(&host, &trust) != first).then_some(())
    });
    traffic.assert_unbroken();
    println!("{}", daemon.log());
    wait_for("the record", || {
        let (_, history) = host.json(&["history"]);
        (history["generations"][0]["reason"] == "certificate").then_some(())
    });
}

#[test]
fn a_failing_ca_is_status_4_and_its_schedule_survives_a_restart() {
    let nobody = format!("https://127.0.0.1:{}/dir", free_port());
    let host = Host::with_settings(&format!("acme: {{directory: \"{nobody}\"}}\n"));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let (status, renewed) = host.json(&["renew"]);
    assert_eq!(status, 4, "{renewed}");
    assert_eq!(renewed["certificates"][0]["result"], "failed");
    let failing = host.certificate(NAME).unwrap();
    assert_eq!(
        (&failing["state"], &failing["attempts"]),
        (&"failing".into(), &1.into())
    );
    assert!(
        failing["renew_at"].is_string() && failing["last_error"].is_string(),
        "{failing}"
    );
    let text = host.vhostd(&["status"]);
    assert!(
        format!("{}{}", text.stdout, text.stderr).contains("1 failed attempt:"),
        "{text:?}"
    );
    for _ in 0..2 {
        let daemon = host.daemon();
        // the timer's run tries no sooner, and says so
        let (status, again) = host.json(&["renew"]);
        assert_eq!(status, 4, "{again}");
        assert_eq!(again["certificates"][0]["next"], failing["renew_at"]);
        assert!(
            !daemon.log().contains("obtaining a certificate"),
            "{}",
            daemon.log()
        );
        assert_eq!(daemon.stop(), 0);
    }
    // when nginx was last looked at has nothing to do with it
    let known = |mut certificate: Value| {
        certificate["served"].take();
        certificate
    };
    assert_eq!(
        known(host.certificate(NAME).unwrap()),
        known(failing.clone())
    );
    // a person who names it wants it now
    assert_eq!(host.json(&["renew", "hello"]).0, 4);
    let now = host.certificate(NAME).unwrap();
    // a minute from then, and up to a tenth of it
    let jitter = time::Duration::seconds(6);
    let (next, before) = (moment(&now["renew_at"]), moment(&failing["renew_at"]));
    assert!(next.unwrap() + jitter >= before.unwrap(), "{now}");
}

#[test]
fn a_failed_renewal_before_its_time_leaves_the_time_as_it_was() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let renew_at = host.certificate(NAME).unwrap()["renew_at"].clone();
    drop(pebble);
    assert_eq!(host.vhostd(&["renew", "hello", "--force"]).status, 4);
    let certificate = host.certificate(NAME).unwrap();
    assert_eq!(certificate["state"], "valid", "{certificate}");
    assert_eq!(certificate["attempts"], 1, "{certificate}");
    assert_eq!(certificate["renew_at"], renew_at);
}

#[test]
fn a_due_certificate_whose_renewal_failed_says_when_it_is_tried_again() {
    let (host, pebble) = due();
    drop(pebble);
    assert_eq!(host.json(&["renew"]).0, 4);
    let failing = host.certificate(NAME).unwrap();
    let (_, again) = host.json(&["renew"]);
    assert_eq!(again["certificates"][0]["next"], failing["renew_at"]);
}

#[test]
fn failures_of_a_ca_that_is_not_wanted_any_more_are_not_told() {
    let nobody = format!("https://127.0.0.1:{}/dir", free_port());
    let host = Host::with_settings(&format!("acme: {{directory: \"{nobody}\"}}\n"));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    host.configure("tls: internal\n");
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let certificate = host.certificate(NAME).unwrap();
    assert_eq!(certificate["attempts"], 0, "{certificate}");
    assert!(certificate["last_error"].is_null(), "{certificate}");
    let (_, renewed) = host.json(&["renew"]);
    assert_eq!(
        renewed["certificates"][0]["next"], certificate["renew_at"],
        "{renewed}"
    );
}

#[test]
fn a_certificate_that_has_expired_while_its_ca_fails_is_failing() {
    let (host, pebble) = due();
    drop(pebble);
    wait_for("the certificate to expire", || {
        let at = host.certificate(NAME)?["not_after"].as_str()?.to_owned();
        let at = OffsetDateTime::parse(&at, &Rfc3339).ok()?;
        (OffsetDateTime::now_utc() > at + time::Duration::SECOND).then_some(())
    });
    assert_eq!(host.vhostd(&["renew"]).status, 4);
    let certificate = host.certificate(NAME).unwrap();
    assert_eq!(certificate["state"], "failing", "{certificate}");
    assert_eq!(certificate["attempts"], 1, "{certificate}");
}

#[test]
fn a_renewed_certificate_that_nobody_serves_is_no_success() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let daemon = host.daemon();
    host.wait_for_serving("hello");
    host.nginx.stop();
    let renew = host.vhostd(&["renew", "--force", "hello"]);
    assert_eq!(renew.status, 1, "{renew:?}\n{}", daemon.log());
    let words = "stored, but not served yet: nginx is not running";
    assert!(renew.stderr.contains(words), "{renew:?}");
}

/// `hello` has a certificate of a later Pebble's.
fn with_later_pebble(validity: Duration) -> Option<(Host, Pebble)> {
    let nginx = NginxHost::new();
    let builder = Pebble::builder(nginx.http_port).validity(validity);
    let pebble = builder.later()?.start();
    let host = Host::on(nginx, &acme(&pebble));
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    Some((host, pebble))
}

fn moment(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()
}

#[test]
fn the_daemon_asks_the_ca_when_to_renew_and_keeps_its_moment_over_a_restart() {
    let ninety_days = Duration::from_secs(90 * 86400);
    let Some((host, pebble)) = with_later_pebble(ninety_days) else {
        return;
    };
    assert!(host.certificate(NAME).unwrap()["suggestion"].is_null());
    let asked = || pebble.log().matches("-ari-").count();
    let suggested = || {
        let certificate = host.certificate(NAME)?;
        let suggestion = &certificate["suggestion"];
        let window = [moment(&suggestion["start"])?, moment(&suggestion["end"])?];
        Some((window, moment(&certificate["renew_at"])?))
    };
    let daemon = host.daemon();
    let ([start, end], renew_at) = wait_for("the suggestion", suggested);
    assert!(start <= renew_at && renew_at <= end, "{renew_at}");
    let before = asked();
    assert_eq!(daemon.stop(), 0);
    let daemon = host.daemon();
    assert_eq!(host.json(&["renew"]).0, 0);
    assert_eq!(suggested(), Some(([start, end], renew_at)));
    // and asks nobody before the CA wants it
    assert_eq!(asked(), before);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn renew_asks_the_ca_and_renews_what_it_wants_renewed() {
    // in its first tenth nothing is renewed because of a wish, after the first half everything is
    let Some((host, pebble)) = with_later_pebble(Duration::from_secs(60)) else {
        return;
    };
    let certificate = host.certificate(NAME).unwrap();
    let not_before = moment(&certificate["not_before"]).unwrap();
    let home = host.path("state/certificates/hello.example.com/current");
    let at = |seconds: i64| {
        let at = not_before + time::Duration::seconds(seconds);
        at.format(&Rfc3339).unwrap()
    };
    let incident = serde_json::json!({
        "suggestedWindow": {"start": at(-7200), "end": at(-3600)},
        "explanationURL": "https://ca.example/incident",
    });
    pebble.suggest(&home.join("fullchain.pem"), &incident);
    wait_for("the certificate's seventh second", || {
        (OffsetDateTime::now_utc() > not_before + time::Duration::seconds(7)).then_some(())
    });
    let (status, renewed) = host.json(&["renew"]);
    assert_eq!(status, 0, "{renewed}");
    assert_eq!(renewed["certificates"][0]["result"], "renewed", "{renewed}");
    assert_eq!(pebble.finalized(), 2);
    assert!(OffsetDateTime::now_utc() < not_before + time::Duration::seconds(30));
}

#[test]
fn a_changed_key_type_is_a_renewal_at_once() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let daemon = host.daemon();
    let settings = acme(&pebble).replace("acme: {", "acme: {key_type: ecdsa-p384, ");
    host.configure(&settings);
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?} {}", daemon.log());
    assert_eq!(pebble.finalized(), 2);
    let key = host.path("state/certificates/hello.example.com/current/privkey.pem");
    let key = vhostd::certificate::key::PrivateKeyPem::new(std::fs::read_to_string(key).unwrap());
    assert!(key.is_of(vhostd::settings::KeyType::EcdsaP384));
    // and not a second time
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    assert_eq!(pebble.finalized(), 2);
    assert_eq!(daemon.stop(), 0);
}

/// Every file below the state directory but what nginx and locks touch, with its bytes.
fn state(host: &Host) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut directories = vec![host.path("state")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            // the account at the staging area is all that may come of it
            match path.is_dir() && !path.is_symlink() {
                true if path.ends_with("accounts") => {}
                true => directories.push(path),
                false => found.push((path.clone(), std::fs::read(&path).unwrap_or_default())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_dry_run_orders_from_the_staging_ca_says_what_came_of_it_and_installs_nothing() {
    let nginx = NginxHost::new();
    let (real, staging) = (
        Pebble::start(nginx.http_port),
        Pebble::start(nginx.http_port),
    );
    let roots = nginx.path("roots.pem");
    let both =
        [real.ca_file(), staging.ca_file()].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::write(&roots, both.concat()).unwrap();
    let settings = format!(
        "acme: {{directory: {}, staging: {}, ca_file: {}}}\n",
        real.directory_url(),
        staging.directory_url(),
        roots.display()
    );
    let host = Host::on(nginx, &settings);
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    host.drop_file(
        "inside.yml",
        "server_name: inside.example.com\nproxy_pass_url: http://127.0.0.1:1\ntls: internal\n",
    );
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let before = state(&host);
    let dry = host.vhostd(&["renew", "--dry-run"]);
    assert_eq!(dry.status, 0, "{dry:?}");
    assert!(
        dry.stdout
            .contains("hello.example.com could be renewed: the staging CA issued one"),
        "{dry:?}"
    );
    assert!(!dry.stdout.contains("inside"), "{dry:?}");
    assert_eq!((staging.finalized(), real.finalized()), (1, 1));
    assert_eq!(state(&host), before);
    let (status, json) = host.json(&["renew", "hello", "--dry-run"]);
    assert_eq!(
        (status, &json["certificates"][0]["result"]),
        (0, &"rehearsed".into())
    );
    // one that fails is said, and counts nowhere
    drop(staging);
    let dry = host.vhostd(&["renew", "--dry-run"]);
    assert_eq!(dry.status, 4, "{dry:?}");
    assert!(
        dry.stderr
            .contains("could not be renewed: read the ACME directory"),
        "{dry:?}"
    );
    assert_eq!(state(&host), before);
    // a CA without a staging area
    host.configure(&settings.replace("staging: ", "email: a@example.com, profile: p}\n#"));
    let dry = host.vhostd(&["renew", "--dry-run"]);
    assert_eq!(dry.status, 2, "{dry:?}");
    assert!(dry.stderr.contains("set `acme.staging`"), "{dry:?}");
}

#[test]
fn with_reuse_key_a_renewal_keeps_the_key_of_each_issuer() {
    let (host, pebble) = Host::with_pebble();
    let settings = acme(&pebble).replace("acme: {", "acme: {reuse_key: true, ");
    host.configure(&settings);
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    let inside = "inside.example.com";
    host.drop_file(
        "inside.yml",
        &format!(
            "server_name: {inside}\nproxy_pass_url: {}\ntls: internal\n",
            app.url()
        ),
    );
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let keys = || {
        [NAME, inside].map(|name| {
            let home = host.path("state/certificates").join(name).join("current");
            let read = |file: &str| std::fs::read(home.join(file)).unwrap();
            (read("privkey.pem"), read("fullchain.pem"))
        })
    };
    let before = keys();
    let renew = host.vhostd(&["renew", "--force"]);
    assert_eq!(renew.status, 0, "{renew:?}");
    for (before, after) in before.into_iter().zip(keys()) {
        assert_eq!(before.0, after.0);
        assert_ne!(before.1, after.1);
    }
}
