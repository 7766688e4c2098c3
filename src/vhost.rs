//! P: what an operator asked for, parsed. (`source` and `root` read.)
//!
//! Every field is a newtype with private contents, made only by its parser: there is no later
//! `validate()`. Words here are the operator's; nginx's begin in `render/block.rs`.

pub mod identity; // P which file a vhost file is, and whose
pub mod parse; // P VhostFile → App | Vec<Diagnostic>
pub mod reach; // R sockets and links that nginx's user cannot follow
pub mod root; // R a root's symbolic links and permissions
pub mod source; // R directory → Vec<VhostFile>; the only reader of the vhosts directory

mod address; // P addresses that no file may name
mod local_user; // R a user of this host, and what the user may reach
mod name;
mod path; // P directories and URL prefixes
mod upstream;

pub use local_user::LocalUser;
pub use name::{AppName, NameError, ServerName, VhostName};
pub use path::PathError;
pub(crate) use path::normalized;
pub use upstream::{Upstream, UpstreamAddress, UpstreamError, UpstreamScheme};

use std::path::PathBuf;
use std::time::Duration;

use crate::certificate::{Challenge, Identifier, PemFiles};
use crate::diagnostic::{Located, Position};
use crate::settings::KeyTypes;

/// One vhost file, parsed: the vhosts of one app.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct App {
    pub name: AppName,
    /// As the user knows it: `/etc/vhostd/vhosts.d/hello.yml`.
    pub file: PathBuf,
    /// The user who owns the file, and whose rights it has.
    pub uid: u32,
    /// At least one. A mapping is named `hello`; the n-th of a list `hello#n`, from 1.
    pub vhosts: Vec<VhostSpec>,
    /// `pki__realms` of the Ansible form: each the identifiers of one certificate. Usually empty.
    pub realms: Vec<Realm>,
}

impl App {
    /// The same as the file of that user.
    pub fn owned_by(mut self, uid: u32) -> Self {
        self.uid = uid;
        let files = self.vhosts.iter_mut();
        for files in files.filter_map(|vhost| vhost.tls.files.as_mut()) {
            files.uid = uid;
        }
        self
    }
}

/// The number of no user, who has no rights (setreuid(2)).
pub const NO_OWNER: u32 = u32::MAX;

/// One vhost: a set of names, and what answers them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VhostSpec {
    pub name: VhostName,
    /// Where the mapping begins.
    pub at: Position,
    /// At least one; the first is canonical; no name twice.
    pub server_names: Vec<Located<ServerName>>,
    /// Further names, which redirect to [`VhostSpec::redirect_target`].
    pub redirect_from: Vec<Located<ServerName>>,
    /// Files below it are served first; a miss goes to the app.
    pub root: Option<RootDir>,
    /// Empty for a static site. All of one scheme.
    pub upstreams: Vec<Upstream>,
    pub cache_assets: Option<CacheAssets>,
    pub tls: TlsSpec,
}

impl VhostSpec {
    /// The name that certificates are named after.
    pub fn canonical(&self) -> &ServerName {
        &self.server_names[0].value
    }

    /// The name that `redirect_from` leads to: the first that is no wildcard. The parser refuses a
    /// `redirect_from` where there is none.
    pub fn redirect_target(&self) -> &ServerName {
        let mut names = self.server_names.iter().map(|name| &name.value);
        let exact = names.find(|name| !name.is_wildcard());
        exact.unwrap_or(self.canonical())
    }

    /// Every name that this vhost answers, the canonical one first.
    pub fn all_names(&self) -> impl Iterator<Item = &Located<ServerName>> {
        self.server_names.iter().chain(&self.redirect_from)
    }
}

/// The identifiers of one certificate, shared by the vhosts that it covers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Realm {
    /// At least one; each in one realm, and answered by a vhost of the same file.
    pub domains: Vec<Located<ServerName>>,
}

