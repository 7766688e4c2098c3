//! Disks that are full or broken, and processes that are out of file handles: once, and for ever.
//!
//! The tracer lets a call fail without making it, and counts how often it did: a fault that never
//! fired fails the test.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::scene::{Reload, Renewal, Rollback, Scene, Setup};
use crate::support::app::App;
use crate::support::faults::temporaries;
use crate::support::host::Host;
use crate::support::tracer::{Call, Effect, Fate, Running, Traced, is_possible, start, trace};
use crate::support::walk::Walk;
use crate::support::{wait_for, wait_within};

/// What a disk or a kernel may say to this call.
fn plausible(call: &Call) -> &'static [Errno] {
    use Errno::{EACCES, EIO, EMFILE, ENOSPC};
    match call.name {
        "fsync" => &[EIO, ENOSPC],
        "write" => &[ENOSPC, EIO],
        "openat" if call.effect == Effect::Open => &[EMFILE, EACCES, EIO],
        "openat" => &[ENOSPC, EMFILE, EACCES, EIO],
        "mkdir" | "symlink" | "linkat" | "rename" => &[ENOSPC, EACCES, EIO],
        _ => &[EACCES, EIO],
    }
}

/// The path, without what differs from run to run; of what is read and of trees, the directory.
fn place(call: &Call, host: &Host) -> String {
    let path = call.path.replace(host.path("").to_str().unwrap(), "");
    if path.starts_with("state/scratch/") {
        return "state/scratch".into();
    }
    let is_hex = |word: &str| word.len() >= 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let part = |word: &str| {
        let (temporary, name) = match word.rsplit_once(")-") {
            Some((_, name)) => ("tmp-", name),
            None => ("", word),
        };
        match is_hex(name) {
            true => format!("{temporary}SERIAL"),
            false => format!(
                "{temporary}{}",
                name.replace(|c: char| c.is_ascii_digit(), "")
            ),
        }
    };
    let mut parts: Vec<String> = path.split('/').map(part).collect();
    if call.effect == Effect::Open || parts.len() > 2 {
        parts.pop();
    }
    parts.join("/")
}

/// Every call of the scene's command fails once: each kind of write and of opening, in each
/// directory, with each error that is plausible; or a sample of that. How many there are.
fn fail_everything_once(scene: &mut impl Scene) -> usize {
    let walk = Walk::new(&scene.arguments().join(" "));
    let (mut failed, mut known_faults) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let (known, home) = (failed.clone(), scene.host().path(""));
        let key =
            |call: &Call, host: &Host| (call.name, call.effect == Effect::Open, place(call, host));
        let mut untried = |call: &Call, host: &Host| {
            let mut errors = plausible(call).iter();
            errors.find(|error| {
                let fault = (key(call, host), **error as i32);
                known_faults.insert(fault.clone());
                !known.contains(&fault) && (is_vital(call, **error) || walk.meets(&fault))
            })
        };
        let mut now = None;
        let traced = {
            scene.prepare();
            let host = scene.host();
            let command = host.command(scene.arguments());
            trace(&command, |call| {
                let ours = call.path.starts_with(home.to_str().unwrap());
                let about = call.effect.writes() || call.effect == Effect::Open;
                if now.is_some() || !ours || !about {
                    return Fate::Pass;
                }
                let Some(error) = untried(call, host) else {
                    return Fate::Pass;
                };
                now = Some((key(call, host), *error as i32));
                Fate::Fail(*error)
            })
        };
        let at = format!("{now:?}: {:?} {}", traced.exit, traced.stderr);
        assert_eq!(traced.fired, usize::from(now.is_some()), "{at}");
        assert_outcome(scene, &traced, &at);
        match now {
            Some(key) => failed.insert(key),
            None => {
                eprintln!("{} of {} faults", failed.len(), known_faults.len());
                return known_faults.len();
            }
        };
    }
}

/// Whether a sample has it: a full disk where a record or `current` takes its place, and where it is made
/// durable.
fn is_vital(call: &Call, error: Errno) -> bool {
    let records = ["/current", ".json"]
        .iter()
        .any(|it| call.path.ends_with(it));
    let places = call.name == "rename" && records;
    error == plausible(call)[0] && (places || (call.name == "fsync" && records))
}

