//! A private ACME server: Pebble and its DNS server, on loopback, in a temporary directory.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::nginx::free_port;

/// Kills its processes when dropped. Every DNS name resolves to 127.0.0.1.
pub struct Pebble {
    directory: tempfile::TempDir,
    port: u16,
    management_port: u16,
    dns_port: u16,
    dns_management_port: u16,
    builder: PebbleBuilder,
    children: Vec<Running>,
}

/// What can be chosen; see [`Pebble::builder`].
#[derive(Clone)]
pub struct PebbleBuilder {
    http01_port: u16,
    refused_nonces: u8,
    validity: Duration,
    believing: bool,
    port: Option<u16>,
    external_accounts: Vec<(&'static str, &'static str)>,
    alternate_roots: u8,
    reused_authorizations: u8,
    slow: Option<u8>,
    strict: bool,
    programs: Programs,
    resolver: Option<SocketAddr>,
}

/// Debian 12's, or later ones, which know renewal information and profiles.
#[derive(Clone)]
struct Programs {
    pebble: PathBuf,
    dns: PathBuf,
    /// Up to the DNS server's address.
    dns_options: &'static [&'static str],
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl PebbleBuilder {
    /// In per cent; Pebble's own default is 5.
    pub fn refused_nonces(mut self, per_cent: u8) -> Self {
        self.refused_nonces = per_cent;
        self
    }

    /// Of the certificates; Pebble's own default is five years, ours 90 days.
    pub fn validity(mut self, validity: Duration) -> Self {
        self.validity = validity;
        self
    }

    /// In per cent; Pebble's own default is 50, ours 0.
    pub fn reused_authorizations(mut self, per_cent: u8) -> Self {
        self.reused_authorizations = per_cent;
        self
    }

    /// Each validation takes up to so many seconds, by chance; else none.
    pub fn slow(mut self, seconds: u8) -> Self {
        self.slow = Some(seconds);
        self
    }

    /// What the next RFC may forbid, it forbids.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Every challenge counts as answered.
    pub fn believing(mut self) -> Self {
        self.believing = true;
        self
    }

    /// Where it listens.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Takes only the customer with that identifier and MAC key, base64url.
    pub fn external_account(mut self, key_id: &'static str, mac_key: &'static str) -> Self {
        self.external_accounts.push((key_id, mac_key));
        self
    }

    /// Further roots that sign its intermediate: as many chains by `Link` (RFC 8555 §7.4.2).
    pub fn alternate_roots(mut self, count: u8) -> Self {
        self.alternate_roots = count;
        self
    }

    /// A later one (RFC 9773, profiles); `None` where there is none.
    pub fn later(mut self) -> Option<Self> {
        self.programs = Programs {
            pebble: super::later("pebble")?,
            dns: super::later("pebble-challtestsrv")?,
            dns_options: &["-doh", "", "-dnsserver"],
        };
        Some(self)
    }

    /// Whom it asks instead of a DNS server of its own.
    pub fn resolver(mut self, resolver: SocketAddr) -> Self {
        self.resolver = Some(resolver);
        self
    }

    pub fn start(self) -> Pebble {
        // a port that was free a moment ago may be taken: then all of it is started again
        for _ in 0..5 {
            if let Some(pebble) = self.try_start() {
                return pebble;
            }
        }
        panic!("pebble does not start");
    }

    fn try_start(&self) -> Option<Pebble> {
        let directory = tempfile::tempdir().unwrap();
        let [port, management_port, dns_port, dns_management_port] =
            std::array::from_fn(|_| free_port());
        let port = self.port.unwrap_or(port);
        let accounts: std::collections::BTreeMap<_, _> =
            self.external_accounts.iter().copied().collect();
        write_server_certificate(&directory);
        let path = |name: &str| directory.path().join(name);
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management_port}"),
            "certificate": path("server.pem"),
            "privateKey": path("server.key"),
            "httpPort": self.http01_port,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": !accounts.is_empty(),
            "externalAccountMACKeys": accounts,
            "certificateValidityPeriod": self.validity.as_secs(),
            // later ones choose one of several by chance
            "profiles": {
                "default": {"description": "d", "validityPeriod": self.validity.as_secs()},
            },
        }});
        fs::write(path("pebble.json"), config.to_string()).unwrap();
        let log = || {
            Stdio::from(
                fs::File::options()
                    .create(true)
                    .append(true)
                    .open(path("log"))
                    .unwrap(),
            )
        };
        let dns = Command::new(&self.programs.dns)
            .args([
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
                "-defaultIPv6",
                "",
            ])
            .args(self.programs.dns_options)
            .arg(format!("127.0.0.1:{dns_port}"))
            .args(["-management", &format!("127.0.0.1:{dns_management_port}")])
            .stdout(log())
            .stderr(log())
            .spawn()
            .expect("pebble-challtestsrv is installed");
        let pebble = self.command(directory.path(), dns_port).spawn();
        let mut children = vec![Running(dns), Running(pebble.expect("pebble is installed"))];
        let wanted = [port, management_port, dns_port, dns_management_port];
        if !all_listen(&wanted, &mut children) {
            eprintln!("{}", fs::read_to_string(path("log")).unwrap_or_default());
            return None;
        }
        Some(Pebble {
            directory,
            port,
            management_port,
            dns_port,
            dns_management_port,
            builder: self.clone(),
            children,
        })
    }

    /// Of Pebble itself.
    fn command(&self, directory: &Path, dns_port: u16) -> Command {
        let log = || {
            let mut options = fs::File::options();
            let log = options.create(true).append(true);
            Stdio::from(log.open(directory.join("log")).unwrap())
        };
        let own = ([127, 0, 0, 1], dns_port).into();
        let resolver = self.resolver.unwrap_or(own);
        let mut command = Command::new(&self.programs.pebble);
        command
            .arg("-config")
            .arg(directory.join("pebble.json"))
            .args(["-dnsserver", &resolver.to_string()])
            .env("PEBBLE_WFE_NONCEREJECT", self.refused_nonces.to_string())
            .env("PEBBLE_AUTHZREUSE", self.reused_authorizations.to_string())
            .stdout(log())
            .stderr(log());
        command.env("PEBBLE_ALTERNATE_ROOTS", self.alternate_roots.to_string());
        if self.believing {
            command.env("PEBBLE_VA_ALWAYS_VALID", "1");
        }
        match self.slow {
            Some(seconds) => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
            None => command.env("PEBBLE_VA_NOSLEEP", "1"),
        };
        if self.strict {
            command.arg("-strict");
        }
        command
    }
}

