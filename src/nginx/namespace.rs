//! X: namespaces for a child nginx.
//!
//! A namespace belongs to a thread and is inherited by what it starts. So a thread of its own
//! enters, mounts, starts the child and ends; the namespaces are gone with the last of them, and
//! nothing outside has changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};
use rustix::io::Errno as Refusal;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("mount over {} for nginx's test: {source}", target.display())]
    Mount {
        target: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read which file systems are mounted: {0}")]
    Mounts(#[source] io::Error),
    #[error("give up privileges for nginx's test: {0}")]
    Privileges(#[source] io::Error),
    #[error("test the configuration: the thread died")]
    Thread,
    /// Also in a chroot, whose `/` is no mount point that could be made private.
    #[error("no namespace for nginx's test: {0}")]
    Unavailable(#[source] io::Error),
}

pub const ROOT: u32 = 0;

/// What a thread is separated from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Walls {
    /// The mounts alone: what nginx finds is the host as it is, but for what is mounted over it.
    Mounts,
    /// The processes, the network and System V's objects, too.
    All,
}

/// Runs `enclosed` in a thread behind `walls`.
pub fn within<T: Send, E: From<NamespaceError> + Send>(
    walls: Walls,
    enclosed: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(walls).map_err(entered)?;
            enclosed()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(NamespaceError::Thread.into()))
    })
}

const NONE: Option<&str> = None;

fn enter(walls: Walls) -> nix::Result<()> {
    let rest = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(match walls {
        Walls::Mounts => CloneFlags::CLONE_NEWNS,
        Walls::All => CloneFlags::CLONE_NEWNS | rest,
    })?;
    // nothing that is mounted here may reach the host's own namespace
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
}

/// Makes `source` what is found at `target`.
pub fn bind(source: &Path, target: &Path) -> Result<(), NamespaceError> {
    let bound = mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE);
    bound.map_err(|errno| failed(target, errno))
}

/// Makes `target` an empty directory in memory, which `owner` (user and group) may write to.
pub fn hide(target: &Path, owner: u32) -> Result<(), NamespaceError> {
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let options = format!("size=256m,mode=0755,uid={owner},gid={owner}");
    let options = Some(options.as_str());
    let hidden = mount(Some("tmpfs"), target, Some("tmpfs"), flags, options);
    hidden.map_err(|errno| failed(target, errno))
}

/// Makes what is mounted at `target` read-only, without devices and without set-user-ID programs.
/// mount(2): a remount replaces all flags, so `noexec` is given again.
pub fn restrict(target: &Path) -> Result<(), NamespaceError> {
    let known = statvfs(target).map_err(|errno| failed(target, errno))?;
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    flags |= MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    flags.set(
        MsFlags::MS_NOEXEC,
        known.flags().contains(FsFlags::ST_NOEXEC),
    );
    mount(NONE, target, NONE, flags, NONE).map_err(|errno| failed(target, errno))
}

/// Makes the mount at `root` this thread's root directory; nothing else stays mounted.
pub fn change_root(root: &Path) -> Result<(), NamespaceError> {
    let change = || {
        chdir(root)?;
        // pivot_root(2): the former root is then on top of the new one
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")
    };
    change().map_err(|errno| failed(root, errno))
}

/// Whatever is written below `target` from now on is written below `upper` instead; `work` is for
/// the kernel, on the same file system.
pub fn overlay(target: &Path, upper: &Path, work: &Path) -> Result<(), NamespaceError> {
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        escaped(target),
        escaped(upper),
        escaped(work)
    );
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let laid = mount(
        Some("overlay"),
        target,
        Some("overlay"),
        flags,
        Some(options.as_str()),
    );
    laid.map_err(|errno| failed(target, errno))
}

/// overlayfs reads `:` and `,` in its options as separators.
fn escaped(path: &Path) -> String {
    let path = path.to_string_lossy();
    path.replace('\\', "\\\\")
        .replace(':', "\\:")
        .replace(',', "\\,")
}

/// What is mounted in this thread's namespace.
#[derive(Debug)]
pub struct Mounts(Vec<MountPoint>);

#[derive(Debug)]
struct MountPoint {
    path: PathBuf,
    /// `ext4`
    kind: String,
}

impl Mounts {
    pub fn read() -> Result<Self, NamespaceError> {
        let text = fs::read_to_string("/proc/self/mountinfo").map_err(NamespaceError::Mounts)?;
        Ok(Self(text.lines().filter_map(MountPoint::of).collect()))
    }

