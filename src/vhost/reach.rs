//! R: what nginx's user cannot reach, though the vhost file is right: sockets, and files behind
//! symbolic links.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::root::closed_component;
use super::root::stopped_links::{StoppedLinks, stopped_below};
use super::{App, LocalUser, UpstreamAddress};
use crate::diagnostic::{Diagnostic, fault};

/// How many directory entries are still looked at. A warning is not worth more.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    of_a_root: usize,
    of_all: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            of_a_root: 4_000,
            of_all: 20_000,
        }
    }
}

/// A reason, and what to do.
type Finding = (String, String);

/// Warnings about the app. `tell_end`: also where the walk through a root ended early and found
/// nothing.
pub fn inspect(
    app: &App,
    worker: &LocalUser,
    budget: &mut Budget,
    tell_end: bool,
) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for vhost in &app.vhosts {
        for upstream in &vhost.upstreams {
            if let UpstreamAddress::Unix(path) = upstream.address()
                && let Some((reason, hint)) = socket(path, worker)
            {
                warnings.push(Diagnostic::new(&app.file, reason).at(vhost.at).hint(hint));
            }
        }
        if let Some(root) = &vhost.root {
            let most = budget.of_a_root.min(budget.of_all);
            let found = stopped_below(root.as_path(), most);
            budget.of_all -= found.entries;
            let about = |(reason, hint): Finding| {
                Diagnostic::new(&app.file, reason).at(root.at()).hint(hint)
            };
            warnings.extend(links(root.as_path(), &found, tell_end).map(about));
        }
    }
    warnings
}

/// Why nginx's workers cannot connect (unix(7): that takes the right to write, and to search every
/// directory on the way).
fn socket(path: &Path, worker: &LocalUser) -> Option<Finding> {
    let shown = path.display();
    let resolved = fs::canonicalize(path);
    let way = match &resolved {
        Ok(resolved) => resolved.clone(),
        Err(_) => fs::canonicalize(path.parent()?).unwrap_or(path.to_path_buf()),
    };
    if let Some(closed) = closed_component(&way, worker) {
        let closed = closed.display();
        let reason =
            format!("nginx's user may not enter {closed}, on the way to the socket {shown}");
        return Some((reason, format!("chmod o+x {closed}")));
    }
    let metadata = match resolved.and_then(fs::metadata) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!("there is no socket {shown}: nginx answers 502 until there is");
            return Some((reason, "start the app, or correct the path".to_owned()));
        }
        Err(error) => {
            let reason = format!("the socket {shown} cannot be looked at: {}", fault(&error));
            return Some((reason, "run the command as root".to_owned()));
        }
    };
    if !metadata.file_type().is_socket() {
        let hint = "name the socket that the app listens on".to_owned();
        return Some((format!("{shown} is not a socket"), hint));
    }
    if !worker.may_write(&metadata) {
        let hint = "let the app make it with mode 0666, or 0660 with a group of nginx's user";
        let reason = format!("nginx's user may not connect to {shown}");
        return Some((reason, hint.to_owned()));
    }
    None
}

fn links<'a>(
    root: &'a Path,
    found: &'a StoppedLinks,
    tell_end: bool,
) -> impl Iterator<Item = Finding> + 'a {
    let told = found.links.iter().take(MOST_LINKS).map(|(link, owner)| {
        let reason = format!(
            "nginx does not follow the symbolic link {}: its target belongs to another user",
            link.display()
        );
        (
            reason,
            format!(
                "chown -h {} {}",
                LocalUser::with_uid(*owner),
                link.display()
            ),
        )
    });
    let more = found.links.len().saturating_sub(MOST_LINKS);
    let more = (more > 0).then(|| {
        let reason = format!(
            "nginx does not follow {more} more symbolic links below {}",
            root.display()
        );
        (reason, "give each link the owner of its target".to_owned())
    });
    let is_told = !found.is_whole && (tell_end || !found.links.is_empty());
    let end = is_told.then(|| {
        let reason = format!(
            "the search for symbolic links below {} ended after {} entries",
            root.display(),
            found.entries
        );
        let hint = "links whose owner is not that of their target are not followed by nginx";
        (reason, hint.to_owned())
    });
    told.chain(more).chain(end)
}

