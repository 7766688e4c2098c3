//! A small, proper RFC 8555 server whose every answer can be made improper.
//!
//! As it stands it issues: nonces are used once, signatures and URLs are verified, http-01 is asked
//! for, the chain has an intermediate. A test that shows what a bad CA leads to starts from that,
//! and changes one answer ([`MockCa::answer_otherwise`]) or what is signed
//! ([`MockCa::issue_otherwise`]); what fails then is that.

mod acme;
mod jws;
pub mod wire;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::Value;

use super::client::Trust;
use acme::Orders;
pub use acme::Resource;
use wire::{Reply, Request};

/// Stops when dropped, after the connections that are open.
pub struct MockCa {
    directory: tempfile::TempDir,
    port: u16,
    shared: Arc<Shared>,
}

/// What an answer is about.
#[derive(Clone, Debug)]
pub struct Asked {
    pub resource: Resource,
    /// Of the order that it belongs to; none before there is one.
    pub names: Vec<String>,
}

type Answering = Box<dyn Fn(&Asked, &mut Reply) + Send>;
type Issuing = Box<dyn Fn(&mut CertificateParams) + Send>;

struct Shared {
    origin: String,
    http01_port: u16,
    tls: Arc<rustls::ServerConfig>,
    orders: Mutex<Orders>,
    signer: Signer,
    answering: Mutex<Option<Answering>>,
    issuing: Mutex<Option<Issuing>>,
    asked: Mutex<Vec<Resource>>,
    stopped: AtomicBool,
}

/// Root and intermediate.
struct Signer {
    root: String,
    intermediate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl MockCa {
    /// `http01_port`: where the answers to challenges are asked for, on 127.0.0.1.
    pub fn start(http01_port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (root, tls) = server_certificate();
        fs::write(directory.path().join("ca.pem"), root).unwrap();
        let shared = Arc::new(Shared {
            origin: format!("https://127.0.0.1:{port}"),
            http01_port,
            tls,
            orders: Mutex::default(),
            signer: Signer::new(),
            answering: Mutex::default(),
            issuing: Mutex::default(),
            asked: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let served = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = served.clone();
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                // a broken connection is the client's affair
                thread::spawn(move || {
                    wire::serve(stream, &shared.tls, |asked| shared.answer(asked))
                });
            }
        });
        Self {
            directory,
            port,
            shared,
        }
    }

    /// For `acme.directory`.
    pub fn directory_url(&self) -> String {
        format!("{}/directory", self.shared.origin)
    }

    /// Of one of its resources.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.shared.origin)
    }

    /// For `acme.ca_file`.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Trust in what it issues.
    pub fn root(&self) -> Trust {
        Trust::pem(&self.shared.signer.root)
    }

    /// A chain for `name` from here, for a key that nobody asked for.
    pub fn chain_for_another_key(&self, name: &str) -> String {
        let signer = &self.shared.signer;
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let leaf = parameters.signed_by(&key, &signer.issuer).unwrap();
        format!("{}{}", leaf.pem(), signer.intermediate)
    }

    /// A certificate of another CA with the same names in it: it signed nothing here.
    pub fn strangers_intermediate() -> String {
        Signer::new().intermediate
    }

    /// From now on every answer passes through `change`.
    pub fn answer_otherwise(&self, change: impl Fn(&Asked, &mut Reply) + Send + 'static) {
        *self.shared.answering.lock().unwrap() = Some(Box::new(change));
    }

    /// From now on whatever is to be signed passes through `change`.
    pub fn issue_otherwise(&self, change: impl Fn(&mut CertificateParams) + Send + 'static) {
        *self.shared.issuing.lock().unwrap() = Some(Box::new(change));
    }

    /// A proper CA again.
    pub fn behave(&self) {
        *self.shared.answering.lock().unwrap() = None;
        *self.shared.issuing.lock().unwrap() = None;
    }

    /// As after a restart: none that it gave is good any more.
    pub fn forget_nonces(&self) {
        self.shared.orders.lock().unwrap().forget_nonces();
    }

    /// How often each resource was asked for.
    pub fn asked(&self, resource: Resource) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked.iter().filter(|one| **one == resource).count()
    }
}

impl Drop for MockCa {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // wakes the thread that accepts
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn answer(&self, request: &Request) -> Reply {
        let (asked, mut reply) = self.proper(request);
        self.asked.lock().unwrap().push(asked.resource);
        if let Some(change) = &*self.answering.lock().unwrap() {
            change(&asked, &mut reply);
        }
        reply
    }
}

impl Signer {
    fn new() -> Self {
        let authority = |name: &str| {
            let mut parameters = CertificateParams::default();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            parameters.distinguished_name.push(DnType::CommonName, name);
            parameters
        };
        let root_key = KeyPair::generate().unwrap();
        let root_parameters = authority("mock root");
        let root = root_parameters.self_signed(&root_key).unwrap().pem();
        let root_issuer = Issuer::new(root_parameters, root_key);
        let key = KeyPair::generate().unwrap();
        let parameters = authority("mock intermediate");
        let intermediate = parameters.signed_by(&key, &root_issuer).unwrap().pem();
        Self {
            root,
            intermediate,
            issuer: Issuer::new(parameters, key),
        }
    }
}

/// The root to trust, and a server that it vouches for.
fn server_certificate() -> (String, Arc<rustls::ServerConfig>) {
    let signer = Signer::new();
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let leaf = parameters.signed_by(&key, &signer.issuer).unwrap();
    let pem = format!("{}{}", leaf.pem(), signer.intermediate);
    use rustls::pki_types::pem::PemObject;
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(pem.as_bytes());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    (signer.root, Arc::new(config))
}

/// A reply as JSON, for a change of some of its members.
pub fn edit(reply: &mut Reply, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&reply.body).unwrap();
    change(&mut value);
    reply.body = value.to_string().into_bytes();
}
