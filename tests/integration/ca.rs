//! vhostd's own CA: what its roots may speak for, and who trusts them.

mod system; // a mount namespace with a trust store of its own

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use time::OffsetDateTime;
use vhostd::certificate::internal::InternalCa;
use vhostd::certificate::store::CertificateStore;
use vhostd::certificate::{CertificateRequest, Identifier, Issuer, WantedCertificate};

use self::system::System;
use super::support::app::App;
use super::support::client::{self, Trust};
use super::support::host::{Host, reachable_vhostd};
use super::support::wait_within;

const NAME: &str = "hello.example.com";

fn served() -> (Host, App) {
    let host = Host::new();
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    (host, app)
}

fn openssl(arguments: &[&str]) -> Output {
    Command::new("openssl").args(arguments).output().unwrap()
}

fn leaf(host: &Host, name: &str) -> Vec<u8> {
    let stream = client::connect_tls(host.https(), name, &Trust::Anyone, &[]).unwrap();
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

fn verifies(host: &Host, name: &str, root: &str) -> bool {
    let trust = Trust::pem(&fs::read_to_string(host.path("state/internal-ca").join(root)).unwrap());
    client::connect_tls(host.https(), name, &trust, &[]).is_ok()
}

/// What a thief does who has copied `root.key`.
fn forged(host: &Host, name: &str) -> String {
    let at = |name: &str| host.path(name).display().to_string();
    let (key, request, leaf) = (at("thief.key"), at("thief.csr"), at("thief.pem"));
    let names = format!("subjectAltName=critical,{name}");
    let curve = "ec_paramgen_curve:P-256";
    let asked = openssl(&[
        "req", "-new", "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-subj", "/", "-addext",
        &names, "-keyout", &key, "-out", &request,
    ]);
    assert!(asked.status.success(), "{asked:?}");
    let (root, root_key) = (
        at("state/internal-ca/root.pem"),
        at("state/internal-ca/root.key"),
    );
    let signed = openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &root,
        "-CAkey",
        &root_key,
        "-copy_extensions",
        "copy",
        "-days",
        "7",
        "-out",
        &leaf,
    ]);
    assert!(signed.status.success(), "{signed:?}");
    leaf
}

#[test]
fn openssl_believes_the_root_inside_of_what_it_permits_and_nothing_else() {
    let (host, _app) = served();
    let root = host.path("state/internal-ca/root.pem");
    let root = root.to_str().unwrap();
    let verify = |name: &str| {
        let leaf = forged(&host, name);
        openssl(&[
            "verify",
            "-x509_strict",
            "-purpose",
            "sslserver",
            "-CAfile",
            root,
            &leaf,
        ])
    };
    for inside in [
        "DNS:other.example.com",
        "DNS:*.example.com",
        "DNS:nas.internal",
        "IP:192.168.1.1",
        "IP:fd00::1",
    ] {
        let said = verify(inside);
        assert!(said.status.success(), "{inside}: {said:?}");
    }
    for outside in [
        "DNS:bank.example",
        "DNS:example.org",
        "DNS:notexample.com",
        "DNS:*.com",
        "IP:1.1.1.1",
        "IP:2606:4700::1111",
    ] {
        let said = verify(outside);
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(
            words.contains("permitted subtree violation"),
            "{outside}: {words}"
        );
    }
    let served = host.path("state/certificates/hello.example.com/current/fullchain.pem");
    let served = served.to_str().unwrap();
    let said = openssl(&[
        "verify",
        "-x509_strict",
        "-verify_hostname",
        NAME,
        "-CAfile",
        root,
        served,
    ]);
    assert!(said.status.success(), "{said:?}");
    let said = openssl(&["x509", "-in", root, "-noout", "-ext", "nameConstraints"]);
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        words.contains("X509v3 Name Constraints: critical"),
        "{words}"
    );
}