const MOST_LINKS: usize = 5;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;
    use crate::vhost::TlsMode;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        mode(directory.path(), 0o755);
        let base = directory.path().canonicalize().unwrap();
        (directory, base)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The reasons, for a worker without rights of its own.
    fn warnings(base: &Path, keys: &str, budget: &mut Budget, tell_end: bool) -> Vec<String> {
        let text = format!("server_name: a.example\n{keys}\n");
        let (name, file) = ("a".parse().unwrap(), Path::new("a.yml"));
        let roots = [base.to_path_buf()];
        let tls = TlsMode::Auto.into();
        let app = crate::vhost::parse::parse(&name, file, &text, &roots, &tls).unwrap();
        let warnings = inspect(&app, &LocalUser::default(), budget, tell_end);
        warnings.into_iter().map(|it| it.reason).collect()
    }

    #[test]
    fn a_socket_that_nginxs_user_cannot_open_is_told_and_why() {
        let (_directory, base) = directory();
        let path = base.join("run/app.sock");
        let told = || {
            let keys = format!("proxy_pass_url: http://unix:{}", path.display());
            warnings(&base, &keys, &mut Budget::default(), false).join("; ")
        };
        assert!(told().contains("there is no socket"), "{}", told());
        fs::create_dir(base.join("run")).unwrap();
        mode(&base.join("run"), 0o755);
        assert!(told().contains("there is no socket"), "{}", told());
        let _listener = UnixListener::bind(&path).unwrap();
        mode(&path, 0o666);
        assert_eq!(told(), "");
        mode(&path, 0o600);
        assert!(told().contains("may not connect to"), "{}", told());
        mode(&path, 0o664);
        assert!(told().contains("may not connect to"), "{}", told());
        mode(&base.join("run"), 0o700);
        assert!(told().contains("may not enter"), "{}", told());
        mode(&base.join("run"), 0o755);
        fs::rename(&path, base.join("run/real.sock")).unwrap();
        symlink("real.sock", &path).unwrap();
        mode(&base.join("run/real.sock"), 0o666);
        assert_eq!(told(), "");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(told().contains("is not a socket"), "{}", told());
    }

    #[test]
    fn a_link_below_a_root_whose_target_has_another_owner_is_told() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let (_directory, base) = directory();
        let root = base.join("public");
        fs::create_dir_all(root.join("deep")).unwrap();
        fs::create_dir(base.join("storage")).unwrap();
        let keys = format!("root: {}", root.display());
        let told = || warnings(&base, &keys, &mut Budget::default(), false).join("; ");
        symlink(base.join("storage"), root.join("deep/storage")).unwrap();
        symlink(base.join("none"), root.join("dangling")).unwrap();
        assert_eq!(told(), "");
        chown(base.join("storage"), Some(1), None).unwrap();
        let link = root.join("deep/storage");
        assert!(told().contains(&*link.to_string_lossy()), "{}", told());
        lchown(&link, Some(1), None).unwrap();
        assert_eq!(told(), "");
    }

    #[test]
    fn the_search_for_links_ends_and_says_so() {
        let (_directory, base) = directory();
        let root = base.join("public");
        fs::create_dir(&root).unwrap();
        for nth in 0..30 {
            fs::write(root.join(format!("{nth}")), "").unwrap();
        }
        let keys = format!("root: {}", root.display());
        let budget = |of_a_root, of_all| Budget { of_a_root, of_all };
        assert!(warnings(&base, &keys, &mut budget(30, 100), true).is_empty());
        let mut small = budget(20, 30);
        let told = warnings(&base, &keys, &mut small, true).join("; ");
        assert!(told.ends_with("ended after 20 entries"), "{told}");
        assert_eq!(small.of_all, 10);
        assert!(warnings(&base, &keys, &mut small, false).is_empty());
        assert_eq!(small.of_all, 0);
    }
}
