//! R: a user of this host, what the user may reach, and code that runs with the user's rights.

use std::ffi::CString;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups};

/// nginx's user, who reads the files of a `root`, or the owner of a vhost file. Displayed by name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LocalUser {
    /// `None`: not known, so a user without any rights of its own.
    uid: Option<u32>,
    /// The primary group first.
    gids: Vec<u32>,
    name: Option<String>,
}

impl LocalUser {
    /// By the arguments of nginx's `user` directive: a name, and a group if it is not the user's own.
    /// A name that this host does not know is a user without rights.
    pub fn named(user: &[String]) -> Self {
        let Some(found) = user.first().and_then(|name| User::from_name(name).ok()?) else {
            return Self::default();
        };
        let group = user.get(1).and_then(|name| Group::from_name(name).ok()?);
        let gid = group.map_or(found.gid, |group| group.gid);
        Self::of(found, gid)
    }

    /// The user with that number; without groups where this host does not know it.
    pub fn with_uid(uid: u32) -> Self {
        match User::from_uid(Uid::from_raw(uid)).ok().flatten() {
            Some(found) => {
                let gid = found.gid;
                Self::of(found, gid)
            }
            None => Self {
                uid: Some(uid),
                gids: Vec::new(),
                name: None,
            },
        }
    }

    /// As initgroups(3) does.
    fn of(user: User, gid: Gid) -> Self {
        let name = CString::new(user.name.as_str()).unwrap_or_default();
        let mut gids = vec![gid];
        let further = getgrouplist(&name, gid).unwrap_or_default();
        gids.extend(further.into_iter().filter(|it| *it != gid));
        Self {
            uid: Some(user.uid.as_raw()),
            gids: gids.into_iter().map(Gid::as_raw).collect(),
            name: Some(user.name),
        }
    }

    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Whether what vhostd may do is the user's right, too: root, or the user that vhostd runs as.
    pub fn has_vhostds_rights(&self) -> bool {
        self.uid == Some(0) || self.uid == Some(geteuid().as_raw())
    }

    /// The name that `users` in the settings may have.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Runs `work` with the user's rights on files; root's are vhostd's own. It has a thread of its
    /// own: the kernel keeps
    /// the credentials of each thread apart (setfsuid(2), capset(2)), and only file access changes, so
    /// the user cannot send a signal to the thread.
    pub fn with_rights<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        if self.has_vhostds_rights() {
            return work();
        }
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.assume()?;
                work()
            });
            thread.join().unwrap_or_else(|_| Err(denied()))
        })
    }

    /// Gives this thread the user's rights on files, and no capability.
    fn assume(&self) -> io::Result<()> {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let uid = Uid::from_raw(self.uid.ok_or_else(denied)?);
        let gid = Gid::from_raw(self.gids.first().copied().unwrap_or(NOGROUP));
        let groups = self.gids.iter();
        let groups: Vec<_> = groups
            .map(|gid| rustix::process::Gid::from_raw(*gid))
            .collect();
        set_thread_groups(&groups)?;
        setfsgid(gid);
        setfsuid(uid);
        // both return what was set before, and nothing of a failure
        if setfsgid(gid) != gid || setfsuid(uid) != uid {
            return Err(denied());
        }
        let none = CapabilitySet::empty();
        let sets = CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        };
        Ok(set_capabilities(None, sets)?)
    }

    /// Whether it may look for a name in that directory.
    pub(super) fn may_search(&self, directory: &Metadata) -> bool {
        self.has(0o1, directory)
    }

    /// Whether it may write to that file, or connect to that socket.
    pub(crate) fn may_write(&self, file: &Metadata) -> bool {
        self.has(0o2, file)
    }

    /// `right`: of one class, as in the mode of others. The first class that fits decides.
    fn has(&self, right: u32, file: &Metadata) -> bool {
        let bits = if self.uid == Some(file.uid()) {
            right << 6
        } else if self.gids.contains(&file.gid()) {
            right << 3
        } else {
            right
        };
        self.uid == Some(0) || file.mode() & bits != 0
    }
}

impl fmt::Display for LocalUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.uid) {
            (Some(name), _) => f.write_str(name),
            (None, Some(uid)) => write!(f, "{uid}"),
            (None, None) => f.write_str("an unknown user"),
        }
    }
}

/// Debian's `nogroup`.
const NOGROUP: u32 = 65_534;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn owner_group_and_others_each_have_their_own_bit() {
        let directory = tempfile::tempdir().unwrap();
        let own = fs::metadata(directory.path()).unwrap();
        let worker = |uid, gids: &[u32]| LocalUser {
            uid: Some(uid),
            gids: gids.to_vec(),
            name: None,
        };
        let stranger = worker(own.uid() + 1, &[own.gid() + 1]);
        let member = worker(own.uid() + 1, &[own.gid() + 1, own.gid()]);
        for (mode, strangers, members) in [
            (0o755, true, true),
            (0o750, false, true),
            (0o705, true, false),
        ] {
            fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
            let metadata = fs::metadata(directory.path()).unwrap();
            assert_eq!(stranger.may_search(&metadata), strangers, "{mode:o}");
            assert_eq!(
                LocalUser::default().may_search(&metadata),
                strangers,
                "{mode:o}"
            );
            assert_eq!(member.may_search(&metadata), members, "{mode:o}");
            assert!(worker(own.uid(), &[]).may_search(&metadata), "{mode:o}");
        }
    }

    #[test]
    fn a_user_of_this_host_has_its_groups_and_an_unknown_one_nothing() {
        let root = LocalUser::named(&["root".into()]);
        assert_eq!(root.uid, Some(0));
        assert!(root.gids.contains(&0));
        let other = LocalUser::named(&["root".into(), "daemon".into()]);
        assert!(other.gids.contains(&1));
        assert_eq!(
            LocalUser::named(&["no-such-user".into()]),
            LocalUser::default()
        );
        assert_eq!(LocalUser::named(&[]), LocalUser::default());
    }

    #[test]
    fn work_with_another_users_rights_reads_what_that_user_may_read_and_ends_with_it() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can act for another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let daemon = LocalUser::named(&["daemon".into()]);
        let path = |name: &str| directory.path().join(name);
        let file = |name: &str, uid: u32, gid: u32, mode: u32| {
            fs::write(path(name), name).unwrap();
            std::os::unix::fs::chown(path(name), Some(uid), Some(gid)).unwrap();
            fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
        };
        file("own", 1, 0, 0o600);
        file("groups", 0, 1, 0o640);
        file("roots", 0, 0, 0o600);
        file("everyones", 0, 0, 0o644);
        let read = |user: &LocalUser, name: &str| {
            let path = path(name);
            user.with_rights(move || fs::read_to_string(path)).is_ok()
        };
        for (name, readable) in [
            ("own", true),
            ("groups", true),
            ("roots", false),
            ("everyones", true),
        ] {
            assert_eq!(read(&daemon, name), readable, "{name}");
            // a number without a user has no group
            assert!(!read(&LocalUser::with_uid(54_321), "groups"));
            assert!(read(&LocalUser::with_uid(0), name));
        }
        let seen = daemon.with_rights(|| fs::read_dir("/proc/1/root").map(|_| ()));
        assert!(seen.is_err(), "a capability is left");
        // this thread is as it was
        assert!(fs::read(path("roots")).is_ok());
        assert_eq!(daemon.to_string(), "daemon");
    }
}
