//! R: what a vhost file may name: the rights of its owner, and what the settings leave to that user.
//!
//! A vhost file has the rights of its owner: what nginx and vhostd open for it, they open with more
//! rights than its author has. What a file may not name is *not permitted*, and never serves on as
//! the last good version.

mod limits; // P names, upstreams and certificates of one file, by the settings
mod sockets; // R unix sockets that a user may connect to

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::certificate::preflight::observe::host_addresses;
use crate::diagnostic::Diagnostic;
use crate::settings::Settings;
use crate::vhost::root::{self, RootRights};
use crate::vhost::{App, LocalUser};

/// What holds for all files of one reading.
#[derive(Debug)]
pub struct Policy<'a> {
    settings: &'a Settings,
    /// nginx's user.
    worker: &'a LocalUser,
    /// The settings' `roots`, symbolic links resolved.
    roots: Vec<PathBuf>,
    /// The sockets that nginx opens for vhostd.
    listeners: Vec<SocketAddr>,
    /// The addresses of this host.
    own_addresses: Vec<IpAddr>,
    /// Whose files have all rights, as root's: the user that vhostd runs as.
    trusted: u32,
    /// Owners of files so far.
    owners: BTreeMap<u32, LocalUser>,
}

/// What may be served of an app.
#[derive(Debug)]
pub struct Decision {
    /// Without roots that are not read.
    pub app: App,
    /// Why the app is not served: what is not permitted, and roots that lead nowhere.
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
}

impl<'a> Policy<'a> {
    pub fn new(settings: &'a Settings, worker: &'a LocalUser, has_ipv6: bool) -> Self {
        Self {
            settings,
            worker,
            roots: root::resolved_all(&settings.roots),
            listeners: settings.nginx.sockets(has_ipv6),
            own_addresses: host_addresses(),
            trusted: trusted(&settings.state_dir),
            owners: BTreeMap::new(),
        }
    }

    pub fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// What may be served of `app`, whose file belongs to `app.uid`.
    pub fn decide(&mut self, mut app: App) -> Decision {
        let uid = app.uid;
        let is_trusted = uid == 0 || uid == self.trusted;
        let owner = self.owners.entry(uid);
        let owner = &*owner.or_insert_with(|| LocalUser::with_uid(uid));
        let owner = (!is_trusted).then_some(owner);
        let limit = owner.and_then(LocalUser::name);
        let limit = limit.and_then(|name| self.settings.users.get(name));
        let mut errors = Vec::new();
        if let Some(owner) = owner {
            errors.extend(limits::errors(&app, owner, limit, self.settings));
            errors.extend(sockets::of_others(&app, owner));
        }
        errors.extend(sockets::of_vhostd(
            &app,
            &self.settings.runtime_dir,
            &self.listeners,
            &self.own_addresses,
        ));
        let limit = limit.and_then(|limit| limit.roots.as_deref());
        let limit = limit.map(root::resolved_all);
        let rights = RootRights {
            roots: &self.roots,
            owner,
            limit: limit.as_deref(),
            worker: self.worker,
        };
        let findings = root::inspect(&app, rights);
        errors.extend(findings.errors);
        for vhost in &mut app.vhosts {
            if findings.unread.contains(&vhost.name) {
                vhost.root = None;
                vhost.cache_assets = None;
            }
        }
        Decision {
            app,
            errors,
            warnings: findings.warnings,
        }
    }
}

/// The user of a daemon that is not root; its state directory tells, also a command of another user.
fn trusted(state_dir: &Path) -> u32 {
    match fs::metadata(state_dir) {
        Ok(metadata) => metadata.uid(),
        Err(_) => geteuid().as_raw(),
    }
}
