//! `vhostd demo` as a newcomer runs it: as whoever they are, and gone when it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::host::reachable_vhostd;
use super::support::wait_for;

#[test]
fn the_demo_proves_itself() {
    proves_itself(None);
}

/// As nobody there is no mount namespace for nginx's test, so the copy of the main file serves.
#[test]
fn the_demo_proves_itself_without_privileges() {
    if nix::unistd::geteuid().is_root() {
        proves_itself(Some(NOBODY));
    }
}

#[test]
fn a_demo_that_stays_is_gone_after_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    open_to_all(directory.path());
    let mut child = demo(&reachable_vhostd(directory.path()), directory.path(), None)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let stays = lines.find(|line| line.as_ref().unwrap().contains("It stays until Ctrl-C"));
    assert!(stays.is_some(), "the demo ended by itself");
    assert!(!processes(directory.path()).is_empty(), "no nginx to stop");
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    // nobody blocks on a full pipe
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    nothing_is_left(directory.path());
}

#[test]
fn with_json_the_claims_are_data_and_nothing_else_is_on_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let binary = reachable_vhostd(directory.path());
    let output = demo(&binary, directory.path(), None)
        .args(["--once", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let proofs: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let proven = proofs["proven"].as_array().unwrap();
    assert_eq!(proven.len(), CLAIMS, "{proofs}");
    assert!(proven.iter().all(|one| one["claim"].is_string()));
    assert!(proofs["error"].is_null() && proofs["hint"].is_null());
    nothing_is_left(directory.path());
}

#[test]
fn a_demo_that_cannot_be_set_up_exits_1_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    open_to_all(directory.path());
    // an nginx that is asked for its version and then refuses everything
    let broken = directory.path().join("nginx");
    fs::write(
        &broken,
        "#!/bin/sh\n[ \"$1\" = -V ] && exec nginx -V\necho 'nginx: [emerg] no' >&2\nexit 1\n",
    )
    .unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = directory.path().join("vhostd.yml");
    fs::write(
        &settings,
        format!("nginx: {{binary: {}}}\n", broken.display()),
    )
    .unwrap();
    let inside = directory.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let output = demo(&reachable_vhostd(directory.path()), &inside, None)
        .args(["--once", "--config"])
        .arg(settings)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    nothing_is_left(&inside);
}

fn proves_itself(user: Option<u32>) {
    let directory = tempfile::tempdir().unwrap();
    open_to_all(directory.path());
    let binary = reachable_vhostd(directory.path());
    let inside = directory.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o1777)).unwrap();
    let output = demo(&binary, &inside, user).arg("--once").output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{shown}{errors}");
    assert_eq!(shown.matches("proven:").count(), CLAIMS, "{shown}");
    assert!(shown.contains("did you mean `proxy_pass_url`?"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "colour in a pipe: {shown}");
    nothing_is_left(&inside);
}

fn demo(binary: &Path, temporary: &Path, user: Option<u32>) -> Command {
    let mut command = Command::new(binary);
    command
        .arg("demo")
        .current_dir("/")
        .env("TMPDIR", temporary)
        .env_remove("VHOSTD_CONFIG")
        .stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command
}

fn open_to_all(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}

fn nothing_is_left(temporary: &Path) {
    let left: Vec<_> = fs::read_dir(temporary)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("vhostd-demo-"))
        .collect();
    assert_eq!(left, [""; 0]);
    // a worker that was told to end may need a moment
    wait_for("the demo's processes to end", || {
        processes(temporary).is_empty().then_some(())
    });
}

/// The command lines that name a demo below `temporary`: nginx's master shows its `-c`.
fn processes(temporary: &Path) -> Vec<String> {
    let mark = temporary.join("vhostd-demo-").display().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .filter(|title| title.contains(&mark))
        .collect()
}

/// uid and gid of Debian's nobody and nogroup.
const NOBODY: u32 = 65534;
/// What the demo proves.
const CLAIMS: usize = 9;
