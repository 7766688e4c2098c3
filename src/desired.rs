//! P: all apps resolved against each other and the certificates.
//!
//! Conflicts between apps are found here and only here. One app's rejection changes nothing for
//! another.

mod accept; // P which apps get the names that they ask for
mod entrance; // P who answers a client that names no host
mod name_pattern; // P hand-written names that stand for many
mod owners; // P who has which name
mod resolve; // P accepted apps and certificates → what nginx should serve
mod suffix; // P names that many share
mod taken; // P names that other apps have got since a text was written

pub use accept::{Accepted, Candidate, Given, Rejection, accept};
pub(crate) use entrance::spoken_at;
pub use entrance::{DefaultServerOf, Entrance, Entrances, arrivals};
pub use name_pattern::NamePattern;
pub use owners::{Moves, Owners};
pub use resolve::{DesiredError, desired, wanted};
pub use taken::{LeftOut, Taken};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::certificate::{Identifier, StoredCertificate, WantedCertificate};
use crate::settings::RealIp;
use crate::vhost::{ServerName, VhostName, VhostSpec};

/// Everything that nginx should serve; what `render` turns into files.
#[derive(Clone, Debug)]
pub struct DesiredState {
    pub host: HostFacts,
    /// Sorted by name. Only vhosts that were accepted.
    pub vhosts: Vec<DesiredVhost>,
    /// Addresses of vhosts that are not among these because their very bytes are kept, and what speaks
    /// for them.
    pub kept: Vec<(IpAddr, CertificateFiles)>,
}

/// What all server blocks have in common.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The sockets for plain HTTP. At least one.
    pub http: Vec<Listener>,
    /// The sockets for HTTPS; empty while no vhost has TLS, so that the port stays free.
    pub https: Vec<Listener>,
    pub features: Features,
    /// RFC 8555 §8.1, base64url: the answer to every http-01 challenge is `token.thumbprint`.
    /// `None` while there is no ACME account key.
    pub thumbprint: Option<String>,
    /// Where answers for other account keys are; `None` while there is no other key.
    pub challenge_files: Option<PathBuf>,
    pub probe: Probe,
    /// The proxies in front of nginx.
    pub real_ip: Option<RealIp>,
    pub log_dir: PathBuf,
    /// `server_names_hash_bucket_size`, where a name needs it and no hand-written file has it: a second
    /// one is fatal.
    pub names_hash_bucket_size: Option<usize>,
}

impl HostFacts {
    /// Where a vhost's requests are logged.
    pub fn access_log(&self, vhost: &VhostName) -> PathBuf {
        self.log_dir.join(format!("{vhost}.access.log"))
    }
}

/// One listening socket of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listener {
    pub address: SocketAddr,
    /// Whether we own the answer to unknown names here (no hand-written default server).
    pub default_server: bool,
    /// Whether `http2` may be a parameter here, where nginx has it for whole sockets alone.
    pub http2: bool,
}

/// How nginx proves which generation answers, on the ordinary listeners.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Base64url, at least 128 bits; the location is `/.well-known/vhostd/SECRET`.
    pub secret: String,
    /// For the reserved name's HTTPS block and, where nginx cannot reject handshakes, the default
    /// server's: a placeholder.
    pub certificate: CertificateFiles,
}

/// The name that our probe block answers; `.invalid` never resolves (RFC 2606).
pub const RESERVED_NAME: &str = "vhostd.invalid";

/// What this nginx can do, probed with tiny configurations, never compared by version.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Features {
    /// `http2 on;` (else the parameter of `listen`).
    pub http2_directive: bool,
    /// `ssl_reject_handshake on;`
    pub ssl_reject_handshake: bool,
    /// `gzip_static on;`
    pub gzip_static: bool,
    /// `brotli_static on;`
    pub brotli_static: bool,
    /// `ssl_ecdh_curve X25519MLKEM768:…;`
    pub post_quantum_curve: bool,
    /// `keepalive_min_timeout` (1.27.4): no idle connection is cut by a reload.
    pub keepalive_min_timeout: bool,
}

#[derive(Clone, Debug)]
pub struct DesiredVhost {
    pub spec: VhostSpec,
    /// The part of the root's path that nginx need not check for links, because only root can change
    /// it; `None`: it checks all of it.
    pub links_checked_below: Option<PathBuf>,
    pub tls: DesiredTls,
}

#[derive(Clone, Debug)]
pub enum DesiredTls {
    Off,
    On {
        /// At least one; all of the same identifiers.
        wanted: Vec<WantedCertificate>,
        /// At least one; of each kind of key one at most.
        files: Vec<CertificateFiles>,
        /// The identifiers that these certificates are for.
        covered: Vec<Identifier>,
        /// Not a placeholder, and good for one of the vhost's names at least: plain HTTP redirects
        /// to HTTPS.
        trusted: bool,
        /// The vhost's names that the certificates are not good for: plain HTTP redirects none of
        /// these to HTTPS. Empty where nothing is trusted.
        uncovered: Vec<ServerName>,
    },
}

/// The versioned paths that a server block names, so that a renewal changes its bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl From<&StoredCertificate> for CertificateFiles {
    fn from(stored: &StoredCertificate) -> Self {
        Self {
            chain: stored.chain.clone(),
            key: stored.key.clone(),
        }
    }
}
