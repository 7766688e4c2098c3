//! The daemon's resident memory.

use std::fs;

use tempfile::env::temp_dir;

use super::change::{file, named};
use super::support::host::Host;
use super::support::nginx::NginxHost;

/// The limit, in MiB.
const LIMIT: f64 = 20.0;

pub fn run(vhosts: usize) {
    let app = named("one");
    let (host, pebble) = Host::with_pebble_on(NginxHost::below(&temp_dir()));
    for index in 0..vhosts {
        host.drop_file(
            &format!("v{index}.yml"),
            &file(&format!("v{index}.example.com"), app),
        );
    }
    let daemon = host.daemon();
    let ended = host.vhostd(&["reload", "--wait"]);
    assert_eq!(
        ended.status,
        0,
        "{ended:?}\n{:?}",
        host.vhostd(&["status", "--json"])
    );
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let figure = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / 1024.0
    };
    let (now, peak) = (figure("VmRSS:"), figure("VmHWM:"));
    let held = if now <= LIMIT { "held" } else { "MISSED" };
    println!(
        "{:<52} {now:>6.1} MiB now, {peak:.1} MiB at its peak; at most {LIMIT} MiB: {held}",
        format!("memory of the daemon, {vhosts} vhosts, all obtained by it"),
    );
    drop(pebble);
}
