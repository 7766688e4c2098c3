#![allow(clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;
use std::slice::from_ref;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::scope::Subtree;
use super::*;
use crate::certificate::chain::Chain;
use crate::certificate::schedule::renew_at;
use crate::certificate::{Issuer, WantedCertificate};
use crate::settings::KeyType;

fn dns(name: &str) -> Identifier {
    Identifier::Dns(name.into())
}

fn ip(address: &str) -> Identifier {
    Identifier::Ip(address.parse().unwrap())
}

fn request(names: &[Identifier]) -> CertificateRequest {
    let wanted = WantedCertificate::new(names.to_vec(), Issuer::Internal).unwrap();
    CertificateRequest::new(&wanted, None, None)
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// As a client that trusts `root`, and nothing else.
fn verifies(root: &str, chain: &str, name: &str, at: OffsetDateTime) -> bool {
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let at = std::time::Duration::from_secs(at.unix_timestamp() as u64);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier
        .verify_server_cert(&leaf, &[], &name, &[], UnixTime::since_unix_epoch(at))
        .is_ok()
}

struct Fixture {
    directory: tempfile::TempDir,
    ca: InternalCa,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let ca = InternalCa::new(directory.path());
    Fixture { directory, ca }
}

impl Fixture {
    fn issue(&self, names: &[Identifier], now: OffsetDateTime) -> String {
        self.ca.issue(&request(names), now).unwrap().chain_pem
    }

    /// What each root is known by.
    fn scopes(&self) -> Vec<Vec<String>> {
        let roots = self.ca.roots().unwrap().into_iter();
        roots.map(|root| root.scope.unwrap().peculiar()).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("internal-ca").join(name)
    }
}

#[test]
fn a_leaf_verifies_against_the_root_for_its_names_and_no_other() {
    let fixture = fixture();
    let chain = fixture.issue(
        &[dns("a.example"), ip("192.0.2.1"), dns("*.b.example")],
        now(),
    );
    let root = fixture.ca.roots().unwrap().remove(0).pem;
    let verify =
        |name: &str, days: i64| verifies(&root, &chain, name, now() + Duration::days(days));
    assert!(verify("a.example", 0));
    assert!(verify("x.b.example", 0));
    assert!(verify("192.0.2.1", 6));
    assert!(!verify("b.example", 0));
    assert!(!verify("a.example", 8));
}

#[test]
fn a_leaf_lasts_a_week_and_is_renewed_at_half_of_it() {
    let leaf = Chain::parse(&fixture().issue(&[dns("a.example")], now())).unwrap();
    assert_eq!(leaf.validity.not_after - now(), Duration::WEEK);
    let renewed = renew_at(leaf.validity, None) - now();
    assert!(renewed > Duration::days(3) && renewed <= Duration::hours(84));
}

/// Signed by the root's own key, as a thief would.
fn stolen(root: &Root, names: &[Identifier]) -> String {
    let mut parameters = key::parameters(names).unwrap();
    parameters.not_before = now() - BACKDATED;
    parameters.not_after = now() + LIFETIME;
    let key = root.key().unwrap().unwrap().pair().unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root.pem, key).unwrap();
    let own = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
    parameters
        .signed_by(&own.pair().unwrap(), &issuer)
        .unwrap()
        .pem()
}

#[test]
fn whoever_steals_the_key_can_speak_for_no_name_outside_of_what_the_root_permits() {
    let fixture = fixture();
    fixture.issue(&[dns("a.example.com"), ip("203.0.113.7")], now());
    let root = fixture.ca.roots().unwrap().remove(0);
    let trusted = |name: Identifier| {
        let text = name.to_string();
        verifies(&root.pem, &stolen(&root, &[name]), &text, now())
    };
    for inside in ["b.example.com", "x.test", "nas.internal", "hello.localhost"] {
        assert!(trusted(dns(inside)), "{inside}");
    }
    for outside in [
        "bank.example",
        "example.org",
        "notexample.com",
        "localhost.com",
    ] {
        assert!(!trusted(dns(outside)), "{outside}");
    }
    for inside in ["203.0.113.7", "192.168.3.4", "fd12::1"] {
        assert!(trusted(ip(inside)), "{inside}");
    }
    for outside in ["203.0.113.8", "1.1.1.1", "2606:4700::1111"] {
        assert!(!trusted(ip(outside)), "{outside}");
    }
}

