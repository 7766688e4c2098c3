//! The system calls that are shown, and what each is about.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use nix::libc;
use nix::unistd::Pid;

/// One system call, at its entry.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: &'static str,
    /// What it is about, where that has a path.
    pub path: String,
    pub effect: Effect,
}

/// What a call changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// A file or a directory.
    Disk,
    /// What of them survives a power cut.
    Durability,
    /// What another process is told by a signal.
    Signal,
    /// What goes through a socket.
    Network,
    /// Nothing: it opens something to read.
    Open,
    /// Nothing, as things are: what it would make is there, what it would remove is not.
    Nothing,
}

impl Call {
    /// The port at the other end of a TCP socket (proc(5), /proc/net/tcp).
    pub fn peer_port(&self) -> Option<u16> {
        let inode = self.path.strip_prefix("socket:[")?.strip_suffix(']')?;
        for line in fs::read_to_string("/proc/net/tcp").ok()?.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(9) == Some(&inode) {
                let port = fields.get(2)?.rsplit_once(':')?.1;
                return u16::from_str_radix(port, 16).ok();
            }
        }
        None
    }
}

impl Effect {
    /// Whether a kill before it and one after it leave different worlds.
    pub fn changes(self) -> bool {
        matches!(self, Self::Disk | Self::Signal)
    }

    /// Whether it is about what is written.
    pub fn writes(self) -> bool {
        matches!(self, Self::Disk | Self::Durability | Self::Nothing)
    }
}

/// Where a call has what it is about.
enum Subject {
    /// A path, relative to the working directory: its argument.
    Path(usize),
    /// A path relative to a directory: the arguments of both.
    At(usize, usize),
    /// An open file.
    Handle(usize),
    /// A path and the flags of an open.
    Open(Option<usize>, usize, usize),
    Nothing,
}

use Subject::{At, Handle, Nothing, Path};

/// By number: name and subject.
fn known(number: u64) -> Option<(&'static str, Subject)> {
    let number = i64::try_from(number).ok()?;
    Some(match number {
        libc::SYS_open => ("open", Subject::Open(None, 0, 1)),
        libc::SYS_openat => ("openat", Subject::Open(Some(0), 1, 2)),
        libc::SYS_creat => ("creat", Path(0)),
        libc::SYS_write => ("write", Handle(0)),
        libc::SYS_pwrite64 => ("pwrite64", Handle(0)),
        libc::SYS_writev => ("writev", Handle(0)),
        libc::SYS_pwritev => ("pwritev", Handle(0)),
        libc::SYS_pwritev2 => ("pwritev2", Handle(0)),
        libc::SYS_sendfile => ("sendfile", Handle(0)),
        libc::SYS_copy_file_range => ("copy_file_range", Handle(2)),
        libc::SYS_splice => ("splice", Handle(2)),
        libc::SYS_ftruncate => ("ftruncate", Handle(0)),
        libc::SYS_truncate => ("truncate", Path(0)),
        libc::SYS_fallocate => ("fallocate", Handle(0)),
        libc::SYS_fsync => ("fsync", Handle(0)),
        libc::SYS_fdatasync => ("fdatasync", Handle(0)),
        libc::SYS_sync => ("sync", Nothing),
        libc::SYS_syncfs => ("syncfs", Handle(0)),
        libc::SYS_sync_file_range => ("sync_file_range", Handle(0)),
        libc::SYS_mkdir => ("mkdir", Path(0)),
        libc::SYS_mkdirat => ("mkdirat", At(0, 1)),
        libc::SYS_mknod => ("mknod", Path(0)),
        libc::SYS_mknodat => ("mknodat", At(0, 1)),
        libc::SYS_rename => ("rename", Path(1)),
        libc::SYS_renameat => ("renameat", At(2, 3)),
        libc::SYS_renameat2 => ("renameat2", At(2, 3)),
        libc::SYS_link => ("link", Path(1)),
        libc::SYS_linkat => ("linkat", At(2, 3)),
        libc::SYS_symlink => ("symlink", Path(1)),
        libc::SYS_symlinkat => ("symlinkat", At(1, 2)),
        libc::SYS_unlink => ("unlink", Path(0)),
        libc::SYS_unlinkat => ("unlinkat", At(0, 1)),
        libc::SYS_rmdir => ("rmdir", Path(0)),
        libc::SYS_chmod => ("chmod", Path(0)),
        libc::SYS_fchmod => ("fchmod", Handle(0)),
        libc::SYS_fchmodat => ("fchmodat", At(0, 1)),
        libc::SYS_chown => ("chown", Path(0)),
        libc::SYS_lchown => ("lchown", Path(0)),
        libc::SYS_fchown => ("fchown", Handle(0)),
        libc::SYS_fchownat => ("fchownat", At(0, 1)),
        libc::SYS_utimensat => ("utimensat", At(0, 1)),
        libc::SYS_setxattr => ("setxattr", Path(0)),
        libc::SYS_fsetxattr => ("fsetxattr", Handle(0)),
        libc::SYS_mount => ("mount", Path(1)),
        libc::SYS_umount2 => ("umount2", Path(0)),
        libc::SYS_bind => ("bind", Handle(0)),
        libc::SYS_kill => ("kill", Nothing),
        libc::SYS_pidfd_send_signal => ("pidfd_send_signal", Nothing),
        libc::SYS_sendto => ("sendto", Handle(0)),
        libc::SYS_sendmsg => ("sendmsg", Handle(0)),
        _ => return None,
    })
}

