//! P: whom names are looked up with, and who publishes the texts of dns-01.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DnsSettings {
    /// In the order in which they are asked; none: those of this host (resolv.conf).
    pub resolvers: Vec<SocketAddr>,
    /// By the name that vhost files use.
    pub providers: BTreeMap<String, ProviderSettings>,
}

/// One way to change a zone. Only the settings name one: a vhost file must not run commands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderSettings {
    pub means: Means,
    /// For one change.
    pub timeout: Duration,
    /// Until every authoritative server shows what was changed.
    pub propagation: Duration,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Means {
    Exec(ExecSettings),
    Rfc2136(Rfc2136Settings),
}

/// A program that changes the zone.
#[derive(Clone, Eq, PartialEq)]
pub struct ExecSettings {
    /// Absolute.
    pub program: PathBuf,
    /// Before the action, the name and the value.
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
}

/// A name server that takes signed updates (RFC 2136, RFC 8945).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rfc2136Settings {
    pub server: SocketAddr,
    /// `None`: the one that the record is in.
    pub zone: Option<String>,
    /// Base64, or the key as BIND's and Knot's tools write it. Read at each use.
    pub secret_file: PathBuf,
    /// `None`: the file says.
    pub key_name: Option<String>,
    /// `None`: the file says, or the usual one.
    pub algorithm: Option<Algorithm>,
}

/// RFC 8945 §6: what is neither broken nor truncated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Algorithm {
    #[default]
    HmacSha256,
    HmacSha384,
    HmacSha512,
}

impl Algorithm {
    pub const ALL: [Self; 3] = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let word = word.trim_end_matches('.');
        Self::ALL.into_iter().find(|it| it.as_str() == word)
    }
}

/// Arguments and environment may be secrets.
impl fmt::Debug for ExecSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variables: Vec<_> = self.environment.keys().collect();
        f.debug_struct("ExecSettings")
            .field("program", &self.program)
            .field("environment", &variables)
            .finish_non_exhaustive()
    }
}
