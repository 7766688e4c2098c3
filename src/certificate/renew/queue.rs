//! P: which of many waiting certificates is next: one of the app that was served least.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A number of permits, which apps get in turns however many certificates one of them waits for.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
}

/// `None`: no app's in particular.
pub(super) type App = Option<Box<str>>;

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// In the order of their arrival.
    waiting: Vec<Waiting>,
    /// How many permits each app has got while others waited.
    granted: BTreeMap<App, usize>,
}

#[derive(Debug)]
struct Waiting {
    app: App,
    granted: oneshot::Sender<Permit>,
}

/// Returned when dropped.
#[derive(Debug)]
pub(super) struct Permit(Option<Arc<Queue>>);

impl Queue {
    pub(super) fn new(permits: usize) -> Arc<Self> {
        let state = State {
            free: permits,
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// Waits for a permit; `None` never comes. Cancelling it is safe: the permit is the next one's.
    pub(super) async fn acquire(self: &Arc<Self>, app: App) -> Option<Permit> {
        let receiver = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Some(Permit(Some(self.clone())));
            }
            state.arrive(app)
        };
        receiver.await.ok()
    }

    fn release(self: Arc<Self>) {
        loop {
            let next = self.state().next();
            let Some(next) = next else {
                return;
            };
            match next.granted.send(Permit(Some(self.clone()))) {
                Ok(()) => return,
                // it does not wait any more; the permit is not returned a second time
                Err(mut permit) => permit.0 = None,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.release();
        }
    }
}

impl State {
    /// An app that comes later does not make up for what others got before.
    fn arrive(&mut self, app: App) -> oneshot::Receiver<Permit> {
        let least = self.waiting.iter().map(|it| self.granted_to(&it.app)).min();
        let granted = self.granted_to(&app).max(least.unwrap_or_default());
        self.granted.insert(app.clone(), granted);
        let (sender, receiver) = oneshot::channel();
        self.waiting.push(Waiting {
            app,
            granted: sender,
        });
        receiver
    }

    /// Whose the permit is; it is free where none waits.
    fn next(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.iter().enumerate();
        let next = waiting.min_by_key(|(nth, it)| (self.granted_to(&it.app), *nth));
        let Some(nth) = next.map(|(nth, _)| nth) else {
            self.free += 1;
            self.granted.clear();
            return None;
        };
        let next = self.waiting.remove(nth);
        *self.granted.entry(next.app.clone()).or_default() += 1;
        Some(next)
    }

    fn granted_to(&self, app: &App) -> usize {
        self.granted.get(app).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order in which `arrivals` get the only permit; a digit: so many are served before the
    /// rest arrives.
    fn order(arrivals: &str) -> String {
        let mut state = State::default();
        let mut order = String::new();
        let mut receivers = Vec::new();
        let mut serve = |state: &mut State, count: usize| {
            for _ in 0..count {
                let next = state.next();
                order.extend(next.and_then(|next| next.app).as_deref());
            }
        };
        for arrival in arrivals.chars() {
            match arrival.to_digit(10) {
                Some(count) => serve(&mut state, count as usize),
                None => receivers.push(state.arrive(Some(arrival.to_string().into()))),
            }
        }
        let left = state.waiting.len();
        serve(&mut state, left);
        order
    }

    #[test]
    fn apps_get_permits_in_turns_however_many_certificates_one_of_them_waits_for() {
        for (arrivals, expected) in [
            ("bbbb", "bbbb"),
            ("bbbba", "babbb"),
            ("bbbbaa", "bababb"),
            ("bbbbac", "bacbbb"),
            // who comes later is next but one, and does not catch up
            ("bbbb3aaa", "bbbbaaa"),
            ("bbbbbb2aaa", "bbbababab"),
            // what was granted long ago is forgotten
            ("bb3ab", "bbab"),
        ] {
            assert_eq!(order(arrivals), expected, "{arrivals}");
        }
    }

    #[tokio::test]
    async fn a_permit_that_its_receiver_does_not_want_any_more_is_the_next_ones() {
        let queue = Queue::new(1);
        let first = queue.acquire(None).await.unwrap();
        let mut cancelled = Box::pin(queue.acquire(None));
        let mut granted = Box::pin(queue.acquire(None));
        let mut last = Box::pin(queue.acquire(None));
        for waiting in [&mut cancelled, &mut granted, &mut last] {
            assert!(futures_are_pending(waiting).await);
        }
        drop(cancelled);
        drop(first);
        // it was sent, and nobody takes it
        drop(granted);
        assert!(last.await.is_some());
        assert_eq!(queue.state().free, 1);
    }

    async fn futures_are_pending<T>(waiting: &mut (impl Future<Output = T> + Unpin)) -> bool {
        let soon = std::time::Duration::from_millis(5);
        tokio::time::timeout(soon, waiting).await.is_err()
    }
}
