//! R: vhostd's own settings, read once per reload.

mod dns; // P whom names are looked up with, and who publishes texts
mod parse; // P text → Settings | Vec<Diagnostic>

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::dns::{
    Algorithm, DnsSettings, ExecSettings, Means, ProviderSettings, Rfc2136Settings,
};
use crate::certificate::Challenge;
use crate::certificate::internal::scope::Scope;
use crate::diagnostic::{Diagnostic, Position, fault};
use crate::vhost::{TlsDefaults, TlsMode};

/// `vhostd.yml`, every key with its default (contract: docs/settings.md).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    pub vhosts_dir: PathBuf,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub templates_dir: PathBuf,
    /// Access logs are `NAME.access.log` in it.
    pub log_dir: PathBuf,
    pub nginx: NginxSettings,
    pub acme: AcmeSettings,
    pub dns: DnsSettings,
    pub internal_ca: InternalCaSettings,
    /// What a vhost without a `tls` key gets.
    pub tls: TlsMode,
    /// A vhost's `root` must lie below one of these.
    pub roots: Vec<PathBuf>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NginxSettings {
    /// Found on PATH when not absolute.
    pub binary: PathBuf,
    /// The main file, which (indirectly) includes `current/http.conf`.
    pub config: PathBuf,
    /// The one-line file that `setup` writes.
    pub include: PathBuf,
    /// `None`: what nginx itself reports.
    pub pid_file: Option<PathBuf>,
    pub http_port: u16,
    pub https_port: u16,
    /// Addresses to listen on; `None`: `0.0.0.0`, and `[::]` where the host has IPv6.
    pub listen: Option<Vec<IpAddr>>,
    pub default_server: DefaultServer,
}

/// Whether vhostd owns the answer to unknown names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DefaultServer {
    /// Where no hand-written site is the `default_server` of that address and port.
    Auto,
    On,
    Off,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AcmeSettings {
    /// URL of the directory resource (RFC 8555 §7.1.1).
    pub directory: String,
    /// That of the same CA's staging area, for orders that install nothing.
    pub staging: Option<String>,
    /// Contact for the account, without `mailto:`.
    pub email: Option<String>,
    /// PEM; further trust for the directory's own TLS.
    pub ca_file: Option<PathBuf>,
    /// Certificate profile (draft-ietf-acme-profiles).
    pub profile: Option<String>,
    /// One certificate for each.
    pub key_types: KeyTypes,
    /// Whether a renewal keeps the key.
    pub reuse_key: bool,
    /// Of a certificate whose vhost does not say.
    pub challenge: Challenge,
    /// The DNS provider of those that need one and do not say which.
    pub dns: Option<String>,
}

/// Of vhostd's own CA.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InternalCaSettings {
    /// What its roots may speak for; `None`: what is around the names that a root is made for.
    pub permit: Option<Scope>,
}

/// The key of a certificate.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum KeyType {
    #[default]
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    #[serde(rename = "rsa-2048")]
    Rsa2048,
}

impl KeyType {
    pub const ALL: [Self; 3] = [Self::EcdsaP256, Self::EcdsaP384, Self::Rsa2048];

    /// As it is written in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Rsa2048 => "rsa-2048",
        }
    }

    /// nginx serves one certificate for each kind of key.
    pub fn is_ecdsa(self) -> bool {
        matches!(self, Self::EcdsaP256 | Self::EcdsaP384)
    }
}

/// One key type, or an ECDSA one and an RSA one, whose certificates are served together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KeyTypes {
    first: KeyType,
    second: Option<KeyType>,
}

impl KeyTypes {
    /// `None` where nginx could not serve both.
    pub fn both(first: KeyType, second: KeyType) -> Option<Self> {
        (first.is_ecdsa() != second.is_ecdsa()).then_some(Self {
            first,
            second: Some(second),
        })
    }

    /// The first one's certificate is the one that is always there.
    pub fn first(self) -> KeyType {
        self.first
    }

    pub fn second(self) -> Option<KeyType> {
        self.second
    }
}

impl From<KeyType> for KeyTypes {
    fn from(first: KeyType) -> Self {
        Self {
            first,
            second: None,
        }
    }
}

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