/// `None`: it changes nothing that outlives the process.
pub(super) fn read(thread: Pid, registers: &libc::user_regs_struct) -> Option<Call> {
    let (name, subject) = known(registers.orig_rax)?;
    let argument = |index: usize| {
        let all = [registers.rdi, registers.rsi, registers.rdx, registers.r10];
        all[index]
    };
    let path = match subject {
        Path(index) => absolute(thread, None, &string(thread, argument(index))),
        At(directory, index) => {
            let name = string(thread, argument(index));
            absolute(thread, Some(argument(directory)), &name)
        }
        Handle(index) => of_handle(thread, argument(index)),
        Subject::Open(directory, index, _) => {
            let name = string(thread, argument(index));
            absolute(thread, directory.map(argument), &name)
        }
        Nothing => String::new(),
    };
    let opens_to_read = match subject {
        Subject::Open(_, _, flags) => {
            let changing = libc::O_CREAT | libc::O_TRUNC;
            argument(flags) & u64::from(changing.cast_unsigned()) == 0
        }
        _ => false,
    };
    let effect = match name {
        "kill" | "pidfd_send_signal" => Effect::Signal,
        "sendto" | "sendmsg" => Effect::Network,
        _ if path.starts_with("socket:") && name != "bind" => Effect::Network,
        // pipes, event counters, terminals
        "write" | "writev" if !path.starts_with('/') || path.starts_with("/dev/") => return None,
        _ if opens_to_read => Effect::Open,
        "mount" | "umount2" if has_own_mounts(thread) => Effect::Nothing,
        _ if has_own_mounts(thread) && is_in_memory(thread, &path) => Effect::Nothing,
        "fsync" | "fdatasync" | "sync" | "syncfs" | "sync_file_range" => Effect::Durability,
        _ if is_so_already(name, &path, argument) => Effect::Nothing,
        _ => Effect::Disk,
    };
    Some(Call { name, path, effect })
}

fn has_own_mounts(thread: Pid) -> bool {
    let namespace = |id: &str| fs::read_link(format!("/proc/{id}/ns/mnt")).unwrap();
    namespace(&thread.to_string()) != namespace("self")
}

/// Whether it is on a file system that goes with the thread's own mounts.
fn is_in_memory(thread: Pid, path: &str) -> bool {
    let Some(directory) = std::path::Path::new(path).parent() else {
        return false;
    };
    let inside = format!("/proc/{thread}/root{}", directory.display());
    let device = |path: &std::path::Path| fs::metadata(path).map(|it| it.dev()).ok();
    device(std::path::Path::new(&inside)) != device(directory)
}

/// The caller is stopped: what is true now is true for the call.
fn is_so_already(name: &str, path: &str, argument: impl Fn(usize) -> u64) -> bool {
    let found = fs::symlink_metadata(path).ok();
    let has_mode = |index| {
        let mode = found.as_ref().map(fs::Metadata::permissions);
        mode.is_some_and(|mode| u64::from(mode.mode() & 0o7777) == argument(index) & 0o7777)
    };
    let truncates = |index| argument(index) & u64::from(libc::O_TRUNC.cast_unsigned()) != 0;
    match name {
        "open" => found.is_some() && !truncates(1),
        "openat" => found.is_some() && !truncates(2),
        "mkdir" | "mkdirat" => found.is_some(),
        "unlink" | "unlinkat" | "rmdir" => found.is_none(),
        "chmod" | "fchmod" => has_mode(1),
        "fchmodat" => has_mode(2),
        _ => false,
    }
}

fn of_handle(thread: Pid, handle: u64) -> String {
    // an int: the upper half is anything
    let handle = handle as u32 as i32;
    let link = fs::read_link(format!("/proc/{thread}/fd/{handle}"));
    link.map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn absolute(thread: Pid, directory: Option<u64>, name: &str) -> String {
    if name.starts_with('/') {
        return name.to_owned();
    }
    let directory = directory.filter(|handle| *handle as u32 as i32 != libc::AT_FDCWD);
    let base = match directory {
        Some(handle) => of_handle(thread, handle),
        None => fs::read_link(format!("/proc/{thread}/cwd"))
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    format!("{base}/{name}")
}

/// The string at `address` in the thread's memory.
fn string(thread: Pid, address: u64) -> String {
    let mut bytes = vec![0; 4096];
    let memory = File::open(format!("/proc/{thread}/mem"));
    let read = memory.and_then(|memory| memory.read_at(&mut bytes, address));
    bytes.truncate(read.unwrap_or_default());
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
