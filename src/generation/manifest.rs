//! P: what a generation was made from: enough to prove it, to return to it, and to keep an app's
//! last good version when its newest file is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::nginx::Logs;
use crate::nginx::dump::Survey;
use crate::vhost::{AppName, ServerName, VhostName};

/// `manifest.json` of a generation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Manifest {
    /// Of this format; a newer one is not read.
    pub format: u32,
    pub number: u64,
    /// Of all files but the entry, which has the number in it.
    pub digest: String,
    /// SHA-256 in hex of the entry, `http.conf`; `None` of generation 0.
    #[serde(default)]
    pub entry: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    pub reason: Reason,
    /// The apps in it, each with the text it was made from.
    pub apps: BTreeMap<AppName, AppSource>,
    /// Relative name of each vhost file → its app.
    pub files: BTreeMap<PathBuf, AppName>,
    /// The listening sockets, plain ones first.
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    /// Which block must answer which name.
    pub names: Vec<ServedName>,
    /// The version directories of the certificates that it names.
    pub certificates: Vec<PathBuf>,
    /// The files that nginx opens for it.
    #[serde(default)]
    pub logs: Vec<PathBuf>,
    /// The hand-written configuration that it was made for.
    pub survey: Survey,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AppSource {
    pub file: PathBuf,
    pub text: String,
    /// Not the newest file: that one was rejected.
    pub stale: bool,
}

/// A name, the vhost whose block answers it, and with what certificate.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ServedName {
    pub vhost: VhostName,
    /// As a client would say it; a wildcard by a name that it covers.
    pub host: String,
    /// SHA-256 of the leaf's DER, hex; `None` without TLS.
    pub leaf: Option<String>,
    /// Of further types of key: a client gets one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_leaves: Vec<String>,
    /// SHA-256 of the vhost file that answers: another one is to be proven anew.
    pub config: String,
}

impl Manifest {
    /// What nginx opens for it while `active` serves.
    pub fn logs_beside(&self, active: &Self) -> Logs {
        let known: BTreeSet<&PathBuf> = active.logs.iter().collect();
        let new = self.logs.iter().filter(|log| !known.contains(log));
        Logs {
            new: new.cloned().collect(),
            all: self.logs.clone(),
        }
    }
}

impl ServedName {
    /// What a client says for `name`; of a wildcard, one of the names that it covers.
    pub fn host(name: &ServerName) -> String {
        name.as_str().replacen('*', BELOW_A_WILDCARD, 1)
    }

    /// Whether a client that says `host` gets its server block, where no other name is nearer.
    pub fn is_asked_by(&self, host: &str) -> bool {
        match self.host.strip_prefix(BELOW_A_WILDCARD) {
            Some(zone) => host.ends_with(zone),
            None => self.host == host,
        }
    }

    /// Those that a client may get.
    pub fn leaves(&self) -> impl Iterator<Item = &String> {
        self.leaf.iter().chain(&self.further_leaves)
    }

    /// Whether that leaf is one of those that a client may get.
    pub fn has(&self, leaf: &str) -> bool {
        self.leaves().any(|known| known == leaf)
    }

    /// Where it is no name.
    pub fn address(&self) -> Option<IpAddr> {
        let bare = self
            .host
            .strip_prefix('[')
            .and_then(|it| it.strip_suffix(']'));
        bare.unwrap_or(&self.host).parse().ok()
    }

    /// The name that [`Self::host`] was made from.
    pub(crate) fn name(&self) -> Option<ServerName> {
        match self.host.split_once('.') {
            Some((BELOW_A_WILDCARD, zone)) => format!("*.{zone}").parse().ok(),
            _ => self.host.parse().ok(),
        }
    }
}

const BELOW_A_WILDCARD: &str = "vhostd-probe";

/// Why a generation was made.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The first of all.
    Setup,
    /// The daemon came up.
    Start,
    /// A vhost file came, changed or went.
    File,
    /// `vhostd reload`.
    Reload,
    /// A certificate came, or a placeholder had to.
    Certificate,
    /// `vhostd rollback`.
    Rollback,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Setup => "setup",
            Self::Start => "start",
            Self::File => "file",
            Self::Reload => "reload",
            Self::Certificate => "certificate",
            Self::Rollback => "rollback",
        })
    }
}

pub const FORMAT: u32 = 1;

impl Manifest {
    /// A draft that `stage` completes.
    pub fn draft(created_at: OffsetDateTime, reason: Reason, survey: Survey) -> Self {
        Self {
            format: FORMAT,
            number: 0,
            digest: String::new(),
            entry: None,
            created_at,
            reason,
            apps: BTreeMap::new(),
            files: BTreeMap::new(),
            http: Vec::new(),
            https: Vec::new(),
            names: Vec::new(),
            certificates: Vec::new(),
            logs: Vec::new(),
            survey,
        }
    }

    /// Whether a command's NAME means `app`: the app, one of its vhosts, or a name that it serves.
    pub fn calls(&self, app: &AppName, name: &str) -> bool {
        let mut served = self.names.iter().filter(|served| served.vhost.app() == app);
        name.split('#').next() == Some(app.as_str())
            || served.any(|served| {
                let known = served.name();
                known.is_some_and(|known| {
                    known.as_str().trim_matches(['[', ']']) == name.trim_matches(['[', ']'])
                })
            })
    }

    /// The names that it serves, and for whom: whatever becomes of the text that asked for them.
    pub fn owned(&self) -> impl Iterator<Item = (ServerName, &AppName)> {
        let names = self.names.iter();
        names.filter_map(|served| Some((served.name()?, served.vhost.app())))
    }

    /// As [`Self::owned`].
    pub fn served(&self) -> impl Iterator<Item = (ServerName, AppName)> {
        self.owned().map(|(name, app)| (name, app.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost::VhostName;

    #[test]
    fn the_name_that_is_asked_for_tells_the_name_that_is_served() {
        let app = "a".parse().unwrap();
        for name in [
            "a.example",
            "*.a.example",
            "vhostd-probes.example",
            "192.0.2.1",
            "[2001:db8::1]",
        ] {
            let name: ServerName = name.parse().unwrap();
            let served = ServedName {
                further_leaves: Vec::new(),
                vhost: VhostName::only(&app),
                host: ServedName::host(&name),
                leaf: None,
                config: String::new(),
            };
            assert_eq!(served.name(), Some(name));
        }
    }
}
