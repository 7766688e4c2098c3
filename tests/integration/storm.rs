//! A flood of edits costs nginx about a reload a second.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::support::app::App;
use super::support::host::Host;
use super::support::wait_for;

/// `hello` with a name that tells which edit it is.
fn edit(host: &Host, app: &App, number: usize) {
    let text = format!(
        "server_name: [hello.example.com, n{number}.example.com]\nproxy_pass_url: {}\n",
        app.url()
    );
    host.drop_file("hello.yml", &text);
}

fn serves(host: &Host, name: &str) -> Option<()> {
    (host.plain(name)?.0 == 200).then_some(())
}

/// How many times as long as on a quiet machine nginx itself takes, beside other tests: at least 1.
fn slowness(host: &Host) -> f64 {
    let times = (0..3).map(|_| {
        let begin = Instant::now();
        assert!(host.nginx.test().status.success());
        begin.elapsed().as_secs_f64()
    });
    (times.fold(f64::MAX, f64::min) / 0.04).max(1.0)
}

/// 100 edits in ten seconds: how long the first took to be active, and the last to be served.
fn flood(host: &Host, app: &App, before: u64) -> (Option<Duration>, Option<Duration>) {
    let begin = Instant::now();
    let mut first = None;
    for number in 0..100 {
        edit(host, app, number);
        let next = begin + Duration::from_millis(100) * (u32::try_from(number).unwrap() + 1);
        while Instant::now() < next {
            if first.is_none() && host.active() != before {
                first = Some(begin.elapsed());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
    let written = Instant::now() - Duration::from_millis(100);
    let limit = Duration::from_secs(20);
    while written.elapsed() < limit {
        if serves(host, "n99.example.com").is_some() {
            return (first, Some(written.elapsed()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    (first, None)
}

#[test]
fn of_100_edits_in_10_seconds_the_first_is_served_at_once_and_the_last_within_2_seconds_by_at_most_12_reloads()
 {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    edit(&host, &app, 1000);
    let daemon = host.daemon();
    wait_for("the site", || serves(&host, "n1000.example.com"));
    // the flood begins at rest
    thread::sleep(Duration::from_millis(1100));
    let before = host.active();
    let (over, asked, failed) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let (first, last) = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                asked.fetch_add(1, Ordering::SeqCst);
                if serves(&host, "hello.example.com").is_none() {
                    failed.fetch_add(1, Ordering::SeqCst);
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        let times = flood(&host, &app, before);
        over.store(true, Ordering::SeqCst);
        times
    });
    let (first, last) = (first.expect("served"), last.expect("served"));
    let reloads = host.active() - before;
    let slow = slowness(&host);
    println!(
        "first {first:?}, last {last:?}, {reloads} reloads, {asked:?} requests, {slow:.1} times as slow"
    );
    assert!(first < Duration::from_secs(1).mul_f64(slow), "{first:?}");
    assert!(last < Duration::from_secs(2).mul_f64(slow), "{last:?}");
    assert!((3..=12).contains(&reloads), "{reloads} reloads");
    assert_eq!(failed.into_inner(), 0, "of {asked:?}");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn who_reloads_by_hand_in_the_middle_of_a_flood_waits_for_nobody() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    let daemon = host.daemon();
    edit(&host, &app, 0);
    wait_for("the site", || serves(&host, "n0.example.com"));
    for number in 1..=5 {
        edit(&host, &app, number);
        assert_eq!(host.json(&["reload"]).0, 0);
        let name = format!("n{number}.example.com");
        assert!(serves(&host, &name).is_some(), "{number}");
    }
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn files_that_are_dropped_at_once_are_one_edit() {
    const FILES: usize = 40;
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    let daemon = host.daemon();
    let mut costs: Vec<u64> = Vec::new();
    // whoever drops them may be interrupted by another test for longer than anybody waits
    while costs.len() < 5 && costs.iter().filter(|cost| **cost == 1).count() < 2 {
        // at rest
        thread::sleep(Duration::from_millis(1300));
        let (before, round) = (host.active(), costs.len());
        for number in 0..FILES {
            let name = format!("r{round}n{number}");
            host.drop_app(&name, &format!("{name}.example.com"), &app);
        }
        let last = format!("r{round}n{}.example.com", FILES - 1);
        wait_for(&last, || serves(&host, &last));
        costs.push(host.active() - before);
    }
    let of_one = costs.iter().filter(|cost| **cost == 1).count();
    assert!(of_one >= 2, "{costs:?}");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn files_that_change_nothing_are_read_once_a_second_at_most_and_others_not_at_all() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    let daemon = host.daemon();
    edit(&host, &app, 0);
    wait_for("the site", || serves(&host, "n0.example.com"));
    thread::sleep(Duration::from_millis(500));
    let readings = || daemon.log().matches("nothing to change (file)").count();
    let touch = |name: &str, text: &str| {
        let (begin, before) = (Instant::now(), readings());
        while begin.elapsed() < Duration::from_secs(3) {
            std::fs::write(host.path("vhosts.d").join(name), text).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        readings() - before
    };
    // one look comes every half minute, whatever happens
    let (text, hidden) = (
        std::fs::read_to_string(host.path("vhosts.d/hello.yml")),
        touch(".x", ""),
    );
    assert!(hidden <= 1, "{hidden} readings");
    let same = touch("hello.yml", &text.unwrap());
    assert!((1..=8).contains(&same), "{same} readings");
    edit(&host, &app, 1);
    wait_for("the edit", || serves(&host, "n1.example.com"));
    assert_eq!(daemon.stop(), 0);
}
