//! SIGKILL before and after every call by which a command changes something.
//!
//! The tracer numbers the calls of all threads. A walk kills before the first, the second … until a
//! run meets no kill and ends well: whatever it did, a run before was killed there. What a kill
//! *after* a call leaves is what one before the next leaves; so it is made only after a signal, where
//! nginx acts meanwhile, where two calls overlap, and after the last. For the same reason a call that changes nothing that
//! survives us (an fsync, a lock file that exists, a mode that is so already) is no point of its
//! own; what fsyncs are for is shown in `power`.

use nix::errno::Errno;

use super::scene::{Reload, Renewal, Rollback, Scene, Setup, Undo};
use crate::support::tracer::{Call, Effect, Fate, Traced, is_possible, trace};
use crate::support::walk::Walk;

/// Walks through the calls of the scene's command, or meets a sample of them; how many there are.
fn kill_at_every_change(scene: &mut impl Scene) -> usize {
    let walk = Walk::new(&scene.arguments().join(" "));
    let vital = if walk.is_whole() {
        Vec::new()
    } else {
        vital_points(scene)
    };
    let mut number = 0;
    let last = loop {
        number += 1;
        // beyond what was seen, a run meets none
        let is_beyond = number > vital.len();
        if !walk.is_whole() && !is_beyond && !vital[number - 1] && !walk.meets(number) {
            continue;
        }
        let (traced, at) = killed(scene, number, Fate::KillBefore);
        if traced.fired == 0 {
            // what it did before it ended well was killed at, call by call
            assert_eq!(traced.exit, Some(0), "{traced:?}");
            break number - 1;
        }
        assert_eq!(traced.exit, None, "{at}: {traced:?}");
        let met = traced.calls.last().unwrap();
        let overlaps = traced.overlaps.last().is_some_and(|it| it.path == met.path);
        if met.effect == Effect::Signal || overlaps {
            killed(scene, number, Fate::KillAfter);
        }
    };
    let (traced, at) = killed(scene, last, Fate::KillAfter);
    let ended_before = traced.fired == 0;
    assert_eq!(traced.exit, ended_before.then_some(0), "{at}: {traced:?}");
    eprintln!(
        "{}: {last} changes, {} calls",
        scene.arguments().join(" "),
        traced.calls.len()
    );
    last
}

/// Of each change of a run that nothing disturbs: whether a sample has it. A kill before the call after
/// an activation is one after it.
fn vital_points(scene: &mut impl Scene) -> Vec<bool> {
    let (traced, at) = killed(scene, usize::MAX, Fate::Pass);
    assert_eq!(
        (traced.fired, traced.exit),
        (0, Some(0)),
        "{at}: {traced:?}"
    );
    let changes: Vec<&Call> = traced.calls.iter().filter(|it| scene.counts(it)).collect();
    let activates = |call: &Call| {
        let records = [
            "/current",
            "/history.json",
            "/owners.json",
            "/pin.json",
            ".order.json",
        ];
        let renames = call.name == "rename" && records.iter().any(|it| call.path.ends_with(it));
        renames || call.effect == Effect::Signal
    };
    let at = |index: usize| changes.get(index).is_some_and(|call| activates(call));
    let is_vital = |index: usize| index == 0 || at(index) || at(index - 1);
    (0..changes.len()).map(is_vital).collect()
}

/// One run, killed beside its `number`-th call; what must hold then and after the next run does.
fn killed(scene: &mut impl Scene, number: usize, side: Fate) -> (Traced, String) {
    scene.prepare();
    let command = scene.host().command(scene.arguments());
    let mut seen = 0;
    let traced = trace(&command, |call| {
        seen += usize::from(scene.counts(call));
        match scene.counts(call) && seen == number {
            true => side,
            false => Fate::Pass,
        }
    });
    let at = match traced.fired {
        0 => format!("{:?}, not killed", scene.arguments()),
        _ => format!("{side:?} {number}: {:?}", traced.calls.last()),
    };
    scene.assert_safe(&at);
    scene.converge(&at);
    scene.assert_clean(&at);
    (traced, at)
}

#[test]
fn a_reload_killed_at_every_change_leaves_what_served_and_the_next_one_converges() {
    if is_possible() {
        let points = kill_at_every_change(&mut Reload::new());
        assert!(points > 20, "{points}");
    }
}

#[test]
fn a_renewal_killed_at_every_change_leaves_what_served_and_the_next_one_converges() {
    if is_possible() {
        let points = kill_at_every_change(&mut Renewal::internal());
        assert!(points > 20, "{points}");
    }
}

#[test]
fn a_renewal_killed_at_every_change_and_request_to_the_ca_is_finished_by_the_next_one() {
    if is_possible() {
        let points = kill_at_every_change(&mut Renewal::acme());
        assert!(points > 20, "{points}");
    }
}

#[test]
fn a_rollback_killed_at_every_change_leaves_what_served_and_the_next_one_converges() {
    if is_possible() {
        let points = kill_at_every_change(&mut Rollback::new());
        assert!(points > 20, "{points}");
    }
}

#[test]
fn a_setup_killed_at_every_change_harms_no_site_and_the_next_one_converges() {
    if is_possible() {
        let points = kill_at_every_change(&mut Setup::new());
        assert!(points > 20, "{points}");
    }
}

#[test]
fn the_undoing_of_a_setup_killed_at_every_change_is_finished_by_the_next_one() {
    if is_possible() {
        let points = kill_at_every_change(&mut Undo::new());
        assert!(points > 1, "{points}");
    }
}

#[test]
fn the_tracer_fails_a_call_that_it_was_told_to_fail_and_knows_that_it_did() {
    if !is_possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made");
    let mut command = std::process::Command::new("mkdir");
    command.arg(&path).env("LC_ALL", "C");
    let is_it = |call: &Call| call.name == "mkdir";
    let traced = trace(&command, |call| match is_it(call) {
        true => Fate::Fail(Errno::ENOSPC),
        false => Fate::Pass,
    });
    assert_eq!((traced.fired, traced.exit), (1, Some(1)));
    assert!(
        traced.stderr.contains("No space left on device"),
        "{traced:?}"
    );
    assert!(!path.exists());
    let traced = trace(&command, |_| Fate::Pass);
    assert_eq!((traced.fired, traced.exit), (0, Some(0)));
    assert!(path.is_dir());
}