#[test]
fn vhosts_that_come_together_share_a_root_and_a_name_outside_of_it_is_served_by_a_further_one() {
    let host = Host::new();
    let app = App::start();
    host.drop_app("one", "one.example.com", &app);
    host.drop_app("two", "two.example.org", &app);
    host.reload_ends(0, "activated");
    assert!(!host.path("state/internal-ca/root-2.pem").exists());
    for name in ["one.example.com", "two.example.org"] {
        assert!(verifies(&host, name, "root.pem"), "{name}");
    }
    let before = leaf(&host, "one.example.com");
    host.drop_app("three", "three.example.net", &app);
    host.reload_ends(0, "activated");
    assert!(verifies(&host, "three.example.net", "root-2.pem"));
    assert!(!verifies(&host, "three.example.net", "root.pem"));
    assert_eq!(leaf(&host, "one.example.com"), before);
    // renewed, too, by the root that people trust already
    assert_eq!(host.vhostd(&["renew", "--force"]).status, 0);
    assert!(verifies(&host, "one.example.com", "root.pem"));
    let shown = host.json(&["ca", "show"]).1;
    assert_eq!(shown["roots"].as_array().unwrap().len(), 2, "{shown}");
}

#[test]
fn vhosts_that_a_daemon_sees_together_share_a_root() {
    let host = Host::new();
    let app = App::start();
    let daemon = host.daemon();
    let domains = ["com", "org", "net"];
    let vhost = |domain| {
        format!(
            "- {{server_name: a.example.{domain}, proxy_pass_url: {}}}\n",
            app.url()
        )
    };
    host.drop_file("all.yml", &domains.map(vhost).concat());
    for vhost in ["all#1", "all#2", "all#3"] {
        host.wait_for_serving(vhost);
    }
    let roots = host.json(&["ca", "show"]).1["roots"].clone();
    assert_eq!(
        roots.as_array().unwrap().len(),
        1,
        "{roots} {}",
        daemon.log()
    );
}

#[test]
fn what_the_settings_do_not_permit_gets_no_certificate_and_says_what_to_do() {
    let host = Host::with_settings("tls: internal\ninternal_ca: {permit: example.com}\n");
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    host.drop_app("other", "other.example.org", &app);
    let report = host.reload_ends(0, "activated");
    let warning = report["warnings"][0].as_str().unwrap();
    let words = "other.example.org: failed to issue a certificate for other.example.org, which `internal_ca.permit` does not permit: add it there, then run `vhostd reload`";
    assert_eq!(warning, words);
    assert!(verifies(&host, NAME, "root.pem"));
    assert!(!verifies(&host, "other.example.org", "root.pem"));
    let (_, shown) = host.json(&["ca", "show"]);
    assert_eq!(
        shown["roots"][0]["permits"],
        serde_json::json!(["example.com"])
    );
    host.configure("tls: internal\ninternal_ca: {permit: [example.com, example.org]}\n");
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert!(verifies(&host, "other.example.org", "root-2.pem"));
    let bad = "internal_ca: {permit: [co.uk, example.com]}\n";
    host.configure(bad);
    let refused = host.vhostd(&["ca", "show"]);
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("`co.uk`: names below it are sold to everybody"),
        "{refused:?}"
    );
}

/// Time goes on while a laptop sleeps, and no timer of the daemon's does.
#[test]
fn a_host_that_slept_renews_what_is_due_and_what_has_ended_within_a_minute_of_waking() {
    let host = Host::new();
    let app = App::start();
    let now = OffsetDateTime::now_utc();
    let days = time::Duration::days;
    let state = host.path("state");
    let ca = InternalCa::new(&state);
    let names = ["due.example.com", "ended.example.com"];
    let identifiers = names.map(|name| Identifier::Dns(name.into()));
    ca.prepare([&identifiers[..]], now - days(30)).unwrap();
    host.drop_app("due", names[0], &app);
    host.drop_app("ended", names[1], &app);
    let daemon = host.daemon();
    host.wait_for_serving("due");
    host.wait_for_serving("ended");
    let store = CertificateStore::new(&state);
    let slept = [4, 8].into_iter().zip(identifiers);
    let old: Vec<_> = slept
        .map(|(slept, identifier)| {
            let wanted = WantedCertificate::new(vec![identifier], Issuer::Internal).unwrap();
            let request = CertificateRequest::new(&wanted, None, None);
            let then = now - days(slept);
            let issued = ca.issue(&request, then).unwrap();
            (store.store(&issued, &request, then).unwrap(), wanted)
        })
        .collect();
    for (old, wanted) in old {
        wait_within(Duration::from_secs(60), "a new certificate", || {
            let newest = store.newest(&wanted.name).unwrap()?;
            (newest.serial != old.serial && newest.validity.not_after > now + days(6)).then_some(())
        });
    }
    for name in names {
        wait_within(Duration::from_secs(10), "it to be served", || {
            verifies(&host, name, "root.pem").then_some(())
        });
    }
    println!("{}", daemon.log());
}

