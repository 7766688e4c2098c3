//! R: the directories that vhosts name as `root`, as they are on this host.
//!
//! Their spelling was judged by the parser. Here symbolic links are resolved: a root must not lead
//! out of the directories that the settings allow, whoever planted the link.

mod access; // P whether the owner of a vhost file may have a directory published
mod components; // R how a root's path is resolved, and who owns what it goes through
mod links; // P from where on nginx checks links, and which one it stops
pub(crate) mod stopped_links; // R symbolic links below a root that nginx does not follow

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use self::access::{Access, Found, access};
use super::path::is_below;
use super::{App, LocalUser, RootDir, VhostName};
use crate::diagnostic::{Diagnostic, fault};

/// What [`inspect`] found about an app's roots.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RootFindings {
    /// The app is rejected.
    pub errors: Vec<Diagnostic>,
    /// The app is served; its files perhaps not.
    pub warnings: Vec<Diagnostic>,
    /// Vhosts that are served without their root.
    pub unread: BTreeSet<VhostName>,
}

/// Who may have which directories published.
#[derive(Clone, Copy, Debug)]
pub struct RootRights<'a> {
    /// The settings' `roots`, [`resolved_all`].
    pub roots: &'a [PathBuf],
    /// The owner of the vhost file; `None`: it is root's, and names any directory below `roots`.
    pub owner: Option<&'a LocalUser>,
    /// `users.OWNER.roots`, [`resolved_all`].
    pub limit: Option<&'a [PathBuf]>,
    /// nginx's user.
    pub worker: &'a LocalUser,
}

/// Directories of the settings, symbolic links resolved: one may itself be a link, as /home is on some
/// hosts.
pub fn resolved_all(roots: &[PathBuf]) -> Vec<PathBuf> {
    let roots = roots.iter();
    roots
        .map(|root| fs::canonicalize(root).unwrap_or_else(|_| root.clone()))
        .collect()
}

/// Resolves each root of `app`.
pub fn inspect(app: &App, rights: RootRights<'_>) -> RootFindings {
    let mut findings = RootFindings::default();
    for vhost in &app.vhosts {
        let Some(root) = &vhost.root else { continue };
        let read = inspect_one(app, root, rights, &mut findings);
        if read == Read::Never && vhost.upstreams.is_empty() {
            findings.errors.extend(findings.warnings.pop());
        } else if read != Read::Now {
            findings.unread.insert(vhost.name.clone());
        }
    }
    findings
}

/// Whether nginx reads files from a root.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Read {
    Now,
    Later,
    /// The last warning says why.
    Never,
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
    rights: RootRights<'_>,
    findings: &mut RootFindings,
) -> Read {
    let path = root.as_path();
    let about = |reason: String| Diagnostic::new(&app.file, reason).at(root.at());
    let resolved = match resolve(path) {
        Ok(resolved) => resolved,
        // run by a user with less permissions than the daemon
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let reason = "the root cannot be looked at: permission denied";
            findings.warnings.push(about(reason.to_owned()));
            return Read::Now;
        }
        Err(error) => {
            let reason = format!("the root leads nowhere: {}", fault(&error));
            findings.errors.push(
                about(reason).hint("a symbolic link on the way has no target: create it first"),
            );
            return Read::Now;
        }
    };
    if !is_below(&resolved.path, rights.roots) {
        let leads = resolved.path.display();
        findings.errors.push(
            about(format!("the root leads to {leads} through a symbolic link"))
                .hint("move the files, or add that directory to `roots` in vhostd's settings")
                .not_permitted(),
        );
        return Read::Now;
    }
    let read = match rights.owner {
        None => Read::Now,
        Some(owner) => match refused(&resolved, owner, rights.limit) {
            Ok(read) => read,
            Err((reason, hint)) => {
                let warning = about(reason).hint(hint).not_permitted();
                findings.warnings.push(warning);
                return Read::Never;
            }
        },
    };
    if let Some(missing) = &resolved.missing {
        let hint = match rights.owner.filter(|_| read == Read::Later) {
            None => "its files are served as soon as it does".to_owned(),
            Some(owner) => format!("its files are served once it belongs to {owner}"),
        };
        let reason = format!("{} does not exist yet", missing.display());
        findings.warnings.push(about(reason).hint(hint));
    } else if !resolved.path.is_dir() {
        let reason = format!("{} is not a directory", path.display());
        findings.warnings.push(about(reason));
    }
    if let Some(closed) = closed_component(&resolved.path, rights.worker) {
        findings.warnings.push(
            about(format!("nginx's user may not enter {}", closed.display()))
                .hint(format!("chmod o+x {}", closed.display())),
        );
    }
    if let Some(link) = links::stopped(&components::components(path)) {
        let shown = link.path.display();
        let owner = LocalUser::with_uid(link.uid);
        let target = LocalUser::with_uid(link.target_uid);
        let reason = format!(
            "nginx does not follow {shown}: the link is {owner}'s, and what it leads to is {target}'s"
        );
        findings
            .warnings
            .push(about(reason).hint(format!("chown -h {target} {shown}")));
    }
    read
}

/// Whether `owner`, who is not root, may have the directory published; else why not, and what to do.
fn refused(
    resolved: &Resolved,
    owner: &LocalUser,
    limit: Option<&[PathBuf]>,
) -> Result<Read, (String, String)> {
    let shown = resolved.path.display();
    if limit.is_some_and(|limit| !is_in(&resolved.path, limit)) {
        return Err((
            format!("{owner} may not publish {shown}: its files are not served"),
            format!("`users.{owner}.roots` in vhostd's settings lists what {owner} may publish"),
        ));
    }
    match access(owner.uid(), resolved.found()) {
        Access::Granted => Ok(Read::Now),
        Access::Undecided => Ok(Read::Later),
        Access::Denied => Err((
            format!(
                "{shown} belongs to {}, and the vhost file to {owner}: its files are not served",
                LocalUser::with_uid(resolved.uid)
            ),
            format!("chown {owner} {shown}, or let root own the vhost file"),
        )),
    }
}

/// Whether `path` is one of `roots` or below one.
fn is_in(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}

struct Resolved {
    /// Without symbolic links, as far as it exists; the rest as written.
    path: PathBuf,
    /// The first component that does not exist, as written.
    missing: Option<PathBuf>,
    /// Owner of the last component that exists.
    uid: u32,
}

impl Resolved {
    fn found(&self) -> Found {
        match self.missing {
            None => Found::Directory { uid: self.uid },
            Some(_) => Found::Missing {
                above_uid: self.uid,
            },
        }
    }
}

/// Resolves the longest part of `path` that exists.
fn resolve(path: &Path) -> io::Result<Resolved> {
    let mut missing = None;
    for existing in path.ancestors() {
        match fs::canonicalize(existing) {
            Ok(resolved) => {
                let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
                return Ok(Resolved {
                    uid: fs::metadata(&resolved)?.uid(),
                    path: resolved.components().chain(rest.components()).collect(),
                    missing,
                });
            }
            // where a link to what is not there will lead is not known
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
pub(super) fn closed_component<'a>(path: &'a Path, worker: &LocalUser) -> Option<&'a Path> {
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
        let worker = LocalUser::default();
        let rights = RootRights {
            roots: &resolved_all(&roots),
            owner: None,
            limit: None,
            worker: &worker,
        };
        inspect(&app.unwrap(), rights)
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
