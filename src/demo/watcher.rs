//! The real daemon, on a thread and a runtime of its own, so that what it has begun is ended
//! before the directory goes. Stopped on drop.

use std::thread::{self, JoinHandle};

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::DemoError;
use super::stage::Stage;
use crate::clock;
use crate::daemon::{self, DaemonError};
use crate::reconcile::report::Report;

#[derive(Debug)]
pub struct Watcher {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), DaemonError>>>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Watcher {
    pub fn start(stage: &Stage, runtime: Runtime) -> Self {
        let (config, settings) = (stage.config(), stage.settings.clone());
        let (witness, reports) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            // dropping the runtime, at the end, waits for what runs
            runtime.block_on(async {
                tokio::select! {
                    ended = daemon::run_witnessed(Some(config), settings, clock::system(), witness) => ended,
                    _ = stopped => Ok(()),
                }
            })
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
            reports,
        }
    }

    /// The next reconcile's report. Cancel-safe.
    pub async fn report(&mut self) -> Result<Report, DemoError> {
        match self.reports.recv().await {
            Some(report) => Ok(report),
            None => Err(match self.join() {
                Some(Err(error)) => DemoError::Daemon(error),
                // by itself it ends only on a signal, which was for us as well
                _ => DemoError::Interrupted,
            }),
        }
    }

    /// A report that is there already.
    pub fn ready_report(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    fn join(&mut self) -> Option<Result<(), DaemonError>> {
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.join();
    }
}