#[test]
fn the_root_is_shown_for_people_and_for_programs() {
    let host = Host::new();
    for arguments in [["ca", "show"], ["ca", "replace"]] {
        let nothing = host.vhostd(&arguments);
        assert_eq!(nothing.status, 1, "{nothing:?}");
        let words = "error: there is no internal CA yet\nhint: it is made with the first vhost that has `tls: internal`\n";
        assert_eq!(
            (nothing.stdout.as_str(), nothing.stderr.as_str()),
            ("", words)
        );
    }
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    host.reload_ends(0, "activated");
    let root = host.path("state/internal-ca/root.pem");
    let shown = host.vhostd(&["ca", "show"]);
    assert_eq!(shown.status, 0, "{shown:?}");
    assert_eq!(shown.stdout, fs::read_to_string(&root).unwrap());
    println!("{}", shown.stderr);
    let fingerprint = openssl(&[
        "x509",
        "-in",
        root.to_str().unwrap(),
        "-noout",
        "-fingerprint",
        "-sha256",
    ]);
    let fingerprint = String::from_utf8(fingerprint.stdout).unwrap();
    let fingerprint = fingerprint.trim().split('=').nth(1).unwrap();
    assert!(shown.stderr.contains(fingerprint), "{shown:?}");
    assert!(
        shown
            .stderr
            .contains("speaks for   example.com, home.arpa, internal, "),
        "{shown:?}"
    );
    let (exit, shown) = host.json(&["ca", "show"]);
    let one = &shown["roots"][0];
    assert_eq!(
        (exit, &one["sha256"], &one["installed"]),
        (0, &fingerprint.into(), &false.into())
    );
    assert!(
        one["not_after"].is_string() && one["pem"].is_string(),
        "{one}"
    );
}

#[test]
fn a_replaced_root_signs_nothing_any_more_with_the_daemon_and_without() {
    let (host, _app) = served();
    let directory = host.path("state/internal-ca");
    let root = || fs::read_to_string(directory.join("root.pem")).unwrap();
    let key = || fs::read_to_string(directory.join("root.key")).unwrap();
    for daemon in [false, true] {
        let running = daemon.then(|| host.daemon());
        let (old, old_key) = (root(), key());
        let replaced = host.vhostd(&["ca", "replace"]);
        assert_eq!(replaced.status, 0, "{replaced:?}");
        println!("{}{}", replaced.stdout, replaced.stderr);
        assert!(root() != old && key() != old_key);
        // what it has signed is exchanged at once
        assert!(verifies(&host, NAME, "root.pem"));
        let retired = fs::read_dir(directory.join("retired")).unwrap();
        let kept: Vec<_> = retired.map(|it| it.unwrap().path()).collect();
        assert!(
            kept.iter()
                .any(|path| fs::read_to_string(path).unwrap() == old),
            "{kept:?}"
        );
        drop(running);
    }
}

