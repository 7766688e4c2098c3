//! Many files dropped at once → each answers by a certificate that verifies, beside eight of the
//! fewest requests at a time, then one `nginx -t` and one SIGHUP on the same configuration.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::env::temp_dir;

use super::Figure;
use super::acme::Minimal;
use super::change::{copy_tree, file, named, rest, settle};
use super::drop::{until_active, until_verified};
use super::support::client::Trust;
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;

const RUNS: usize = 5;
const AT_ONCE: usize = 8;

pub fn run(files: usize) -> Figure {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (host, pebble, took) = drop_all(files);
        ours.push(took);
        settle();
        floor.push(obtain_all(&host, files));
        drop(pebble);
        settle();
    }
    Figure {
        what: format!("{files} files dropped at once → all verified"),
        ours,
        floor,
        factor: 1.5,
        slack: Duration::ZERO,
    }
}

fn names(files: usize) -> Vec<String> {
    (0..files).map(|n| format!("n{n}.example{n}.com")).collect()
}

fn drop_all(files: usize) -> (Host, Pebble, Duration) {
    let app = named("one");
    let (host, pebble) = Host::with_pebble_on(NginxHost::below(&temp_dir()));
    let daemon = host.daemon();
    let trust = Trust::Root(pebble.issuing_root());
    // the first registers the account and opens the connection
    host.drop_file("warm.yml", &file("warm.example.com", app));
    until_verified(Instant::now(), host.https(), "warm.example.com", &trust);
    rest();
    let before = host.active();
    let begin = Instant::now();
    for (n, name) in names(files).iter().enumerate() {
        host.drop_file(&format!("n{n}.yml"), &file(name, app));
    }
    until_active(&host, before);
    for name in names(files) {
        until_verified(begin, host.https(), &name, &trust);
    }
    let took = begin.elapsed();
    settle();
    assert_eq!(daemon.stop(), 0);
    (host, pebble, took)
}

/// nginx alone with the bytes that vhostd rendered, and the minimal client, eight times.
fn obtain_all(host: &Host, files: usize) -> Duration {
    let nginx = NginxHost::below(&temp_dir());
    let pebble = Pebble::start(nginx.http_port);
    let mut first = Minimal::register(&pebble.directory_url(), &pebble.ca_file());
    let base = fs::read_to_string(host.path("state/current/base.conf")).unwrap();
    let (_, rest) = base.split_once("return 200 \"$1.").unwrap();
    let theirs = rest.split('"').next().unwrap().to_owned();
    let certificates = host.path("state/certificates");
    let adapt = |text: String| {
        let mut text = text.replace(&theirs, &first.thumbprint());
        for name in names(files)
            .iter()
            .map(String::as_str)
            .chain(["warm.example.com"])
        {
            let home = certificates.join(name);
            let version = home.join(fs::read_link(home.join("current")).unwrap());
            let own = nginx.path(name);
            text = text.replace(version.to_str().unwrap(), own.to_str().unwrap());
        }
        text
    };
    let tree = copy_tree(host, &nginx, &adapt);
    let sites: Vec<_> = fs::read_dir(tree.join("vhosts")).unwrap().collect();
    let texts: Vec<_> = sites
        .into_iter()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, "").unwrap();
            (path, text)
        })
        .collect();
    nginx.start();
    let keep = |name: &str, (chain, key): (String, String)| {
        let home = nginx.path(name);
        fs::create_dir(&home).unwrap();
        fs::write(home.join("fullchain.pem"), chain).unwrap();
        fs::write(home.join("privkey.pem"), key).unwrap();
    };
    keep("warm.example.com", first.order("warm.example.com"));
    let mut clients: Vec<_> = (0..AT_ONCE).map(|_| first.twin()).collect();
    let (all, keep) = (names(files), &keep);
    let begin = Instant::now();
    thread::scope(|scope| {
        for (nth, client) in clients.iter_mut().enumerate() {
            let mine = all.iter().skip(nth).step_by(AT_ONCE);
            scope.spawn(move || mine.for_each(|name| keep(name, client.order(name))));
        }
    });
    for (path, text) in texts {
        fs::write(path, text).unwrap();
    }
    let tested = nginx.test();
    assert!(tested.status.success(), "{tested:?}");
    nginx.reload();
    let address = SocketAddr::from(([127, 0, 0, 1], nginx.https_port));
    let trust = Trust::Root(pebble.issuing_root());
    for name in all {
        until_verified(begin, address, &name, &trust);
    }
    begin.elapsed()
}
