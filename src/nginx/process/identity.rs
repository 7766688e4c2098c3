//! R: whether a process is this nginx's master.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a running master must look like.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    pub pid_file: PathBuf,
    /// Canonical path of the executable.
    pub binary: PathBuf,
    /// Canonical path of the main configuration file.
    pub config: PathBuf,
    /// What nginx reads when it gets no `-c`; relative to its prefix.
    pub default_config: PathBuf,
    /// What nginx takes relative paths to be below, when it gets no `-p`.
    pub prefix: PathBuf,
}

/// The error is a lowercase reason.
pub(super) fn verify(pid: i32, identity: &Identity) -> Result<(), String> {
    let executable = fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?;
    let path = executable.to_string_lossy();
    if !is_binary(&path, &identity.binary) {
        return Err(format!("its executable is {path}"));
    }
    let title = title(pid).unwrap_or_default();
    let Some(arguments) = title.strip_prefix("nginx: master process ") else {
        return Err("it is not an nginx master".into());
    };
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    let config = config(arguments, identity, &directory);
    let config = config.canonicalize().unwrap_or(config);
    if config != identity.config && !names_with_spaces(arguments, &identity.config) {
        return Err(format!("its configuration is {}", config.display()));
    }
    match shares_our_root(pid) {
        true => Ok(()),
        false => Err("it sees another file system".into()),
    }
}

/// After a package upgrade the running master's file is gone; its path still says who it is.
/// nginx's own `make install` moves it to `nginx.old`.
fn is_binary(path: &str, binary: &Path) -> bool {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let path = path.strip_suffix(".old").unwrap_or(path);
    Path::new(path) == binary
}

/// nginx writes its own arguments into its title, joined by spaces. A relative `-c` is below the
/// prefix (`ngx_conf_full_name`), a relative `-p` below the directory that nginx was started in.
fn config(arguments: &str, identity: &Identity, directory: &Path) -> PathBuf {
    let prefix = argument(arguments, "-p").map(|prefix| directory.join(prefix));
    let prefix = prefix.unwrap_or_else(|| identity.prefix.clone());
    let config = argument(arguments, "-c").unwrap_or_else(|| identity.default_config.clone());
    prefix.join(config)
}

fn argument(arguments: &str, flag: &str) -> Option<PathBuf> {
    let mut words = arguments.split_whitespace();
    while let Some(word) = words.next() {
        match word.strip_prefix(flag) {
            Some("") => return words.next().map(PathBuf::from),
            Some(attached) => return Some(attached.into()),
            None => {}
        }
    }
    None
}

/// The title does not show where an argument ends.
fn names_with_spaces(arguments: &str, config: &Path) -> bool {
    let config = config.to_string_lossy();
    let wanted = format!("-c {config}");
    config.contains(' ')
        && arguments.match_indices(&wanted).any(|(at, _)| {
            matches!(
                arguments.as_bytes().get(at + wanted.len()),
                None | Some(b' ')
            )
        })
}

/// A process in a container may have the same paths, and mean other files by them.
fn shares_our_root(pid: i32) -> bool {
    let root = |of: &str| fs::metadata(format!("/proc/{of}/root")).map(|it| (it.dev(), it.ino()));
    match (root(&pid.to_string()), root("self")) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        // another user's: what could be read of it matches
        _ => true,
    }
}

/// Not in a container's pid namespace below ours (proc(5): `NSpid` has an id for each level).
pub(super) fn is_in_our_namespace(pid: i32) -> bool {
    status(pid, "NSpid:").is_some_and(|ids| ids.split_whitespace().count() == 1)
}

/// The effective user's id.
pub(super) fn owner(pid: i32) -> Option<u32> {
    status(pid, "Uid:")?.split_whitespace().nth(1)?.parse().ok()
}

pub(super) fn parent(pid: i32) -> Option<i32> {
    status(pid, "PPid:")?.trim().parse().ok()
}

fn status(pid: i32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut lines = status.lines();
    lines.find_map(|line| line.strip_prefix(key).map(str::to_owned))
}

/// A zombie keeps its id, and no executable, until its parent takes note: in a container without
/// an init that may be never.
pub(super) fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the title before it may hold anything, parentheses too
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    matches!(state, None | Some(Some('Z' | 'X')))
}

/// Its memory, and with it executable and title, goes before it is a zombie.
pub(super) fn is_ending(pid: i32) -> bool {
    let executable = fs::read_link(format!("/proc/{pid}/exe"));
    executable.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) || has_ended(pid)
}

pub(super) fn title(pid: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.replace('\0', " ").trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(arguments: &str) -> PathBuf {
        let identity = Identity {
            pid_file: "/run/nginx.pid".into(),
            binary: "/usr/sbin/nginx".into(),
            config: "/etc/nginx/nginx.conf".into(),
            default_config: "/etc/nginx/nginx.conf".into(),
            prefix: "/usr/share/nginx".into(),
        };
        config(arguments, &identity, Path::new("/home/admin"))
    }

    #[test]
    fn the_configuration_is_read_from_the_title_as_nginx_read_its_arguments() {
        for (arguments, wanted) in [
            ("/usr/sbin/nginx -g daemon on;", "/etc/nginx/nginx.conf"),
            ("nginx -c /a/b", "/a/b"),
            ("nginx -c/a/b -p x", "/a/b"),
            ("nginx -c conf/x", "/usr/share/nginx/conf/x"),
            ("nginx -p /srv/n/ -c conf/x", "/srv/n/conf/x"),
            ("nginx -p n -c conf/x", "/home/admin/n/conf/x"),
        ] {
            assert_eq!(config_of(arguments), Path::new(wanted), "{arguments}");
        }
    }

    #[test]
    fn an_upgraded_binary_is_known_by_its_path() {
        let is = |path: &str| is_binary(path, Path::new("/usr/sbin/nginx"));
        assert!(is("/usr/sbin/nginx") && is("/usr/sbin/nginx (deleted)"));
        assert!(is("/usr/sbin/nginx.old"));
        assert!(!is("/usr/local/sbin/nginx") && !is("/usr/sbin/nginx-debug"));
    }

    #[test]
    fn a_path_with_spaces_ends_where_it_ends() {
        let path = Path::new("/my sites/nginx.conf");
        assert!(names_with_spaces("nginx -c /my sites/nginx.conf", path));
        assert!(names_with_spaces(
            "nginx -c /my sites/nginx.conf -p x",
            path
        ));
        assert!(!names_with_spaces(
            "nginx -c /my sites/nginx.conf.old",
            path
        ));
    }
}
