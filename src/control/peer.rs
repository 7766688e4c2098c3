//! R: who is at the other end of the control socket, and how long a peer may take to say what he wants.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::permission;

/// For a request that is not here yet, and for an answer that is complete: a proper peer needs
/// milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
/// Peers whose request is not here yet. One more, and the oldest is cut off: idle connections keep
/// nobody out, and use up no file handles.
const WAITING: usize = 64;
/// Peers who are being answered. One more is told so.
const ANSWERED: usize = 128;

impl permission::Peer {
    /// The file mode alone says nothing about a peer: it may have been changed, and an open socket can
    /// be handed on.
    pub(super) fn of(stream: &UnixStream) -> Self {
        let Ok(peer) = stream.peer_cred() else {
            return Self::default();
        };
        // SO_PEERCRED tells no further groups, and who connected may have handed the socket on and ended
        let further = peer.pid().map(|pid| supplementary(pid, peer.uid()));
        Self {
            uid: Some(peer.uid()),
            groups: further.into_iter().flatten().chain([peer.gid()]).collect(),
        }
    }
}

/// proc(5): the supplementary groups of a process, if it is still `uid`'s.
fn supplementary(pid: i32, uid: u32) -> Vec<u32> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return Vec::new();
    };
    let numbers = |key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let words = line.unwrap_or_default().split_whitespace();
        words.map_while(|word| word.parse::<u32>().ok())
    };
    // real, effective, saved; the number may be another process's by now
    match numbers("Uid:").nth(1) == Some(uid) {
        true => numbers("Groups:").collect(),
        false => Vec::new(),
    }
}

/// All connections, by age.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    waiting: BTreeMap<u64, watch::Sender<Option<Instant>>>,
    answered: BTreeMap<u64, watch::Sender<Option<Instant>>>,
}

/// Work for one connection; when it is dropped, the peer has to read its answer in time.
#[derive(Debug)]
pub(super) struct Work {
    id: u64,
    peers: Arc<Peers>,
}

/// One connection; dropping it forgets it.
#[derive(Debug)]
pub(super) struct Peer {
    id: u64,
    peers: Arc<Peers>,
    limit: watch::Receiver<Option<Instant>>,
}

impl Peers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(|held| held.into_inner())
    }

    pub(super) fn arrived(self: &Arc<Self>) -> Peer {
        let mut all = self.lock();
        if all.waiting.len() >= WAITING
            && let Some((_, oldest)) = all.waiting.pop_first()
        {
            oldest.send_replace(Some(Instant::now()));
        }
        let (sender, limit) = watch::channel(Some(Instant::now() + LIMIT));
        let id = all.next;
        all.next += 1;
        all.waiting.insert(id, sender);
        Peer {
            id,
            peers: Arc::clone(self),
            limit,
        }
    }

    /// The whole request of `id` is here, and the work may take its time. `false`: too many are
    /// being answered.
    pub(super) fn has_asked(&self, id: u64) -> bool {
        let mut all = self.lock();
        let Some(sender) = all.waiting.remove(&id) else {
            return all.answered.contains_key(&id);
        };
        let room = all.answered.len() < ANSWERED;
        if room {
            sender.send_replace(None);
        }
        all.answered.insert(id, sender);
        room
    }

    /// What `id` has asked for takes as long as this lives.
    pub(super) fn work(self: &Arc<Self>, id: u64) -> Work {
        Work {
            id,
            peers: Arc::clone(self),
        }
    }

    /// There is nothing more to do for `id` than that it reads its answer.
    pub(super) fn is_answered(&self, id: u64) {
        let all = self.lock();
        if let Some(sender) = all.answered.get(&id).or_else(|| all.waiting.get(&id)) {
            sender.send_replace(Some(Instant::now() + LIMIT));
        }
    }
}

impl Peer {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Returns when it has taken too long, or somebody needs its place.
    pub(super) async fn overdue(&mut self) {
        loop {
            let limit = *self.limit.borrow_and_update();
            let changed = match limit {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => return,
                    changed = self.limit.changed() => changed,
                },
                None => self.limit.changed().await,
            };
            // popped: the last thing that was said holds
            if changed.is_err() {
                return;
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.peers.is_answered(self.id);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut all = self.peers.lock();
        all.waiting.remove(&self.id);
        all.answered.remove(&self.id);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use tokio::net::UnixListener;

    use super::*;
    use crate::reconcile::pin::Requester;

    /// Of nobody that we are.
    const GROUP: u32 = 4242;

    /// A process of user and group 65534 that runs `script` until its input ends.
    fn connecting(socket: &Path, groups: &str, script: &str) -> Child {
        let connect = "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) or die; \
                       connect(S, pack_sockaddr_un($ARGV[0])) or die $!;";
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", groups, "perl", "-e"])
            .arg(format!("{connect} {script}"))
            .arg(socket)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn requester(
        stream: &UnixStream,
        socket: Option<u32>,
        admin: Option<u32>,
    ) -> Option<Requester> {
        let name = "admins".to_owned();
        let facts = permission::Facts {
            socket_group: socket,
            admin_group: Some(permission::AdminGroup { name, gid: admin }),
            ..permission::Facts::default()
        };
        permission::requester(&permission::Peer::of(stream), &facts)
    }

    fn is_stranger(stream: &UnixStream, group: Option<u32>) -> bool {
        requester(stream, group, None).is_none()
    }

    fn is_admin(stream: &UnixStream, group: Option<u32>) -> bool {
        requester(stream, None, group) == Some(Requester::Admin)
    }

    async fn accepted(listener: &UnixListener) -> UnixStream {
        let accepted = tokio::time::timeout(Duration::from_secs(60), listener.accept());
        accepted.await.unwrap().unwrap().0
    }

    #[tokio::test(flavor = "current_thread")]
    async fn members_are_no_strangers_and_a_peer_whose_groups_nobody_can_tell_is_one() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can be somebody else");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777));
        open(directory.path()).unwrap();
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        open(&socket).unwrap();
        let member = format!("--groups=7,{GROUP}");
        for (groups, of, stranger) in [
            (member.as_str(), Some(GROUP), false),
            (&member, Some(GROUP + 1), true),
            (&member, None, true),
            ("--clear-groups", Some(65534), false),
            ("--clear-groups", Some(GROUP), true),
        ] {
            let mut child = connecting(&socket, groups, "<STDIN>");
            let stream = accepted(&listener).await;
            assert_eq!(is_stranger(&stream, of), stranger, "{groups} of {of:?}");
            // no other way leads to the rights of root
            assert_eq!(is_admin(&stream, of), !stranger, "{groups} of {of:?}");
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        // its own child has the socket, and goes on
        let mut ended = connecting(&socket, "--clear-groups", "fork or <STDIN>");
        let stream = accepted(&listener).await;
        let input = ended.stdin.take();
        assert!(ended.wait().unwrap().success());
        assert!(is_stranger(&stream, Some(GROUP)));
        assert!(!is_admin(&stream, Some(GROUP)));
        drop(input);
    }
}
