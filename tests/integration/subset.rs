//! One name of several that leads elsewhere for good: the others have a certificate, the operator is
//! told, and the name is back when it can be proven.

use std::path::PathBuf;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::support::app::App;
use super::support::client::{self, Trust};
use super::support::host::{Host, acme};
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;
use super::support::receiver::Receiver;
use super::support::wait_for;

const A: &str = "a.example.com";
const B: &str = "b.example.com";
const C: &str = "c.example.com";

struct Scene {
    host: Host,
    pebble: Pebble,
    _app: App,
}

impl Scene {
    /// `shop` with three names.
    fn new() -> Self {
        Self::with("")
    }

    fn with(settings: &str) -> Self {
        let nginx = NginxHost::new();
        let pebble = Pebble::start(nginx.http_port);
        let host = Host::on(nginx, &format!("{}{settings}", acme(&pebble)));
        let app = App::start();
        let text = format!(
            "server_name: [{A}, {B}, {C}]\nproxy_pass_url: {}\n",
            app.url()
        );
        host.drop_file("shop.yml", &text);
        Self {
            host,
            pebble,
            _app: app,
        }
    }

    fn trust(&self) -> Trust {
        Trust::Root(self.pebble.issuing_root())
    }

    fn record(&self) -> PathBuf {
        self.host.path(&format!("state/orders/{A}.attempts.json"))
    }

