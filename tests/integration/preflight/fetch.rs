//! Where a challenge's redirects may lead.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vhostd::certificate::preflight::fetch::{Challenge, Fetched, Surroundings};
use vhostd::dns::Resolver;
use vhostd::settings::DnsSettings;

use crate::support::nameserver::NameServer;

const NAME: &str = "shop.site.test";

/// Answers each path as it is told, until the test ends.
struct Site {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

/// A status line's end, further headers, the body.
type Answer = (&'static str, String, String);

impl Site {
    fn start(answer: impl Fn(&str, u16) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = asked.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap_or_default();
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                {}
                let (status, headers, body) = answer(&path, address.port());
                noted.lock().unwrap().push(path);
                let length = body.len();
                // who has enough hangs up
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
                );
            }
        });
        Self { address, asked }
    }

    fn fetched(&self, dns: &NameServer, host: &[IpAddr]) -> Fetched {
        let resolver = Resolver::new(&DnsSettings {
            resolvers: vec![dns.address()],
            ..DnsSettings::default()
        });
        let challenge = Challenge {
            token: "token".into(),
            thumbprint: "print".into(),
            port: self.address.port(),
        };
        let around = Surroundings {
            dns: &resolver,
            host,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let fetch = challenge.fetch(NAME, self.address.ip(), &around);
        let within = Duration::from_secs(20);
        runtime.block_on(async { tokio::time::timeout(within, fetch).await.unwrap() })
    }
}

fn dns() -> NameServer {
    NameServer::start(&[("site.test", "cdn A 127.0.0.1\n")])
}

fn says(body: &str) -> Answer {
    ("200 OK", String::new(), body.to_owned())
}

fn leads(to: String) -> Answer {
    ("302 Found", format!("Location: {to}\r\n"), String::new())
}

#[test]
fn only_the_tokens_own_text_is_an_answer() {
    let dns = dns();
    let fetched = |answer: fn() -> Answer| Site::start(move |_, _| answer()).fetched(&dns, &[]);
    assert_eq!(fetched(|| says("token.print")), Fetched::Ours);
    assert_eq!(fetched(|| says("token.print \r\n")), Fetched::Ours);
    let another = Fetched::Other("another text".into());
    assert_eq!(fetched(|| says("token.another")), another);
    assert_eq!(fetched(|| says(&"x".repeat(100_000))), another);
    let missing = || ("404 Not Found", String::new(), "token.print".into());
    assert_eq!(fetched(missing), Fetched::Other("HTTP 404".into()));
}

#[test]
fn ten_redirects_are_followed_and_not_one_more() {
    let dns = dns();
    let stairs = |top: usize| {
        let site = Site::start(move |path, _| {
            let step = path
                .strip_prefix("/step/")
                .map_or(0, |step| step.parse().unwrap());
            match step < top {
                true => leads(format!("/step/{}", step + 1)),
                false => says("token.print"),
            }
        });
        let fetched = site.fetched(&dns, &[]);
        let asked = site.asked.lock().unwrap().len();
        (fetched, asked)
    };
    assert_eq!(stairs(10), (Fetched::Ours, 11));
    let (fetched, asked) = stairs(11);
    assert_eq!(
        (fetched, asked),
        (Fetched::Other("more than ten redirects".into()), 11)
    );
}

#[test]
fn a_redirect_leads_to_no_private_address_that_is_not_this_hosts() {
    let dns = dns();
    let site = || {
        Site::start(|path, port| match path {
            "/cdn" => says("token.print"),
            _ => leads(format!("http://cdn.site.test:{port}/cdn")),
        })
    };
    let inside = site();
    let told = inside.fetched(&dns, &[]);
    assert!(
        matches!(&told, Fetched::Other(what) if what.contains("a redirect to http://cdn")),
        "{told:?}"
    );
    assert_eq!(inside.asked.lock().unwrap().len(), 1);
    let ours = [Ipv4Addr::LOCALHOST.into()];
    assert_eq!(site().fetched(&dns, &ours), Fetched::Ours);
}

#[test]
fn a_redirect_is_followed_to_no_other_port_or_protocol() {
    let dns = dns();
    let ours = [Ipv4Addr::LOCALHOST.into()];
    for (to, secured) in [
        ("https://cdn.site.test/x", true),
        ("https://cdn.site.test:8443/x", false),
        ("http://cdn.site.test:6379/x", false),
        ("http://127.0.0.1:22/", false),
        ("gopher://cdn.site.test/", false),
        ("::", false),
    ] {
        let site = Site::start(move |_, _| leads(to.to_owned()));
        let fetched = site.fetched(&dns, &ours);
        let as_expected = match secured {
            true => fetched == Fetched::Secured(to.to_owned()),
            false => fetched == Fetched::Other(format!("a redirect to {to}")),
        };
        assert!(as_expected, "{to}: {fetched:?}");
        assert_eq!(site.asked.lock().unwrap().len(), 1);
    }
}
