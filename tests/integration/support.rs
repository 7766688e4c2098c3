//! What the tests stand on: an nginx and a Pebble of their own, an app, a client.

pub mod app;
pub mod challenges;
pub mod client;
pub mod faults;
pub mod gate;
pub mod host;
pub mod nginx;
pub mod pebble;
pub mod traffic;

use std::thread;
use std::time::{Duration, Instant};

/// Polls until `condition` gives something; panics with `what` after thirty seconds.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
