//! `tls: {certificate, certificate_key}`: a certificate that somebody else renews.

mod forms;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::support::app::App;
use super::support::client::{self, Trust};
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::receiver::Receiver;
use super::support::{wait_for, wait_within};

const HELLO: &str = "hello.example.com";
const NO_CA: &str = "acme: {directory: \"https://127.0.0.1:9/none\"}\n";

/// A CA of somebody else's.
struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

struct Pair {
    leaf: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        Self::named("root of a test")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(parameters, key),
        }
    }

    /// A CA that this one has signed.
    fn intermediate(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "intermediate of a test");
        parameters.distinguished_name = name;
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(parameters, key),
        }
    }

    fn trust(&self) -> Trust {
        Trust::Root(self.der.clone())
    }

    /// From yesterday, for so many days.
    fn pair(&self, names: &[&str], days: i64) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.not_before = OffsetDateTime::now_utc() - time::Duration::days(1);
        parameters.not_after = parameters.not_before + time::Duration::days(days);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = parameters.signed_by(&key, &self.issuer).unwrap();
        Pair {
            leaf: leaf.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// As certbot keeps them: links in `live`, numbered files in `archive`.
struct Lineage {
    live: PathBuf,
    archive: PathBuf,
}

impl Lineage {
    fn new(host: &Host) -> Self {
        let [live, archive] = ["live", "archive"].map(|name| host.path(name).join(HELLO));
        for directory in [&live, &archive] {
            fs::create_dir_all(directory).unwrap();
        }
        Self { live, archive }
    }

    fn write(&self, file: &str, number: u32, text: &str) {
        fs::write(self.archive.join(format!("{file}{number}.pem")), text).unwrap();
    }

    fn link(&self, file: &str, number: u32) {
        let new = self.live.join("new");
        symlink(format!("../../archive/{HELLO}/{file}{number}.pem"), &new).unwrap();
        fs::rename(new, self.live.join(format!("{file}.pem"))).unwrap();
    }

    fn renew(&self, number: u32, chain: &str, key: &str) {
        self.write("privkey", number, key);
        self.write("fullchain", number, chain);
        self.link("privkey", number);
        self.link("fullchain", number);
    }

    fn vhost(&self, app: &App) -> String {
        vhost(
            app,
            &self.live.join("fullchain.pem"),
            &self.live.join("privkey.pem"),
        )
    }
}

fn vhost(app: &App, chain: &Path, key: &Path) -> String {
    format!(
        "server_name: {HELLO}\nproxy_pass_url: {}\ntls:\n  certificate: {}\n  certificate_key: {}\n",
        app.url(),
        chain.display(),
        key.display()
    )
}

/// Nobody is there: an order would fail, and be told.
fn host() -> Host {
    Host::with_settings(NO_CA)
}

/// The leaf that is served for the name, whoever signed it.
fn leaf(host: &Host) -> Option<CertificateDer<'static>> {
    let stream = client::connect_tls(host.https(), HELLO, &Trust::Anyone, &[]).ok()?;
    Some(
        stream
            .conn
            .peer_certificates()?
            .first()?
            .clone()
            .into_owned(),
    )
}

fn der(pem: &str) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn certificate(host: &Host) -> serde_json::Value {
    let (_, status) = host.json(&["status"]);
    status["certificates"][0].clone()
}

