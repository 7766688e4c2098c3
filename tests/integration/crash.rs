//! Killed, cut off or failed at any moment: what served serves, and the next run converges.

// the tracer knows the registers of x86_64 alone; elsewhere these are not there
#[cfg(target_arch = "x86_64")]
mod fault;
#[cfg(target_arch = "x86_64")]
mod kill;
#[cfg(target_arch = "x86_64")]
mod power;
#[cfg(target_arch = "x86_64")]
mod scene;

use std::fs;
use std::thread;
use std::time::Duration;

use super::support::app::App;
use super::support::client::Trust;
use super::support::faults::{Stopped, temporaries, wait_long};
use super::support::gate::Gate;
use super::support::host::{Host, acme};
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;
use super::support::wait_for;

#[cfg(not(target_arch = "x86_64"))]
#[test]
fn kills_and_faults_at_every_call_are_tested_on_x86_64_alone() {
    eprintln!("SKIPPED: kills and faults at every call");
}

/// A host whose `hello` serves.
struct Served {
    host: Host,
    app: App,
}

impl Served {
    fn new() -> Self {
        let (host, app) = (Host::new(), App::start());
        host.drop_app("hello", "hello.example.com", &app);
        assert_eq!(host.json(&["reload"]).0, 0);
        Self { host, app }
    }
}

#[test]
fn a_kill_between_activation_and_proof_is_settled_by_the_next_run() {
    for nginx_takes_it in [true, false] {
        let Served { host, app } = Served::new();
        let stopped = Stopped::new(host.nginx.pid().unwrap());
        let before = host.active();
        host.drop_app("next", "next.example.com", &app);
        let mut reload = host.command(&["reload"]).spawn().unwrap();
        wait_for("the signal", || stopped.has_pending_hang_up().then_some(()));
        assert_eq!(host.active(), before + 1);
        reload.kill().unwrap();
        reload.wait().unwrap();
        assert!(host.nginx.test().status.success());
        let (_, history) = host.json(&["history"]);
        assert_eq!(
            history["generations"][0]["generation"], before,
            "not yet on record: {history}"
        );
        if nginx_takes_it {
            drop(stopped);
            // it serves, and nobody has looked
            wait_for("nginx", || host.serves("next.example.com").then_some(()));
            wait_for("it alone", || {
                let (_, status) = host.json(&["status"]);
                (status["generation"]["serving"] == before + 1).then_some(())
            });
            host.reload_ends(0, "activated");
            host.assert_sound(before + 1);
            assert!(host.serves("next.example.com"));
            assert_eq!(host.newest_history()["result"], "proven");
        } else {
            host.reload_ends(1, "rolled_back");
            host.assert_sound(before);
            assert_eq!(host.newest_history()["result"], "rolled_back");
            drop(stopped);
            assert_eq!(host.json(&["reload"]).0, 0);
            assert!(host.serves("next.example.com"));
        }
    }
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_of_thirty_edits_converges_when_it_starts_again() {
    let Served { host, app } = Served::new();
    let other = App::start();
    let mut random = 20_261_123_u32;
    let mut draw = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    for round in 0..6 {
        let daemon = host.daemon();
        for edit in 0..5 {
            match draw(3) {
                0 => host.drop_app("hello", "hello.example.com", &other),
                1 => host.drop_app("hello", "hello.example.com", &app),
                _ => host.drop_app("next", &format!("n{round}-{edit}.example.com"), &app),
            }
            // the moment is the point here: there is nothing to poll for
            thread::sleep(Duration::from_millis(draw(60).into()));
        }
        daemon.kill();
        assert!(host.nginx.test().status.success(), "round {round}");
        assert!(host.serves("hello.example.com"), "round {round}");
    }
    host.drop_app("hello", "hello.example.com", &app);
    host.drop_app("next", "last.example.com", &app);
    let daemon = host.daemon();
    wait_for("the last edit", || {
        host.serves("last.example.com").then_some(())
    });
    wait_for("its proof", || {
        (host.state("next") == "serving").then_some(())
    });
    assert_eq!(daemon.stop(), 0);
    host.assert_sound(host.active());
    assert!(host.serves("hello.example.com"));
    assert_eq!(temporaries(&host.path("")), [""; 0]);
}

#[test]
fn an_order_that_a_killed_daemon_left_is_finished_by_the_next_one() {
    let nginx = NginxHost::new();
    let gate = Gate::shut(([127, 0, 0, 1], nginx.http_port).into());
    let pebble = Pebble::start(gate.port);
    let host = Host::on(nginx, &acme(&pebble));
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", "hello.example.com", &app);
    // the CA asks for the answer to the challenge: the order is under way
    wait_for("the CA's visit", || (gate.visitors() > 0).then_some(()));
    let order = host.path("state/orders/hello.example.com.order.json");
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&order).unwrap()).unwrap();
    daemon.kill();
    assert!(host.nginx.test().status.success());
    let daemon = host.daemon();
    gate.open();
    let trust = Trust::Root(pebble.issuing_root());
    wait_long("a certificate", Duration::from_secs(30), || {
        host.serves_to("hello.example.com", &trust).then_some(())
    });
    let orders = pebble.log().matches("Added order").count();
    assert_eq!(orders, 1, "{}", pebble.log());
    let url = written["order"].as_str().unwrap();
    let id = url.rsplit('/').next().unwrap();
    assert!(
        pebble
            .log()
            .contains(&format!("Order {id} is fully authorized")),
        "{}",
        pebble.log()
    );
    wait_for("the order's end", || (!order.exists()).then_some(()));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_reader_that_goes_away_does_not_end_a_reload_half_way() {
    let Served { host, app } = Served::new();
    for arguments in [&["reload"][..], &["reload", "--json"]] {
        let name = format!("next{}.example.com", arguments.len());
        host.drop_app("next", &name, &app);
        let mut command = host.command(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        assert_eq!(command.status().unwrap().code(), Some(0));
        drop(command);
        assert!(host.serves(&name));
        host.assert_sound(host.active());
    }
}
