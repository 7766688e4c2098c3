//! What the tests stand on: an nginx and a Pebble of their own, an app, a client.

pub mod app;
pub mod challenges;
pub mod client;
pub mod faults;
pub mod gate;
pub mod host;
pub mod mock_ca;
pub mod nginx;
pub mod pebble;
#[cfg(target_arch = "x86_64")]
pub mod tracer;
pub mod traffic;

use std::thread;
use std::time::{Duration, Instant};

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
