//! What is no ordinary file in the vhosts directory: refused at once, with no byte of another file
//! in any message, and with a memory that stays as it is.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use vhostd::vhost::TlsMode;
use vhostd::vhost::parse::parse;
use vhostd::vhost::source;

use super::slow;
use crate::support::app::App;
use crate::support::host::{Daemon, Host};
use crate::support::{wait_for, wait_within};

/// Seen nowhere: neither YAML nor a name.
const SECRET: &str = "s3cret-5f1d: [ \u{7}";

/// What the refusal says of each.
struct Object {
    name: &'static str,
    /// Makes it at this path; `secret` is a file that its author may not read. False where this
    /// host does not let the test make one.
    make: fn(path: &Path, secret: &Path) -> bool,
    reason: &'static str,
}

const OBJECTS: &[Object] = &[
    object(
        "fifo",
        |path, _| mkfifo(path, Mode::S_IRWXU).is_ok(),
        "not a regular file",
    ),
    object(
        "socket",
        |path, _| UnixListener::bind(path).is_ok(),
        "not a regular file",
    ),
    object("zero", |path, _| device(path, 5), "not a regular file"),
    object("null", |path, _| device(path, 3), "not a regular file"),
    object(
        "directory",
        |path, _| fs::create_dir(path).is_ok(),
        "not a regular file",
    ),
    object(
        "symlink",
        |path, secret| symlink(secret, path).is_ok(),
        "a symbolic link",
    ),
    object(
        "shadow",
        |path, _| symlink("/etc/shadow", path).is_ok(),
        "a symbolic link",
    ),
    object(
        "endless",
        |path, _| symlink("/dev/zero", path).is_ok(),
        "a symbolic link",
    ),
    object(
        "dangling",
        |path, _| symlink("/nowhere", path).is_ok(),
        "a symbolic link",
    ),
    object(
        "loop",
        |path, _| symlink(path, path).is_ok(),
        "a symbolic link",
    ),
    object(
        "hardlink",
        |path, secret| fs::hard_link(secret, path).is_ok(),
        "a hard link",
    ),
    object(
        "gigabyte",
        |path, _| sparse(path, 1 << 30),
        "larger than 64 KiB",
    ),
    object(
        "terabyte",
        |path, _| sparse(path, 1 << 40),
        "larger than 64 KiB",
    ),
    object(
        "zeros",
        |path, _| sparse(path, 60_000),
        "control character U+0000",
    ),
    object(
        "bom",
        |path, _| written(path, "\u{feff}server_name: a.example\n"),
        "byte order mark",
    ),
    object(
        "crlf",
        |path, _| written(path, "server_name: a.example\r\ntls: off\r\n"),
        "carriage return",
    ),
    object(
        "nul",
        |path, _| written(path, "server_name: a.example\0\n"),
        "control character U+0000",
    ),
    object(
        "latin1",
        |path, _| bytes(path, b"server_name: b\xfccher.example\n"),
        "not UTF-8",
    ),
    object(
        "utf16",
        |path, _| bytes(path, b"\xff\xfea\0:\0 \x001\0"),
        "not UTF-8",
    ),
    object(
        "surrogate",
        |path, _| bytes(path, b"a: \xed\xa0\x80\n"),
        "not UTF-8",
    ),
    object(
        "overlong",
        |path, _| bytes(path, b"a: \xc0\xaf\n"),
        "not UTF-8",
    ),
    object(
        "tag",
        |path, _| written(path, "server_name: !!binary YQ==\n"),
        "a YAML tag",
    ),
    object("bomb", |path, _| written(path, &bomb()), "aliases multiply"),
    object(
        "deep",
        |path, _| written(path, &"[".repeat(60_000)),
        "too deeply nested",
    ),
    object(
        "merge",
        |path, _| written(path, "<<: {server_name: a.example}\n"),
        "merge key",
    ),
    object("empty", |path, _| written(path, ""), "the file is empty"),
];

const fn object(
    name: &'static str,
    make: fn(&Path, &Path) -> bool,
    reason: &'static str,
) -> Object {
    Object { name, make, reason }
}

fn device(path: &Path, minor: u64) -> bool {
    mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, minor)).is_ok()
}

fn sparse(path: &Path, length: u64) -> bool {
    // some file systems have no file of a terabyte
    File::create(path).unwrap().set_len(length).is_ok()
}

fn written(path: &Path, text: &str) -> bool {
    bytes(path, text.as_bytes())
}

