//! A vhost file has the rights of its owner: what a deploy user's file may name, and what ends when the
//! settings or the owners of files change.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::support::app::App;
use crate::support::client;
use crate::support::host::Host;

/// Users of every Debian.
const ALICE: u32 = 34; // backup
const BOB: u32 = 5; // games
const WWW_DATA: u32 = 33;

fn host(settings: &str) -> Option<Host> {
    match rustix::process::geteuid().is_root() {
        true => Some(Host::with_settings(&format!("tls: off\n{settings}"))),
        false => {
            eprintln!("skipped: only root can give files away");
            None
        }
    }
}

/// A directory of `uid` below the allowed one, with a page.
fn directory(host: &Host, path: &str, uid: u32) -> PathBuf {
    let at = host.path("srv").join(path);
    fs::create_dir_all(&at).unwrap();
    fs::write(at.join("page.html"), path).unwrap();
    own(&at, uid, 0o755);
    own(&at.join("page.html"), uid, 0o644);
    at
}

fn own(path: &Path, uid: u32, mode: u32) {
    chown(path, Some(uid), Some(uid)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn with_root(name: &str, root: &Path) -> String {
    format!("server_name: {name}\nroot: {}\n", root.display())
}

fn status(host: &Host, name: &str, path: &str) -> Option<u16> {
    client::get(host.http(), name, path)
        .map(|it| it.status)
        .ok()
}

/// What the status says of a vhost: its state and its reason.
fn state(host: &Host, name: &str) -> (String, String) {
    let vhost = host.vhost(name).unwrap_or_default();
    let text = |key: &str| vhost[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

#[test]
fn a_deploy_users_file_publishes_only_directories_of_that_user() {
    let Some(host) = host("") else { return };
    let own = directory(&host, "bob/public", BOB);
    let theirs = directory(&host, "nextcloud/data", WWW_DATA);
    host.drop_file_of(BOB, "own.yml", &with_root("own.example", &own));
    host.drop_file_of(BOB, "theirs.yml", &with_root("theirs.example", &theirs));
    host.reload_ends(3, "activated");
    assert_eq!(status(&host, "own.example", "/page.html"), Some(200));
    assert_eq!(status(&host, "theirs.example", "/page.html"), None);
    let (state, reason) = state(&host, "theirs");
    assert_eq!(state, "rejected");
    assert!(
        reason.ends_with(
            "belongs to www-data, and the vhost file to games: its files are not served"
        ),
        "{reason}"
    );
    // root's file may say so
    host.drop_file("theirs.yml", &with_root("theirs.example", &theirs));
    host.reload_ends(0, "activated");
    assert_eq!(status(&host, "theirs.example", "/page.html"), Some(200));
}

#[test]
fn an_app_beside_a_root_that_is_not_permitted_is_served_without_it() {
    let Some(host) = host("") else { return };
    let theirs = directory(&host, "nextcloud/data", WWW_DATA);
    let app = App::start();
    let text = format!(
        "{}proxy_pass_url: {}\ncache_assets: true\n",
        with_root("app.example", &theirs),
        app.url()
    );
    host.drop_file_of(BOB, "app.yml", &text);
    let report = host.reload_ends(0, "activated");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("its files are not served"), "{warnings}");
    assert!(warnings.contains("chown games"), "{warnings}");
    let answer = client::get(host.http(), "app.example", "/page.html").unwrap();
    assert!(
        answer.text().contains("GET /page.html"),
        "{}",
        answer.text()
    );
}

#[test]
fn a_root_that_another_user_may_still_create_is_read_only_once_it_is_the_owners() {
    let Some(host) = host("") else { return };
    let root = host.path("srv/later/public");
    host.drop_file_of(BOB, "app.yml", &with_root("app.example", &root));
    let report = host.reload_ends(0, "activated");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("does not exist yet"), "{warnings}");
    directory(&host, "later/public", ALICE);
    assert_eq!(status(&host, "app.example", "/page.html"), Some(404));
    host.reload_ends(3, "activated");
    assert_eq!(status(&host, "app.example", "/page.html"), None);
    directory(&host, "later/public", BOB);
    host.reload_ends(0, "activated");
    assert_eq!(status(&host, "app.example", "/page.html"), Some(200));
}

#[test]
fn a_root_that_is_swapped_for_a_link_serves_nothing_and_is_told() {
    let Some(host) = host("") else { return };
    let root = directory(&host, "bob/public", BOB);
    own(&host.path("srv/bob"), BOB, 0o755);
    let theirs = directory(&host, "nextcloud/data", WWW_DATA);
    host.drop_file_of(BOB, "app.yml", &with_root("app.example", &root));
    host.reload_ends(0, "activated");
    for target in [Path::new("/"), &theirs] {
        fs::rename(&root, host.path("srv/bob/before")).unwrap();
        symlink(target, &root).unwrap();
        std::os::unix::fs::lchown(&root, Some(BOB), Some(BOB)).unwrap();
        // before vhostd looks
        for path in ["/page.html", "/etc/passwd"] {
            assert_eq!(status(&host, "app.example", path), Some(404), "{path}");
        }
        host.vhostd(&["reload"]);
        assert_eq!(status(&host, "app.example", "/page.html"), None);
        assert_eq!(state(&host, "app").0, "rejected");
        fs::remove_file(&root).unwrap();
        fs::rename(host.path("srv/bob/before"), &root).unwrap();
        host.vhostd(&["reload"]);
        assert_eq!(status(&host, "app.example", "/page.html"), Some(200));
    }
}

#[test]
fn a_root_that_the_settings_no_longer_permit_is_served_no_longer() {
    let Some(host) = host("") else { return };
    let root = directory(&host, "secret/x", 0);
    directory(&host, "ok", 0);
    host.drop_file("app.yml", &with_root("app.example", &root));
    host.reload_ends(0, "activated");
    assert_eq!(status(&host, "app.example", "/page.html"), Some(200));
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let srv = host.path("srv").display().to_string();
    let narrowed = settings.replace(&format!("roots: [{srv}]"), &format!("roots: [{srv}/ok]"));
    assert_ne!(narrowed, settings);
    fs::write(host.path("vhostd.yml"), &narrowed).unwrap();
    let daemon = host.daemon();
    crate::support::wait_for("the root is withdrawn", || {
        status(&host, "app.example", "/page.html")
            .is_none()
            .then_some(())
    });
    let (told, reason) = state(&host, "app");
    assert_eq!(told, "rejected");
    assert!(reason.contains("the root is not below"), "{reason}");
    assert_eq!(daemon.stop(), 0);
    // it comes back neither with a restart nor with a file that is malformed
    host.drop_file("app.yml", "server_name: [app.example\n");
    let daemon = host.daemon();
    host.vhostd(&["reload"]);
    assert_eq!(status(&host, "app.example", "/page.html"), None);
    assert_eq!(state(&host, "app").0, "rejected");
    drop(daemon);
    fs::write(host.path("vhostd.yml"), settings).unwrap();
    host.drop_file("app.yml", &with_root("app.example", &root));
    host.reload_ends(0, "activated");
    assert_eq!(status(&host, "app.example", "/page.html"), Some(200));
}

#[test]
fn a_directory_that_is_given_to_another_user_is_withdrawn_and_a_typo_is_not() {
    let Some(host) = host("") else { return };
    let root = directory(&host, "bob/public", BOB);
    let good = with_root("app.example", &root);
    host.drop_file_of(BOB, "app.yml", &good);
    host.reload_ends(0, "activated");
    host.drop_file_of(BOB, "app.yml", &format!("{good}rot: x\n"));
    host.reload_ends(3, "unchanged");
    assert_eq!(state(&host, "app").0, "stale");
    assert_eq!(status(&host, "app.example", "/page.html"), Some(200));
    own(&root, ALICE, 0o755);
    host.reload_ends(3, "activated");
    assert_eq!(state(&host, "app").0, "rejected");
    assert_eq!(status(&host, "app.example", "/page.html"), None);
}

#[test]
fn a_socket_that_the_owner_may_not_connect_to_is_no_upstream() {
    let Some(host) = host("") else { return };
    let socket = |name: &str, uid: u32, gid: u32, mode: u32| {
        let path = host.path("srv").join(name);
        let listener = UnixListener::bind(&path).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (path, listener)
    };
    let sockets = [
        (socket("everyone.sock", 0, 0, 0o666), true),
        (socket("own.sock", BOB, WWW_DATA, 0o660), true),
        (socket("group.sock", 0, 60, 0o660), true), // games' own group
        (socket("other.sock", 0, WWW_DATA, 0o660), false),
        (socket("roots.sock", 0, 0, 0o600), false),
    ];
    let absent = host.path("srv/absent.sock");
    let in_own = directory(&host, "bob", BOB).join("absent.sock");
    let sockets = sockets
        .iter()
        .map(|((path, _), expected)| (path.clone(), *expected));
    for (path, expected) in sockets.chain([(absent, false), (in_own, true)]) {
        let text = format!(
            "server_name: app.example\nproxy_pass_url: http://unix:{}\n",
            path.display()
        );
        host.drop_file_of(BOB, "app.yml", &text);
        let checked = host.vhostd(&["check"]);
        let exit = if expected { 0 } else { 3 };
        assert_eq!(checked.status, exit, "{path:?}: {checked:?}");
        host.drop_file("app.yml", &text);
        assert_eq!(host.vhostd(&["check"]).status, 0, "{path:?}, of root");
    }
}

#[test]
fn no_file_leads_requests_back_to_nginx_or_to_vhostd() {
    let Some(host) = host("") else { return };
    let daemon = host.daemon();
    let control = host.path("run/control.sock");
    assert!(control.exists());
    let link = host.path("srv/link.sock");
    symlink(&control, &link).unwrap();
    let (http, https) = (host.nginx.http_port, host.nginx.https_port);
    for url in [
        format!("http://127.0.0.1:{http}"),
        format!("https://127.0.0.1:{https}"),
        format!("http://127.9.9.9:{http}"),
        format!("http://localhost:{http}"),
        format!("http://unix:{}", control.display()),
        format!("http://unix:{}", host.path("run/later.sock").display()),
        format!("http://unix:{}", link.display()),
    ] {
        let text = format!("server_name: app.example\nproxy_pass_url: \"{url}\"\n");
        host.drop_file("app.yml", &text);
        let (exit, report) = host.json(&["check"]);
        assert_eq!(exit, 3, "{url}: {report}");
    }
    drop(daemon);
}

#[test]
fn the_settings_limit_what_a_users_files_may_name() {
    let limits = "users: {games: {names: [\"*.games.example\"], upstreams: [18000-18099]}}\n";
    let Some(host) = host(limits) else { return };
    let root = directory(&host, "bob/public", BOB);
    for (text, expected) in [
        (with_root("a.games.example", &root), 0),
        (with_root("games.example", &root), 3),
        (
            "server_name: b.games.example\nproxy_pass_url: http://127.0.0.1:18001\n".into(),
            0,
        ),
        (
            "server_name: b.games.example\nproxy_pass_url: http://127.0.0.1:9200\n".into(),
            3,
        ),
    ] {
        host.drop_file_of(BOB, "app.yml", &text);
        let checked = host.vhostd(&["check"]);
        assert_eq!(checked.status, expected, "{text}: {checked:?}");
        host.drop_file("app.yml", &text);
        assert_eq!(host.vhostd(&["check"]).status, 0, "{text}, of root");
    }
}

/// A pair for `name`, of `uid` alone.
fn pair(host: &Host, directory: &str, name: &str, uid: u32) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let at = host.path(directory);
    fs::create_dir_all(&at).unwrap();
    let (chain, key) = (at.join("chain.pem"), at.join("key.pem"));
    fs::write(&chain, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    for path in [&chain, &key] {
        own(path, uid, 0o600);
    }
    own(&at, uid, 0o700);
    (chain, key)
}

fn with_pair(name: &str, root: &Path, (chain, key): (&Path, &Path)) -> String {
    format!(
        "{}tls: {{certificate: {}, certificate_key: {}}}\n",
        with_root(name, root),
        chain.display(),
        key.display()
    )
}

#[test]
fn certificate_files_are_opened_with_the_owners_rights_and_nothing_is_told_of_others() {
    let Some(host) = host("") else { return };
    let root = directory(&host, "bob/public", BOB);
    let own_pair = pair(&host, "own", "own.example", BOB);
    let roots_pair = pair(&host, "roots", "roots.example", 0);
    let text = with_pair("own.example", &root, (&own_pair.0, &own_pair.1));
    host.drop_file_of(BOB, "own.yml", &text);
    host.reload_ends(0, "activated");
    let error = |name: &str| {
        let certificate = host.certificate(name).unwrap_or_default();
        certificate["last_error"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(error("own.example"), "");
    assert_eq!(host.certificate("own.example").unwrap()["state"], "valid");
    // what is there, what is not, and what is no certificate read alike
    let mut told = Vec::new();
    fs::write(host.path("roots/other"), "secret").unwrap();
    for (chain, key) in [
        (roots_pair.0.clone(), roots_pair.1.clone()),
        (host.path("roots/none"), roots_pair.1.clone()),
        (host.path("roots/other"), host.path("roots/other")),
    ] {
        let text = with_pair("roots.example", &root, (&chain, &key));
        host.drop_file_of(BOB, "roots.yml", &text);
        host.vhostd(&["reload"]);
        let certificate = host.certificate("roots.example").unwrap();
        assert_eq!(certificate["state"], "failing", "{certificate}");
        let error = error("roots.example");
        told.push(error.replace(&*chain.to_string_lossy(), "FILE"));
    }
    assert_eq!(told[0], "read FILE: games, who owns the vhost file, cannot");
    assert!(told.iter().all(|it| *it == told[0]), "{told:?}");
    let text = with_pair("roots.example", &root, (&roots_pair.0, &roots_pair.1));
    host.drop_file("roots.yml", &text);
    host.vhostd(&["reload"]);
    assert_eq!(host.certificate("roots.example").unwrap()["state"], "valid");
}

/// The app that answers a name, by the directory whose page it shows.
fn shows(host: &Host, name: &str) -> Option<String> {
    let answer = client::get(host.http(), name, "/page.html").ok()?;
    (answer.status == 200).then(|| answer.text().to_owned())
}

fn vhosts_dir(host: &Host, name: &str) -> PathBuf {
    host.path("vhosts.d").join(name)
}

#[test]
fn a_name_does_not_go_to_a_copy_of_the_vhost_file() {
    let Some(host) = host("") else { return };
    let (alices, bobs) = (
        directory(&host, "alice", ALICE),
        directory(&host, "bob", BOB),
    );
    let daemon = host.daemon();
    let text = with_root("a.example", &alices);
    host.drop_file_of(ALICE, "hello.yml", &text);
    host.wait_for_serving("hello");
    // a copy, with an old time of change
    host.drop_file_of(BOB, "evil.yml", &text);
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(978_307_200);
    let copy = fs::File::options()
        .write(true)
        .open(vhosts_dir(&host, "evil.yml"))
        .unwrap();
    copy.set_modified(old).unwrap();
    host.vhostd(&["reload"]);
    fs::rename(
        vhosts_dir(&host, "hello.yml"),
        vhosts_dir(&host, "shop.yml"),
    )
    .unwrap();
    host.wait_for_serving("shop");
    host.drop_file_of(BOB, "evil.yml", &with_root("a.example", &bobs));
    host.vhostd(&["reload", "--json"]);
    assert_eq!(shows(&host, "a.example").as_deref(), Some("alice"));
    assert_eq!(state(&host, "evil").0, "rejected");
    drop(daemon);
}

#[test]
fn a_name_that_is_given_up_is_kept_for_its_owner_until_root_reloads() {
    let Some(host) = host("") else { return };
    let (alices, bobs) = (
        directory(&host, "alice", ALICE),
        directory(&host, "bob", BOB),
    );
    let daemon = host.daemon();
    host.drop_file_of(ALICE, "hello.yml", &with_root("a.example", &alices));
    host.wait_for_serving("hello");
    host.drop_file_of(BOB, "parked.yml", &with_root("a.example", &bobs));
    host.remove_file("hello.yml");
    crate::support::wait_for("the removal", || {
        shows(&host, "a.example").is_none().then_some(())
    });
    let told = crate::support::wait_for("the name is reserved", || {
        let (state, reason) = state(&host, "parked");
        (state == "rejected" && reason.contains("reserved")).then_some(reason)
    });
    assert!(
        told.contains("`a.example` is reserved for user 34's vhost files until "),
        "{told}"
    );
    // a restart does not free it, nor does another app of the same file name
    drop(daemon);
    let daemon = host.daemon();
    host.drop_file_of(BOB, "hello.yml", &with_root("a.example", &bobs));
    crate::support::wait_for("the other file is read", || {
        (state(&host, "hello").0 == "rejected").then_some(())
    });
    assert_eq!(shows(&host, "a.example"), None);
    // its owner may have it again, in another file
    host.remove_file("hello.yml");
    host.drop_file_of(ALICE, "again.yml", &with_root("a.example", &alices));
    host.wait_for_serving("again");
    host.remove_file("again.yml");
    crate::support::wait_for("the second removal", || {
        shows(&host, "a.example").is_none().then_some(())
    });
    host.vhostd(&["reload"]);
    assert_eq!(shows(&host, "a.example").as_deref(), Some("bob"));
    drop(daemon);
}

#[test]
fn a_chown_of_the_file_takes_names_and_certificate_along() {
    let Some(host) = host("") else { return };
    let shared = directory(&host, "alice", ALICE);
    let made = pair(&host, "pem", "a.example", 0);
    for path in [&made.0, &made.1] {
        own(path, ALICE, 0o644);
    }
    own(&host.path("pem"), ALICE, 0o755);
    let daemon = host.daemon();
    host.drop_file_of(
        ALICE,
        "hello.yml",
        &with_pair("a.example", &shared, (&made.0, &made.1)),
    );
    host.wait_for_serving("hello");
    assert_eq!(host.certificate("a.example").unwrap()["state"], "valid");
    own(&shared, BOB, 0o755);
    chown(vhosts_dir(&host, "hello.yml"), Some(BOB), Some(BOB)).unwrap();
    host.vhostd(&["reload"]);
    assert_eq!(host.vhost("hello").unwrap()["state"], "serving");
    assert_eq!(host.certificate("a.example").unwrap()["state"], "valid");
    let owners = fs::read_to_string(host.path("state/owners.json")).unwrap();
    assert!(
        owners.contains("\"uid\": 5") || owners.contains("\"uid\":5"),
        "{owners}"
    );
    drop(daemon);
}

#[test]
fn a_new_owner_of_a_name_does_not_get_the_former_owners_certificate() {
    let Some(host) = host("acme: {directory: \"https://127.0.0.1:1/dir\"}\n") else {
        return;
    };
    let (alices, bobs) = (
        directory(&host, "alice", ALICE),
        directory(&host, "bob", BOB),
    );
    let made = pair(&host, "pem", "a.example", ALICE);
    let text = with_pair("a.example", &alices, (&made.0, &made.1));
    host.drop_file_of(ALICE, "a.yml", &text);
    host.reload_ends(0, "activated");
    let stored = host.path("state/certificates/a.example");
    assert!(stored.join("current/privkey.pem").exists());
    host.remove_file("a.yml");
    host.reload_ends(0, "activated");
    // nothing names the files: key and chain are gone
    assert!(
        !stored.join("current").exists(),
        "{:?}",
        fs::read_dir(&stored)
    );
    // the same where it was stored for another user's order
    host.drop_file_of(ALICE, "a.yml", &text);
    host.reload_ends(0, "activated");
    let before = host.certificate("a.example").unwrap();
    assert_eq!(before["state"], "valid");
    host.remove_file("a.yml");
    host.drop_file_of(
        BOB,
        "b.yml",
        &format!("{}tls: auto\n", with_root("a.example", &bobs)),
    );
    host.vhostd(&["reload"]);
    let now = host.certificate("a.example").unwrap();
    assert_ne!(now["state"], "valid", "{now}");
    let rendered = host.rendered("b").unwrap();
    assert!(rendered.contains("/placeholders/"), "{rendered}");
}

#[test]
fn a_directory_that_several_users_write_to_without_the_sticky_bit_is_warned_of() {
    let Some(host) = host("") else { return };
    let warned = |mode: u32| {
        let directory = host.path("vhosts.d");
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
        let report = host.json(&["reload"]).1;
        report["warnings"].to_string().contains("chmod +t")
    };
    assert!(!warned(0o755));
    assert!(warned(0o775));
    assert!(warned(0o757));
    assert!(!warned(0o1777));
}
