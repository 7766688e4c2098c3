//! A host that serves the rendering of vhost files.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use vhostd::certificate::{Identifier, Issuer, WantedCertificate};
use vhostd::desired::{
    CertificateFiles, DesiredState, DesiredTls, DesiredVhost, Features, HostFacts, Listener, Probe,
    RESERVED_NAME,
};
use vhostd::render::{Templates, entry, render};
use vhostd::settings::RealIp;
use vhostd::vhost::parse::parse;
use vhostd::vhost::root::links_checked_below;
use vhostd::vhost::{AppName, RootDir, TlsMode, VhostSpec};

use crate::support::client::{self, Response, Trust};
use crate::support::nginx::{NginxHost, features};

pub const THUMBPRINT: &str = "thumb-print_1";
const GENERATION: u64 = 7;

pub struct Served {
    host: NginxHost,
    trusted: bool,
    issuer: Issuer,
    real_ip: Option<RealIp>,
    features: Features,
    /// Self-signed, and so its own root.
    certificate: CertificateDer<'static>,
}

impl Served {
    /// Nothing is served yet; certificates will be trusted ones.
    pub fn new() -> Self {
        let host = NginxHost::new();
        fs::create_dir(host.path("root")).unwrap();
        let names = NAMES.map(str::to_owned).to_vec();
        let issued = rcgen::generate_simple_self_signed(names).unwrap();
        fs::write(host.path("chain.pem"), issued.cert.pem()).unwrap();
        fs::write(host.path("key.pem"), issued.signing_key.serialize_pem()).unwrap();
        Self {
            host,
            trusted: true,
            issuer: Issuer::Acme,
            real_ip: None,
            features: features(),
            certificate: issued.cert.der().clone(),
        }
    }

    /// The same, with placeholders instead of certificates.
    pub fn untrusted() -> Self {
        Self {
            trusted: false,
            ..Self::new()
        }
    }

    /// The same, with certificates that nothing of ours orders.
    pub fn with_certificates_from_elsewhere() -> Self {
        Self {
            issuer: Issuer::File,
            ..Self::new()
        }
    }

    /// The same, with proxies in front of nginx.
    pub fn behind(from: &str) -> Self {
        Self {
            real_ip: Some(RealIp {
                from: vec![from.to_owned()],
                header: "X-Forwarded-For".to_owned(),
            }),
            ..Self::new()
        }
    }

    /// The same, rendered for an nginx that can do nothing special.
    pub fn plain() -> Self {
        Self {
            features: Features {
                http2_directive: features().http2_directive,
                ..Features::default()
            },
            ..Self::new()
        }
    }

    /// Renders `files` (app → text of its vhost file) and starts nginx.
    pub fn serve(self, files: &[(&str, &str)]) -> Self {
        let desired = DesiredState {
            kept: Vec::new(),
            host: self.facts(),
            vhosts: files
                .iter()
                .flat_map(|(app, text)| self.vhosts(app, text))
                .collect(),
        };
        let rendered = render(&desired, &Templates::shipped().unwrap()).unwrap();
        let directory = self.host.path("generations/7");
        fs::create_dir_all(directory.join("vhosts")).unwrap();
        for (name, bytes) in &rendered.files {
            fs::write(directory.join(name), bytes).unwrap();
        }
        let http = directory.join("http.conf");
        fs::write(&http, entry(&rendered, GENERATION, &directory).unwrap()).unwrap();
        self.host.include(&http);
        let test = self.host.test();
        let said = String::from_utf8_lossy(&test.stderr).into_owned();
        assert!(test.status.success(), "{said}");
        assert!(!said.contains("[warn]"), "{said}");
        self.host.start();
        self
    }

    /// GET over TLS.
    pub fn get(&self, path: &str) -> Response {
        client::get_tls(self.https(), NAMES[0], path, &self.trust()).unwrap()
    }

    /// Writes a file below the root.
    pub fn file(&self, path: &str, contents: &str) {
        let path = self.host.path("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    pub fn host(&self) -> &NginxHost {
        &self.host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.host.path(name)
    }

    pub fn root(&self) -> String {
        self.host.path("root").display().to_string()
    }

    pub fn trust(&self) -> Trust {
        Trust::Root(self.certificate.clone())
    }

    pub fn http(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.host.http_port).into()
    }

    pub fn https(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.host.https_port).into()
    }

    pub fn http_v6(&self) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, self.host.http_port).into()
    }

    pub fn https_v6(&self) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, self.host.https_port).into()
    }

    fn facts(&self) -> HostFacts {
        let listeners = |addresses: [SocketAddr; 2]| {
            let listener = |address| Listener {
                address,
                default_server: true,
                http2: true,
            };
            addresses.map(listener).to_vec()
        };
        HostFacts {
            http: listeners([self.http(), self.http_v6()]),
            https: listeners([self.https(), self.https_v6()]),
            features: self.features,
            thumbprint: Some(THUMBPRINT.into()),
            challenge_files: None,
            probe: Probe {
                secret: "secret".into(),
                certificate: self.files(),
            },
            real_ip: self.real_ip.clone(),
            log_dir: self.host.path("logs"),
            names_hash_bucket_size: Some(512),
        }
    }

    fn vhosts(&self, app: &str, text: &str) -> Vec<DesiredVhost> {
        let app = app.parse::<AppName>().unwrap();
        let roots = [self.host.config().parent().unwrap().to_path_buf()];
        let parsed = parse(
            &app,
            Path::new("hello.yml"),
            text,
            &roots,
            &TlsMode::Auto.into(),
        )
        .unwrap();
        let checked_below = links_checked_below([&parsed]);
        let below = |root: &RootDir| checked_below.get(root.as_path()).cloned();
        let desired = |spec: VhostSpec| DesiredVhost {
            links_checked_below: spec.root.as_ref().and_then(below),
            tls: DesiredTls::On {
                wanted: vec![
                    WantedCertificate::new(vec![Identifier::Dns(NAMES[0].into())], self.issuer)
                        .unwrap(),
                ],
                files: vec![self.files()],
                covered: spec
                    .all_names()
                    .map(|it| it.value.to_identifier())
                    .collect(),
                trusted: self.trusted,
                uncovered: Vec::new(),
            },
            spec,
        };
        parsed.vhosts.into_iter().map(desired).collect()
    }

    fn files(&self) -> CertificateFiles {
        CertificateFiles {
            chain: self.host.path("chain.pem"),
            key: self.host.path("key.pem"),
        }
    }
}

/// What the one certificate of the tests covers.
const NAMES: [&str; 4] = [
    "hello.example.com",
    "www.hello.example.com",
    "*.wild.example.com",
    RESERVED_NAME,
];
