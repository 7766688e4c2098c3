//! Before an order: what must fail is not sent, what looks odd is told, and a CA that would issue
//! is never kept from it.

mod fetch;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::support::app::App;
use crate::support::client::{self, Trust};
use crate::support::host::{Host, acme};
use crate::support::mock_ca::{MockCa, Resource, edit};
use crate::support::nameserver::NameServer;
use crate::support::nginx::{NginxHost, free_port};
use crate::support::pebble::Pebble;
use crate::support::wait_for;

const NAME: &str = "shop.site.test";
/// Where challenges are answered, and a resolver that the CA has nothing to do with.
const HERE: &str = "shop A 127.0.0.1\n";

/// A CA that says that DNS binds it.
struct Scene {
    host: Host,
    ca: MockCa,
    dns: NameServer,
    _app: App,
}

impl Scene {
    fn new(zone: &str) -> Self {
        Self::with(NameServer::start(&[("site.test", zone)]))
    }

    fn with(dns: NameServer) -> Self {
        let nginx = NginxHost::new();
        let ca = MockCa::start(nginx.http_port);
        obey_dns(&ca);
        let settings = format!(
            "acme: {{directory: {}, ca_file: {}}}\n{}",
            ca.directory_url(),
            ca.ca_file().display(),
            dns.settings()
        );
        let host = Host::on(nginx, &settings);
        let app = App::start();
        host.drop_app("shop", NAME, &app);
        Self {
            host,
            ca,
            dns,
            _app: app,
        }
    }

    /// `reload --wait`, and then what is known of the certificate.
    fn tries(&self) -> Value {
        self.host.vhostd(&["reload", "--wait"]);
        self.host.certificate(NAME).unwrap()
    }

    fn orders(&self) -> usize {
        self.ca.asked(Resource::NewOrder)
    }

    /// Nothing was sent, and why.
    fn held(&self) -> String {
        let certificate = self.tries();
        assert_eq!(self.orders(), 0, "{certificate}");
        assert_eq!(certificate["attempts"], 1, "{certificate}");
        let error = certificate["last_error"].as_str().unwrap();
        assert!(error.contains("(nothing was sent to the CA)"), "{error}");
        error.to_owned()
    }

    /// It was issued, with these warnings.
    fn issues(&self) -> Vec<String> {
        let certificate = self.tries();
        assert_eq!(certificate["state"], "valid", "{certificate}");
        warnings(&certificate)
    }
}

fn obey_dns(ca: &MockCa) {
    obey_dns_as(ca, "ca.example");
}

/// As an answer to CAA records that name it so.
fn obey_dns_as(ca: &MockCa, identity: &'static str) {
    ca.answer_otherwise(move |asked, reply| {
        if asked.resource == Resource::Directory {
            edit(reply, |it| it["meta"]["caaIdentities"] = json!([identity]));
        }
    });
}

fn warnings(certificate: &Value) -> Vec<String> {
    let warnings = certificate["warnings"].as_array().unwrap().iter();
    let texts = warnings.map(|warning| warning.as_str().unwrap().to_owned());
    texts.collect()
}

#[test]
fn a_name_that_leads_here_is_ordered_without_a_word() {
    let zone = format!("{HERE}@ CAA 0 issue \"ca.example\"\n");
    let scene = Scene::new(&zone);
    assert_eq!(scene.issues(), Vec::<String>::new());
    scene.host.wait_for_https(NAME, "/", &scene.ca.root());
}

