//! R: the directories that vhosts name as `root`, as they are on this host.
//!
//! Their spelling was judged by the parser. Here symbolic links are resolved: a root must not lead
//! out of the directories that the settings allow, whoever planted the link.

mod components; // R how a root's path is resolved, and who owns what it goes through
mod links; // P from where on nginx checks links, and which one it stops
pub(crate) mod stopped_links; // R symbolic links below a root that nginx does not follow
mod worker; // R who nginx's workers are

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

pub use worker::Worker;

use super::path::is_below;
use super::{App, RootDir};
use crate::diagnostic::{Diagnostic, fault};

/// What [`inspect`] found about an app's roots.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RootFindings {
    /// The app is rejected.
    pub errors: Vec<Diagnostic>,
    /// The app is served; its files perhaps not.
    pub warnings: Vec<Diagnostic>,
}

/// Resolves each root of `app`. `roots` are the settings'.
pub fn inspect(app: &App, roots: &[PathBuf], worker: &Worker) -> RootFindings {
    // an allowed directory may itself be a link, as /home is on some hosts
    let allowed: Vec<PathBuf> = roots
        .iter()
        .map(|root| fs::canonicalize(root).unwrap_or_else(|_| root.clone()))
        .collect();
    let mut findings = RootFindings::default();
    for root in app.vhosts.iter().filter_map(|vhost| vhost.root.as_ref()) {
        inspect_one(app, root, &allowed, worker, &mut findings);
    }
    findings
}

/// For each root of `apps` the longest part of its path that only root can make lead elsewhere, as
/// things are now: nginx checks the links below that.
pub fn links_checked_below<'a>(
    apps: impl IntoIterator<Item = &'a App>,
) -> BTreeMap<PathBuf, PathBuf> {
    let vhosts = apps.into_iter().flat_map(|app| &app.vhosts);
    let roots = vhosts.filter_map(|vhost| vhost.root.as_ref());
    roots
        .map(|root| {
            let components = components::components(root.as_path());
            let trusted = links::checked_below(&components);
            (root.as_path().to_path_buf(), trusted.to_path_buf())
        })
        .collect()
}

fn inspect_one(
    app: &App,
    root: &RootDir,
    allowed: &[PathBuf],
    worker: &Worker,
    findings: &mut RootFindings,
) {
    let path = root.as_path();
    let about = |reason: String| Diagnostic::new(&app.file, reason).at(root.at());
    let resolved = match resolve(path) {
        Ok(resolved) => resolved,
        // run by somebody with less permissions than the daemon
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let reason = "the root cannot be looked at: permission denied";
            findings.warnings.push(about(reason.to_owned()));
            return;
        }
        Err(error) => {
            let reason = format!("the root leads nowhere: {}", fault(&error));
            findings.errors.push(
                about(reason).hint("a symbolic link on the way has no target: create it first"),
            );
            return;
        }
    };
    if !is_below(&resolved.path, allowed) {
        let leads = resolved.path.display();
        findings.errors.push(
            about(format!("the root leads to {leads} through a symbolic link"))
                .hint("move the files, or add that directory to `roots` in vhostd's settings"),
        );
        return;
    }
    if let Some(missing) = resolved.missing {
        findings.warnings.push(
            about(format!("{} does not exist yet", missing.display()))
                .hint("its files are served as soon as it does"),
        );
    } else if !resolved.path.is_dir() {
        let reason = format!("{} is not a directory", path.display());
        findings.warnings.push(about(reason));
    }
    if let Some(closed) = closed_component(&resolved.path, worker) {
        findings.warnings.push(
            about(format!("nginx's user may not enter {}", closed.display()))
                .hint(format!("chmod o+x {}", closed.display())),
        );
    }
    if let Some(link) = links::stopped(&components::components(path)) {
        let shown = link.path.display();
        let (owner, target) = (user(link.uid), user(link.target_uid));
        let reason = format!(
            "nginx does not follow {shown}: the link is {owner}'s, and what it leads to is {target}'s"
        );
        findings
            .warnings
            .push(about(reason).hint(format!("chown -h {target} {shown}")));
    }
}

/// The user's name; the number where it has none.
fn user(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid));
    user.ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name)
}

struct Resolved {
    /// Without symbolic links, as far as it exists; the rest as written.
    path: PathBuf,
    /// The first component that does not exist, as written.
    missing: Option<PathBuf>,
}