#[test]
fn a_root_for_zones_alone_speaks_for_no_address_and_the_reverse() {
    for (permitted, inside, outside) in [
        ("example.com", dns("example.com"), ip("10.0.0.1")),
        ("example.com", dns("example.com"), ip("::1")),
        ("10.0.0.0/8", ip("10.0.0.1"), dns("example.com")),
    ] {
        let fixture = fixture();
        let scope = [Subtree::parse(permitted).unwrap()].into_iter().collect();
        let ca = fixture.ca.clone().permitting(Some(scope));
        let issued = ca.issue(&request(from_ref(&inside)), now()).unwrap();
        let root = ca.roots().unwrap().remove(0);
        let trusted =
            |chain: &str, name: &Identifier| verifies(&root.pem, chain, &name.to_string(), now());
        assert!(trusted(&issued.chain_pem, &inside));
        let theft = stolen(&root, from_ref(&outside));
        assert!(!trusted(&theft, &outside), "{outside}");
        let error = ca.issue(&request(&[outside]), now()).unwrap_err();
        assert!(matches!(error, InternalError::NotPermitted(_)), "{error}");
        assert_eq!(error.retry(), RetryAdvice::Useless);
    }
}

#[test]
fn a_name_outside_gets_a_further_root_and_the_first_stays_as_it_is() {
    let fixture = fixture();
    fixture.issue(&[dns("a.example.com")], now());
    let first = fs::read(fixture.ca.root_path()).unwrap();
    let chain = fixture.issue(&[dns("a.example.org"), dns("b.example.com")], now());
    assert_eq!(
        fixture.scopes(),
        [vec!["example.com"], vec!["example.com", "example.org"]]
    );
    let second = fixture.ca.roots().unwrap().remove(1);
    assert_eq!(second.path, fixture.path("root-2.pem"));
    assert!(verifies(&second.pem, &chain, "a.example.org", now()));
    // what the first permits is signed by it: people trust it already
    let chain = fixture.issue(&[dns("c.example.com")], now());
    let pem = String::from_utf8(first.clone()).unwrap();
    assert!(verifies(&pem, &chain, "c.example.com", now()));
    assert_eq!(fs::read(fixture.ca.root_path()).unwrap(), first);
    assert_eq!(fixture.ca.roots().unwrap().len(), 2);
}

#[test]
fn names_that_come_together_get_one_root() {
    let fixture = fixture();
    let wanted = [[dns("a.example.com")], [dns("b.example.org")]];
    let all = || wanted.iter().map(<[Identifier; 1]>::as_slice);
    fixture.ca.prepare(all(), now()).unwrap();
    fixture.ca.prepare(all(), now()).unwrap();
    assert_eq!(fixture.scopes(), [["example.com", "example.org"]]);
    // with nobody in need there is no CA at all
    let idle = self::fixture();
    idle.ca.prepare([], now()).unwrap();
    assert!(!idle.directory.path().join("internal-ca").exists());
}

#[test]
fn the_root_is_made_once_and_its_key_is_private() {
    let fixture = fixture();
    fixture.issue(&[dns("a.example")], now());
    let root = fs::read(fixture.ca.root_path()).unwrap();
    let again = InternalCa::new(fixture.directory.path());
    let request = request(&[dns("b.example")]);
    again.issue(&request, now() + Duration::DAY).unwrap();
    assert_eq!(fs::read(fixture.ca.root_path()).unwrap(), root);
    assert_eq!(mode(&fixture.ca.root_path()), 0o644);
    assert_eq!(mode(&fixture.path("root.key")), 0o600);
}

#[test]
fn a_crash_between_key_and_root_is_mended() {
    let fixture = fixture();
    fixture.issue(&[dns("a.example")], now());
    let key = fs::read(fixture.path("root.key")).unwrap();
    fs::remove_file(fixture.ca.root_path()).unwrap();
    fixture.issue(&[dns("a.example")], now());
    assert_eq!(fs::read(fixture.path("root.key")).unwrap(), key);
    assert!(fixture.ca.root_path().exists());
}

#[test]
fn a_root_without_its_key_is_not_replaced_unasked() {
    let fixture = fixture();
    fixture.issue(&[dns("a.example")], now());
    fs::remove_file(fixture.path("root.key")).unwrap();
    let error = fixture.ca.issue(&request(&[dns("b.example")]), now());
    let error = error.unwrap_err();
    assert!(matches!(error, InternalError::KeyMissing(_)));
    assert_eq!(error.retry(), RetryAdvice::Useless);
    // it has no part in what it does not permit
    fixture.issue(&[dns("a.example.com")], now());
    fixture
        .ca
        .replace(&[&dns("a.example")].into(), now())
        .unwrap();
    fixture.issue(&[dns("b.example")], now());
}

