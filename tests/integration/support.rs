//! What the tests stand on: an nginx and a Pebble of their own, an app, a client.

pub mod app;
pub mod certbot;
pub mod challenges;
pub mod client;
pub mod faults;
pub mod gate;
pub mod host;
pub mod mock_ca;
pub mod nameserver;
pub mod nginx;
pub mod pebble;
pub mod proxy;
pub mod receiver;
pub mod recursor;
pub mod scripted;
#[cfg(target_arch = "x86_64")]
pub mod tracer;
pub mod traffic;
pub mod walk;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A program of a later Debian's, which `make test` unpacks (`packaging/later`). `None`: nobody did.
pub fn later(program: &str) -> Option<PathBuf> {
    let Some(directory) = std::env::var_os("VHOSTD_TEST_LATER") else {
        eprintln!("skipped: it needs a later {program}, which `make test` has");
        return None;
    };
    let path = Path::new(&directory).join("bin").join(program);
    assert!(path.exists(), "{} is missing", path.display());
    Some(path)
}

/// A program of one text. Another process writes it: what this one has open for writing, a child that
/// another test forks meanwhile has open, too, and then it cannot be run (ETXTBSY).
pub fn executable(path: &Path, text: &str) {
    let status = std::process::Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            use std::io::Write;
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(text.as_bytes())?;
            drop(stdin);
            child.wait()
        });
    assert!(status.unwrap().success());
}

/// Polls until `condition` gives something; panics with `what` after thirty seconds.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(Duration::from_secs(30), what, condition)
}

/// As [`wait_for`], for what must not take that long.
pub fn wait_within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