fn assert_outcome(scene: &mut impl Scene, traced: &Traced, at: &str) {
    match traced.exit {
        // done, but for what it warns of: a placeholder serves, a record is missing
        Some(0) if traced.stderr.contains("failed to ") => {}
        Some(0) => scene.assert_done(at),
        // 2: the settings cannot be read; 3: a vhost file cannot; 4: no certificate came of it
        Some(1..=4) => assert!(traced.stderr.contains("error: "), "{at}"),
        _ => panic!("{at}"),
    }
    assert!(!traced.stderr.contains("panicked"), "{at}");
    scene.assert_safe(at);
    scene.converge(at);
    scene.assert_clean(at);
}

#[test]
fn whatever_call_of_a_reload_fails_once_what_served_serves_and_the_next_one_converges() {
    if is_possible() {
        let faults = fail_everything_once(&mut Reload::new());
        eprintln!("reload: {faults} faults");
        assert!(faults > 30, "{faults}");
    }
}

#[test]
fn whatever_call_of_a_setup_fails_once_no_site_is_harmed_and_the_next_one_converges() {
    if is_possible() {
        let faults = fail_everything_once(&mut Setup::new());
        eprintln!("setup: {faults} faults");
        assert!(faults > 15, "{faults}");
    }
}

#[test]
fn whatever_call_of_a_renewal_fails_once_what_served_serves_and_the_next_one_converges() {
    if is_possible() {
        let faults = fail_everything_once(&mut Renewal::internal());
        eprintln!("renewal: {faults} faults");
        assert!(faults > 20, "{faults}");
    }
}

#[test]
fn whatever_call_of_an_order_fails_once_what_served_serves_and_the_next_one_finishes_it() {
    if is_possible() {
        let faults = fail_everything_once(&mut Renewal::acme());
        eprintln!("order: {faults} faults");
        assert!(faults > 20, "{faults}");
    }
}

#[test]
fn whatever_call_of_a_rollback_fails_once_a_generation_serves_and_the_next_one_converges() {
    if is_possible() {
        let faults = fail_everything_once(&mut Rollback::new());
        eprintln!("rollback: {faults} faults");
        assert!(faults > 20, "{faults}");
    }
}

/// What is wrong with the disk, for ever: from a call on, and all that are like it.
struct Ill {
    name: &'static str,
    errno: Errno,
    call: fn(&Call) -> bool,
}

const ILLS: [Ill; 9] = [
    Ill {
        name: "a full disk",
        errno: Errno::ENOSPC,
        call: |call| call.effect == Effect::Disk && !call.name.starts_with("unlink"),
    },
    Ill {
        name: "a disk whose writes fail",
        errno: Errno::EIO,
        call: |call| call.name == "write",
    },
    Ill {
        name: "a disk whose flushes fail",
        errno: Errno::EIO,
        call: |call| call.effect == Effect::Durability,
    },
    Ill {
        name: "a directory that takes no new names",
        errno: Errno::EACCES,
        call: |call| matches!(call.name, "rename" | "symlink" | "linkat" | "mkdir"),
    },
    Ill {
        name: "a link that cannot be moved",
        errno: Errno::EIO,
        call: |call| call.name == "rename" && call.path.ends_with("/current"),
    },
    Ill {
        name: "no handle for what is written",
        errno: Errno::EMFILE,
        call: |call| call.name == "openat" && call.effect.writes(),
    },
    Ill {
        name: "no handle for what is read",
        errno: Errno::EMFILE,
        call: |call| call.effect == Effect::Open,
    },
    Ill {
        name: "a disk that cannot be read",
        errno: Errno::EIO,
        call: |call| call.effect == Effect::Open && call.path.contains("/generations/"),
    },
    Ill {
        name: "nothing can be removed",
        errno: Errno::EACCES,
        call: |call| call.name.starts_with("unlink"),
    },
];

/// Each ill from the beginning of a run to its end.
fn fail_for_ever(scene: &mut impl Scene) {
    for ill in &ILLS {
        scene.prepare();
        let home = scene.host().path("state");
        let judge = |call: &Call| match call.path.starts_with(home.to_str().unwrap()) {
            true if (ill.call)(call) => Fate::Fail(ill.errno),
            _ => Fate::Pass,
        };
        let traced = trace(&scene.host().command(scene.arguments()), judge);
        let at = format!("{}: {:?} {}", ill.name, traced.exit, traced.stderr);
        assert!(traced.fired > 0, "{at}");
        assert_outcome(scene, &traced, &at);
    }
}