#[test]
fn a_certificate_from_files_is_served_and_its_renewal_when_both_files_are_there() {
    let (app, ca, receiver) = (App::start(), Authority::new(), Receiver::start());
    let hook = receiver.url("/hook");
    let host = Host::with_settings(&format!(
        "{NO_CA}hooks: {{on_change: [{{webhook: {{url: \"{hook}\"}}}}]}}\n"
    ));
    let lineage = Lineage::new(&host);
    let first = ca.pair(&[HELLO], 90);
    lineage.renew(1, &format!("{}{}", first.leaf, ca.pem), &first.key);
    let daemon = host.daemon();
    host.drop_file("hello.yml", &lineage.vhost(&app));
    let answer = host.wait_for_https(HELLO, "/", &ca.trust());
    assert_eq!(answer.status, 200);
    let shown = certificate(&host);
    assert_eq!(shown["issuer"], "file");
    assert_eq!(shown["state"], "valid");
    assert!(shown["renew_at"].is_null(), "{shown}");

    // certbot replaces one link after the other
    let second = ca.pair(&[HELLO], 90);
    lineage.write("privkey", 2, &second.key);
    lineage.write("fullchain", 2, &second.leaf);
    lineage.link("privkey", 2);
    wait_for("half a pair to be seen", || {
        let shown = certificate(&host);
        let error = shown["last_error"].as_str()?.to_owned();
        error.contains("are not a pair").then_some(())
    });
    assert_eq!(leaf(&host), Some(der(&first.leaf)));
    let replaced = Instant::now();
    lineage.link("fullchain", 2);
    wait_within(Duration::from_secs(20), "the renewed pair", || {
        (leaf(&host) == Some(der(&second.leaf))).then_some(())
    });
    println!("served after {:?}\n{}", replaced.elapsed(), daemon.log());
    // nobody is told of half a pair, nor that vhostd renews it
    receiver.wait_for_events(&["certificate_obtained", "certificate_renewed"]);
    let told = receiver.requests()[1].json();
    assert_eq!(told["next_at"], serde_json::Value::Null, "{told}");
    assert!(certificate(&host)["last_error"].is_null());
    assert!(!daemon.log().contains("order"), "{}", daemon.log());
    let (status, renewed) = host.json(&["renew", "hello", "--force"]);
    assert_eq!(status, 0, "{renewed}");
    assert_eq!(renewed["certificates"][0]["result"], "not_due", "{renewed}");
}