#[test]
fn what_the_system_trusts_includes_the_root_from_install_to_uninstall() {
    let Some(system) = System::new() else { return };
    let (host, app) = served();
    let port = host.nginx.https_port;
    let trusted = |name: &str| system.trusts(port, name);
    let vhostd = |arguments: &[&str]| system.vhostd(&host.path("vhostd.yml"), arguments);
    assert_eq!(trusted(NAME), [false, false]);
    let before = system.store();
    for again in [false, true] {
        let installed = vhostd(&["ca", "install"]);
        println!("{}{}", installed.stdout, installed.stderr);
        assert_eq!(installed.status, 0, "{installed:?}");
        let added = installed
            .stdout
            .contains("added    /usr/local/share/ca-certificates/vhostd-");
        assert_eq!(added, !again, "{installed:?}");
        assert_eq!(trusted(NAME), [true, true]);
    }
    // a further root is not trusted unasked, and it is said
    host.drop_app("other", "other.example.org", &app);
    host.reload_ends(0, "activated");
    assert_eq!(trusted("other.example.org"), [false, false]);
    let said = vhostd(&["reload"]);
    assert!(
        said.stderr
            .contains("as it does earlier roots: run `vhostd ca install`"),
        "{said:?}"
    );
    assert_eq!(vhostd(&["ca", "install"]).status, 0);
    assert_eq!(trusted("other.example.org"), [true, true]);
    // what was replaced goes with the next installation
    assert_eq!(vhostd(&["ca", "replace"]).status, 0);
    assert_eq!(trusted(NAME), [false, false]);
    let installed = vhostd(&["ca", "install", "--json"]);
    let changes: serde_json::Value = serde_json::from_str(&installed.stdout).unwrap();
    assert_eq!(changes["added"].as_array().unwrap().len(), 1, "{changes}");
    assert_eq!(changes["removed"].as_array().unwrap().len(), 2, "{changes}");
    assert_eq!(trusted(NAME), [true, true]);
    for _ in 0..2 {
        let gone = vhostd(&["ca", "uninstall"]);
        println!("{}{}", gone.stdout, gone.stderr);
        assert_eq!(gone.status, 0, "{gone:?}");
        assert_eq!(trusted(NAME), [false, false]);
    }
    // nothing of it is left, and nothing else is missing
    assert_eq!(system.store(), before);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn an_installation_and_its_undoing_killed_at_every_change_are_finished_by_the_next() {
    use super::support::tracer::{Fate, trace};

    let Some(system) = System::new() else { return };
    let (host, _app) = served();
    let config = host.path("vhostd.yml");
    let before = system.store();
    for (verb, undone) in [("install", "uninstall"), ("uninstall", "install")] {
        let wanted = [verb == "install"; 2];
        let mut met = Vec::new();
        for number in 1.. {
            let ended = system.vhostd(&config, &["ca", undone]);
            assert_eq!(ended.status, 0, "{ended:?}");
            let mut seen = 0;
            let traced = trace(&system.vhostd_command(&config, &["ca", verb]), |call| {
                // what a kill before the others leaves is what one before these does
                let counts = ["fsync", "rename", "unlink"].contains(&call.name)
                    && call.path.contains(system::DIRECTORY);
                seen += usize::from(counts);
                match counts && seen == number {
                    true => Fate::KillBefore,
                    false => Fate::Pass,
                }
            });
            let at = format!("{verb}, before {:?}", traced.calls.last());
            let ended = system.vhostd(&config, &["ca", verb]);
            assert_eq!(ended.status, 0, "{at}: {ended:?}");
            assert_eq!(system.trusts(host.nginx.https_port, NAME), wanted, "{at}");
            let mut names = system.store().into_iter();
            assert!(names.all(|name| !name.contains("vhostd-tmp")), "{at}");
            if traced.fired == 0 {
                break;
            }
            met.push(at);
        }
        println!("{met:#?}");
        assert!(met.len() >= 2);
    }
    assert_eq!(system.vhostd(&config, &["ca", "uninstall"]).status, 0);
    assert_eq!(system.store(), before);
}

#[test]
fn who_is_not_root_is_told_so() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    use std::os::unix::process::CommandExt;
    let (host, _app) = served();
    let binary = reachable_vhostd(host.path("").as_path());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .env("VHOSTD_CONFIG", host.path("vhostd.yml"));
        let ended = command.uid(65534).gid(65534).output().unwrap();
        (
            ended.status.code(),
            String::from_utf8(ended.stderr).unwrap(),
        )
    };
    let words = "error: failed to change this system's trust store: only root may\nhint: run `sudo vhostd ca install`\n";
    assert_eq!(run(&["ca", "install"]), (Some(1), words.to_owned()));
    let (exit, said) = run(&["ca", "show"]);
    assert_eq!(exit, Some(1));
    assert!(said.ends_with("hint: run it as root\n"), "{said}");
}
