//! A power cut at each moment of an order at which the disk or the CA has changed. The machine starts
//! again from the disk as it was, with the CA as it is, and the next run needs no person.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::super::scene::assert_left_clean;
use super::{Disk, with_disk};
use crate::support::app::App;
use crate::support::client::Trust;
use crate::support::host::{Host, acme};
use crate::support::nginx::NginxHost;
use crate::support::pebble::Pebble;
use crate::support::tracer::{Call, Effect, Fate, Traced, trace};
use crate::support::walk::Walk;

/// A new name in each run, which serves with a placeholder until it has a certificate.
struct FirstOrder<'a> {
    disk: &'a Disk,
    host: Host,
    pebble: Pebble,
    app: App,
    run: usize,
    outcomes: Outcomes,
}

/// How many runs went on with what they found.
#[derive(Debug, Default)]
struct Outcomes {
    nothing: usize,
    /// The CA had been asked for an order, and its answer was not durable.
    lost: usize,
    resumed: usize,
    stored: usize,
}

/// What the disk says of the certificate.
struct Found {
    order: Option<Value>,
    is_stored: bool,
}

impl<'a> FirstOrder<'a> {
    fn new(disk: &'a Disk) -> Self {
        let nginx = NginxHost::below(&disk.path("live"));
        let pebble = Pebble::builder(nginx.http_port).refused_nonces(0).start();
        Self {
            disk,
            host: Host::on(nginx, &acme(&pebble)),
            pebble,
            app: App::start(),
            run: 0,
            outcomes: Outcomes::default(),
        }
    }

    fn name(&self) -> String {
        format!("next{}.example.com", self.run)
    }

    fn home(&self) -> PathBuf {
        self.host.path("state/certificates").join(self.name())
    }

    fn found(&self) -> Found {
        let order = self.host.path("state/orders");
        let order = fs::read(order.join(format!("{}.order.json", self.name())));
        Found {
            // torn, it would be no JSON
            order: order
                .ok()
                .map(|text| serde_json::from_slice(&text).unwrap()),
            is_stored: fs::read_link(self.home().join("current")).is_ok(),
        }
    }

    /// How many orders the CA made, and how many certificates it was asked for.
    fn asked(&self) -> (usize, usize) {
        let orders = self.pebble.log().matches("Added order").count();
        (orders, self.pebble.finalized())
    }

    /// The vhost serves, and as far as this disk knows the account is not yet at the CA.
    fn prepare(&mut self) {
        self.run += 1;
        self.host.drop_app("next", &self.name(), &self.app);
        let reload = self.host.vhostd(&["reload"]);
        assert_eq!(reload.status, 0, "{reload:?}");
        let path = self.account();
        let mut account: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        account["account"] = Value::Null;
        fs::write(&path, account.to_string()).unwrap();
        self.disk.sync();
    }

    fn account(&self) -> PathBuf {
        let mut homes = fs::read_dir(self.host.path("state/accounts")).unwrap();
        homes.next().unwrap().unwrap().path().join("account.json")
    }

    fn is_told_to_the_ca(&self, call: &Call) -> bool {
        let is_the_ca = |port: u16| self.pebble.directory_url().contains(&format!(":{port}/"));
        call.effect == Effect::Network && call.peer_port().is_some_and(is_the_ca)
    }

    /// `renew`, as the timer runs it, until the `number`-th moment.
    fn renew_until(&self, number: usize) -> Traced {
        let mut command = self.host.command(&["renew"]);
        command.env("VHOSTD_LOG", "vhostd=info");
        let (mut moments, mut durable, mut told) = (0, true, false);
        trace(&command, |call| {
            let tells = self.is_told_to_the_ca(call);
            let kept = ["orders", "accounts", "certificates"]
                .iter()
                .any(|name| call.path.contains(&format!("/state/{name}")));
            let syncs = kept && call.effect == Effect::Durability;
            let writes = syncs || (kept && call.effect.changes());
            // of requests that follow each other the disk shows the first and the last
            if (durable && (tells || writes)) || (told && writes) {
                moments += 1;
                if moments == number {
                    return Fate::KillBefore;
                }
                (durable, told) = (false, false);
            }
            durable |= syncs;
            told |= tells;
            Fate::Pass
        })
    }