#[test]
fn what_fails_for_ever_is_said_and_when_it_is_over_the_next_reload_converges() {
    if is_possible() {
        fail_for_ever(&mut Reload::new());
    }
}

#[test]
fn what_fails_for_ever_in_a_setup_is_said_and_the_next_one_converges() {
    if is_possible() {
        fail_for_ever(&mut Setup::new());
    }
}

#[test]
fn what_fails_for_ever_in_a_renewal_is_said_and_the_next_one_converges() {
    if is_possible() {
        fail_for_ever(&mut Renewal::internal());
    }
}

#[test]
fn what_fails_for_ever_in_an_order_is_said_and_the_next_one_converges() {
    if is_possible() {
        fail_for_ever(&mut Renewal::acme());
    }
}

#[test]
fn what_fails_for_ever_in_a_rollback_is_said_and_the_next_one_converges() {
    if is_possible() {
        fail_for_ever(&mut Rollback::new());
    }
}

#[test]
fn a_call_that_was_interrupted_is_made_again() {
    if !is_possible() {
        return;
    }
    let mut scene = Reload::new();
    scene.prepare();
    let mut interrupted = BTreeSet::new();
    let command = scene.host.command(&["reload"]);
    // signal(7): opening, writing and flushing may be
    let traced = trace(&command, |call| {
        let may_be = matches!(call.name, "openat" | "write" | "fsync");
        let kind = (call.name, call.effect == Effect::Open);
        match may_be && call.path.contains("/state/") && interrupted.insert(kind) {
            true => Fate::Fail(Errno::EINTR),
            false => Fate::Pass,
        }
    });
    assert_eq!((traced.fired, traced.exit), (4, Some(0)), "{traced:?}");
    scene.assert_done("interrupted");
}

/// A running daemon, and what is wrong with its disk now.
struct IllDaemon {
    running: Option<Running>,
    ill: Arc<Mutex<Option<&'static Ill>>>,
    /// When a call failed first.
    since: Arc<Mutex<Option<Instant>>>,
}

impl IllDaemon {
    fn start(host: &Host) -> Self {
        let log = host.path("vhostd.log");
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", "exec \"$0\" run 2>\"$1\""])
            .arg(env!("CARGO_BIN_EXE_vhostd"))
            .arg(&log)
            .env("VHOSTD_CONFIG", host.path("vhostd.yml"))
            .env("VHOSTD_LOG", "vhostd=info");
        let (ill, since) = (
            Arc::<Mutex<Option<&'static Ill>>>::default(),
            Arc::<Mutex<Option<Instant>>>::default(),
        );
        let (now, first) = (Arc::clone(&ill), Arc::clone(&since));
        let home = host.path("state").to_str().unwrap().to_owned();
        let running = start(command, move |call| {
            let now = *now.lock().unwrap();
            match now.filter(|ill| call.path.starts_with(&home) && (ill.call)(call)) {
                Some(ill) => {
                    first.lock().unwrap().get_or_insert_with(Instant::now);
                    Fate::Fail(ill.errno)
                }
                None => Fate::Pass,
            }
        });
        let daemon = Self {
            running: Some(running),
            ill,
            since,
        };
        wait_for("the daemon", || {
            log_of(host).contains("watching ").then_some(())
        });
        daemon
    }

    fn fall_ill(&self, ill: &'static Ill) {
        *self.since.lock().unwrap() = None;
        *self.ill.lock().unwrap() = Some(ill);
    }

    fn recover(&self) {
        *self.ill.lock().unwrap() = None;
    }

    /// How long ago the first call failed.
    fn ill_for(&self) -> Option<Duration> {
        let since = *self.since.lock().unwrap();
        since.map(|since| since.elapsed())
    }
}

fn log_of(host: &Host) -> String {
    fs::read_to_string(host.path("vhostd.log")).unwrap_or_default()
}

