//! R: what the service manager and the terminal say.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Event;

pub(super) struct Signals {
    hang_up: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn install() -> std::io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn next(&mut self) -> Event {
        // cancel-safe: a signal that is not taken now is delivered to the next call
        tokio::select! {
            _ = self.hang_up.recv() => Event::Reconfigure,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.terminate.recv() => Event::Stop,
        }
    }
}
