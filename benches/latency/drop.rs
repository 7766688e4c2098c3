//! A dropped file → the first HTTPS answer that verifies, beside the fewest requests that a
//! certificate costs, `nginx -t` and SIGHUP.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::Figure;
use super::acme::Minimal;
use super::change::{file, named, settle};
use super::support::client::{self, Trust};
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;

const RUNS: usize = 15;

pub fn run() -> Figure {
    let app = named("one");
    let (host, pebble) = Host::with_pebble();
    let daemon = host.daemon();
    let trust = Trust::Root(pebble.issuing_root());
    let mut floor_host = Floor::new();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    // the first of each registers the account and opens the connection
    for run in 0..=RUNS {
        let name = format!("run{run}.example.com");
        let begin = Instant::now();
        host.drop_file("app.yml", &file(&name, app));
        let sample = until_verified(begin, host.https(), &name, &trust);
        settle();
        host.remove_file("app.yml");
        let floor_sample = floor_host.obtain_and_serve(&name, app);
        thread::sleep(Duration::from_millis(1500));
        if run > 0 {
            ours.push(sample);
            floor.push(floor_sample);
        }
    }
    assert_eq!(daemon.stop(), 0);
    Figure {
        what: "dropped file → first verified HTTPS answer".into(),
        ours,
        floor,
        factor: 1.5,
        slack: Duration::ZERO,
    }
}

struct Floor {
    nginx: NginxHost,
    acme: Minimal,
    trust: Trust,
    _pebble: Pebble,
}

impl Floor {
    fn new() -> Self {
        let nginx = NginxHost::new();
        let pebble = Pebble::start(nginx.http_port);
        let acme = Minimal::register(&pebble.directory_url(), &pebble.ca_file());
        let challenge = format!(
            "server {{ listen {port} default_server; location ~ \"^/.well-known/acme-challenge/(.+)$\" \
             {{ default_type text/plain; return 200 \"$1.{thumbprint}\"; }} }}\n",
            port = nginx.http_port,
            thumbprint = acme.thumbprint(),
        );
        nginx.site("challenge", &challenge);
        nginx.start();
        Self {
            acme,
            trust: Trust::Root(pebble.issuing_root()),
            nginx,
            _pebble: pebble,
        }
    }

    fn obtain_and_serve(&mut self, name: &str, app: SocketAddr) -> Duration {
        let begin = Instant::now();
        let (chain, key) = self.acme.order(name);
        let (chain_path, key_path) = (self.nginx.path("chain.pem"), self.nginx.path("key.pem"));
        fs::write(&chain_path, chain).unwrap();
        fs::write(&key_path, key).unwrap();
        let site = format!(
            "server {{ listen {port} ssl; server_name {name}; ssl_certificate {chain}; ssl_certificate_key {key}; \
             location / {{ proxy_pass http://{app}; }} }}\n",
            port = self.nginx.https_port,
            chain = chain_path.display(),
            key = key_path.display(),
        );
        self.nginx.site("app", &site);
        assert!(self.nginx.test().status.success());
        self.nginx.reload();
        let address = SocketAddr::from(([127, 0, 0, 1], self.nginx.https_port));
        until_verified(begin, address, name, &self.trust)
    }
}

fn until_verified(begin: Instant, address: SocketAddr, name: &str, trust: &Trust) -> Duration {
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