impl AcmeSettings {
    /// As it is set, or as it is known of the CA.
    pub fn staging_directory(&self) -> Option<&str> {
        let known = (self.directory == LETS_ENCRYPT).then_some(LETS_ENCRYPT_STAGING);
        self.staging.as_deref().or(known)
    }
}

/// Where the settings are when neither `--config` nor `VHOSTD_CONFIG` says.
pub const DEFAULT_PATH: &str = "/etc/vhostd/vhostd.yml";

impl Default for Settings {
    fn default() -> Self {
        Self {
            vhosts_dir: "/etc/vhostd/vhosts.d".into(),
            state_dir: "/var/lib/vhostd".into(),
            runtime_dir: "/run/vhostd".into(),
            templates_dir: "/etc/vhostd/templates".into(),
            log_dir: "/var/log/nginx".into(),
            nginx: NginxSettings::default(),
            acme: AcmeSettings::default(),
            dns: DnsSettings::default(),
            internal_ca: InternalCaSettings::default(),
            tls: TlsMode::Auto,
            roots: ["/srv", "/var/www", "/home", "/opt"]
                .map(PathBuf::from)
                .to_vec(),
        }
    }
}

impl Default for NginxSettings {
    fn default() -> Self {
        Self {
            binary: "nginx".into(),
            config: "/etc/nginx/nginx.conf".into(),
            include: "/etc/nginx/conf.d/vhostd.conf".into(),
            pid_file: None,
            http_port: 80,
            https_port: 443,
            listen: None,
            default_server: DefaultServer::Auto,
        }
    }
}

impl Default for AcmeSettings {
    fn default() -> Self {
        Self {
            directory: LETS_ENCRYPT.into(),
            staging: None,
            email: None,
            ca_file: None,
            profile: None,
            key_types: KeyTypes::default(),
            reuse_key: false,
            challenge: Challenge::Http01,
            dns: None,
        }
    }
}

impl Settings {
    /// Reads the settings, with every error of the file.
    ///
    /// A missing file is an error only where `explicit` names it; the default one may be absent.
    pub fn load(explicit: Option<&Path>) -> Result<Self, Vec<Diagnostic>> {
        let path = Self::path(explicit);
        match fs::read(path) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => parse::parse(path, &text),
                Err(error) => {
                    let at = Position::of_not_utf8(&error);
                    Err(vec![Diagnostic::new(path, "not UTF-8").at(at)])
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound && explicit.is_none() => {
                Ok(Self::default())
            }
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::NotFound => "there is no such file".into(),
                    _ => fault(&error),
                };
                let reason = format!("the settings cannot be read: {why}");
                Err(vec![Diagnostic::new(path, reason)])
            }
        }
    }

    /// What a vhost gets that does not say otherwise.
    pub fn tls_defaults(&self) -> TlsDefaults {
        TlsDefaults {
            mode: self.tls,
            profile: self.acme.profile.clone(),
            key_types: self.acme.key_types,
            challenge: self.acme.challenge.clone(),
            dns: self.acme.dns.clone(),
            providers: self.dns.providers.keys().cloned().collect(),
        }
    }

    /// The link that nginx reads through: `state_dir/current`.
    pub fn current(&self) -> PathBuf {
        self.state_dir.join("current")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }

    /// `explicit`: `--config` or `VHOSTD_CONFIG`; a file so named must exist.
    pub fn path(explicit: Option<&Path>) -> &Path {
        explicit.unwrap_or(Path::new(DEFAULT_PATH))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vhostd.yml");
        let errors = Settings::load(Some(&path)).unwrap_err();
        let reason = "the settings cannot be read: there is no such file";
        assert_eq!(errors[0].reason, reason);
        fs::write(&path, "state_dir: /tmp/x\n").unwrap();
        let settings = Settings::load(Some(&path)).unwrap();
        assert_eq!(settings.current(), Path::new("/tmp/x/current"));
        fs::write(&path, b"tls: off\n# \xff\n").unwrap();
        let errors = Settings::load(Some(&path)).unwrap_err();
        let at = errors[0].at.unwrap();
        assert_eq!((at.line, at.column), (2, 3));
    }
}
