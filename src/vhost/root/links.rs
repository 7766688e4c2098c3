//! P: from where on nginx checks the links on the way to a root, and which link it stops.
//!
//! nginx checks links at each request (`disable_symlinks if_not_owner`), and each component costs
//! it four system calls per lookup of a file. A component need not be checked where only root can
//! make its name lead elsewhere.

use std::path::{Path, PathBuf};

/// A name looked up in a directory, while a path is resolved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lookup {
    pub directory_uid: u32,
    /// `st_mode`; what an access control list grants shows in the group's bits (acl(5)).
    pub directory_mode: u32,
    /// Of the entry itself, which may be a link.
    pub entry_uid: u32,
}

/// A component of a root's path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Component {
    /// The root's path up to and with it, as written.
    pub path: PathBuf,
    /// Its name, then every name that its link leads through.
    pub lookups: Vec<Lookup>,
    /// Owner of the entry itself.
    pub uid: u32,
    /// Owner of what it leads to.
    pub target_uid: u32,
}

impl Lookup {
    /// Whether only root can remove, rename or replace the entry (unlink(2), rename(2)).
    fn only_root_changes(&self) -> bool {
        let shared = self.directory_mode & WRITABLE_BY_OTHERS != 0;
        let sticky = self.directory_mode & STICKY != 0;
        self.directory_uid == ROOT && (!shared || (sticky && self.entry_uid == ROOT))
    }
}

impl Component {
    fn only_root_changes(&self) -> bool {
        self.lookups.iter().all(Lookup::only_root_changes)
    }
}

/// The longest part of a root's path, as written, that only root can make lead elsewhere. nginx
/// checks what is below it. `components` are all that exist, from the first one on.
pub fn checked_below(components: &[Component]) -> &Path {
    let trusted = components
        .iter()
        .take_while(|component| component.only_root_changes());
    trusted
        .last()
        .map_or(Path::new("/"), |component| &component.path)
}

/// The first link that nginx does not follow, because its owner is not that of its target.
pub fn stopped(components: &[Component]) -> Option<&Component> {
    components
        .iter()
        .skip_while(|component| component.only_root_changes())
        .find(|component| component.uid != component.target_uid)
}

const ROOT: u32 = 0;
/// S_IWGRP | S_IWOTH
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// S_ISVTX
const STICKY: u32 = 0o1000;

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = 1000;

    /// A lookup of `root`'s or the user's entry in a directory.
    fn lookup(directory_uid: u32, directory_mode: u32, entry_uid: u32) -> Lookup {
        Lookup {
            directory_uid,
            directory_mode,
            entry_uid,
        }
    }

    /// `/srv/app/public`: for each component its lookups, and the owner of what it leads to.
    fn path(components: [(&[Lookup], u32); 3]) -> Vec<Component> {
        let paths = ["/srv", "/srv/app", "/srv/app/public"];
        let pairs = paths.into_iter().zip(components);
        pairs
            .map(|(path, (lookups, target_uid))| Component {
                path: path.into(),
                lookups: lookups.to_vec(),
                uid: lookups[0].entry_uid,
                target_uid,
            })
            .collect()
    }

    #[test]
    fn links_are_checked_below_the_longest_part_that_only_root_can_change() {
        let roots = lookup(0, 0o40755, 0);
        let users_in_roots = lookup(0, 0o40755, USER);
        let in_users = lookup(USER, 0o40755, USER);
        let in_group_writable = lookup(0, 0o40775, 0);
        let in_world_writable = lookup(0, 0o40757, 0);
        let roots_in_sticky = lookup(0, 0o41777, 0);
        let users_in_sticky = lookup(0, 0o41777, USER);
        let in_users_sticky = lookup(USER, 0o41777, 0);
        let setgid = lookup(0, 0o42755, 0);
        for (what, third, expected) in [
            ("root's directories", [roots].as_slice(), "/srv/app/public"),
            (
                "a user's directory that only root can rename",
                &[users_in_roots],
                "/srv/app/public",
            ),
            ("setgid", &[setgid], "/srv/app/public"),
            (
                "root's in a sticky directory",
                &[roots_in_sticky],
                "/srv/app/public",
            ),
            (
                "a user's in a sticky directory",
                &[users_in_sticky],
                "/srv/app",
            ),
            (
                "root's in a user's sticky directory",
                &[in_users_sticky],
                "/srv/app",
            ),
            ("a user's directory", &[in_users], "/srv/app"),
            (
                "a directory that a group writes",
                &[in_group_writable],
                "/srv/app",
            ),
            (
                "a directory that all write",
                &[in_world_writable],
                "/srv/app",
            ),
            (
                "a link through root's directories",
                &[roots, roots, users_in_roots],
                "/srv/app/public",
            ),
            (
                "a link of root's through a user's",
                &[roots, roots, in_users],
                "/srv/app",
            ),
        ] {
            let components = path([(&[roots], 0), (&[roots], 0), (third, 0)]);
            assert_eq!(checked_below(&components), Path::new(expected), "{what}");
        }
    }

    #[test]
    fn what_is_below_a_part_that_a_user_can_change_is_checked_whoever_owns_it() {
        let roots = lookup(0, 0o40755, 0);
        let in_users = lookup(USER, 0o40755, 0);
        let components = path([(&[roots], 0), (&[in_users], 0), (&[roots], 0)]);
        assert_eq!(checked_below(&components), Path::new("/srv"));
        let components = path([(&[in_users], 0), (&[roots], 0), (&[roots], 0)]);
        assert_eq!(checked_below(&components), Path::new("/"));
        assert_eq!(checked_below(&[]), Path::new("/"));
    }

    #[test]
    fn a_link_is_stopped_where_it_is_checked_and_its_target_is_anothers() {
        let roots = lookup(0, 0o40755, 0);
        let roots_in_users = lookup(USER, 0o40755, 0);
        let users = lookup(USER, 0o40755, USER);
        for (third, target, expected) in [
            (users, USER, None),
            (roots_in_users, 0, None),
            (roots_in_users, USER, Some("/srv/app/public")),
            (users, 0, Some("/srv/app/public")),
            // not checked: root alone decides where it leads
            (roots, USER, None),
        ] {
            let components = path([(&[roots], 0), (&[roots], USER), (&[third], target)]);
            let found = stopped(&components).map(|it| it.path.as_path());
            assert_eq!(found, expected.map(Path::new), "{third:?} {target}");
        }
    }
}