    /// False: the run ended well before that moment.
    fn cut(&mut self, number: usize) -> bool {
        self.prepare();
        let before = self.asked();
        let traced = self.renew_until(number);
        let at = match traced.fired {
            0 => "power cut after the end".to_owned(),
            _ => format!("power cut {number} before {:?}", traced.calls.last()),
        };
        let ended = (traced.fired == 0).then_some(0);
        assert_eq!(traced.exit, ended, "{at}: {traced:?}");
        let told = self.asked();
        self.disk.cut_power(&self.host);
        let found = self.found();
        let (made, issued) = (told.0 - before.0, told.1 - before.1);
        let is_known = found.order.is_some() || found.is_stored;
        assert!(issued == 0 || is_known, "{at}: its key is lost");
        assert!(made == 1 || !is_known, "{at}: {made}");
        let reported = traced.stderr.contains("stored a certificate") || ended.is_some();
        assert!(!reported || found.is_stored, "{at}: it is lost");
        let outcome = match made {
            _ if found.is_stored => &mut self.outcomes.stored,
            _ if is_known => &mut self.outcomes.resumed,
            0 => &mut self.outcomes.nothing,
            _ => &mut self.outcomes.lost,
        };
        *outcome += 1;
        let further = usize::from(!is_known);
        self.assert_converges(&found, (told.0 + further, before.1 + 1), &at);
        ended.is_none()
    }

    fn assert_converges(&self, found: &Found, asked: (usize, usize), at: &str) {
        let renew = self.host.vhostd(&["renew"]);
        assert_eq!(renew.status, 0, "{at}: {renew:?}");
        let trust = Trust::Root(self.pebble.issuing_root());
        assert!(self.host.serves_to(&self.name(), &trust), "{at}");
        assert_eq!(self.asked(), asked, "{at}: orders and certificates");
        if let Some(order) = &found.order {
            let key = fs::read_to_string(self.home().join("current/privkey.pem")).unwrap();
            assert_eq!(order["key"], *key, "{at}");
        }
        let now = self.found();
        assert!(now.is_stored, "{at}");
        if now.order.is_some() {
            self.assert_renews_once(&now, at);
        }
        let account: Value = serde_json::from_slice(&fs::read(self.account()).unwrap()).unwrap();
        assert!(account["account"]["url"].is_string(), "{at}: {account}");
        assert_left_clean(&self.host, at);
    }

    /// What became of the order is stored, and only its record is left: it hides no further one.
    fn assert_renews_once(&self, found: &Found, at: &str) {
        let stored = fs::read_link(self.home().join("current")).unwrap();
        let before = self.asked();
        let renew = self.host.vhostd(&["renew", "--force", "next"]);
        assert_eq!(renew.status, 0, "{at}: {renew:?}");
        assert_eq!(self.asked(), (before.0 + 1, before.1 + 1), "{at}");
        let home = self.home();
        assert_ne!(fs::read_link(home.join("current")).unwrap(), stored, "{at}");
        let key = fs::read_to_string(home.join("current/privkey.pem")).unwrap();
        assert_ne!(found.order.as_ref().unwrap()["key"], *key, "{at}");
        assert!(self.found().order.is_none(), "{at}");
    }
}

#[test]
fn a_power_cut_at_any_moment_of_an_order_costs_neither_its_key_nor_a_second_certificate() {
    with_disk(|disk, _| {
        let walk = Walk::new("power cuts of an order");
        let mut scene = FirstOrder::new(disk);
        // the last is one after the end
        let mut moments = (1..).filter(|number| walk.meets(number));
        let last = moments.find(|number| !scene.cut(*number)).unwrap();
        let outcomes = &scene.outcomes;
        eprintln!("{last} power cuts: {outcomes:?}");
        assert!(outcomes.stored > 0, "{outcomes:?}");
        let all_were_met = outcomes.nothing > 0 && outcomes.resumed > 3;
        assert!(all_were_met || !walk.is_whole(), "{outcomes:?}");
        // from the request until the answer's record is durable: nobody could name that order again
        assert!(outcomes.lost <= 4, "{outcomes:?}");
    });
}
