//! R: who nginx's workers are on this host, and what they may enter.

use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::unistd::{Gid, Group, User, getgrouplist};

/// The user that reads the files of a `root`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Worker {
    /// `None`: not known, so somebody without any rights of his own.
    uid: Option<u32>,
    gids: Vec<u32>,
}

impl Worker {
    /// By the arguments of nginx's `user` directive: a name, and a group if it is not the user's own.
    /// A name that this host does not know is somebody without rights.
    pub fn named(user: &[String]) -> Self {
        let Some(found) = user.first().and_then(|name| User::from_name(name).ok()?) else {
            return Self::default();
        };
        let group = user.get(1).and_then(|name| Group::from_name(name).ok()?);
        let gid = group.map_or(found.gid, |group| group.gid);
        // as initgroups(3) does in each worker
        let name = CString::new(found.name.as_str()).unwrap_or_default();
        let gids = getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid]);
        Self {
            uid: Some(found.uid.as_raw()),
            gids: gids.into_iter().map(Gid::as_raw).collect(),
        }
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
        let worker = |uid, gids: &[u32]| Worker {
            uid: Some(uid),
            gids: gids.to_vec(),
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
                Worker::default().may_search(&metadata),
                strangers,
                "{mode:o}"
            );
            assert_eq!(member.may_search(&metadata), members, "{mode:o}");
            assert!(worker(own.uid(), &[]).may_search(&metadata), "{mode:o}");
        }
    }

    #[test]
    fn a_user_of_this_host_has_its_groups_and_an_unknown_one_nothing() {
        let root = Worker::named(&["root".into()]);
        assert_eq!(root.uid, Some(0));
        assert!(root.gids.contains(&0));
        let other = Worker::named(&["root".into(), "daemon".into()]);
        assert!(other.gids.contains(&1));
        assert_eq!(Worker::named(&["no-such-user".into()]), Worker::default());
        assert_eq!(Worker::named(&[]), Worker::default());
    }
}
