//! Who may do what over the control socket: two users with a vhost file each, and an admin.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::support::client;
use super::support::host::{Daemon, Ended, Host, reachable_vhostd};
use super::support::wait_for;

/// `backup` and `games` of Debian's base system; of a group that only the daemon knows.
const ALICE: u32 = 34;
const BOB: u32 = 5;
const MEMBERS: u32 = 4242;
const ADMINS: u32 = 4243;

/// `a.yml` is Alice's and `b.yml` is Bob's; each had page 1 before it got page 2.
struct Team {
    host: Host,
    daemon: Daemon,
    binary: PathBuf,
    _directory: tempfile::TempDir,
}

impl Team {
    /// `None`: only root can be others.
    fn new(settings: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can be somebody else");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), permissions).unwrap();
        let binary = reachable_vhostd(directory.path());
        let internal = "tls: internal\ninternal_ca: {permit: [example.com]}\n";
        let host = Host::with_settings(&format!("{internal}{settings}"));
        // this machine's groups, and two that it does not have
        let groups = fs::read_to_string("/etc/group").unwrap();
        let groups = format!("{groups}vhostd:x:{MEMBERS}:\nsite-admins:x:{ADMINS}:\n");
        let file = directory.path().join("group");
        fs::write(&file, groups).unwrap();
        let run = host.command(&["run"]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc"]);
        command.args([r#"mount --bind "$1" /etc/group; exec "$2" run"#, "sh"]);
        command.arg(file).arg(run.get_program());
        command.env("VHOSTD_CONFIG", host.path("vhostd.yml"));
        let daemon = host.daemon_of(command);
        let team = Self {
            host,
            daemon,
            binary,
            _directory: directory,
        };
        for page in 1..=2 {
            team.write("a", ALICE, page);
            team.write("b", BOB, page);
            team.wait_for_pages(page, page);
        }
        Some(team)
    }

    /// The vhost file of `app`, and its page, which are both `owner`'s.
    fn write(&self, app: &str, owner: u32, page: u8) {
        let root = self.host.page(&format!("{app}{page}"), &page.to_string());
        chown(&root, Some(owner), Some(owner)).unwrap();
        chown(root.join("index.html"), Some(owner), Some(owner)).unwrap();
        let text = format!("server_name: {app}.example.com\nroot: {}\n", root.display());
        let temporary = self.host.path("vhosts.d").join(format!(".{app}.new"));
        fs::write(&temporary, text).unwrap();
        chown(&temporary, Some(owner), Some(owner)).unwrap();
        let file = self.host.path("vhosts.d").join(format!("{app}.yml"));
        fs::rename(temporary, file).unwrap();
    }

    fn page(&self, app: &str) -> Option<u8> {
        let (address, root) = (
            self.host.https(),
            self.host.path("state/internal-ca/root.pem"),
        );
        if !root.exists() {
            return None;
        }
        let name = format!("{app}.example.com");
        let answer = client::get_tls(address, &name, "/", &self.host.internal_root());
        answer.ok()?.text().parse().ok()
    }

    fn wait_for_pages(&self, a: u8, b: u8) {
        wait_for(&format!("pages {a} and {b}"), || {
            (self.pages() == [Some(a), Some(b)]).then_some(())
        });
        for app in ["a", "b"] {
            self.host.wait_for_serving(app);
        }
    }

    fn pages(&self) -> [Option<u8>; 2] {
        ["a", "b"].map(|app| self.page(app))
    }

    fn ran(&self, uid: u32, groups: &str, arguments: &[&str]) -> Ended {
        let output = Command::new("setpriv")
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .arg(groups)
            .arg(&self.binary)
            .args(arguments)
            .env("VHOSTD_CONFIG", self.host.path("vhostd.yml"))
            .output()
            .unwrap();
        Ended {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// As a member of the socket's group.
    fn member(&self, uid: u32, arguments: &[&str]) -> Ended {
        self.ran(uid, &format!("--groups={MEMBERS}"), arguments)
    }

    fn succeeds(&self, uid: u32, arguments: &[&str]) {
        let ended = self.member(uid, arguments);
        assert_eq!(
            ended.status,
            0,
            "{arguments:?}: {ended:?}\n{}",
            self.daemon.log()
        );
    }

    /// Exit status 1, with the reason and the next command; also as data.
    fn is_refused(&self, uid: u32, arguments: &[&str], reason: &str, hint: &str) {
        let before = (self.pages(), self.host.active());
        let ended = self.member(uid, arguments);
        assert_eq!(ended.status, 1, "{arguments:?}: {ended:?}");
        for words in [reason, hint] {
            assert!(ended.stderr.contains(words), "{arguments:?}: {ended:?}");
        }
        let ended = self.member(uid, &[arguments, &["--json"]].concat());
        let told: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(ended.status, 1, "{told}");
        assert!(told["error"].as_str().unwrap().contains(reason), "{told}");
        assert!(told["hint"].as_str().unwrap().contains(hint), "{told}");
        assert_eq!((self.pages(), self.host.active()), before);
    }

    /// Of the vhosts a and b, in `status`.
    fn pinned(&self) -> [bool; 2] {
        ["a", "b"].map(|app| self.host.vhost(app).unwrap()["pinned"] == true)
    }
}

#[test]
fn members_look_reload_and_renew_what_they_name_and_are_told_who_may_do_the_rest() {
    let Some(team) = Team::new("") else { return };
    for arguments in [
        &["status"][..],
        &["history"],
        &["reload"],
        &["reload", "b", "--wait"],
        &["renew", "b"],
    ] {
        team.succeeds(ALICE, arguments);
    }
    let renew = "only root may";
    team.is_refused(ALICE, &["renew"], renew, "`sudo vhostd renew`");
    team.is_refused(
        ALICE,
        &["renew", "a", "--force"],
        renew,
        "`sudo vhostd renew --force a`",
    );
    let rollback = "roll back all apps: only root may";
    team.is_refused(ALICE, &["rollback"], rollback, "`vhostd rollback NAME`");
    team.is_refused(
        ALICE,
        &["rollback", "1"],
        rollback,
        "`sudo vhostd rollback`",
    );
    // who is no member is nobody
    let stranger = team.ran(ALICE, "--clear-groups", &["rollback", "a"]);
    assert_eq!(stranger.status, 1);
    assert!(
        stranger.stderr.contains("permission denied"),
        "{stranger:?}"
    );
}

#[test]
fn the_owner_of_a_vhost_file_rolls_that_app_back_and_no_other() {
    let Some(team) = Team::new("") else { return };
    team.is_refused(
        ALICE,
        &["rollback", "b"],
        "another user's",
        "`sudo vhostd rollback b`",
    );
    team.is_refused(
        ALICE,
        &["rollback", "a", "b"],
        "roll back b",
        "sudo vhostd rollback a b",
    );
    team.is_refused(
        ALICE,
        &["rollback", "none"],
        "has no vhost file",
        "sudo vhostd rollback none",
    );
    team.succeeds(ALICE, &["rollback", "a"]);
    assert_eq!(team.pages(), [Some(1), Some(2)], "{}", team.daemon.log());
    assert_eq!(team.pinned(), [true, false]);
    assert!(team.host.status()["pinned"].is_u64());
    // a file that is Bob's now is none of Alice's
    for page in 1..=2 {
        let root = team.host.page(&format!("a{page}"), &page.to_string());
        chown(&root, Some(BOB), Some(BOB)).unwrap();
    }
    let file = team.host.path("vhosts.d/a.yml");
    chown(file, Some(BOB), Some(BOB)).unwrap();
    team.succeeds(BOB, &["reload"]);
    team.wait_for_pages(2, 2);
    team.is_refused(ALICE, &["rollback", "a"], "another user's", "sudo");
    team.succeeds(BOB, &["rollback", "a"]);
    assert_eq!(team.page("a"), Some(1));
}

#[test]
fn a_users_edit_and_reload_end_only_the_rollback_of_his_own_app() {
    let Some(team) = Team::new("") else { return };
    let roll_back = || {
        let ended = team.host.vhostd(&["rollback"]);
        assert_eq!(ended.status, 0, "{ended:?}");
        team.host.vhostd(&["rollback", "a", "b", "--to", "2"]);
        assert_eq!(
            (team.pages(), team.pinned()),
            ([Some(1), Some(1)], [true; 2])
        );
    };
    roll_back();
    team.write("b", BOB, 3);
    team.wait_for_pages(1, 3);
    assert_eq!(team.pinned(), [true, false]);
    // neither does his reload, also where he names the other app
    for arguments in [&["reload"][..], &["reload", "a"]] {
        team.succeeds(BOB, arguments);
        assert_eq!(
            (team.pages(), team.pinned()),
            ([Some(1), Some(3)], [true, false])
        );
    }
    team.succeeds(ALICE, &["reload"]);
    assert_eq!(
        (team.pages(), team.pinned()),
        ([Some(2), Some(3)], [false; 2])
    );
    assert!(team.host.status()["pinned"].is_null());
    roll_back();
    team.succeeds(BOB, &["reload"]);
    assert_eq!(
        (team.pages(), team.pinned()),
        ([Some(1), Some(3)], [true, false])
    );
    // and root's ends what is left
    assert_eq!(team.host.vhostd(&["reload"]).status, 0);
    assert_eq!(
        (team.pages(), team.pinned()),
        ([Some(2), Some(3)], [false; 2])
    );
}

#[test]
fn members_of_the_admin_group_may_do_what_root_may() {
    let Some(team) = Team::new("admin_group: site-admins\n") else {
        return;
    };
    let admin = |arguments: &[&str]| {
        let groups = format!("--groups={MEMBERS},{ADMINS}");
        let ended = team.ran(ALICE, &groups, arguments);
        assert_eq!(ended.status, 0, "{arguments:?}: {ended:?}");
    };
    team.is_refused(
        ALICE,
        &["rollback"],
        "only root and the group site-admins may",
        "sudo",
    );
    admin(&["rollback", "b"]);
    assert_eq!(team.pages(), [Some(2), Some(1)]);
    admin(&["reload"]);
    assert_eq!(
        (team.pages(), team.pinned()),
        ([Some(2), Some(2)], [false; 2])
    );
    admin(&["renew", "a", "--force"]);
    admin(&["renew"]);
    admin(&["rollback"]);
}

#[test]
fn an_admin_group_that_there_is_not_is_a_warning_and_gives_no_rights() {
    let Some(team) = Team::new("admin_group: nobody-has-this\n") else {
        return;
    };
    let warnings = team.host.status()["warnings"].to_string();
    assert!(
        warnings.contains("there is no group `nobody-has-this`"),
        "{warnings}"
    );
    team.is_refused(ALICE, &["rollback"], "only root may", "sudo");
}

#[test]
fn a_users_rollbacks_and_reloads_are_spaced_as_edits_are_and_each_succeeds() {
    let Some(team) = Team::new("") else { return };
    let activated = || {
        let history = team.host.json(&["history"]).1;
        let entries = history["generations"].as_array().unwrap().iter();
        let mut times: Vec<_> = entries
            .map(|entry| {
                let at = entry["activated_at"].as_str().unwrap();
                OffsetDateTime::parse(at, &Rfc3339).unwrap()
            })
            .collect();
        times.sort();
        times
    };
    let before = activated().len();
    for _ in 0..4 {
        team.succeeds(ALICE, &["rollback", "a"]);
    }
    // an edit that a reload applies at once is no way around it
    for page in 3..=6 {
        team.write("a", ALICE, page);
        team.succeeds(ALICE, &["reload"]);
    }
    let times = activated();
    assert!(times.len() >= before + 6, "{times:?}");
    for pair in times[before..].windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap >= Duration::SECOND, "{gap}: {times:?}");
    }
    // what changes nothing waits for nothing
    let begin = Instant::now();
    for _ in 0..3 {
        team.succeeds(ALICE, &["reload"]);
    }
    let took = begin.elapsed();
    assert!(took < Duration::SECOND * 3, "{took:?}");
}
