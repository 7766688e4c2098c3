//! Where a challenge's redirects may lead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use vhostd::certificate::preflight::fetch::{Challenge, Fetched, Ports, Surroundings};
use vhostd::dns::Resolver;
use vhostd::settings::DnsSettings;

use crate::support::nameserver::NameServer;
use crate::support::nginx::free_port;

const NAME: &str = "shop.site.test";

/// Answers each path as it is told, until the test ends.
struct Site {
    address: SocketAddr,
    /// Paths; with TLS after the name that was asked for (SNI).
    asked: Arc<Mutex<Vec<String>>>,
}

/// A status line's end, further headers, the body.
type Answer = (&'static str, String, String);

impl Site {
    fn start(answer: impl Fn(&str, u16) -> Answer + Send + 'static) -> Self {
        Self::serve(answer, |stream| {
            Some((Box::new(stream) as Box<dyn Stream>, String::new()))
        })
    }

    /// With a certificate that no client trusts, for no name that anybody asks for.
    fn start_tls(answer: impl Fn(&str, u16) -> Answer + Send + 'static) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["placeholder.invalid".to_owned()]);
        let certificate = certificate.unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            );
        let tls = Arc::new(tls.unwrap());
        Self::serve(answer, move |mut stream| {
            let mut connection = ServerConnection::new(tls.clone()).unwrap();
            while connection.is_handshaking() {
                connection.complete_io(&mut stream).ok()?;
            }
            let name = connection.server_name().unwrap_or("-").to_owned();
            let stream = StreamOwned::new(connection, stream);
            Some((Box::new(stream) as Box<dyn Stream>, name))
        })
    }

    fn serve(
        answer: impl Fn(&str, u16) -> Answer + Send + 'static,
        accept: impl Fn(std::net::TcpStream) -> Option<(Box<dyn Stream>, String)> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some((stream, name)) = accept(stream) else {
                    continue;
                };
                let mut stream = BufReader::new(stream);
                let mut lines = stream.by_ref().lines();
                let first = lines.next().unwrap().unwrap_or_default();
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                {}
                let (status, headers, body) = answer(&path, address.port());
                noted.lock().unwrap().push(format!("{name}{path}"));
                let length = body.len();
                // who has enough hangs up
                let _ = write!(
                    stream.get_mut(),
                    "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
                );
                let _ = stream.get_mut().flush();
            }
        });
        Self { address, asked }
    }

    fn fetched(&self, dns: &NameServer, host: &[IpAddr]) -> Fetched {
        self.fetched_beside(443, dns, host)
    }

    /// As a CA does that follows redirects to https at `https_port`.
    fn fetched_beside(&self, https_port: u16, dns: &NameServer, host: &[IpAddr]) -> Fetched {
        let resolver = Resolver::new(&DnsSettings {
            resolvers: vec![dns.address()],
            ..DnsSettings::default()
        });
        let challenge = Challenge {
            token: "token".into(),
            thumbprint: "print".into(),
            ports: Ports {
                http: self.address.port(),
                https: https_port,
            },
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

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

const PATH: &str = "/.well-known/acme-challenge/token";

fn dns() -> NameServer {
    NameServer::start(&[("site.test", "cdn A 127.0.0.1\nshop A 127.0.0.1\n")])
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
    assert_eq!(asked, 11);
    assert!(
        matches!(&fetched, Fetched::Other(what) if what.starts_with("more than ten redirects, the last to http://shop.site.test:") && what.ends_with("/step/11")),
        "{fetched:?}"
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
fn a_redirect_is_followed_to_no_other_port_protocol_or_address() {
    let dns = dns();
    let ours = [Ipv4Addr::LOCALHOST.into()];
    for (to, why) in [
        ("https://cdn.site.test:8443/x", "only redirects to ports"),
        ("http://cdn.site.test:6379/x", "only redirects to ports"),
        ("http://127.0.0.1/", "redirects to IP addresses"),
        ("https://[::1]/", "redirects to IP addresses"),
        ("gopher://cdn.site.test/", "only redirects to http"),
        ("::", "only redirects to http"),
        (
            "https://nowhere.site.test/x",
            "its host has no public address",
        ),
    ] {
        let site = Site::start(move |_, _| leads(to.to_owned()));
        let fetched = site.fetched(&dns, &ours);
        let begin = format!("a redirect to {to} ({why}");
        assert!(
            matches!(&fetched, Fetched::Other(what) if what.starts_with(&begin)),
            "{to}: {fetched:?}"
        );
        assert_eq!(site.asked().len(), 1);
    }
    // RFC 9110 §15.4.4: another resource, which proves nothing
    let see_other = || ("303 See Other", "Location: /x\r\n".into(), String::new());
    let site = Site::start(move |_, _| see_other());
    assert_eq!(site.fetched(&dns, &ours), Fetched::Other("HTTP 303".into()));
}

#[test]
fn a_redirect_to_https_is_followed_whatever_certificate_is_there() {
    let dns = dns();
    let secure = Site::start_tls(|path, _| match path {
        PATH => says("token.print"),
        _ => ("404 Not Found", String::new(), String::new()),
    });
    let port = secure.address.port();
    // "always HTTPS"
    let edge = Site::start(move |path, _| leads(format!("https://{NAME}{path}")));
    assert_eq!(edge.fetched_beside(port, &dns, &[]), Fetched::Ours);
    assert_eq!(secure.asked(), [format!("{NAME}{PATH}")]);
    // to another name of this host's, and back to http
    let secure = Site::start_tls(|_, _| leads(format!("http://{NAME}/back")));
    let edge = Site::start(|path, _| match path {
        "/back" => says("token.print"),
        _ => leads("https://cdn.site.test/x?y#z".to_owned()),
    });
    let ours = [Ipv4Addr::LOCALHOST.into()];
    let port = secure.address.port();
    assert_eq!(edge.fetched_beside(port, &dns, &ours), Fetched::Ours);
    assert_eq!(secure.asked(), ["cdn.site.test/x?y"]);
    assert_eq!(edge.asked(), [PATH, "/back"]);
}

#[test]
fn how_a_redirect_to_https_ends_is_told_with_its_url() {
    let dns = dns();
    let edge = || Site::start(|path, _| leads(format!("https://{NAME}{path}")));
    let ends = |port| edge().fetched_beside(port, &dns, &[]);
    let over = |what: &str, port: u16| {
        format!("{what}, after a redirect to https://{NAME}:{port}/.well-known/acme-challenge/…")
    };
    let missing = Site::start_tls(|_, _| ("404 Not Found", String::new(), String::new()));
    let port = missing.address.port();
    assert_eq!(ends(port), Fetched::Other(over("HTTP 404", port)));
    let page = Site::start_tls(|_, _| says("<html>"));
    let port = page.address.port();
    assert_eq!(ends(port), Fetched::Other(over("another text", port)));
    let elsewhere = Site::start_tls(|_, _| leads("https://203.0.113.7/".to_owned()));
    let port = elsewhere.address.port();
    let refused = "a redirect to https://203.0.113.7/ (redirects to IP addresses are not followed)";
    assert_eq!(ends(port), Fetched::Other(over(refused, port)));
    let refused = "Connection refused (os error 111)";
    let port = free_port();
    assert_eq!(ends(port), Fetched::Failed(over(refused, port)));
    // no TLS there
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let fetched = ends(port);
    assert!(
        matches!(&fetched, Fetched::Failed(why) if why.starts_with("no TLS: ") && why.ends_with(&over("", port))),
        "{fetched:?}"
    );
}
