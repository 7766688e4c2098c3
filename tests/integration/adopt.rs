//! `vhostd adopt`: a certificate moves here from certbot without an order, and back.

mod refused; // what cannot be adopted

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde_json::Value;
use time::Duration;
use vhostd::certificate::chain::Chain;
use vhostd::settings::KeyType;

use super::support::app::App;
use super::support::certbot::{Certbot, Lineage};
use super::support::client::Trust;
use super::support::host::{Ended, Host, acme};
use super::support::mock_ca::{MockCa, Resource};
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;
#[cfg(target_arch = "x86_64")]
use super::support::tracer::{Effect, Fate, trace};
use super::support::traffic::Traffic;

const NAME: &str = "hello.example.com";
const WWW: &str = "www.hello.example.com";

/// nginx and vhostd, whose CA counts its orders; no vhost yet.
fn host() -> (Host, MockCa, App, Certbot) {
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    let settings = format!(
        "acme: {{directory: {}, ca_file: {}}}\n",
        ca.directory_url(),
        ca.ca_file().display()
    );
    (Host::on(nginx, &settings), ca, App::start(), Certbot::new())
}

fn arguments<'a>(config_dir: &'a str, further: &[&'a str]) -> Vec<&'a str> {
    [&["adopt", "--config-dir", config_dir], further].concat()
}

fn adopt(host: &Host, certbot: &Certbot, further: &[&str]) -> Ended {
    let config_dir = certbot.config_dir().display().to_string();
    host.vhostd(&arguments(&config_dir, further))
}

/// The only lineage in `--json`, and the exit status.
fn told(host: &Host, certbot: &Certbot, further: &[&str]) -> (i32, Value) {
    let config_dir = certbot.config_dir().display().to_string();
    let (status, told) = host.json(&arguments(&config_dir, further));
    assert_eq!(told["lineages"].as_array().unwrap().len(), 1, "{told}");
    (status, told["lineages"][0].clone())
}

/// What `name` is served from.
fn chain(path: &Path) -> Chain {
    Chain::parse(&fs::read_to_string(path).unwrap()).unwrap()
}

fn current(host: &Host, name: &str) -> Chain {
    chain(&host.path(&format!("state/certificates/{name}/current/fullchain.pem")))
}

/// By the real one, with an RSA key, and due to whoever may renew it; the text of its configuration.
fn obtained(certbot: &Certbot, pebble: &Pebble) -> String {
    let arguments = format!(
        "certonly --agree-tos --register-unsafely-without-email --manual --manual-auth-hook true \
         --key-type rsa -d {NAME} -d {WWW} --deploy-hook"
    );
    let arguments: Vec<&str> = arguments.split(' ').chain(["true deployed"]).collect();
    let made = certbot.run(pebble, &arguments);
    assert_eq!(made.status, 0, "{made:?}");
    let due = format!("renew_before_expiry = 1000 days\n{}", certbot.conf(NAME));
    fs::write(certbot.path(&format!("renewal/{NAME}.conf")), &due).unwrap();
    due
}

#[test]
fn a_lineage_of_the_real_certbots_is_adopted_without_an_order_and_given_back() {
    let nginx = NginxHost::new();
    let pebble = Pebble::builder(nginx.http_port).believing().start();
    let certbot = Certbot::new();
    let due = obtained(&certbot, &pebble);
    let theirs = chain(&certbot.path(&format!("live/{NAME}/fullchain.pem")));
    assert_eq!(theirs.key_type(), Some(KeyType::Rsa2048));

    let (host, app) = (Host::on(nginx, &acme(&pebble)), App::start());
    host.drop_app("hello", &format!("[{NAME}, {WWW}]"), &app);
    let (status, listed) = told(&host, &certbot, &[]);
    assert_eq!(
        (status, &listed["state"]),
        (0, &"adoptable".into()),
        "{listed}"
    );
    assert_eq!(listed["vhosts"], serde_json::json!(["hello"]));
    assert_eq!(listed["identifiers"], serde_json::json!([NAME, WWW]));
    assert_eq!(certbot.conf(NAME), due);

    let adopted = adopt(&host, &certbot, &[NAME]);
    assert_eq!(adopted.status, 0, "{adopted:?}");
    assert!(
        adopted
            .stderr
            .contains("deploy hook will not run for it: true deployed"),
        "{adopted:?}"
    );
    assert!(
        adopted.stderr.contains("vhostd adopt --undo"),
        "{adopted:?}"
    );
    let trust = Trust::Root(pebble.issuing_root());
    host.wait_for_https(WWW, "/", &trust);
    assert_eq!(current(&host, NAME).serial, theirs.serial);

    // nobody orders: neither the timer, nor the daemon, nor certbot
    let renewed = host.vhostd(&["renew"]);
    assert!(
        renewed.status == 0 && renewed.stdout.contains("no certificate is due"),
        "{renewed:?}"
    );
    let daemon = host.daemon();
    host.wait_for_serving("hello");
    assert_eq!(host.certificate(NAME).unwrap()["state"], "valid");
    let left = certbot.run(&pebble, &["renew"]);
    assert_eq!(left.status, 0, "{left:?}");
    assert!(
        left.stdout.contains("not yet due for renewal") || left.stdout.contains("No renewals"),
        "{left:?}"
    );
    assert_eq!(pebble.finalized(), 1);
    let known = certbot.run(&pebble, &["certificates"]);
    assert!(
        known.stdout.contains(&format!("Certificate Name: {NAME}")),
        "{known:?}"
    );

    // then on vhostd's own terms
    let forced = host.vhostd(&["renew", "--force", NAME]);
    assert_eq!(forced.status, 0, "{forced:?}");
    assert_eq!(current(&host, NAME).key_type(), Some(KeyType::EcdsaP256));
    assert_eq!(pebble.finalized(), 2);

    // a person's word, after which certbot writes the file anew
    let forced = certbot.run(&pebble, &["renew", "--force-renewal"]);
    assert_eq!(forced.status, 0, "{forced:?}");
    assert_eq!(pebble.finalized(), 3);
    assert!(certbot.conf(NAME).contains("autorenew = False"));

    let undone = adopt(&host, &certbot, &["--undo", NAME]);
    assert_eq!(undone.status, 0, "{undone:?}");
    assert_eq!(certbot.conf(NAME).trim_end(), due.trim_end());
    let renewed = certbot.run(&pebble, &["renew"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert_eq!(pebble.finalized(), 4, "{renewed:?}");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn beside_a_running_daemon_it_is_served_at_once_and_a_second_run_changes_nothing() {
    let (host, ca, app, certbot) = host();
    certbot.lineage(&Lineage {
        identifiers: &[NAME, "mail.example.com"],
        ..Lineage::default()
    });
    // the CA cannot be asked: what serves then is what was adopted
    ca.answer_otherwise(|_, reply| reply.status = 503);
    host.drop_app("hello", NAME, &app);
    let daemon = host.daemon();
    let (status, told_now) = told(&host, &certbot, &[NAME]);
    assert_eq!(
        (status, &told_now["state"]),
        (0, &"adopted".into()),
        "{told_now}"
    );
    assert_eq!(
        told_now["left_out"],
        serde_json::json!(["mail.example.com"])
    );
    host.wait_for_https(NAME, "/", &certbot.root());
    host.wait_for_serving("hello");
    ca.behave();
    // a CA that is well again is not asked for what is there
    host.drop_app("other", "other.example.com", &app);
    host.wait_for_https("other.example.com", "/", &ca.root());
    assert_eq!(ca.asked(Resource::Certificate), 1);
    let (conf, generation) = (certbot.conf(NAME), host.active());
    let again = adopt(&host, &certbot, &[NAME]);
    assert!(
        again.status == 0 && again.stdout.contains("adopted; to undo"),
        "{again:?}"
    );
    assert_eq!((certbot.conf(NAME), host.active()), (conf, generation));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn one_with_a_wildcard_serves_every_vhost_below_it() {
    let (host, ca, app, certbot) = host();
    certbot.lineage(&Lineage {
        name: "example.com",
        identifiers: &["example.com", "*.example.com"],
        ..Lineage::default()
    });
    host.drop_app("a", "a.example.com", &app);
    host.drop_app("b", "b.example.com", &app);
    let live = certbot.path("live/example.com").display().to_string();
    let adopted = host.vhostd(&["adopt", &live]);
    assert_eq!(adopted.status, 0, "{adopted:?}");
    for name in ["a.example.com", "b.example.com"] {
        host.wait_for_https(name, "/", &certbot.root());
    }
    let renewed = host.vhostd(&["renew"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert_eq!(ca.asked(Resource::NewOrder), 0);
}

#[test]
fn keys_of_every_kind_that_certbot_ever_wrote_are_adopted() {
    let (host, ca, app, certbot) = host();
    for (name, command) in [
        ("pkcs1.example.com", "genrsa -traditional 4096"),
        ("sec1.example.com", "ecparam -genkey -noout -name secp384r1"),
        (
            "p521.example.com",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521",
        ),
    ] {
        let made = std::process::Command::new("openssl")
            .args(command.split(' '))
            .output()
            .unwrap();
        let key = String::from_utf8(made.stdout).unwrap();
        certbot.lineage(&Lineage {
            name,
            identifiers: &[name],
            key: Some(&key),
            ..Lineage::default()
        });
        host.drop_app(name.split('.').next().unwrap(), name, &app);
        let adopted = adopt(&host, &certbot, &[name]);
        assert_eq!(adopted.status, 0, "{adopted:?}");
        host.wait_for_https(name, "/", &certbot.root());
    }
    let renewed = host.vhostd(&["renew"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert_eq!(ca.asked(Resource::NewOrder), 0);
}

#[test]
fn a_renewed_lineage_is_adopted_again_and_a_younger_one_of_our_own_is_kept() {
    let (host, ca, app, certbot) = host();
    certbot.lineage(&Lineage::default());
    host.drop_app("hello", NAME, &app);
    assert_eq!(adopt(&host, &certbot, &[NAME]).status, 0);
    assert_eq!(adopt(&host, &certbot, &["--undo", NAME]).status, 0);
    certbot.lineage(&Lineage {
        ends: Duration::days(89),
        ..Lineage::default()
    });
    assert_eq!(adopt(&host, &certbot, &[NAME]).status, 0);
    let live = certbot.path(&format!("live/{NAME}/fullchain.pem"));
    assert_eq!(current(&host, NAME).serial, chain(&live).serial);
    // ours, of our own terms
    assert_eq!(host.vhostd(&["renew", "--force", NAME]).status, 0);
    let ours = current(&host, NAME).serial;
    assert_eq!(adopt(&host, &certbot, &["--undo", NAME]).status, 0);
    let kept = adopt(&host, &certbot, &[NAME]);
    assert!(kept.status == 0 && kept.stdout.contains("kept"), "{kept:?}");
    assert_eq!(current(&host, NAME).serial, ours);
    assert!(certbot.conf(NAME).contains("autorenew = False"));
    assert_eq!(ca.asked(Resource::Certificate), 1);
}

#[test]
fn certbot_goes_on_where_the_vhost_does_not_serve() {
    let (host, _ca, app, certbot) = host();
    certbot.lineage(&Lineage::default());
    host.drop_app("hello", NAME, &app);
    let conf = certbot.conf(NAME);
    host.nginx.stop();
    let ended = adopt(&host, &certbot, &[NAME]);
    assert!(
        ended.status == 1 && ended.stderr.contains("is not adopted, certbot goes on"),
        "{ended:?}"
    );
    assert_eq!(certbot.conf(NAME), conf);
    host.nginx.start();
    assert_eq!(adopt(&host, &certbot, &[NAME]).status, 0);
    assert!(certbot.conf(NAME).contains("autorenew = False"));
}

#[test]
fn a_site_by_hand_is_followed_by_its_vhost_in_one_reload_with_the_same_certificate() {
    let certbot = Certbot::new();
    certbot.lineage(&Lineage::default());
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    let live = certbot.path(&format!("live/{NAME}"));
    let site = format!(
        "server {{ listen {} ssl; server_name {NAME}; ssl_certificate {live}/fullchain.pem;\n\
         ssl_certificate_key {live}/privkey.pem; return 200 by-hand; }}\n",
        nginx.https_port,
        live = live.display(),
    );
    nginx.site("hello", &site);
    let settings = format!(
        "acme: {{directory: {}, ca_file: {}}}\n",
        ca.directory_url(),
        ca.ca_file().display()
    );
    let (host, app) = (Host::on(nginx, &settings), App::start());
    let traffic = Traffic::https(&host, NAME, certbot.root());
    host.drop_app("hello", NAME, &app);
    let early = adopt(&host, &certbot, &[NAME]);
    assert!(
        early.status == 1
            && early
                .stderr
                .contains("certbot goes on: `hello.example.com` is already served by"),
        "{early:?}"
    );
    assert!(!certbot.conf(NAME).contains("autorenew"));
    host.nginx.site("hello", "");
    let adopted = adopt(&host, &certbot, &[NAME]);
    assert_eq!(adopted.status, 0, "{adopted:?}");
    traffic.assert_unbroken();
    let answer = host.wait_for_https(NAME, "/", &certbot.root());
    assert_ne!(answer.text(), "by-hand");
    assert_eq!(ca.asked(Resource::NewOrder), 0);
}

#[test]
fn a_dry_run_and_a_list_change_nothing() {
    let (host, _ca, app, certbot) = host();
    certbot.lineage(&Lineage::default());
    host.drop_app("hello", NAME, &app);
    let before = (certbot.conf(NAME), host.active());
    for further in [&["--dry-run", NAME][..], &[]] {
        let ended = adopt(&host, &certbot, further);
        assert!(
            ended.status == 0 && ended.stdout.contains("can be adopted for hello"),
            "{ended:?}"
        );
    }
    assert_eq!((certbot.conf(NAME), host.active()), before);
    assert!(!host.path("state/certificates").exists());
    let none = host.vhostd(&["adopt", "--config-dir", "/nonexistent"]);
    assert!(
        none.status == 0 && none.stdout.contains("no certificates"),
        "{none:?}"
    );
}

#[test]
fn what_somebody_else_turned_off_is_not_turned_on() {
    let (host, _ca, app, certbot) = host();
    certbot.lineage(&Lineage::default());
    host.drop_app("hello", NAME, &app);
    let nothing = adopt(&host, &certbot, &["--undo", NAME]);
    assert!(
        nothing.status == 0 && nothing.stdout.contains("nothing to undo"),
        "{nothing:?}"
    );
    let off = certbot
        .conf(NAME)
        .replace("[[webroot", "autorenew = no\n[[webroot");
    fs::write(certbot.path(&format!("renewal/{NAME}.conf")), &off).unwrap();
    assert_eq!(adopt(&host, &certbot, &[NAME]).status, 0);
    let refused = adopt(&host, &certbot, &["--undo", NAME]);
    assert!(
        refused.status == 1 && refused.stderr.contains("by somebody else"),
        "{refused:?}"
    );
    assert_eq!(certbot.conf(NAME), off);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_certbot_that_runs_is_waited_for() {
    let (host, _ca, app, certbot) = host();
    certbot.lineage(&Lineage::default());
    host.drop_app("hello", NAME, &app);
    let conf = certbot.conf(NAME);
    let path = certbot.path(".certbot.lock");
    let held = fs::File::create(&path).unwrap();
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(held.as_fd(), FcntlArg::F_SETLK(&whole)).unwrap();
    let config_dir = certbot.config_dir().display().to_string();
    let command = host.command(&arguments(&config_dir, &[NAME]));
    let lock = path.display().to_string();
    let (mut held, mut tries) = (Some(held), 0);
    let traced = trace(&command, |call| {
        tries += usize::from(call.name == "openat" && call.path == lock);
        if tries == 10 && held.is_some() {
            assert_eq!(certbot.conf(NAME), conf);
            assert!(!host.path("state/certificates").join(NAME).exists());
            // as certbot: first the name, then the lock
            fs::remove_file(&path).unwrap();
            held = None;
        }
        Fate::Pass
    });
    assert_eq!((traced.exit, held.is_none()), (Some(0), true), "{traced:?}");
    assert!(certbot.conf(NAME).contains("autorenew = False"));
    assert!(!path.exists());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn killed_anywhere_certbot_is_off_only_where_the_certificate_is_stored_and_the_next_run_ends_it() {
    let (host, ca, app, certbot) = host();
    host.drop_app("hello", NAME, &app);
    certbot.lineage(&Lineage::default());
    let live = certbot.path(&format!("live/{NAME}/fullchain.pem"));
    let config_dir = certbot.config_dir().display().to_string();
    let command = host.command(&arguments(&config_dir, &[NAME]));
    let ours = [certbot.config_dir(), host.path("state/certificates")];
    let ours = ours.map(|path| path.display().to_string());
    let mut states = Vec::new();
    for number in 1.. {
        // another one, as after a renewal of certbot's
        assert_eq!(adopt(&host, &certbot, &["--undo", NAME]).status, 0);
        certbot.lineage(&Lineage {
            ends: Duration::days(80) + Duration::minutes(number),
            ..Lineage::default()
        });
        let mut seen = 0;
        let traced = trace(&command, |call| {
            let counts = ["fsync", "rename", "unlink", "symlink"].contains(&call.name)
                && call.effect != Effect::Nothing
                && ours.iter().any(|ours| call.path.starts_with(ours));
            seen += i64::from(counts);
            match counts && seen == number {
                true => Fate::KillBefore,
                false => Fate::Pass,
            }
        });
        let at = format!("before {:?}", traced.calls.last());
        let off = certbot.conf(NAME).contains("autorenew = False");
        let serial = chain(&live).serial;
        let path = host.path(&format!("state/certificates/{NAME}/{serial}/fullchain.pem"));
        let stored = path.exists();
        assert!(stored || !off, "{at}");
        states.push((stored, off));
        let ended = adopt(&host, &certbot, &[NAME]);
        assert_eq!(ended.status, 0, "{at}: {ended:?}");
        assert_eq!(current(&host, NAME).serial, serial, "{at}");
        assert!(certbot.conf(NAME).contains("autorenew = False"), "{at}");
        let left = fs::read_dir(certbot.path("renewal")).unwrap();
        assert_eq!(left.count(), 1, "{at}");
        if traced.fired == 0 {
            break;
        }
    }
    for state in [(false, false), (true, false), (true, true)] {
        assert!(states.contains(&state), "{states:?}");
    }
    assert_eq!(ca.asked(Resource::NewOrder), 0);
}
