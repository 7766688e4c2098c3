//! Symbolic links on the way to a root, when their owners change them behind vhostd's back.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::support::client;
use crate::support::host::Host;

const NAME: &str = "links.example.com";
const OWNER: u32 = 31_001;
const NEIGHBOUR: u32 = 31_002;

/// A host with one app, whose root is `root` below the allowed directory; `None` without the
/// rights to give directories away.
fn host(root: &str) -> Option<Host> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let host = Host::with_settings("tls: off\n");
    let root = host.path("srv").join(root);
    let text = format!("server_name: {NAME}\nroot: {}\n", root.display());
    host.drop_file("app.yml", &text);
    Some(host)
}

/// A directory below the allowed one, with a page; each directory on the way that is made for it
/// is `owner`'s.
fn directory(host: &Host, path: &str, owner: u32, page: &str) -> PathBuf {
    let mut at = host.path("srv");
    for part in path.split('/') {
        at.push(part);
        if !at.exists() {
            fs::create_dir(&at).unwrap();
            fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
            chown(&at, Some(owner), Some(owner)).unwrap();
        }
    }
    fs::write(at.join("page.html"), page).unwrap();
    chown(at.join("page.html"), Some(owner), Some(owner)).unwrap();
    at
}

fn link(target: impl AsRef<Path>, at: &Path, owner: u32) {
    symlink(target, at).unwrap();
    lchown(at, Some(owner), Some(owner)).unwrap();
}

/// Status and body.
fn get(host: &Host, path: &str) -> (u16, String) {
    let answer = client::get(host.http(), NAME, path).unwrap();
    (answer.status, answer.text().to_owned())
}

fn served(page: &str) -> (u16, String) {
    (200, page.to_owned())
}

/// The argument of `disable_symlinks` in the active generation.
fn checked_from(host: &Host) -> String {
    let rendered = host.rendered("app").unwrap();
    let (_, rest) = rendered
        .split_once("disable_symlinks if_not_owner ")
        .unwrap();
    rest.split('"').nth(1).unwrap().to_owned()
}

#[test]
fn a_directory_that_its_owner_swaps_for_a_link_shows_nothing_of_others() {
    let Some(host) = host("app/site/public") else {
        return;
    };
    let root = directory(&host, "app/site/public", OWNER, "own");
    let theirs = directory(&host, "neighbour/site/public", NEIGHBOUR, "theirs");
    host.reload_ends(0, "activated");
    let site = root.parent().unwrap();
    let aside = host.path("srv/app/aside");
    let by_another_link = host.path("srv/app/by");
    link("/", &by_another_link, OWNER);
    for (swapped, target, path) in [
        (root.as_path(), Path::new("/"), "/etc/passwd"),
        (&root, &by_another_link, "/etc/passwd"),
        (&root, &theirs, "/page.html"),
        (site, theirs.parent().unwrap(), "/page.html"),
        (site, Path::new("../neighbour/site"), "/page.html"),
    ] {
        let what = format!("{} → {}", swapped.display(), target.display());
        assert_eq!(get(&host, "/page.html"), served("own"), "{what}");
        fs::rename(swapped, &aside).unwrap();
        link(target, swapped, OWNER);
        for moment in ["at once", "after a reload"] {
            // once vhostd has seen it, the vhost may be withdrawn
            let answer = client::get(host.http(), NAME, path);
            let refused = answer
                .as_ref()
                .map_or(true, |it| matches!(it.status, 403 | 404));
            assert!(refused, "{what} {moment}: {:?}", answer.map(|it| it.status));
            host.vhostd(&["reload"]);
        }
        fs::remove_file(swapped).unwrap();
        fs::rename(&aside, swapped).unwrap();
        host.vhostd(&["reload"]);
    }
}

#[test]
fn a_release_link_of_its_directorys_owner_is_followed_and_a_switch_needs_no_reload() {
    let Some(host) = host("app/current/public") else {
        return;
    };
    directory(&host, "app/releases/1/public", OWNER, "one");
    directory(&host, "app/releases/2/public", OWNER, "two");
    let (current, next) = (host.path("srv/app/current"), host.path("srv/app/next"));
    link("releases/1", &current, OWNER);
    host.reload_ends(0, "activated");
    assert_eq!(get(&host, "/page.html"), served("one"));
    link("releases/2", &next, OWNER);
    fs::rename(&next, &current).unwrap();
    assert_eq!(get(&host, "/page.html"), served("two"));
}

#[test]
fn a_path_that_only_root_can_change_is_not_checked_at_each_request() {
    let Some(host) = host("app/current") else {
        return;
    };
    fs::create_dir(host.path("srv/app")).unwrap();
    let release = directory(&host, "releases/1", 0, "one");
    chown(&release, Some(OWNER), Some(OWNER)).unwrap();
    link(&release, &host.path("srv/app/current"), 0);
    host.reload_ends(0, "activated");
    assert_eq!(checked_from(&host), "from=$document_root");
    assert_eq!(get(&host, "/page.html"), served("one"));
    // root gives the directory of the link away
    chown(host.path("srv/app"), Some(OWNER), Some(OWNER)).unwrap();
    host.reload_ends(0, "activated");
    let app = host.path("srv/app").canonicalize().unwrap();
    assert_eq!(checked_from(&host), format!("from={}", app.display()));
    assert_eq!(get(&host, "/page.html").0, 404);
}

#[test]
fn a_link_of_root_in_a_users_directory_is_told_with_the_command_that_mends_it() {
    let Some(host) = host("app/current") else {
        return;
    };
    directory(&host, "app/releases/1", OWNER, "one");
    let current = host.path("srv/app/current");
    link("releases/1", &current, 0);
    host.reload_ends(0, "activated");
    assert_eq!(get(&host, "/page.html").0, 404);
    let shown = current.display();
    let check = host.vhostd(&["check"]);
    assert_eq!(check.status, 0, "{check:?}");
    for said in [
        format!(
            "nginx does not follow {shown}: the link is root's, and what it leads to is {OWNER}'s"
        ),
        format!("chown -h {OWNER} {shown}"),
    ] {
        assert!(check.stderr.contains(&said), "{said} is not in {check:?}");
    }
    lchown(&current, Some(OWNER), None).unwrap();
    assert_eq!(get(&host, "/page.html"), served("one"));
    let check = host.vhostd(&["check"]);
    assert!(!check.stderr.contains("does not follow"), "{check:?}");
}
