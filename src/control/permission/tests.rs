use super::*;

const SOCKET: u32 = 100;
const ADMINS: u32 = 200;

/// Owns `mine`; `theirs` is another user's, and `gone` has no file.
const OWNER: u32 = 1000;

fn facts() -> Facts {
    let owners = [
        ("mine", OWNER),
        ("also-mine", OWNER),
        ("theirs", 1001),
        ("roots", 0),
    ];
    Facts {
        daemon_uid: 999,
        socket_group: Some(SOCKET),
        admin_group: Some(AdminGroup {
            name: "admins".into(),
            gid: Some(ADMINS),
        }),
        owners: owners.map(|(app, uid)| (app.parse().unwrap(), uid)).into(),
    }
}

fn peer(uid: u32, groups: &[u32]) -> Peer {
    Peer {
        uid: Some(uid),
        groups: groups.iter().copied().collect(),
    }
}

fn renew(names: &[&str], force: bool) -> Request {
    let names = names.iter().map(ToString::to_string).collect();
    Request::Renew { names, force }
}

fn reload(names: &[&str]) -> Request {
    Request::Reload {
        wait: true,
        names: names.iter().map(ToString::to_string).collect(),
    }
}

fn rollback(apps: &[&str], generation: Option<u64>) -> Request {
    let apps = apps.iter().map(|app| app.parse().unwrap()).collect();
    Request::RollbackApps { apps, generation }
}

/// For whom a request is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum For {
    Members,
    /// Members who own `mine`.
    Owner,
    Admins,
}

#[test]
fn each_request_is_for_members_for_the_owner_or_for_root_and_the_admins_and_for_nobody_else() {
    let all = Request::Rollback { generation: None };
    let one = Request::Rollback {
        generation: Some(3),
    };
    let requests = [
        (reload(&[]), For::Members),
        (reload(&["theirs"]), For::Members),
        (renew(&["theirs"], false), For::Members),
        (renew(&[], false), For::Admins),
        (renew(&[], true), For::Admins),
        (renew(&["mine"], true), For::Admins),
        (all, For::Admins),
        (one, For::Admins),
        (rollback(&["mine"], None), For::Owner),
        (rollback(&["mine"], Some(3)), For::Owner),
        (rollback(&["mine", "also-mine"], None), For::Owner),
        (rollback(&["mine", "theirs"], None), For::Admins),
        (rollback(&["theirs", "mine"], None), For::Admins),
        (rollback(&["roots"], None), For::Admins),
        (rollback(&["gone"], None), For::Admins),
        // none is all of them
        (rollback(&[], None), For::Admins),
    ];
    let asked = requests.iter().map(|(it, of)| (Asked::Request(it), *of));
    let looks = [
        Asked::Daemon,
        Asked::Question(Question::Status),
        Asked::Question(Question::History),
    ];
    for (asked, of) in asked.chain(looks.map(|it| (it, For::Members))) {
        for (peer, permitted) in [
            (peer(0, &[]), true),
            (peer(999, &[]), true),
            (peer(1500, &[ADMINS]), true),
            (peer(1500, &[SOCKET, ADMINS]), true),
            (peer(OWNER, &[7, SOCKET]), of != For::Admins),
            (peer(1500, &[SOCKET]), of == For::Members),
            // the socket is not theirs
            (peer(OWNER, &[]), false),
            (peer(1500, &[7]), false),
            (Peer::default(), false),
        ] {
            let found = may(asked, &peer, &facts());
            assert_eq!(found.is_ok(), permitted, "{asked:?} of {peer:?}: {found:?}");
        }
    }
}

#[test]
fn a_group_that_there_is_not_gives_no_rights() {
    let mut facts = facts();
    facts.socket_group = None;
    facts.admin_group = Some(AdminGroup {
        name: "admins".into(),
        gid: None,
    });
    let everywhere = peer(OWNER, &[0, SOCKET, ADMINS]);
    assert!(may(Asked::Daemon, &everywhere, &facts).is_err());
    facts.admin_group = None;
    assert!(may(Asked::Daemon, &everywhere, &facts).is_err());
    assert_eq!(requester(&peer(0, &[]), &facts), Some(Requester::Admin));
}

#[test]
fn what_is_refused_says_why_and_the_next_command() {
    let member = peer(OWNER, &[SOCKET]);
    let all = Request::Rollback { generation: None };
    for (request, message, hint) in [
        (
            &all,
            "roll back all apps: only root and the group admins may",
            "`vhostd rollback NAME`",
        ),
        (
            &rollback(&["mine", "theirs"], Some(3)),
            "roll back theirs: its vhost file is another user's; only its owner and root",
            "`sudo vhostd rollback mine theirs --to 3`",
        ),
        (
            &rollback(&["gone"], None),
            "roll back gone: it has no vhost file",
            "`sudo vhostd rollback gone`",
        ),
        (
            &renew(&[], false),
            "renew all certificates: only root",
            "`sudo vhostd renew`",
        ),
        (
            &renew(&["mine"], true),
            "renew what is not due: only root",
            "`sudo vhostd renew --force mine`",
        ),
    ] {
        let refused = may(Asked::Request(request), &member, &facts()).unwrap_err();
        assert!(refused.message.starts_with(message), "{refused:?}");
        assert!(refused.hint.contains(hint), "{refused:?}");
    }
    let mut facts = facts();
    facts.admin_group = None;
    let refused = may(Asked::Request(&all), &member, &facts).unwrap_err();
    assert_eq!(refused.message, "roll back all apps: only root may");
}
