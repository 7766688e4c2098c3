//! R: whom the control socket is for, and how long a peer may take to say what he wants.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// For a request that is not here yet, and for an answer that is complete: a proper peer needs
/// milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
/// Peers whose request is not here yet. One more, and the oldest is cut off: idle connections keep
/// nobody out, and use up no file handles.
const WAITING: usize = 64;
/// Peers who are being answered. One more is told so.
const ANSWERED: usize = 128;

/// Whether the file mode should have kept this peer out: it may have been changed, and an open
/// socket can be handed on. Root, ourselves and the group may talk.
pub(super) fn is_stranger(stream: &UnixStream, group: Option<u32>) -> bool {
    let Ok(peer) = stream.peer_cred() else {
        return true;
    };
    if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() {
        return false;
    }
    let Some(group) = group else {
        return true;
    };
    // of further groups only /proc tells; where it does not, the file mode has decided
    peer.gid() != group
        && peer
            .pid()
            .and_then(groups)
            .is_some_and(|all| !all.contains(&group))
}

/// proc(5): the supplementary groups of a process.
fn groups(pid: i32) -> Option<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))?;
    let groups = line.split_whitespace().map(str::parse);
    groups.collect::<Result<_, _>>().ok()
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

impl Drop for Peer {
    fn drop(&mut self) {
        let mut all = self.peers.lock();
        all.waiting.remove(&self.id);
        all.answered.remove(&self.id);
    }
}
