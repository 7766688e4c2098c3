//! A CA that is killed in the middle of an order. Pebble keeps everything in memory: started again, it
//! knows neither account nor order, and has another root.

use std::time::Duration;

use super::*;
use crate::support::app::App;
use crate::support::client::Trust;
use crate::support::host::{Host, acme};
use crate::support::nginx::NginxHost;
use crate::support::wait_for;

/// What Pebble writes when it is asked for that, in the order of an order.
const MOMENTS: [&str; 7] = [
    "/nonce-plz",
    "POST /sign-me-up",
    "POST /order-plz",
    "POST /authZ/",
    "POST /chalZ/",
    "POST /finalize-order/",
    "POST /certZ/",
];

/// Starts an order, and kills the CA as soon as it is asked for `moment` once more.
async fn killed_at(
    fixture: &Fixture,
    client: &AcmeClient,
    pebble: &mut Pebble,
    moment: &str,
    names: &[&str],
) -> Obtained {
    let asked = |pebble: &Pebble| pebble.log().matches(moment).count();
    let before = asked(pebble);
    let order = fixture.obtain(client, names);
    let kill = async {
        while asked(pebble) == before {
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        pebble.kill();
    };
    tokio::pin!(order);
    tokio::select! {
        // it never asked for that: there is an account already
        obtained = &mut order => obtained,
        () = kill => order.await,
    }
}

#[tokio::test]
async fn killed_at_any_moment_of_an_order_it_issues_at_the_time_that_the_schedule_says() {
    for (fixture, mut pebble) in pebbles(|pebble| pebble) {
        // one process throughout: it believes in the account that the CA has forgotten
        let client = fixture.client(&settings(&pebble));
        let (certain, mut interrupted) = (&MOMENTS[2..5], Vec::new());
        for moment in MOMENTS {
            // an order is over in milliseconds, and this machine may be busy
            let tries = match certain.contains(&moment) {
                true => 20,
                false => 2,
            };
            for n in 0..tries {
                let name = format!(
                    "{}-{n}.example",
                    moment.replace(|c: char| !c.is_ascii_lowercase(), "")
                );
                let obtained = killed_at(&fixture, &client, &mut pebble, moment, &[&name]).await;
                pebble.kill();
                pebble.start_again();
                let Obtained::Failed { next, .. } = obtained else {
                    assert!(
                        matches!(obtained, Obtained::Stored(_)),
                        "{moment}: {obtained:?}"
                    );
                    continue;
                };
                let waits = next - fixture.now.get();
                assert!(
                    (60..=66).contains(&waits.whole_seconds()),
                    "{moment}: {waits}"
                );
                fixture.now.set(next);
                let stored = fixture.issues(&client, &[&name]).await;
                pebble.verify(&stored.chain, &name);
                assert_eq!(fixture.attempts(&[&name]), None);
                assert!(fixture.ledger().pending(&stored.name).unwrap().is_none());
                interrupted.push(moment);
                break;
            }
        }
        for moment in certain {
            assert!(interrupted.contains(moment), "{moment}: {interrupted:?}");
        }
    }
}

#[test]
fn a_daemon_recovers_from_a_ca_that_died_and_lost_everything() {
    for later in [false, true] {
        let nginx = NginxHost::new();
        let builder = Pebble::builder(nginx.http_port);
        let builder = match later {
            true => builder.later(),
            false => Some(builder),
        };
        let Some(builder) = builder else { continue };
        let mut pebble = builder.start();
        let (host, app) = (Host::on(nginx, &acme(&pebble)), App::start());
        let daemon = host.daemon();
        host.drop_app("first", "first.example.com", &app);
        let old = Trust::Root(pebble.issuing_root());
        host.wait_for_https("first.example.com", "/", &old);
        pebble.kill();
        host.drop_app("second", "second.example.com", &app);
        wait_for("the failure", || {
            (host.certificate("second.example.com")?["state"] == "failing").then_some(())
        });
        pebble.start_again();
        let new = Trust::Root(pebble.issuing_root());
        // a minute later by itself
        let renewed = host.vhostd(&["renew", "second.example.com"]);
        assert_eq!(renewed.status, 0, "{renewed:?}");
        host.wait_for_https("second.example.com", "/", &new);
        host.wait_for_https("first.example.com", "/", &old);
        let renewed = host.vhostd(&["renew", "--force", "first.example.com"]);
        assert_eq!(renewed.status, 0, "{renewed:?}");
        host.wait_for_https("first.example.com", "/", &new);
        assert_eq!(daemon.stop(), 0);
    }
}
