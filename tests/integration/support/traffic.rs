//! Requests without a pause, each on a connection of its own, while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::{self, Trust};
use super::host::Host;
use super::wait_for;

/// Runs until [`Traffic::assert_unbroken`].
pub struct Traffic {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Traffic {
    /// `request` says what went wrong. Returns when the first one has been answered.
    pub fn start(request: impl Fn() -> Result<(), String> + Send + 'static) -> Self {
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, counter) = (stop.clone(), count.clone());
        let thread = thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                failures.extend(request().err());
                counter.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
            failures
        });
        let traffic = Self {
            stop,
            count,
            thread: Some(thread),
        };
        wait_for("the first request", || {
            (traffic.count.load(Ordering::SeqCst) > 0).then_some(())
        });
        traffic
    }

    /// `http://NAME/` must answer 200.
    pub fn http(host: &Host, name: &'static str) -> Self {
        let address = host.http();
        Self::start(move || answered(client::get(address, name, "/")))
    }

    /// `https://NAME/` must answer 200, and its certificate must verify.
    pub fn https(host: &Host, name: &'static str, trust: Trust) -> Self {
        let address = host.https();
        Self::start(move || answered(client::get_tls(address, name, "/", &trust)))
    }

    /// Ends it; panics if any request failed.
    pub fn assert_unbroken(mut self) {
        let failures = self.end();
        let count = self.count.load(Ordering::SeqCst);
        assert!(
            failures.is_empty(),
            "{} of {count} failed, first {:?}",
            failures.len(),
            failures.first()
        );
    }

    fn end(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take();
        thread.map_or_else(Vec::new, |thread| thread.join().unwrap_or_default())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn answered(answer: std::io::Result<client::Response>) -> Result<(), String> {
    match answer {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("status {}", answer.status)),
        Err(error) => Err(error.to_string()),
    }
}