    /// Whether something is mounted below `directory`, which an overlay would not show.
    pub fn are_below(&self, directory: &Path) -> bool {
        let below =
            |point: &MountPoint| point.path != directory && point.path.starts_with(directory);
        self.0.iter().any(below)
    }

    /// Where something is mounted below `directory`, the outer before the inner. What another machine
    /// or another process would have to answer for is left out: a server that is away must keep
    /// nginx's test waiting for nothing.
    pub fn local_below(&self, directory: &Path) -> impl Iterator<Item = &Path> {
        let points = self.0.iter();
        let below = points.filter(move |point| {
            point.path != directory && point.path.starts_with(directory) && !point.is_elsewhere()
        });
        below.map(|point| point.path.as_path())
    }
}

impl MountPoint {
    /// proc(5): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
    fn of(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        Some(Self {
            path: unescaped(before.split(' ').nth(4)?),
            kind: after.split(' ').next()?.to_owned(),
        })
    }

    fn is_elsewhere(&self) -> bool {
        let kinds = [
            "9p", "afs", "autofs", "ceph", "cifs", "fuse", "lustre", "nfs", "smb",
        ];
        kinds.iter().any(|kind| self.kind.starts_with(kind))
    }
}

/// `/proc/self/mountinfo` writes space, tab, newline and backslash as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut path = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        let digits = after
            .get(..3)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok());
        let (byte, skip) = digits.map_or(('\\', 0), |byte| (char::from(byte), 3));
        path.push(byte);
        rest = &after[skip..];
    }
    path.push_str(rest);
    path.into()
}

/// This thread, and what it starts, is the user and group `id` from now on, can gain no privileges,
/// and has only those of `kept`: as ambient capabilities, which outlast execve(2).
pub fn give_up_privileges(id: u32, kept: CapabilitySet) -> Result<(), NamespaceError> {
    for capability in each(CapabilitySet::from_bits_retain(u64::MAX).difference(kept)) {
        match remove_capability_from_bounding_set(capability) {
            // the kernel does not know it, or we may not change ours: no_new_privs remains
            Ok(()) | Err(Refusal::INVAL | Refusal::PERM) => {}
            Err(error) => return Err(NamespaceError::Privileges(error.into())),
        }
    }
    let become_user = || {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        set_thread_groups(&[])?;
        set_keep_capabilities(true)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: kept,
        };
        set_capabilities(None, sets)?;
        for capability in each(kept) {
            configure_capability_in_ambient_set(capability, true)?;
        }
        set_no_new_privs(true)
    };
    become_user().map_err(|error: Refusal| NamespaceError::Privileges(error.into()))
}

fn each(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    let all = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    all.filter(move |capability| set.contains(*capability))
}

/// What passes (no memory, too many namespaces) says nothing about the next time.
fn entered(errno: Errno) -> NamespaceError {
    match errno {
        Errno::EINVAL => NamespaceError::Unavailable(errno.into()),
        _ => failed(Path::new("/"), errno),
    }
}

fn failed(target: &Path, errno: Errno) -> NamespaceError {
    match errno {
        Errno::EPERM | Errno::EACCES | Errno::ENOSYS => NamespaceError::Unavailable(errno.into()),
        _ => NamespaceError::Mount {
            target: target.to_path_buf(),
            source: errno.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_known_by_their_place_and_what_answers_for_them() {
        let of = |line| MountPoint::of(line).unwrap();
        let local = of("36 35 98:0 / /srv/my\\040data rw master:1 - ext4 /dev/sda1 rw");
        assert_eq!(local.path, Path::new("/srv/my data"));
        assert!(!local.is_elsewhere());
        assert!(of("40 35 0:50 / /mnt rw - nfs4 server:/x rw").is_elsewhere());
        let mounts = Mounts(vec![local]);
        assert!(mounts.are_below(Path::new("/srv")));
        assert!(!mounts.are_below(Path::new("/srv/my data")));
        let below = |path: &str| mounts.local_below(Path::new(path)).count();
        assert_eq!((below("/srv"), below("/srv/my data")), (1, 0));
        let remote = of("40 35 0:50 / /usr/share/x rw - nfs4 server:/x rw");
        let mounts = Mounts(vec![remote]);
        assert_eq!(mounts.local_below(Path::new("/usr")).count(), 0);
    }

    #[test]
    fn a_mount_points_octal_digits_are_read() {
        for (field, path) in [
            ("/run", "/run"),
            (r"/mnt/a\040b", "/mnt/a b"),
            (r"/x\134y\011", "/x\\y\t"),
            (r"/odd\9", r"/odd\9"),
        ] {
            assert_eq!(unescaped(field), Path::new(path), "{field}");
        }
    }
}