fn bytes(path: &Path, bytes: &[u8]) -> bool {
    fs::write(path, bytes).is_ok()
}

fn bomb() -> String {
    let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..60 {
        let below = format!("*a{},", level - 1).repeat(10);
        text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    text
}

/// Makes it, or says that this host does not let us.
fn made(object: &Object, path: &Path, secret: &Path) -> bool {
    let made = (object.make)(path, secret);
    if !made {
        eprintln!("SKIPPED: {} cannot be made here", object.name);
        let _ = fs::remove_file(path);
    }
    made
}

fn remove(path: &Path) {
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::remove_dir(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

fn secret(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("secret");
    fs::write(&path, SECRET).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn each_object_is_refused_within_50_ms() {
    let directory = tempfile::tempdir().unwrap();
    let secret = secret(directory.path());
    let vhosts = directory.path().join("vhosts.d");
    fs::create_dir(&vhosts).unwrap();
    for object in OBJECTS {
        let path = vhosts.join(format!("{}.yml", object.name));
        if !made(object, &path, &secret) {
            continue;
        }
        // the machine is busy with other tests: what counts is the cost, not the wait
        let mut attempts = (0..20).map(|_| refusal(&vhosts));
        let (took, reason) = attempts
            .find(|(took, reason)| *took <= limit(reason))
            .unwrap_or_else(|| panic!("{} always took longer", object.name));
        println!("{}: {took:?}", object.name);
        assert!(reason.contains(object.reason), "{}: {reason}", object.name);
        assert!(!reason.contains("s3cret"), "{reason}");
        remove(&path);
    }
}

/// What is refused without a look at its text is as quick in a debug build.
fn limit(reason: &str) -> Duration {
    if reason.contains("aliases multiply") {
        slow::LIMIT
    } else {
        Duration::from_millis(50)
    }
}

/// How long it takes until the only file of a directory is refused, and why it is.
fn refusal(vhosts: &Path) -> (Duration, String) {
    let begin = Instant::now();
    let listing = source::read(vhosts).unwrap();
    let file = &listing.files[0];
    let refused = match &file.text {
        Err(diagnostic) => diagnostic.clone(),
        Ok(text) => {
            let parsed = parse(&file.app, &file.path, text, &[], &TlsMode::Off.into());
            parsed.unwrap_err().remove(0)
        }
    };
    (begin.elapsed(), format!("{refused} {:?}", refused.hint))
}

#[test]
fn the_daemon_refuses_each_object_with_no_byte_of_another_file_and_serves_on() {
    let (host, _app, daemon) = serving();
    let secret = secret(host.nginx.path("").as_path());
    for object in OBJECTS {
        let path = host.path("vhosts.d").join("object.yml");
        if !made(object, &path, &secret) {
            continue;
        }
        wait_for(object.name, || {
            let vhost = host.vhost("object")?;
            let reason = vhost["reason"].as_str()?;
            assert_eq!(vhost["state"], "rejected", "{vhost}");
            reason.contains(object.reason).then_some(())
        });
        for arguments in [
            &["check"][..],
            &["check", "--json"],
            &["status"],
            &["reload", "--json"],
        ] {
            let ended = host.vhostd(arguments);
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(!said.contains("s3cret"), "{}: {said}", object.name);
            assert!(said.contains("object"), "{}: {said}", object.name);
        }
        assert_eq!(host.plain("good.example.com").unwrap().0, 200);
        remove(&path);
        wait_for("its removal", || {
            host.vhost("object").is_none().then_some(())
        });
    }
    assert!(!daemon.log().contains("s3cret"), "{}", daemon.log());
    for file in ["status.json", "history.json", "owners.json"] {
        let text = fs::read_to_string(host.path("state").join(file)).unwrap_or_default();
        assert!(!text.contains("s3cret"), "{file}: {text}");
    }
    assert_eq!(daemon.stop(), 0);
}

/// A name, or where a link leads, could pretend to be another line, or colour a terminal.
#[test]
fn hostile_names_of_files_are_shown_on_one_line_without_control_characters() {
    let (host, _app, daemon) = serving();
    let vhosts = host.path("vhosts.d");
    for name in [
        "a\nerror: fake.yml",
        "\u{1b}[31mred.yml",
        "\u{202e}lmy.yml",
        "a\rb.yaml",
    ] {
        fs::write(vhosts.join(name), "server_name: a.example\n").unwrap();
    }
    let odd = host.path("fake\nerror: fake\u{1b}[31m");
    fs::create_dir(&odd).unwrap();
    symlink(&odd, host.path("srv/link")).unwrap();
    let text = format!(
        "server_name: l.example\nroot: {}\n",
        host.path("srv/link").display()
    );
    host.drop_file("link.yml", &text);
    wait_for("the refusals", || {
        let status = host.status();
        let vhosts = status["vhosts"].as_array()?;
        let refused = vhosts.iter().filter(|vhost| vhost["state"] == "rejected");
        (refused.count() >= 1 && host.state("link") == "rejected").then_some(())
    });
    for arguments in [
        &["check"][..],
        &["check", "--json"],
        &["status"],
        &["status", "--json"],
        &["reload"],
    ] {
        let ended = host.vhostd(arguments);
        assert_shown(&format!("{}{}", ended.stdout, ended.stderr));
    }
    assert_shown(&daemon.log());
    assert_shown(&fs::read_to_string(host.path("state/status.json")).unwrap());
}

fn assert_shown(said: &str) {
    let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!said.contains(hidden), "{said:?}");
    assert!(
        !said.contains("\\u001b") && !said.contains("\\nerror"),
        "{said}"
    );
    assert!(
        !said.lines().any(|line| line.starts_with("error: fake")),
        "{said}"
    );
}

fn serving() -> (Host, App, Daemon) {
    let app = App::start();
    let host = Host::with_settings("tls: off\n");
    host.drop_app("good", "good.example.com", &app);
    host.reload_ends(0, "activated");
    let daemon = host.daemon();
    (host, app, daemon)
}

#[test]
fn hundreds_of_hostile_objects_do_not_make_the_daemon_larger() {
    let (host, _app, daemon) = serving();
    let secret = secret(host.nginx.path("").as_path());
    let vhosts = host.path("vhosts.d");
    let mut before = 0;
    let mut count = 0;
    for round in 0..15 {
        let mut names = Vec::new();
        for object in OBJECTS {
            let name = format!("{}-{round}", object.name);
            if made(object, &vhosts.join(format!("{name}.yml")), &secret) {
                names.push(name);
            }
        }
        wait_for("all refusals", || {
            let status = host.status();
            let vhosts = status["vhosts"].as_array()?;
            let refused = vhosts.iter().filter(|vhost| vhost["state"] == "rejected");
            (refused.count() == names.len()).then_some(())
        });
        count += names.len();
        for name in &names {
            remove(&vhosts.join(format!("{name}.yml")));
        }
        wait_for("their removal", || {
            (host.status()["vhosts"].as_array()?.len() == 1).then_some(())
        });
        // the first rounds fill buffers that are kept
        if round == 2 {
            before = resident(daemon.pid());
        }
    }
    let after = resident(daemon.pid());
    println!("{count} objects: {before} KiB before, {after} KiB after");
    assert!(count > 300, "{count}");
    assert!(after < before + 4 * 1024, "{before} KiB, then {after} KiB");
    assert_eq!(host.plain("good.example.com").unwrap().0, 200);
    assert_eq!(daemon.stop(), 0);
}

/// KiB in memory (proc(5), VmRSS).
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

#[test]
fn a_file_that_changes_while_it_is_read_ends_as_its_last_version_and_hurts_nobody() {
    let (host, app, daemon) = serving();
    let path = host.path("vhosts.d").join("racing.yml");
    let version = |number: usize| {
        let filling = "# filling\n".repeat(number * 37 % 2_500);
        format!(
            "{filling}server_name: v{number}.example.com\n{filling}proxy_pass_url: {}\n",
            app.url()
        )
    };
    let begin = Instant::now();
    let mut last = 0;
    // in place, in many small writes, without a pause
    while begin.elapsed() < Duration::from_secs(2) {
        last += 1;
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        for part in version(last % 200).as_bytes().chunks(1_000) {
            file.write_all(part).unwrap();
        }
    }
    let name = format!("v{}.example.com", last % 200);
    wait_within(Duration::from_secs(20), "the last version", || {
        let vhost = host.vhost("racing")?;
        let serves = vhost["state"] == "serving" && vhost["server_names"][0] == *name;
        serves.then_some(())
    });
    assert_eq!(host.plain(&name).unwrap().0, 200);
    assert_eq!(host.plain("good.example.com").unwrap().0, 200);
    assert_eq!(daemon.stop(), 0);
}
