//! P: which peer may ask for what, over the control socket.

use std::collections::{BTreeMap, BTreeSet};

use super::{Question, Request};
use crate::reconcile::pin::Requester;
use crate::vhost::AppName;

/// Everything that the socket offers.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// Whether a daemon is there, and which.
    Daemon,
    Question(Question),
    Request(&'a Request),
}

/// Who is at the other end (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peer {
    /// `None` where the kernel does not say.
    pub uid: Option<u32>,
    /// Its group, and its supplementary ones as far as they can be told for certain.
    pub groups: BTreeSet<u32>,
}

/// What the answer depends on.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The user that the daemon runs as.
    pub daemon_uid: u32,
    /// The group of the socket; `None`: there is none.
    pub socket_group: Option<u32>,
    pub admin_group: Option<AdminGroup>,
    /// The owners of vhost files, by app; only those that [`needs_owners`] asks for.
    pub owners: BTreeMap<AppName, u32>,
}

/// The setting `admin_group`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminGroup {
    pub name: String,
    /// `None`: there is no such group.
    pub gid: Option<u32>,
}

/// Why a peer is not served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// A fragment that fits "failed to …".
    pub message: String,
    pub hint: String,
}

/// With whose rights `peer` asks; `None`: the socket is not for it.
pub fn requester(peer: &Peer, facts: &Facts) -> Option<Requester> {
    let uid = peer.uid?;
    let is_in = |group: Option<u32>| group.is_some_and(|group| peer.groups.contains(&group));
    let admin_group = facts.admin_group.as_ref().and_then(|group| group.gid);
    if uid == 0 || uid == facts.daemon_uid || is_in(admin_group) {
        Some(Requester::Admin)
    } else if is_in(facts.socket_group) {
        Some(Requester::User(uid))
    } else {
        None
    }
}

/// Whether the answer to `asked` depends on who owns vhost files.
pub fn needs_owners(asked: Asked<'_>, requester: Requester) -> bool {
    requester != Requester::Admin && matches!(asked, Asked::Request(Request::RollbackApps { .. }))
}

/// Members of the socket's group may look, reload, and renew what they name; of an app, the owner of its
/// vhost file may roll it back. All else is for root and the members of `admin_group`.
pub fn may(asked: Asked<'_>, peer: &Peer, facts: &Facts) -> Result<Requester, Refused> {
    let Some(requester) = requester(peer, facts) else {
        return Err(Refused::stranger());
    };
    let Requester::User(uid) = requester else {
        return Ok(requester);
    };
    let admins = facts.admins();
    match asked {
        Asked::Daemon | Asked::Question(Question::Status | Question::History) => Ok(requester),
        Asked::Request(Request::Reload { .. }) => Ok(requester),
        Asked::Request(Request::Renew { names, force }) => match (names.is_empty(), force) {
            (false, false) => Ok(requester),
            (true, _) => Err(Refused {
                message: format!("renew all certificates: only {admins} may"),
                hint: "name what is yours, as in `vhostd renew NAME`, or run `sudo vhostd renew`"
                    .into(),
            }),
            (false, true) => Err(Refused {
                message: format!("renew what is not due: only {admins} may"),
                hint: format!("run `sudo vhostd renew --force {}`", names.join(" ")),
            }),
        },
        Asked::Request(Request::RollbackApps { apps, generation }) if !apps.is_empty() => {
            let foreign = apps.iter().find(|app| facts.owners.get(*app) != Some(&uid));
            let Some(app) = foreign else {
                return Ok(requester);
            };
            let why = match facts.owners.contains_key(app) {
                true => "its vhost file is another user's",
                false => "it has no vhost file",
            };
            let apps: Vec<&str> = apps.iter().map(AppName::as_str).collect();
            let to = generation.map_or_else(String::new, |to| format!(" --to {to}"));
            Err(Refused {
                message: format!("roll back {app}: {why}; only its owner and {admins} may"),
                hint: format!("run `sudo vhostd rollback {}{to}`", apps.join(" ")),
            })
        }
        Asked::Request(Request::Rollback { .. } | Request::RollbackApps { .. }) => Err(Refused {
            message: format!("roll back all apps: only {admins} may"),
            hint: "name your own app, as in `vhostd rollback NAME`, or run `sudo vhostd rollback`"
                .into(),
        }),
    }
}

impl Facts {
    fn admins(&self) -> String {
        match &self.admin_group {
            Some(AdminGroup { name, gid }) if gid.is_some() => format!("root and the group {name}"),
            _ => "root".into(),
        }
    }
}

impl Refused {
    fn stranger() -> Self {
        Self {
            message: "serve you: the control socket is for root and the group vhostd".into(),
            hint: "run it with `sudo`, or add yourself to the group: `adduser $USER vhostd`".into(),
        }
    }
}

#[cfg(test)]
mod tests;