#[test]
fn an_order_that_caa_forbids_is_not_sent_and_the_error_names_the_record() {
    let zone = format!("{HERE}@ CAA 0 issue \"other.example\"\n");
    let mut scene = Scene::new(&zone);
    let error = scene.held();
    assert!(
        error.contains("the CAA records at site.test allow only other.example for shop.site.test: add `site.test. CAA 0 issue \"ca.example\"`, then `vhostd renew shop.site.test`"),
        "{error}"
    );
    // as it says
    let zone = format!("{zone}@ CAA 0 issue \"ca.example\"\n");
    scene.dns.rewrite("site.test", &zone);
    let renewed = scene.host.vhostd(&["renew", NAME]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert_eq!(scene.orders(), 1);
}

#[test]
fn of_several_cas_the_one_that_caa_allows_is_asked_and_no_other() {
    let zone = |allowed: &str| format!("{HERE}@ CAA 0 issue \"{allowed}\"\n");
    let mut dns = NameServer::start(&[("site.test", &zone("second.example"))]);
    let nginx = NginxHost::new();
    let (first, second) = (
        MockCa::start(nginx.http_port),
        MockCa::start(nginx.http_port),
    );
    obey_dns_as(&first, "first.example");
    obey_dns_as(&second, "second.example");
    let directory = |ca: &MockCa| {
        let (url, root) = (ca.directory_url(), ca.ca_file().display().to_string());
        format!("{{directory: {url}, ca_file: {root}}}")
    };
    let settings = format!(
        "acme: {{directory: [{}, {}]}}\n{}",
        directory(&first),
        directory(&second),
        dns.settings()
    );
    let host = Host::on(nginx, &settings);
    let app = App::start();
    host.drop_app("shop", NAME, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let orders = || [&first, &second].map(|ca| ca.asked(Resource::NewOrder));
    // where neither may issue, neither is asked
    dns.rewrite("site.test", &zone("third.example"));
    let renewed = host.vhostd(&["renew", NAME]);
    assert_eq!(renewed.status, 4, "{renewed:?}");
    assert!(
        renewed.stderr.contains("the CAA records at site.test"),
        "{renewed:?}"
    );
    assert_eq!(orders(), [0, 0]);
    dns.rewrite("site.test", &zone("second.example"));
    let renewed = host.vhostd(&["renew", NAME]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert_eq!(orders(), [0, 1]);
    host.wait_for_https(NAME, "/", &second.root());
}

#[test]
fn an_order_for_a_name_that_does_not_exist_is_not_sent_until_it_does() {
    let mut scene = Scene::new("other A 127.0.0.1\n");
    let error = scene.held();
    assert!(
        error.contains("shop.site.test does not exist in DNS: add"),
        "{error}"
    );
    // a person who does not force it gets the same answer, at once
    let renewed = scene.host.vhostd(&["renew", NAME]);
    assert_eq!(renewed.status, 4, "{renewed:?}");
    assert!(
        renewed.stderr.contains("does not exist in DNS"),
        "{renewed:?}"
    );
    assert_eq!(scene.orders(), 0);
    scene.dns.rewrite("site.test", HERE);
    let renewed = scene.host.vhostd(&["renew", NAME]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
}

#[test]
fn a_name_without_an_address_is_not_ordered() {
    let scene = Scene::new("shop TXT here\n");
    let error = scene.held();
    assert!(
        error.contains("shop.site.test has no A or AAAA record: add"),
        "{error}"
    );
}

#[test]
fn an_operator_who_forces_it_knows_better() {
    let scene = Scene::new("other A 127.0.0.1\n");
    scene.held();
    let renewed = scene.host.vhostd(&["renew", NAME, "--force"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert!(
        renewed.stderr.contains("does not exist in DNS"),
        "{renewed:?}"
    );
    assert_eq!(scene.orders(), 1);
}

#[test]
fn an_aaaa_record_that_leads_elsewhere_is_told_once_and_shown_until_it_is_gone() {
    let zone = format!("{HERE}shop AAAA 2001:db8::1\n");
    let mut scene = Scene::new(&zone);
    let daemon = scene.host.daemon();
    scene.host.wait_for_https(NAME, "/", &scene.ca.root());
    let shown = wait_for("the warning", || {
        warnings(&scene.host.certificate(NAME)?).into_iter().next()
    });
    let begin = "shop.site.test has the AAAA record 2001:db8::1, which is no address of this host";
    assert!(shown.starts_with(begin), "{shown}");
    let renewed = scene.host.vhostd(&["renew", NAME, "--force"]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert!(renewed.stderr.contains(begin), "{renewed:?}");
    assert_eq!(daemon.log().matches(begin).count(), 1, "{}", daemon.log());
    let status = scene.host.vhostd(&["status"]);
    assert!(
        status.stdout.contains(begin) || status.stderr.contains(begin),
        "{status:?}"
    );
    scene.dns.rewrite("site.test", HERE);
    let renewed = scene.host.vhostd(&["renew", NAME, "--force"]);
    assert!(!renewed.stderr.contains(begin), "{renewed:?}");
    assert_eq!(
        warnings(&scene.host.certificate(NAME).unwrap()),
        Vec::<String>::new()
    );
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_record_with_a_private_address_is_told_and_that_address_is_not_asked() {
    let scene = Scene::new(&format!("{HERE}shop AAAA fd00:ec2::254\n"));
    let [warning] = scene.issues().try_into().unwrap();
    assert!(
        warning.starts_with(
            "shop.site.test has the AAAA record fd00:ec2::254, which is no address of this host but a \
             private address: vhostd does not ask there"
        ),
        "{warning}"
    );
}

#[test]
fn a_caa_lookup_that_fails_is_told_and_the_ca_is_asked() {
    let dns = NameServer::start_with_broken(&[("shop.site.test", "@ A 127.0.0.1\n")], "site.test");
    let scene = Scene::with(dns);
    let [warning] = scene.issues().try_into().unwrap();
    assert!(
        warning.starts_with(
            "the CAA records at site.test, which may speak for shop.site.test, cannot be looked up"
        ),
        "{warning}"
    );
}

#[test]
fn a_resolver_that_is_silent_holds_no_order_for_long() {
    let scene = Scene::new(HERE);
    scene.dns.pause();
    let told = scene.issues().join("\n");
    assert!(told.contains("cannot be looked up"), "{told}");
    scene.dns.resume();
}

#[test]
fn a_challenge_that_something_else_answers_is_told() {
    let mut scene = Scene::new(HERE);
    // no listener of ours is asked at that address
    let text = format!(
        "server {{ listen 127.0.0.2:{}; server_name old.test; return 404; }}\n",
        scene.host.nginx.http_port
    );
    std::fs::write(scene.host.path("conf.d/old.conf"), text).unwrap();
    scene.dns.rewrite("site.test", "shop A 127.0.0.2\n");
    scene.host.vhostd(&["reload"]);
    let told = scene.issues().join("\n");
    let expected =
        "challenges for shop.site.test are answered by something else at 127.0.0.2: HTTP 404";
    assert!(told.contains(expected), "{told}");
}

#[test]
fn an_edge_that_redirects_all_of_port_80_to_https_is_told_only_where_https_answers_otherwise() {
    let mut scene = Scene::new(HERE);
    scene.dns.rewrite("site.test", "shop A 127.0.0.2\n");
    assert_eq!(scene.host.vhostd(&["reload"]).status, 0);
    let (http, https) = (scene.host.nginx.http_port, scene.host.nginx.https_port);
    // with a certificate for another name, which no client trusts
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["edge.test".to_owned()]).unwrap();
    let chain = certificate.self_signed(&key).unwrap().pem();
    std::fs::write(scene.host.path("edge.pem"), chain + &key.serialize_pem()).unwrap();
    let pem = scene.host.path("edge.pem").display().to_string();
    let edge = |status: u16, answer: &str| {
        let text = format!(
            "server {{ listen 127.0.0.2:{http}; return 301 https://$host:{https}$request_uri; }}\n\
             server {{ listen 127.0.0.2:{https} ssl; ssl_certificate {pem}; ssl_certificate_key {pem};\n\
             location / {{ {answer} }} }}\n"
        );
        std::fs::write(scene.host.path("conf.d/edge.conf"), text).unwrap();
        scene.host.nginx.reload();
        wait_for("the edge", || {
            let at = ([127, 0, 0, 2], https).into();
            let path = "/.well-known/acme-challenge/token";
            let answer = client::get_tls(at, NAME, path, &Trust::Anyone);
            (answer.ok()?.status == status).then_some(())
        });
        let renewed = scene.host.vhostd(&["renew", NAME, "--force"]);
        assert_eq!(renewed.status, 0, "{renewed:?}");
        warnings(&scene.host.certificate(NAME).unwrap())
    };
    let told = edge(404, "return 404;").join("\n");
    let expected = format!(
        "challenges for shop.site.test are answered by something else at 127.0.0.2: HTTP 404, after \
         a redirect to https://shop.site.test:{https}/.well-known/acme-challenge/…; "
    );
    assert!(told.contains(&expected), "{told}");
    let here = format!("proxy_pass http://127.0.0.1:{http}; proxy_set_header Host $host;");
    assert_eq!(edge(200, &here), Vec::<String>::new());
}

#[test]
fn a_clock_that_is_behind_by_days_sends_nothing_and_one_that_is_ahead_by_an_hour_is_told() {
    let dated = |ca: &MockCa, off: time::Duration| {
        ca.answer_otherwise(move |asked, reply| {
            let now = OffsetDateTime::now_utc() + off;
            reply.set(
                "Date",
                now.format(&Rfc2822).unwrap().replace("+0000", "GMT"),
            );
            if asked.resource == Resource::Directory {
                edit(reply, |it| {
                    it["meta"]["caaIdentities"] = json!(["ca.example"])
                });
            }
        });
    };
    let scene = Scene::new(HERE);
    dated(&scene.ca, time::Duration::days(3));
    let error = scene.held();
    assert!(
        error.contains("this host's clock is 2 days behind the CA's")
            || error.contains("this host's clock is 3 days behind the CA's"),
        "{error}"
    );
    dated(&scene.ca, -time::Duration::hours(1));
    let renewed = scene.host.vhostd(&["renew", NAME]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    assert!(
        renewed.stderr.contains("minutes ahead of the CA's"),
        "{renewed:?}"
    );
}

#[test]
fn the_ca_is_asked_all_the_same_after_three_attempts() {
    let scene = Scene::new("other A 127.0.0.1\n");
    scene.held();
    let record = scene
        .host
        .path(&format!("state/orders/{NAME}.attempts.json"));
    let mut attempts: Value =
        serde_json::from_str(&std::fs::read_to_string(&record).unwrap()).unwrap();
    attempts["failures"] = 3.into();
    attempts["next"] = Value::Null;
    std::fs::write(&record, attempts.to_string()).unwrap();
    let told = scene.issues().join("\n");
    assert!(told.contains("does not exist in DNS"), "{told}");
}

#[test]
fn a_private_ca_issues_for_names_that_dns_does_not_know_without_a_word() {
    let nginx = NginxHost::new();
    let pebble = Pebble::start(nginx.http_port);
    let dns = NameServer::start(&[("site.test", "other A 127.0.0.1\n")]);
    let host = Host::on(nginx, &format!("{}{}", acme(&pebble), dns.settings()));
    let app = App::start();
    host.drop_app("shop", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let certificate = host.certificate(NAME).unwrap();
    assert_eq!(certificate["state"], "valid");
    assert_eq!(warnings(&certificate), Vec::<String>::new());
}

#[test]
fn a_private_ca_that_has_a_dns_of_its_own_is_not_held_to_this_hosts() {
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    obey_dns(&ca);
    let settings = format!(
        "acme: {{directory: {}, ca_file: {}}}\n",
        ca.directory_url(),
        ca.ca_file().display()
    );
    let host = Host::on(nginx, &settings);
    let app = App::start();
    host.drop_app("shop", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let certificate = host.certificate(NAME).unwrap();
    assert_eq!(warnings(&certificate), Vec::<String>::new());
}

#[test]
fn where_a_private_ca_does_not_believe_us_what_dns_says_is_told() {
    // where nobody answers
    let pebble = Pebble::start(free_port());
    let dns = NameServer::start(&[("site.test", "other A 127.0.0.1\n")]);
    let settings = format!("{}{}", acme(&pebble), dns.settings());
    let host = Host::on(NginxHost::new(), &settings);
    let app = App::start();
    host.drop_app("shop", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 4);
    let certificate = host.certificate(NAME).unwrap();
    assert!(
        certificate["last_error"]
            .as_str()
            .unwrap()
            .contains("prove control")
    );
    let told = warnings(&certificate).join("\n");
    assert!(
        told.contains("shop.site.test does not exist in DNS"),
        "{told}"
    );
}
