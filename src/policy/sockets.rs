//! R: upstreams that no file may name, and unix sockets that the owner of a file may connect to.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::diagnostic::Diagnostic;
use crate::settings::users::is_listener;
use crate::vhost::{App, LocalUser, UpstreamAddress, VhostSpec};

/// Upstreams that lead to vhostd or back to nginx.
pub(super) fn of_vhostd(
    app: &App,
    runtime_dir: &Path,
    listeners: &[SocketAddr],
    own_addresses: &[IpAddr],
) -> Vec<Diagnostic> {
    each_upstream(app, |upstream| match upstream {
        UpstreamAddress::Socket(socket) => {
            is_listener(*socket, listeners, own_addresses).then(|| {
                let reason = format!("nginx itself listens on {socket}: requests would go round");
                (reason, "name the port that the app listens on".to_owned())
            })
        }
        UpstreamAddress::Unix(path) => is_in_directory(path, runtime_dir).then(|| {
            let reason = format!("{upstream} is in vhostd's own directory");
            (reason, "name the socket that the app listens on".to_owned())
        }),
    })
}

/// Unix sockets that `owner`, who is not root, may not connect to.
pub(super) fn of_others(app: &App, owner: &LocalUser) -> Vec<Diagnostic> {
    each_upstream(app, |upstream| match upstream {
        UpstreamAddress::Unix(path) if !may_connect(path, owner) => {
            let reason = format!("{owner} may not connect to {upstream}");
            let hint = format!(
                "give {owner} the right to write to the socket, or let root own the vhost file"
            );
            Some((reason, hint))
        }
        _ => None,
    })
}

/// Of a socket that is not there yet, whether its directory is the user's.
fn may_connect(path: &Path, owner: &LocalUser) -> bool {
    let connectable = owner.with_rights(|| {
        let writable = accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS);
        writable.map_err(io::Error::from)
    });
    match connectable {
        Ok(()) => true,
        Err(_) if fs::symlink_metadata(path).is_ok() => false,
        Err(_) => path
            .parent()
            .and_then(|directory| fs::metadata(directory).ok())
            .is_some_and(|directory| owner.uid() == Some(directory.uid())),
    }
}

/// As written, and symbolic links resolved.
fn is_in_directory(path: &Path, directory: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    let parent = path.parent().and_then(real);
    let resolved = real(path).or(parent);
    path.starts_with(directory)
        || resolved
            .zip(real(directory))
            .is_some_and(|(path, directory)| path.starts_with(directory))
}

fn each_upstream(
    app: &App,
    judge: impl Fn(&UpstreamAddress) -> Option<(String, String)>,
) -> Vec<Diagnostic> {
    let of_vhost = |vhost: &VhostSpec| {
        let upstreams = vhost.upstreams.iter();
        let found = upstreams.filter_map(|upstream| judge(upstream.address()));
        let diagnostics = found.map(|(reason, hint)| {
            let diagnostic = Diagnostic::new(&app.file, reason).at(vhost.at);
            diagnostic.hint(hint).not_permitted()
        });
        diagnostics.collect::<Vec<_>>()
    };
    app.vhosts.iter().flat_map(of_vhost).collect()
}