#[test]
fn a_daemon_whose_disk_fails_says_so_within_a_second_and_recovers_without_a_person() {
    if !is_possible() {
        return;
    }
    let (host, app) = (Host::new(), App::start());
    host.drop_app("hello", "hello.example.com", &app);
    let mut daemon = IllDaemon::start(&host);
    wait_for("hello", || host.serves("hello.example.com").then_some(()));
    // what is made once, a moment after the first vhost serves, is no part of what follows
    let notices = host.path("state/notices");
    wait_for("the notices", || notices.exists().then_some(()));
    for (number, ill) in ILLS.iter().enumerate() {
        let name = format!("next{number}.example.com");
        let before = log_of(&host).len();
        daemon.fall_ill(ill);
        host.drop_app("next", &name, &app);
        let said = wait_within(Duration::from_secs(20), ill.name, || {
            let new = log_of(&host)[before..].to_owned();
            new.contains("failed to ").then_some(new)
        });
        let late = daemon.ill_for().unwrap();
        assert!(
            late < Duration::from_secs(1),
            "{}: {late:?}: {said}",
            ill.name
        );
        wait_for("the end of the attempt", || {
            let new = log_of(&host)[before..].to_owned();
            let ends = ["what served before still serves", " serves after "];
            ends.iter().any(|end| new.contains(end)).then_some(())
        });
        assert!(host.nginx.test().status.success(), "{}", ill.name);
        assert!(host.serves("hello.example.com"), "{}", ill.name);
        if ill.name == "a disk that cannot be read" {
            wait_for("the status", || {
                let error = host.status()["error"].to_string();
                error.contains("manifest.json").then_some(())
            });
        }
        daemon.recover();
        let over = Instant::now();
        wait_within(Duration::from_secs(30), ill.name, || {
            host.serves(&name).then_some(())
        });
        // where nothing failed that it tries again, what could not be removed goes at the next look
        wait_within(Duration::from_secs(90), ill.name, || {
            (temporaries(&host.path("")).is_empty()
                && host.status()["error"].is_null()
                && host.state("next") == "serving")
                .then_some(())
        });
        eprintln!(
            "{}: said within {late:?}, recovered after {:?}",
            ill.name,
            over.elapsed()
        );
        host.assert_sound(host.active());
    }
    let ended = daemon.running.take().unwrap().end(Signal::SIGTERM);
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert!(!log_of(&host).contains("panicked"));
}

/// The command asks a daemon whose disk fails until it has its answer.
fn fail_under_a_daemon(scene: &mut impl Scene) {
    let mut daemon = IllDaemon::start(scene.host());
    for ill in &ILLS {
        scene.prepare();
        let host = scene.host();
        let before = log_of(host).len();
        let new = || log_of(host)[before..].to_owned();
        daemon.fall_ill(ill);
        let (ended, late) = thread::scope(|threads| {
            let command = threads.spawn(|| host.vhostd(scene.arguments()));
            while !new().contains("failed to ") && !command.is_finished() {
                thread::sleep(Duration::from_millis(2));
            }
            let late = daemon.ill_for();
            (command.join().unwrap(), late)
        });
        daemon.recover();
        let at = format!("{}, {late:?}: {ended:?} {}", ill.name, new());
        // it fired, and was said
        assert!(late.is_some_and(|it| it < Duration::from_secs(1)), "{at}");
        match ended.status {
            0 => {
                assert!(new().contains("failed to "), "{at}");
                scene.assert_done(&at);
            }
            _ => assert!(ended.stderr.contains("error: "), "{at}"),
        }
        scene.assert_safe(&at);
        // it looks again by itself
        wait_within(Duration::from_secs(30), &at, || {
            host.status()["error"].is_null().then_some(())
        });
        scene.converge(&at);
        scene.assert_clean(&at);
    }
    let ended = daemon.running.take().unwrap().end(Signal::SIGTERM);
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert!(!log_of(scene.host()).contains("panicked"));
}

#[test]
fn a_daemon_whose_disk_fails_says_within_a_second_what_a_renewal_lacks_and_the_next_one_converges()
{
    if is_possible() {
        fail_under_a_daemon(&mut Renewal::internal());
    }
}

#[test]
fn a_daemon_whose_disk_fails_says_within_a_second_what_a_rollback_lacks_and_the_next_one_converges()
{
    if is_possible() {
        fail_under_a_daemon(&mut Rollback::new());
    }
}
