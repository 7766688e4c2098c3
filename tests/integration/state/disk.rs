//! A disk that is full, or that nothing can be written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::app::App;
use crate::support::host::Host;
use crate::support::nginx::NginxHost;
use crate::support::wait_for;

use super::HELLO;

/// A small file system of its own; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None` where nothing can be mounted: said, and the test is skipped.
    fn mount(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=4m,mode=700", "vhostd-test"];
        let mounted = Command::new("mount")
            .args(options)
            .arg(path)
            .output()
            .unwrap();
        if !mounted.status.success() {
            let words = String::from_utf8_lossy(&mounted.stderr);
            eprintln!("skipped: nothing can be mounted here: {words}");
            return None;
        }
        Some(Self(path.to_path_buf()))
    }

    fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        let mount = Command::new("mount")
            .args(["-o", &option])
            .arg(&self.0)
            .status();
        assert!(mount.unwrap().success(), "{how}");
    }

    /// Until not a byte is left. Returns what to remove.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let full = fs::write(&path, vec![0; 8 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The state directory is a disk of its own; `hello` serves from it.
fn host_on_a_disk() -> Option<(Disk, Host, App)> {
    let nginx = NginxHost::new();
    let disk = Disk::mount(&nginx.path("state"))?;
    let host = Host::on(nginx, "tls: internal\n");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.reload_ends(0, "activated");
    Some((disk, host, app))
}

/// With this fault there is an error with these words, nothing changes for visitors, nothing is
/// left lying about; and once it is gone all is well without a person.
fn assert_survives(words: &str, begin: impl Fn(&Disk), end: impl Fn(&Disk)) {
    let Some((disk, host, app)) = host_on_a_disk() else {
        return;
    };
    let active = host.active();
    begin(&disk);
    host.drop_app("more", "more.example.com", &app);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 1, "{reload:?}");
    assert!(reload.stderr.contains(words), "{reload:?}");
    assert!(
        reload.stderr.contains("what served before still serves"),
        "{reload:?}"
    );
    // also from the daemon's first moment on
    let daemon = host.daemon();
    let error = wait_for("the daemon's error", || {
        host.status()["error"].as_str().map(str::to_owned)
    });
    assert!(error.contains(words), "{error}");
    let begun = daemon
        .log()
        .lines()
        .filter(|line| line.contains("ERROR"))
        .count();
    assert_eq!(begun, 1, "{}", daemon.log());
    assert_eq!(host.active(), active);
    assert!(host.serves(HELLO));
    assert!(host.nginx.test().status.success());
    end(&disk);
    wait_for("the new vhost", || {
        host.serves("more.example.com").then_some(())
    });
    host.wait_for_serving("more");
    assert!(host.status()["error"].is_null());
    assert!(host.serves(HELLO));
    host.assert_sound(host.active());
    let left = crate::support::faults::temporaries(&host.path("state"));
    assert_eq!(left, [""; 0]);
    assert_eq!(daemon.stop(), 0);
    // before the disk goes
    host.nginx.stop();
}

#[test]
fn a_full_disk_leaves_what_serves_and_the_daemon_goes_on_when_there_is_space() {
    let filler = std::cell::RefCell::new(PathBuf::new());
    assert_survives(
        "No space left on device",
        |disk| drop(filler.replace(disk.fill())),
        |_| fs::remove_file(&*filler.borrow()).unwrap(),
    );
}

#[test]
fn a_read_only_state_directory_leaves_what_serves_and_the_daemon_goes_on_when_it_is_writable() {
    assert_survives(
        "Read-only file system",
        |disk| disk.remount("ro"),
        |disk| disk.remount("rw"),
    );
}
