//! Directories that go and come back, and events that are lost: the directory is the truth.

use std::fs;
use std::thread;
use std::time::Duration;

use super::super::support::wait_for;
use super::{Site, pause};

#[test]
fn a_directory_that_is_removed_and_slowly_made_again_keeps_the_site() {
    let site = Site::new();
    let directory = site.host.path("vhosts.d");
    // the file goes first, and that is noticed
    fs::remove_file(site.file()).unwrap();
    pause();
    fs::remove_dir_all(&directory).unwrap();
    // longer than a removed file's second
    thread::sleep(Duration::from_millis(1500));
    fs::create_dir(&directory).unwrap();
    pause();
    fs::write(site.file(), site.text(2)).unwrap();
    site.wait_for(2);
    site.host.drop_file("hello.yml", &site.text(3));
    site.converges_to(3);
}

#[test]
fn a_directory_that_is_replaced_by_rename_is_seen_and_watched() {
    let site = Site::new();
    let (directory, next) = (site.host.path("vhosts.d"), site.host.path("next"));
    fs::create_dir(&next).unwrap();
    fs::write(next.join("hello.yml"), site.text(2)).unwrap();
    fs::rename(&directory, site.host.path("old")).unwrap();
    fs::rename(&next, &directory).unwrap();
    site.wait_for(2);
    site.host.drop_file("hello.yml", &site.text(3));
    site.wait_for(3);
    // what happens to the old one is nobody's business any more
    fs::remove_dir_all(site.host.path("old")).unwrap();
    site.converges_to(3);
}

#[test]
fn what_happens_while_the_daemon_sleeps_is_seen_even_when_events_overflow() {
    let site = Site::new();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    site.daemon.signal("STOP");
    // at least create, open, close, delete each; then the queue is full and the rest is lost
    for _ in 0..limit / 4 + 100 {
        fs::write(site.path(".noise"), "").unwrap();
        fs::remove_file(site.path(".noise")).unwrap();
    }
    fs::write(site.file(), site.text(2)).unwrap();
    site.daemon.signal("CONT");
    site.converges_to(2);
}

#[test]
fn thousands_of_events_converge() {
    let site = Site::new();
    for round in 0..1500_u16 {
        let page = if round % 2 == 0 { 2 } else { 3 };
        fs::write(site.path("noise.yml~"), "x").unwrap();
        site.host.drop_file("hello.yml", &site.text(page));
    }
    site.host.drop_file("hello.yml", &site.text(2));
    site.converges_to(2);
}

#[test]
fn hundreds_of_saves_leave_no_file_descriptor_behind() {
    let site = Site::new();
    let open = || {
        fs::read_dir(format!("/proc/{}/fd", site.daemon.pid()))
            .unwrap()
            .count()
    };
    let save = |page| {
        site.host.drop_file("hello.yml", &site.text(page));
        site.wait_for(page);
    };
    save(2);
    let before = open();
    for round in 0..200 {
        site.host.drop_file("hello.yml", &site.text(2 + round % 2));
    }
    save(1);
    // what runs at this moment may hold one
    wait_for("no more than before", || (open() <= before).then_some(()));
    site.converges_to(1);
}

#[test]
fn what_changes_while_no_daemon_runs_is_seen_by_the_next() {
    let site = Site::new();
    let Site {
        host,
        daemon,
        traffic,
    } = site;
    daemon.kill();
    let text = super::text(&host, 2);
    host.drop_file("hello.yml", &text);
    host.drop_file("new.yml", &text.replace("hello", "new"));
    let daemon = host.daemon();
    host.wait_for_serving("new");
    Site {
        host,
        daemon,
        traffic,
    }
    .converges_to(2);
}
