//! A kill at any moment leaves a `current` that passes `nginx -t`, and the next run converges.
//!
//! strace injects the SIGKILL before the N-th call of one name takes effect (counted per thread:
//! nearly all of a command's writes are made by one).

use std::fs;
use std::process::{Command, Output};
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

struct Scene {
    host: Host,
    app: App,
    other: App,
    changed: bool,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            host: Host::new(),
            app: App::start(),
            other: App::start(),
            changed: false,
        };
        scene
            .host
            .drop_app("hello", "hello.example.com", &scene.app);
        assert_eq!(scene.host.json(&["reload"]).0, 0);
        scene
    }

    fn change(&mut self) {
        self.changed = !self.changed;
        let app = if self.changed { &self.other } else { &self.app };
        self.host.drop_app("hello", "hello.example.com", app);
    }

    /// The app that should answer for `hello`.
    fn wanted(&self) -> &App {
        if self.changed { &self.other } else { &self.app }
    }

    /// Runs `vhostd reload`, killed at the `number`-th `call`. Whether that call was reached.
    fn killed_reload(&self, call: &str, number: usize) -> bool {
        let (output, trace) = self.disturbed_reload(call, &format!("signal=KILL:when={number}"));
        let fired = trace.contains("killed by SIGKILL");
        // without an injection the command must have ended well: else nothing was tested
        let ended = output.status.success();
        assert!(fired || ended, "{call} {number}: {output:?} {trace}");
        fired
    }

    /// Runs `vhostd reload` with `fault` injected into `call`; what it left, and strace's log.
    fn disturbed_reload(&self, call: &str, fault: &str) -> (Output, String) {
        let log = self.host.path("strace.log");
        let program = self.host.command(&["reload"]);
        let output = Command::new("strace")
            .args(["-f", "-o"])
            .arg(&log)
            .args(["-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:{fault}")])
            .arg(program.get_program())
            .args(program.get_args())
            .env("VHOSTD_CONFIG", self.host.path("vhostd.yml"))
            .output()
            .expect("strace is installed");
        (output, fs::read_to_string(&log).unwrap())
    }

    fn assert_valid(&self, at: &str) {
        let test = self.host.nginx.test();
        let words = String::from_utf8_lossy(&test.stderr).into_owned();
        assert!(test.status.success(), "{at}: {words}");
        assert!(self.host.active() > 0, "{at}");
        assert!(self.host.serves("hello.example.com"), "{at}");
    }

    fn assert_converges(&self, at: &str, next: Option<&str>) {
        let (exit, report) = self.host.json(&["reload"]);
        assert_eq!(exit, 0, "{at}: {report}");
        self.host.assert_sound(self.host.active());
        assert!(self.host.serves("hello.example.com"), "{at}");
        let wanted = self.wanted().address.to_string();
        assert!(
            self.host.rendered("hello").unwrap().contains(&wanted),
            "{at}"
        );
        if let Some(next) = next {
            assert!(self.host.serves(next), "{at}");
        }
        assert_eq!(self.host.rendered("next").is_some(), next.is_some(), "{at}");
        assert_eq!(temporaries(&self.host.path("")), [""; 0], "{at}");
        let generations = fs::read_dir(self.host.path("state/generations"))
            .unwrap()
            .count();
        let (_, history) = self.host.json(&["history"]);
        let kept = history["generations"].as_array().unwrap();
        let kept = kept.iter().filter(|entry| entry["kept"] == true).count();
        assert!(
            generations <= kept + 1,
            "{at}: a generation that never served was left"
        );
    }

    /// A new, a changed and a removed vhost, killed at the 1st, 2nd … `call` until there is none.
    /// Returns how many kills there were.
    fn kill_at_every(&mut self, call: &str, step: usize) -> usize {
        let mut kills = 0;
        let mut number = 1;
        loop {
            let name = format!("n{}-{number}.example.com", call.replace('_', "-"));
            let at = |what: &str| format!("{what} vhost, {call} {number}");
            self.host.drop_app("next", &name, &self.app);
            let new = self.killed_reload(call, number);
            self.assert_valid(&at("new"));
            self.assert_converges(&at("new"), Some(&name));
            self.change();
            let changed = self.killed_reload(call, number);
            self.assert_valid(&at("changed"));
            self.assert_converges(&at("changed"), Some(&name));
            self.host.remove_file("next.yml");
            let removed = self.killed_reload(call, number);
            self.assert_valid(&at("removed"));
            self.assert_converges(&at("removed"), None);
            kills += [new, changed, removed]
                .iter()
                .filter(|fired| **fired)
                .count();
            if !(new || changed || removed) {
                return kills;
            }
            number += step;
        }
    }
}

#[test]
fn a_kill_at_every_rename_and_link_leaves_what_nginx_accepts_and_the_next_run_converges() {
    let mut scene = Scene::new();
    for call in ["symlink", "linkat", "rename"] {
        let kills = scene.kill_at_every(call, 1);
        eprintln!("{call}: {kills}");
        assert!(kills > 0, "{call}");
    }
}

