//! R: vhostd's own settings, read once per reload.

pub mod ca; // P one ACME CA of several
mod dns; // P whom names are looked up with, and who publishes texts
pub mod hooks; // P whom the operator wants to be told, and of what
pub mod origin; // P which URLs are spoken to
mod parse; // P text → Settings | Vec<Diagnostic>
pub mod proxy; // P the HTTP proxy that CAs and webhooks are reached through
mod real_ip; // P which peers are proxies in front of nginx
pub mod users; // P limits of the vhost files that a user owns

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::dns::{
    Algorithm, DnsSettings, ExecSettings, Means, ProviderSettings, Rfc2136Settings,
};
use crate::certificate::Challenge;
use crate::certificate::internal::scope::Scope;
use crate::diagnostic::{Diagnostic, Position, fault};
use crate::settings::ca::{CaSettings, ExternalAccount};
use crate::settings::proxy::ProxySettings;
use crate::vhost::{TlsDefaults, TlsMode};

use hooks::HookSettings;
pub use real_ip::RealIp;
use users::Users;

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
    pub hooks: HookSettings,
    /// What a vhost without a `tls` key gets.
    pub tls: TlsMode,
    /// A vhost's `root` must lie below one of these.
    pub roots: Vec<PathBuf>,
    /// The proxies in front of nginx.
    pub real_ip: Option<RealIp>,
    pub users: Users,
    /// Its members may do over the control socket what root may.
    pub admin_group: Option<String>,
    pub sandbox: SandboxPolicy,
}

/// What to do on a host that has no sandbox for nginx's tests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SandboxPolicy {
    /// Test without it, and warn.
    #[default]
    Auto,
    /// Test no candidate.
    Require,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NginxSettings {
    /// Found on PATH when not absolute.
    pub binary: PathBuf,
    /// The main file, which (indirectly) includes `current/http.conf`.
    pub config: PathBuf,
    /// The one-line file that `setup` writes; `None`: where the line is, or where nginx reads it last.
    pub include: Option<PathBuf>,
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
    /// Where no hand-written site is the default server of that address and port.
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
    /// What the account is bound to, where the CA wants that.
    pub external_account: Option<ExternalAccount>,
    /// Tried in order when the first keeps failing.
    pub fallbacks: Vec<CaSettings>,
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
    /// How CAs and webhooks are reached.
    pub proxy: ProxySettings,
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

    /// The one that is written like this.
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == text)
    }

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
    /// `None` where nginx could not serve both. The ECDSA one is the first, in whatever order they are
    /// written: another order asks for nothing else.
    pub fn both(one: KeyType, other: KeyType) -> Option<Self> {
        let (first, second) = match one.is_ecdsa() {
            true => (one, other),
            false => (other, one),
        };
        (first.is_ecdsa() && !second.is_ecdsa()).then_some(Self {
            first,
            second: Some(second),
        })
    }

    /// Its certificate has the paths that a single type's has.
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
    /// The only profile with which the CA puts addresses into certificates, where that is known.
    pub fn address_profile(&self) -> Option<&'static str> {
        let known = ["https://acme-v02.", "https://acme-staging-v02."];
        let rest = known
            .iter()
            .find_map(|start| self.directory.strip_prefix(start));
        let is_lets_encrypt = rest.is_some_and(|rest| rest.starts_with("api.letsencrypt.org/"));
        is_lets_encrypt.then_some("shortlived")
    }

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
            hooks: HookSettings::default(),
            tls: TlsMode::Auto,
            roots: ["/srv", "/var/www", "/home", "/opt"]
                .map(PathBuf::from)
                .to_vec(),
            real_ip: None,
            users: Users::new(),
            admin_group: None,
            sandbox: SandboxPolicy::Auto,
        }
    }
}

impl NginxSettings {
    /// The addresses that nginx listens on for vhostd.
    pub fn addresses(&self, has_ipv6: bool) -> Vec<IpAddr> {
        let all = || {
            let v6 = has_ipv6.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
            let v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            std::iter::once(v4).chain(v6).collect()
        };
        self.listen.clone().unwrap_or_else(all)
    }

    /// The sockets that nginx opens for vhostd, plain ones first.
    pub fn sockets(&self, has_ipv6: bool) -> Vec<SocketAddr> {
        let addresses = self.addresses(has_ipv6);
        let at = |port| {
            let addresses = addresses.iter();
            addresses.map(move |address| SocketAddr::new(*address, port))
        };
        at(self.http_port).chain(at(self.https_port)).collect()
    }
}

impl Default for NginxSettings {
    fn default() -> Self {
        Self {
            binary: "nginx".into(),
            config: "/etc/nginx/nginx.conf".into(),
            include: None,
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
            external_account: None,
            fallbacks: Vec::new(),
            profile: None,
            key_types: KeyTypes::default(),
            reuse_key: false,
            challenge: Challenge::Http01,
            dns: None,
            proxy: ProxySettings::default(),
        }
    }
}

impl Settings {
    /// Reads the settings, with every error of the file, and the environment's proxy.
    ///
    /// A missing file is an error only where `explicit` names it; the default one may be absent.
    pub fn load(explicit: Option<&Path>) -> Result<Self, Vec<Diagnostic>> {
        let mut settings = Self::read(explicit)?;
        let proxy = settings.acme.proxy;
        settings.acme.proxy = proxy.with_environment(|name| std::env::var(name).ok());
        Ok(settings)
    }

    fn read(explicit: Option<&Path>) -> Result<Self, Vec<Diagnostic>> {
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
            address_profile: self.acme.address_profile(),
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
    fn lets_encrypt_takes_addresses_with_one_profile_alone() {
        let profile = |directory: &str| {
            let directory = directory.to_owned();
            let acme = AcmeSettings {
                directory,
                ..AcmeSettings::default()
            };
            acme.address_profile()
        };
        for directory in [LETS_ENCRYPT, LETS_ENCRYPT_STAGING] {
            assert_eq!(profile(directory), Some("shortlived"));
        }
        assert_eq!(
            profile("https://acme-v02.api.letsencrypt.org.example/"),
            None
        );
        assert_eq!(profile("https://ca.example/directory"), None);
    }

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
