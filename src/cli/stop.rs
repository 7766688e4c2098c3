//! R: work that ends when the terminal or the service manager wants it to.

use std::future::{Future, pending};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::yield_now;

use super::{Exit, output};

/// Runs `work` to its end, or until SIGINT or SIGTERM. What was started for it is ended then, or it
/// would go on beside the next run, which takes up what is half done.
pub(super) fn until_stopped<T>(
    runtime: &Runtime,
    work: impl Future<Output = T>,
) -> Result<T, Exit> {
    runtime.block_on(async {
        tokio::select! {
            done = work => return Ok(done),
            () = told(SignalKind::interrupt()) => {}
            () = told(SignalKind::terminate()) => {}
        }
        // what was spawned is dropped
        yield_now().await;
        output::error("stopped before every certificate was there");
        output::hint(Some("the next `vhostd renew` goes on with it"));
        Err(Exit::Failed)
    })
}

async fn told(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        // it ends us, as it would have
        Err(_) => pending().await,
    }
}