    fn read(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.record()).unwrap()).unwrap()
    }

    /// As if what failed had failed for so many days, twice before, and could be tried again.
    fn age(&self, days: i64) {
        let mut attempts = self.read();
        let earlier = OffsetDateTime::now_utc() - time::Duration::days(days);
        let failing = attempts["failing"].as_array_mut();
        for failing in failing.into_iter().flatten() {
            failing["since"] = earlier.format(&Rfc3339).unwrap().into();
            failing["failures"] = 2.into();
            failing["next"] = Value::Null;
        }
        attempts["next"] = Value::Null;
        std::fs::write(self.record(), attempts.to_string()).unwrap();
    }

    /// Everything is tried for the third time, after a day.
    fn persists(&self) -> (i32, Value) {
        self.age(1);
        self.host.json(&["renew"])
    }

    fn certificate(&self) -> Value {
        self.host.certificate(A).unwrap()
    }

    /// Whether a browser accepts what is served for the name.
    fn is_trusted(&self, name: &str) -> bool {
        client::get_tls(self.host.https(), name, "/", &self.trust()).is_ok()
    }

    fn trusted(&self) -> Vec<&'static str> {
        let names = [A, B, C].into_iter();
        names.filter(|name| self.is_trusted(name)).collect()
    }

    /// Where plain HTTP sends the name; `None`: it is served.
    fn redirect(&self, name: &str) -> Option<String> {
        let response = client::get(self.host.http(), name, "/x").unwrap();
        match response.status {
            301 | 308 => response.header("location").map(str::to_owned),
            200 => None,
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_new_vhost_with_a_dead_name_has_a_certificate_for_the_others_once_that_persists() {
    let scene = Scene::new();
    scene.pebble.set_dead(B, true);
    let (status, report) = scene.host.json(&["reload", "--wait"]);
    assert_eq!(
        (status, &report["certificates"]["failed"][0]),
        (4, &A.into())
    );
    assert_eq!(scene.trusted(), [""; 0]);
    // tried again it fails again: it may be a fault of the moment
    assert_eq!(scene.host.vhostd(&["renew", A]).status, 4);
    assert_eq!(scene.trusted(), [""; 0]);
    assert_eq!(scene.pebble.finalized(), 0);
    let (status, renewed) = scene.persists();
    let one = &renewed["certificates"][0];
    assert_eq!((status, &one["result"]), (4, &"renewed".into()), "{one}");
    assert_eq!(one["missing_identifiers"], serde_json::json!([B]), "{one}");
    assert!(one["error"].as_str().unwrap().contains(B), "{one}");
    assert_eq!(scene.trusted(), [A, C]);
    assert_eq!(scene.pebble.finalized(), 1);
    // plain HTTP leads no visitor to a warning
    assert_eq!(scene.redirect(B), None);
    assert_eq!(scene.redirect(C), Some(format!("https://{C}/x")));
    let certificate = scene.certificate();
    assert_eq!(certificate["state"], "failing", "{certificate}");
    assert_eq!(certificate["identifiers"], serde_json::json!([A, B, C]));
    assert_eq!(certificate["missing_identifiers"], serde_json::json!([B]));
    let error = certificate["last_error"].as_str().unwrap();
    assert!(
        error.contains(&format!("prove control of {B}: ")),
        "{error}"
    );
    let words = scene.host.vhostd(&["status"]);
    assert!(words.stdout.contains(&format!("without {B}")), "{words:?}");
    // until its next attempt nothing is ordered
    let (status, renewed) = scene.host.json(&["renew"]);
    assert_eq!(
        (status, &renewed["certificates"][0]["result"]),
        (4, &"failed".into())
    );
    let (status, _) = scene.host.json(&["reload", "--wait"]);
    assert_eq!((status, scene.pebble.finalized()), (4, 1));
}

#[test]
fn a_name_that_can_be_proven_again_is_in_the_next_certificate() {
    let scene = Scene::new();
    scene.pebble.set_dead(B, true);
    scene.host.vhostd(&["reload", "--wait"]);
    scene.persists();
    assert_eq!(scene.trusted(), [A, C]);
    // still dead: nothing changes
    let (status, _) = scene.host.json(&["renew", "shop"]);
    assert_eq!((status, scene.trusted()), (4, vec![A, C]));
    assert_eq!(scene.certificate()["state"], "failing");
    scene.pebble.set_dead(B, false);
    let mut attempts = scene.read();
    let earlier = OffsetDateTime::now_utc() - time::Duration::SECOND;
    let earlier = Value::from(earlier.format(&Rfc3339).unwrap());
    attempts["failing"][0]["next"] = earlier.clone();
    attempts["next"] = earlier;
    std::fs::write(scene.record(), attempts.to_string()).unwrap();
    // by itself
    let daemon = scene.host.daemon();
    scene.host.wait_for_https(B, "/", &scene.trust());
    assert_eq!(scene.trusted(), [A, B, C]);
    let certificate = scene.certificate();
    assert_eq!(certificate["state"], "valid", "{certificate}");
    assert_eq!(certificate["missing_identifiers"], serde_json::json!([]));
    assert_eq!(certificate["last_error"], Value::Null);
    assert!(!scene.record().exists());
    assert!(scene.redirect(B).is_some());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_dead_first_name_keeps_neither_its_place_nor_the_others_certificate() {
    let scene = Scene::new();
    scene.pebble.set_dead(A, true);
    scene.host.vhostd(&["reload", "--wait"]);
    scene.persists();
    assert_eq!(scene.trusted(), [B, C]);
    assert_eq!(scene.redirect(A), None);
    // also what another process reads of it
    let (status, _) = scene.host.json(&["reload"]);
    assert_eq!((status, scene.trusted()), (0, vec![B, C]));
    assert_eq!(
        scene.certificate()["missing_identifiers"],
        serde_json::json!([A])
    );
}

#[test]
fn where_all_names_are_dead_none_is_left_out_and_a_ca_that_is_away_is_no_names_fault() {
    let mut scene = Scene::new();
    for name in [A, B, C] {
        scene.pebble.set_dead(name, true);
    }
    scene.host.vhostd(&["reload", "--wait"]);
    let (status, renewed) = scene.persists();
    assert_eq!(
        (status, &renewed["certificates"][0]["result"]),
        (4, &"failed".into())
    );
    assert_eq!(scene.read()["failing"].as_array().unwrap().len(), 3);
    assert_eq!((scene.pebble.finalized(), scene.trusted()), (0, Vec::new()));
    scene.pebble.kill();
    let before = scene.read()["failing"].clone();
    scene.host.vhostd(&["renew", A]);
    let attempts = scene.read();
    assert_eq!(attempts["failing"][0]["failures"], before[0]["failures"]);
    assert!(
        attempts["last_error"].as_str().unwrap().contains(B),
        "{attempts}"
    );
}

#[test]
fn a_name_that_is_left_out_is_told_once_and_its_recovery_too() {
    let receiver = Receiver::start();
    let url = receiver.url("/hook");
    let scene = Scene::with(&format!(
        "hooks: {{on_change: [{{webhook: {{url: \"{url}\"}}}}]}}\n"
    ));
    scene.pebble.set_dead(C, true);
    scene.host.vhostd(&["reload", "--wait"]);
    receiver.wait_for_events(&["certificate_failing"]);
    scene.persists();
    receiver.wait_for_events(&["certificate_failing", "certificate_obtained"]);
    let title = receiver.requests()[1].json()["title"].to_string();
    assert!(title.contains(&format!("without {C}")), "{title}");
    scene.host.vhostd(&["renew", A]);
    scene.pebble.set_dead(C, false);
    assert_eq!(scene.host.vhostd(&["renew", A]).status, 0);
    let all = [
        "certificate_failing",
        "certificate_obtained",
        "certificate_recovered",
    ];
    receiver.wait_for_events(&all);
    assert_eq!(scene.trusted(), [A, B, C]);
}

#[test]
fn of_a_realm_the_vhost_with_the_dead_name_alone_stays_on_plain_http() {
    let scene = Scene::new();
    let page = scene.host.page("site", "hello");
    let root = page.display();
    let text = format!(
        "pki__realms: [{{domains: [{A}, {B}]}}]\nnginx__vhosts:\n\
         - {{server_name: {A}, root: {root}}}\n- {{server_name: {B}, root: {root}}}\n"
    );
    scene.host.drop_file("shop.yml", &text);
    scene.pebble.set_dead(B, true);
    scene.host.vhostd(&["reload", "--wait"]);
    let (status, _) = scene.persists();
    assert_eq!((status, scene.trusted()), (4, vec![A]));
    let redirect = |name| {
        let response = client::get(scene.host.http(), name, "/").unwrap();
        response.header("location").map(str::to_owned)
    };
    assert_eq!(redirect(A), Some(format!("https://{A}/")));
    assert_eq!(redirect(B), None);
}

#[test]
fn what_is_left_out_outlives_a_kill_before_the_others_are_ordered() {
    let scene = Scene::new();
    scene.pebble.set_dead(B, true);
    scene.host.vhostd(&["reload", "--wait"]);
    scene.age(1);
    // the third failure is on disk, and the order without the name was never begun
    let mut attempts = scene.read();
    let now = OffsetDateTime::now_utc();
    let later = now + time::Duration::HOUR;
    let (now, later) = (
        now.format(&Rfc3339).unwrap(),
        later.format(&Rfc3339).unwrap(),
    );
    attempts["failures"] = 3.into();
    attempts["failed_at"] = now.clone().into();
    attempts["next"] = later.clone().into();
    let failing = &mut attempts["failing"][0];
    failing["failures"] = 3.into();
    failing["failed_at"] = now.into();
    failing["next"] = later.into();
    std::fs::write(scene.record(), attempts.to_string()).unwrap();
    let daemon = scene.host.daemon();
    wait_for("the certificate", || {
        (scene.trusted() == [A, C]).then_some(())
    });
    assert_eq!(
        scene.certificate()["missing_identifiers"],
        serde_json::json!([B])
    );
    daemon.kill();
    let _daemon = scene.host.daemon();
    assert_eq!(scene.certificate()["state"], "failing");
    assert_eq!((scene.trusted(), scene.pebble.finalized()), (vec![A, C], 1));
}