#[test]
fn a_kill_at_fsyncs_leaves_what_nginx_accepts_and_the_next_run_converges() {
    let kills = Scene::new().kill_at_every("fsync", 3);
    eprintln!("fsync {kills}");
    assert!(kills > 8, "{kills}");
}

#[test]
fn a_kill_at_creations_leaves_what_nginx_accepts_and_the_next_run_converges() {
    let mut scene = Scene::new();
    // every file that we create is given its mode right after
    for (call, step) in [("mkdir", 2), ("fchmod", 2)] {
        let kills = scene.kill_at_every(call, step);
        eprintln!("{call}: {kills}");
        assert!(kills > 0, "{call}");
    }
}

#[test]
fn a_kill_at_removals_signals_and_questions_leaves_what_nginx_accepts() {
    let mut scene = Scene::new();
    for (call, step) in [
        ("unlink", 1),
        ("unlinkat", 3),
        ("pidfd_send_signal", 1),
        ("connect", 9),
    ] {
        let kills = scene.kill_at_every(call, step);
        eprintln!("{call}: {kills}");
        assert!(kills > 0, "{call}");
    }
}

#[test]
fn a_kill_between_activation_and_proof_is_settled_by_the_next_run() {
    for nginx_takes_it in [true, false] {
        let scene = Scene::new();
        let host = &scene.host;
        let stopped = Stopped::new(host.nginx.pid().unwrap());
        let before = host.active();
        host.drop_app("next", "next.example.com", &scene.app);
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
    let scene = Scene::new();
    let host = &scene.host;
    let mut random = 20_261_123_u32;
    let mut draw = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    for round in 0..6 {
        let daemon = host.daemon();
        for edit in 0..5 {
            match draw(3) {
                0 => host.drop_app("hello", "hello.example.com", &scene.other),
                1 => host.drop_app("hello", "hello.example.com", &scene.app),
                _ => host.drop_app("next", &format!("n{round}-{edit}.example.com"), &scene.app),
            }
            // the moment is the point here: there is nothing to poll for
            thread::sleep(Duration::from_millis(draw(60).into()));
        }
        daemon.kill();
        scene.assert_valid(&format!("round {round}"));
    }
    host.drop_app("hello", "hello.example.com", &scene.app);
    host.drop_app("next", "last.example.com", &scene.app);
    let daemon = host.daemon();
    wait_for("the last edit", || {
        host.serves("last.example.com").then_some(())
    });
    wait_for("its proof", || {
        (host.state("next") == "serving").then_some(())
    });
    assert_eq!(daemon.stop(), 0);
    scene.assert_converges("at the end", Some("last.example.com"));
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
fn a_crash_in_the_very_first_run_is_followed_by_a_whole_one() {
    let mut kills = 0;
    for (call, numbers) in [("fsync", 1..40), ("rename", 1..20)] {
        for number in numbers.step_by(5) {
            let scene = Scene {
                host: Host::new(),
                app: App::start(),
                other: App::start(),
                changed: false,
            };
            scene
                .host
                .drop_app("hello", "hello.example.com", &scene.app);
            // as after an installation whose directory was lost
            fs::remove_dir_all(scene.host.path("state")).unwrap();
            let at = format!("first run, {call} {number}");
            kills += usize::from(scene.killed_reload(call, number));
            scene.assert_converges(&at, None);
            scene.assert_valid(&at);
        }
    }
    assert!(kills > 3, "{kills}");
}

#[test]
fn a_disk_that_fails_at_any_write_leaves_what_served_and_the_next_run_converges() {
    let scene = Scene::new();
    let mut faults = 0;
    for (call, error, step) in [
        ("fsync", "EIO", 5),
        ("rename", "ENOSPC", 2),
        ("mkdir", "ENOSPC", 3),
        ("symlink", "ENOSPC", 1),
        ("write", "ENOSPC", 7),
    ] {
        for number in (1..).step_by(step) {
            let at = format!("{call} {number}");
            let name = format!("{call}{number}.example.com");
            scene.host.drop_app("next", &name, &scene.app);
            let (output, trace) =
                scene.disturbed_reload(call, &format!("error={error}:when={number}"));
            let fired = trace.contains("INJECTED");
            assert!(
                matches!(output.status.code(), Some(0 | 1)),
                "{at}: {output:?}"
            );
            assert!(fired || output.status.success(), "{at}: {output:?}");
            scene.assert_valid(&at);
            scene.assert_converges(&at, Some(&name));
            if !fired {
                break;
            }
            faults += 1;
        }
    }
    eprintln!("faults: {faults}");
    assert!(faults > 15, "{faults}");
}

#[test]
fn a_reader_that_goes_away_does_not_end_a_reload_half_way() {
    let scene = Scene::new();
    for arguments in [&["reload"][..], &["reload", "--json"]] {
        let name = format!("next{}.example.com", arguments.len());
        scene.host.drop_app("next", &name, &scene.app);
        let mut command = scene.host.command(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        assert_eq!(command.status().unwrap().code(), Some(0));
        drop(command);
        assert!(scene.host.serves(&name));
        scene.host.assert_sound(scene.host.active());
    }
}