/// Where a vhost's certificate comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsMode {
    /// From the ACME server of the settings.
    Auto,
    /// From vhostd's own CA.
    Internal,
    /// No TLS at all: plain HTTP.
    Off,
}

/// What a vhost's `tls` key says. `None`: what the settings say.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsSpec {
    pub mode: Option<TlsMode>,
    /// Certificate profile (draft-ietf-acme-profiles).
    pub profile: Option<String>,
    pub key_types: Option<KeyTypes>,
    pub challenge: Option<Challenge>,
    /// The certificate is there already: it is neither ordered nor renewed here.
    pub files: Option<PemFiles>,
}

impl TlsSpec {
    /// With the settings in all that it leaves open.
    pub fn or(&self, defaults: &TlsDefaults) -> TlsDefaults {
        TlsDefaults {
            mode: self.mode.unwrap_or(defaults.mode),
            profile: self.profile.clone().or_else(|| defaults.profile.clone()),
            address_profile: defaults.address_profile,
            key_types: self.key_types.unwrap_or(defaults.key_types),
            challenge: self.challenge.clone().unwrap_or(defaults.challenge.clone()),
            // who wants http-01 wants no other
            dns: match self.challenge {
                Some(Challenge::Http01) => None,
                _ => defaults.dns(),
            },
            providers: match self.challenge {
                Some(Challenge::Http01) => Vec::new(),
                _ => defaults.providers.clone(),
            },
        }
    }
}

/// What the settings say about the certificate of a vhost that does not say otherwise.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsDefaults {
    pub mode: TlsMode,
    pub profile: Option<String>,
    /// The only one that the CA takes for addresses, where there is such a rule.
    pub address_profile: Option<&'static str>,
    pub key_types: KeyTypes,
    pub challenge: Challenge,
    /// The DNS provider of those that need one and do not say which.
    pub dns: Option<String>,
    /// All of them, sorted.
    pub providers: Vec<String>,
}

impl TlsDefaults {
    /// The DNS provider where nobody says which: the preferred one, or the only one.
    pub fn dns(&self) -> Option<String> {
        let only = match self.providers.as_slice() {
            [only] => Some(only),
            _ => None,
        };
        self.dns.as_ref().or(only).cloned()
    }

    /// How a certificate for `identifiers` is proven; `None`: there is no way. Of a wildcard only
    /// DNS can tell, and of an address only the host (RFC 8555 §8.3, RFC 8738 §7).
    pub fn challenge_of<'a>(
        &self,
        identifiers: impl IntoIterator<Item = &'a Identifier>,
    ) -> Option<Challenge> {
        let (mut wildcard, mut address) = (false, false);
        for identifier in identifiers {
            match identifier {
                Identifier::Dns(name) => wildcard |= name.starts_with("*."),
                Identifier::Ip(_) => address = true,
            }
        }
        match (&self.challenge, wildcard) {
            (Challenge::Dns01(_), false) if address => Some(Challenge::Http01),
            (Challenge::Http01, true) => self.dns().map(|name| Challenge::Dns01(name.into())),
            (challenge, _) => Some(challenge.clone()),
        }
    }
}

impl From<TlsMode> for TlsDefaults {
    fn from(mode: TlsMode) -> Self {
        Self {
            mode,
            profile: None,
            address_profile: None,
            key_types: KeyTypes::default(),
            challenge: Challenge::default(),
            dns: None,
            providers: Vec::new(),
        }
    }
}

/// Which files below `root` get a long life.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CacheAssets {
    /// Path prefixes that begin and end with `/`; default `/assets/` and `/static/`.
    pub paths: Vec<AssetPath>,
    /// Whole seconds; default one year.
    pub max_age: Duration,
}

/// A URL path prefix: `/`, then segments of unreserved characters, then `/`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct AssetPath(String);

/// An absolute, normalized directory below one of the settings' `roots`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootDir {
    path: PathBuf,
    /// Where the file says so.
    at: Position,
}
