//! A dropped file → the first HTTPS answer that verifies, beside the fewest requests that a
//! certificate costs, then `nginx -t` and SIGHUP on the same configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::env::temp_dir;

use super::Figure;
use super::acme::Minimal;
use super::change::{copy_tree, file, named, rest, settle};
use super::support::client::{self, Trust};
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;

const RUNS: usize = 15;

pub fn run() -> Figure {
    let app = named("one");
    let (host, pebble) = Host::with_pebble_on(NginxHost::below(&temp_dir()));
    let daemon = host.daemon();
    let trust = Trust::Root(pebble.issuing_root());
    // the first of each registers the account and opens the connection
    let warm = "warm.example.com";
    host.drop_file("app.yml", &file(warm, app));
    until_verified(Instant::now(), host.https(), warm, &trust);
    settle();
    let mut floor_host = Floor::copy_of(&host, warm);
    host.remove_file("app.yml");
    rest();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let name = format!("run{run}.example.com");
        let before = host.active();
        let begin = Instant::now();
        host.drop_file("app.yml", &file(&name, app));
        until_active(&host, before);
        ours.push(until_verified(begin, host.https(), &name, &trust));
        settle();
        host.remove_file("app.yml");
        // a removal is acted on after a second
        thread::sleep(Duration::from_millis(1500));
        floor.push(floor_host.obtain_and_serve(&name));
        settle();
    }
    assert_eq!(daemon.stop(), 0);
    Figure {
        what: "dropped file → first verified HTTPS answer".into(),
        ours,
        floor,
        factor: 1.3,
        slack: Duration::ZERO,
    }
}

/// nginx alone with the bytes that vhostd rendered, and the minimal client.
struct Floor {
    nginx: NginxHost,
    acme: Minimal,
    trust: Trust,
    site: PathBuf,
    /// The vhost file for [`Self::name`] with certificate paths of the floor's own.
    text: String,
    name: &'static str,
    _pebble: Pebble,
}

impl Floor {
    fn copy_of(host: &Host, name: &'static str) -> Self {
        let nginx = NginxHost::below(&temp_dir());
        let pebble = Pebble::start(nginx.http_port);
        let mut acme = Minimal::register(&pebble.directory_url(), &pebble.ca_file());
        let answer = |text: &str| {
            let (_, rest) = text.split_once("return 200 \"$1.").unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        let base = fs::read_to_string(host.path("state/current/base.conf")).unwrap();
        let theirs = answer(&base);
        let certificate = host.path("state/certificates").join(name);
        let version = certificate.join(fs::read_link(certificate.join("current")).unwrap());
        let adapt = |text: String| {
            text.replace(&theirs, &acme.thumbprint())
                .replace(version.to_str().unwrap(), nginx.path("").to_str().unwrap())
        };
        let tree = copy_tree(host, &nginx, &adapt);
        let site = tree.join("vhosts/app.conf");
        let text = fs::read_to_string(&site).unwrap();
        // before the first certificate only the default servers are there
        fs::write(&site, "").unwrap();
        nginx.start();
        acme.order("warm.floor.example.com");
        Self {
            acme,
            trust: Trust::Root(pebble.issuing_root()),
            site,
            text,
            name,
            nginx,
            _pebble: pebble,
        }
    }

    fn obtain_and_serve(&mut self, name: &str) -> Duration {
        let begin = Instant::now();
        let (chain, key) = self.acme.order(name);
        fs::write(self.nginx.path("fullchain.pem"), chain).unwrap();
        fs::write(self.nginx.path("privkey.pem"), key).unwrap();
        fs::write(&self.site, self.text.replace(self.name, name)).unwrap();
        assert!(self.nginx.test().status.success());
        self.nginx.reload();
        let address = SocketAddr::from(([127, 0, 0, 1], self.nginx.https_port));
        until_verified(begin, address, name, &self.trust)
    }
}

/// As the floor does not ask before it has reloaded nginx: a handshake a millisecond would take from
/// what is measured.
pub fn until_active(host: &Host, before: u64) {
    let begin = Instant::now();
    while host.active() == before {
        assert!(begin.elapsed() < Duration::from_secs(60), "never activated");
        thread::sleep(Duration::from_micros(200));
    }
}

pub fn until_verified(begin: Instant, address: SocketAddr, name: &str, trust: &Trust) -> Duration {
    loop {
        let answer = client::get_tls(address, name, "/", trust);
        if answer.is_ok_and(|answer| answer.status == 200) {
            return begin.elapsed();
        }
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{name} was never served"
        );
        thread::sleep(Duration::from_millis(1));
    }
}