/// Resolves the longest part of `path` that exists.
fn resolve(path: &Path) -> io::Result<Resolved> {
    let mut missing = None;
    for existing in path.ancestors() {
        match fs::canonicalize(existing) {
            Ok(resolved) => {
                let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
                return Ok(Resolved {
                    path: resolved.components().chain(rest.components()).collect(),
                    missing,
                });
            }
            // a link to what is not there: nobody knows where it will lead
            Err(error) if fs::symlink_metadata(existing).is_ok_and(|it| it.is_symlink()) => {
                return Err(error);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing = Some(existing.to_path_buf());
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The first directory on the way that nginx's workers may not search.
pub(super) fn closed_component<'a>(path: &'a Path, worker: &Worker) -> Option<&'a Path> {
    let mut parts: Vec<&Path> = path.ancestors().collect();
    parts.reverse();
    parts.into_iter().find(|part| {
        fs::metadata(part).is_ok_and(|metadata| metadata.is_dir() && !worker.may_search(&metadata))
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::vhost::TlsMode;

    /// A directory `srv` that is the only one allowed, and `other` beside it.
    fn host() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        for name in ["srv/app/public", "other/public"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), mode).unwrap();
        let base = directory.path().canonicalize().unwrap();
        (directory, base)
    }

    fn findings(base: &Path, root: &str) -> RootFindings {
        let roots = [base.join("srv")];
        let text = format!(
            "server_name: a.example\nroot: {}\n",
            roots[0].join(root).display()
        );
        let app = "a".parse().unwrap();
        let app = crate::vhost::parse::parse(
            &app,
            Path::new("a.yml"),
            &text,
            &roots,
            &TlsMode::Auto.into(),
        );
        inspect(&app.unwrap(), &roots, &Worker::default())
    }

    #[test]
    fn a_root_that_is_there_and_open_has_no_findings() {
        let (_directory, base) = host();
        assert_eq!(findings(&base, "app/public"), RootFindings::default());
    }

    #[test]
    fn a_link_that_leaves_the_roots_is_an_error_at_the_root_and_one_that_stays_is_none() {
        let (_directory, base) = host();
        symlink(base.join("other"), base.join("srv/out")).unwrap();
        symlink(base.join("srv/app"), base.join("srv/in")).unwrap();
        for root in ["out/public", "out", "out/not/yet"] {
            let found = findings(&base, root);
            assert_eq!(found.errors[0].at.unwrap().line, 2, "{root}");
            assert!(
                found.errors[0].reason.contains("through a symbolic link"),
                "{root}"
            );
        }
        assert_eq!(findings(&base, "in/public"), RootFindings::default());
        symlink(base.join("srv"), base.join("srv/itself")).unwrap();
        assert_eq!(findings(&base, "itself").errors.len(), 1);
    }

    #[test]
    fn a_link_without_a_target_or_to_itself_is_an_error() {
        let (_directory, base) = host();
        symlink(base.join("later"), base.join("srv/dangling")).unwrap();
        symlink(base.join("srv/loop"), base.join("srv/loop")).unwrap();
        for root in ["dangling", "dangling/public", "loop"] {
            assert_eq!(findings(&base, root).errors.len(), 1, "{root}");
        }
    }

    #[test]
    fn allowed_directories_may_be_links_themselves() {
        let (_directory, base) = host();
        fs::rename(base.join("srv"), base.join("real")).unwrap();
        symlink(base.join("real"), base.join("srv")).unwrap();
        assert_eq!(findings(&base, "app/public"), RootFindings::default());
    }

    #[test]
    fn a_root_that_does_not_exist_yet_is_a_warning_that_names_the_first_missing_part() {
        let (_directory, base) = host();
        let found = findings(&base, "app/build/public");
        assert!(found.errors.is_empty());
        let missing = base.join("srv/app/build");
        assert_eq!(
            found.warnings[0].reason,
            format!("{} does not exist yet", missing.display())
        );
    }

    #[test]
    fn a_part_that_others_may_not_enter_and_a_file_are_warnings() {
        let (_directory, base) = host();
        let app = base.join("srv/app");
        fs::set_permissions(&app, fs::Permissions::from_mode(0o750)).unwrap();
        let found = findings(&base, "app/public");
        assert_eq!(found.warnings.len(), 1);
        assert_eq!(
            found.warnings[0].hint,
            Some(format!("chmod o+x {}", app.display()))
        );
        fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(app.join("file"), "").unwrap();
        assert!(
            findings(&base, "app/file").warnings[0]
                .reason
                .ends_with("is not a directory")
        );
    }
}