/// Until they do; `false`: one of `children` has ended, or it takes too long.
fn all_listen(ports: &[u16], children: &mut [Running]) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    let listens = |port: &u16| TcpStream::connect(("127.0.0.1", *port)).is_ok();
    while !ports.iter().all(listens) {
        let mut ended = children.iter_mut();
        if ended.any(|child| child.0.try_wait().unwrap().is_some()) || Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

impl Pebble {
    /// `http01_port`: where Pebble asks for the answers to challenges, on 127.0.0.1.
    pub fn start(http01_port: u16) -> Self {
        Self::builder(http01_port).start()
    }

    pub fn builder(http01_port: u16) -> PebbleBuilder {
        PebbleBuilder {
            http01_port,
            refused_nonces: 0,
            validity: Duration::from_secs(90 * 86400),
            believing: false,
            port: None,
            external_accounts: Vec::new(),
            alternate_roots: 0,
            reused_authorizations: 0,
            slow: None,
            strict: false,
            programs: Programs {
                pebble: "pebble".into(),
                dns: "pebble-challtestsrv".into(),
                dns_options: &["-dns01"],
            },
            resolver: None,
        }
    }

    /// For `acme.directory`.
    pub fn directory_url(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// For `acme.ca_file`: trust for the directory's own TLS.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The root of the certificates that this Pebble issues; another one at every start.
    pub fn issuing_root(&self) -> CertificateDer<'static> {
        let pem = self.issuing_root_pem(0);
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// One of them, where there are alternates.
    pub fn issuing_root_pem(&self, nth: usize) -> String {
        self.management(&format!("/roots/{nth}"))
    }

    /// Panics unless the chain in the file is one that a browser accepts for `name` now, if it
    /// trusts this Pebble's root and nothing else.
    pub fn verify(&self, chain: &Path, name: &str) {
        let chain: Vec<_> = CertificateDer::pem_file_iter(chain)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuing_root()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap()
            .verify_server_cert(
                &chain[0],
                &chain[1..],
                &ServerName::try_from(name).unwrap(),
                &[],
                UnixTime::now(),
            )
            .unwrap();
    }

    /// Accepts connections and answers nothing, until [`Pebble::resume`].
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// SIGKILL. It keeps everything in memory: accounts, orders, its own root.
    pub fn kill(&mut self) {
        self.children.truncate(1);
    }

    /// At the same address, after [`Pebble::kill`].
    pub fn start_again(&mut self) {
        let mut command = self.builder.command(self.directory.path(), self.dns_port);
        self.children.push(Running(command.spawn().unwrap()));
        let ports = [self.port, self.management_port];
        assert!(all_listen(&ports, &mut self.children), "{}", self.log());
    }

    /// How many orders were finalized, that is, how many certificates were asked for.
    pub fn finalized(&self) -> usize {
        self.log().matches("POST /finalize-order/").count()
    }

    /// From now on its DNS server knows nothing of the name, or again what it knows of all.
    pub fn set_dead(&self, name: &str, dead: bool) {
        let path = if dead {
            "set-servfail"
        } else {
            "clear-servfail"
        };
        let body = serde_json::json!({"host": name}).to_string();
        let length = body.len();
        let mut stream = TcpStream::connect(("127.0.0.1", self.dns_management_port)).unwrap();
        write!(
            stream,
            "POST /{path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }

    fn signal(&self, name: &str) {
        for child in &self.children {
            let pid = child.0.id().to_string();
            let status = Command::new("kill")
                .args([&format!("-{name}"), &pid])
                .status();
            assert!(status.unwrap().success());
        }
    }

    /// What the server has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// What a later Pebble says from now on about the certificate in the file (RFC 9773 §4.2).
    pub fn suggest(&self, chain: &Path, renewal_info: &serde_json::Value) {
        let pem = fs::read_to_string(chain).unwrap();
        let end = "-----END CERTIFICATE-----\n";
        let leaf = pem.split_inclusive(end).next().unwrap();
        let body =
            serde_json::json!({"certificate": leaf, "ariResponse": renewal_info.to_string()});
        self.manage("POST", "/set-renewal-info/", &body.to_string());
    }

    /// The body of a GET at the management interface.
    fn management(&self, path: &str) -> String {
        self.manage("GET", path, "")
    }

    fn manage(&self, method: &str, path: &str, body: &str) -> String {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.ca_file()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(("127.0.0.1", self.management_port)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nUser-Agent: test\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        // Go closes without a TLS close_notify
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.contains(" 200 "), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

/// A name of Pebble's that no DNS knows (RFC 6761 §6.4): only a proxy leads there.
pub const UNRESOLVED: &str = "ca.invalid";

fn write_server_certificate(directory: &tempfile::TempDir) {
    let path = |name: &str| directory.path().join(name);
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // to OpenSSL, who is named as its issuer is signed by itself
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "a CA for Pebble's own TLS");
    fs::write(path("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let server =
        CertificateParams::new(["127.0.0.1", "localhost", UNRESOLVED].map(str::to_owned)).unwrap();
    fs::write(
        path("server.pem"),
        server.signed_by(&key, &issuer).unwrap().pem(),
    )
    .unwrap();
    fs::write(path("server.key"), key.serialize_pem()).unwrap();
}