#[test]
fn a_damaged_root_or_one_with_another_key_is_named() {
    for (name, text) in [
        ("root.pem", "x".to_owned()),
        ("root.key", {
            let other = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
            other.expose().to_owned()
        }),
    ] {
        let fixture = fixture();
        fixture.issue(&[dns("a.example")], now());
        fs::write(fixture.path(name), text).unwrap();
        let error = fixture
            .ca
            .issue(&request(&[dns("a.example")]), now())
            .unwrap_err();
        let root = fixture.path("root.pem").display().to_string();
        let words = format!("use {root} as a root of the internal CA: ");
        assert!(error.to_string().starts_with(&words), "{error}");
        assert_eq!(error.retry(), RetryAdvice::Useless);
    }
}

#[test]
fn a_root_that_ends_within_a_year_signs_on_and_has_a_successor_for_the_same_names() {
    let fixture = fixture();
    fixture.issue(&[dns("a.example.com"), dns("b.example.org")], now());
    let first = fixture.ca.roots().unwrap().remove(0);
    let year = first.validity.not_after - Duration::days(364);
    let chain = fixture.issue(&[dns("a.example.com")], year);
    assert!(verifies(&first.pem, &chain, "a.example.com", year));
    assert_eq!(fixture.scopes(), [["example.com", "example.org"]; 2]);
    fixture.issue(&[dns("b.example.org")], year + Duration::DAY);
    assert_eq!(fixture.ca.roots().unwrap().len(), 2);
    // no leaf outlives the root that has signed it
    let late = first.validity.not_after - Duration::days(6);
    let chain = fixture.issue(&[dns("a.example.com")], late);
    let second = fixture.ca.roots().unwrap().remove(1);
    assert!(verifies(&second.pem, &chain, "a.example.com", late));
    assert_eq!(fixture.ca.roots().unwrap().len(), 2);
}

/// As it was made before there were name constraints.
fn unlimited(fixture: &Fixture) -> String {
    let key = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
    let mut parameters = key::parameters(&[]).unwrap();
    parameters.not_before = now() - BACKDATED;
    parameters.not_after = now() + Duration::days(3650);
    parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let common = rcgen::DnType::CommonName;
    parameters
        .distinguished_name
        .push(common, "vhostd internal CA 0badcafe");
    let pem = parameters.self_signed(&key.pair().unwrap()).unwrap().pem();
    fs::create_dir(fixture.path("")).unwrap();
    fs::write(fixture.path("root.key"), key.expose()).unwrap();
    fs::write(fixture.path("root.pem"), &pem).unwrap();
    pem
}

#[test]
fn a_root_from_before_name_constraints_signs_on_until_it_is_replaced_and_is_warned_of() {
    let fixture = fixture();
    let pem = unlimited(&fixture);
    let chain = fixture.issue(&[dns("a.example.com"), dns("b.example.org")], now());
    assert!(verifies(&pem, &chain, "b.example.org", now()));
    assert!(
        fixture.ca.advice()[0].contains("vhostd internal CA 0badcafe may speak for every name")
    );
    let new = fixture
        .ca
        .replace(&[&dns("a.example.com")].into(), now())
        .unwrap();
    assert_eq!(fixture.ca.roots().unwrap(), [new]);
    assert_eq!(fixture.scopes(), [["example.com"]]);
    assert_eq!(fixture.ca.retired().unwrap()[0].pem, pem);
    assert!(fixture.ca.advice().is_empty());
}

#[test]
fn a_replaced_roots_key_is_gone_also_where_somebody_was_killed_half_way() {
    let fixture = fixture();
    fixture.issue(&[dns("a.example")], now());
    let root = fixture.ca.roots().unwrap().remove(0);
    let key = fs::read(fixture.path("root.key")).unwrap();
    // as of the first write of it
    fs::create_dir(fixture.path("retired")).unwrap();
    fs::write(fixture.path(&format!("retired/{}.pem", root.id)), &root.pem).unwrap();
    assert!(fixture.ca.roots().unwrap().is_empty());
    let chain = fixture.issue(&[dns("a.example")], now());
    assert!(!verifies(&root.pem, &chain, "a.example", now()));
    assert_ne!(fs::read(fixture.path("root.key")).unwrap(), key);
    assert_eq!(fixture.ca.retired().unwrap().len(), 1);
    assert_eq!(fixture.ca.roots().unwrap().len(), 1);
}