#[test]
fn files_that_are_no_good_are_named_and_what_was_good_serves_on() {
    let (host, app, ca) = (host(), App::start(), Authority::new());
    let (chain, key) = (host.path("chain.pem"), host.path("key.pem"));
    let fifo = host.path("fifo.pem");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let good = ca.pair(&[HELLO], 90);
    fs::write(&chain, &good.leaf).unwrap();
    fs::write(&key, &good.key).unwrap();
    host.drop_file("hello.yml", &vhost(&app, &chain, &key));
    host.reload_ends(0, "activated");
    assert_eq!(leaf(&host), Some(der(&good.leaf)));

    let other = ca.pair(&["other.example.com"], 90);
    let old = ca.pair(&[HELLO], 1);
    let secret = "root:$6$SECRET:20000::::::\n";
    let wrong: [(&str, &str, &str); 6] = [
        (&good.leaf, &other.key, "are not a pair"),
        (&other.leaf, &other.key, "it is not for hello.example.com"),
        (&old.leaf, &old.key, "it is from"),
        (secret, &good.key, "it has no certificate in PEM"),
        (&good.leaf, secret, "it has no private key in PEM"),
        ("", &good.key, "it has no certificate in PEM"),
    ];
    for (chain_text, key_text, why) in wrong {
        fs::write(&chain, chain_text).unwrap();
        fs::write(&key, key_text).unwrap();
        let ended = host.vhostd(&["reload"]);
        assert_eq!(ended.status, 0, "{ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains(why), "{why}: {said}");
        assert!(!said.contains("SECRET"), "{said}");
        let shown = certificate(&host);
        assert!(
            shown["last_error"].as_str().unwrap().contains(why),
            "{shown}"
        );
        assert_eq!(shown["state"], "valid", "{shown}");
        assert_eq!(leaf(&host), Some(der(&good.leaf)), "{why}");
        let checked = host.vhostd(&["check"]);
        assert_eq!(checked.status, 0, "{checked:?}");
        let said = format!("{}{}", checked.stdout, checked.stderr);
        assert!(said.contains(why) && said.contains("hello.yml:1"), "{said}");
    }
    for (path, why) in [
        (host.path("none.pem"), "there is no such file"),
        (fifo, "not a regular file"),
        (host.path("logs"), "not a regular file"),
        ("/dev/zero".into(), "not a regular file"),
    ] {
        host.drop_file("hello.yml", &vhost(&app, &path, &key));
        let ended = host.vhostd(&["reload"]);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(leaf(&host), Some(der(&good.leaf)), "{why}");
    }
}

#[test]
fn a_new_vhost_whose_files_are_not_there_yet_has_a_placeholder_until_they_are() {
    let (host, app, ca) = (host(), App::start(), Authority::new());
    let (chain, key) = (host.path("tls/chain.pem"), host.path("tls/key.pem"));
    let _daemon = host.daemon();
    host.drop_file("hello.yml", &vhost(&app, &chain, &key));
    host.wait_for_serving("hello");
    let shown = certificate(&host);
    assert_eq!(shown["state"], "failing", "{shown}");
    assert!(
        shown["last_error"]
            .as_str()
            .unwrap()
            .contains("no such file")
    );
    assert!(leaf(&host).is_some());
    fs::create_dir(host.path("tls")).unwrap();
    let good = ca.pair(&["*.example.com"], 90);
    fs::write(&chain, &good.leaf).unwrap();
    fs::write(&key, &good.key).unwrap();
    // its directory was not there to be watched
    host.reload_ends(0, "activated");
    host.wait_for_https(HELLO, "/", &ca.trust());
}

#[test]
fn another_chain_of_the_same_leaf_and_the_files_of_before_are_taken_too() {
    let (host, app, ca) = (host(), App::start(), Authority::new());
    let (chain, key) = (host.path("chain.pem"), host.path("key.pem"));
    let [one, two] = [80, 90].map(|days| ca.pair(&[HELLO], days));
    let put = |pair: &Pair, more: &str| {
        fs::write(&chain, format!("{}{more}", pair.leaf)).unwrap();
        fs::write(&key, &pair.key).unwrap();
    };
    put(&one, "");
    host.drop_file("hello.yml", &vhost(&app, &chain, &key));
    host.reload_ends(0, "activated");
    let served = || {
        let stream = client::connect_tls(host.https(), HELLO, &Trust::Anyone, &[]).unwrap();
        let served = stream.conn.peer_certificates().unwrap();
        (served[0].clone().into_owned(), served.len())
    };
    assert_eq!(served(), (der(&one.leaf), 1));
    let ends = certificate(&host)["not_after"].clone();
    put(&one, &ca.pem);
    host.reload_ends(0, "activated");
    assert_eq!(served(), (der(&one.leaf), 2));
    put(&two, "");
    host.reload_ends(0, "activated");
    assert_eq!(served(), (der(&two.leaf), 1));
    put(&one, "");
    host.reload_ends(0, "activated");
    assert_eq!(served(), (der(&one.leaf), 1));
    host.reload_ends(0, "unchanged");
    assert_eq!(certificate(&host)["not_after"], ends);
}

#[test]
fn an_incomplete_chain_from_files_is_served_and_told() {
    let (ca, app) = (Authority::new(), App::start());
    let nginx = NginxHost::new();
    let root = nginx.path("root.pem");
    fs::write(&root, &ca.pem).unwrap();
    let settings = format!(
        "acme: {{directory: \"https://127.0.0.1:9/none\", ca_file: {}}}\n",
        root.display()
    );
    let host = Host::on(nginx, &settings);
    let (chain, key) = (host.path("chain.pem"), host.path("key.pem"));
    let intermediate = ca.intermediate();
    let pair = intermediate.pair(&[HELLO], 90);
    fs::write(&key, &pair.key).unwrap();
    host.drop_file("hello.yml", &vhost(&app, &chain, &key));
    let told = |outcome: &str| {
        let report = host.reload_ends(0, outcome);
        let (_, status) = host.json(&["status"]);
        let (exit, checked) = host.json(&["check"]);
        assert_eq!(
            (exit, certificate(&host)["state"].as_str()),
            (0, Some("valid"))
        );
        assert_eq!(leaf(&host), Some(der(&pair.leaf)));
        [
            report["warnings"].clone(),
            status["warnings"].clone(),
            status["certificates"][0]["warnings"].clone(),
            checked["warnings"].clone(),
        ]
        .map(|warnings| warnings.to_string())
    };
    fs::write(&chain, &pair.leaf).unwrap();
    for told in told("activated") {
        assert!(told.contains("the chain is incomplete"), "{told}");
        assert!(told.contains("intermediate of a test"), "{told}");
    }
    fs::write(&chain, format!("{}{}", pair.leaf, intermediate.pem)).unwrap();
    for told in told("activated") {
        assert!(!told.contains("the chain"), "{told}");
    }
    // a root that visitors may have, and this system does not
    let other = Authority::named("private root");
    let private = other.pair(&[HELLO], 90);
    let pair = private;
    fs::write(&key, &pair.key).unwrap();
    fs::write(&chain, format!("{}{}", pair.leaf, other.pem)).unwrap();
    let report = host.reload_ends(0, "activated");
    let told = report["warnings"].to_string();
    assert!(
        told.contains("a root that this system does not trust"),
        "{told}"
    );
    assert_eq!(leaf(&host), Some(der(&pair.leaf)));
    let again = host.reload_ends(0, "unchanged");
    assert_eq!(again["warnings"], report["warnings"]);
}
