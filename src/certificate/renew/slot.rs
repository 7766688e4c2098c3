//! P: how many certificates are in which step at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::queue::{App, Permit, Queue};

/// Shared by everyone who obtains certificates in the same way. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slots {
    orders: Arc<Queue>,
    stores: Arc<Queue>,
    patience: Duration,
}

/// What one certificate occupies: a place among those that are ordered, then one among those that
/// are stored. So the CA is asked for the next while the disk still has to do with the last.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    app: App,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    stage: Stage,
    _permit: Permit,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Ordering,
    Storing,
}

impl Slots {
    /// `at_once` orders at a time, and as many that are stored. An order that takes longer than
    /// `patience` does not count any more: it holds up nobody else.
    pub fn new(at_once: usize, patience: Duration) -> Self {
        Self {
            orders: Queue::new(at_once),
            stores: Queue::new(at_once),
            patience,
        }
    }

    /// For a certificate of `app`; apps get places in turns.
    pub fn slot(&self, app: Option<Box<str>>) -> Slot {
        Slot {
            slots: self.clone(),
            app,
            held: Mutex::default(),
        }
    }
}

impl Slot {
    /// Waits until there is place for one more order; at once where this has one.
    pub async fn to_order(&self) {
        if !self.is_at(Stage::Ordering) {
            self.take(Stage::Ordering, &self.slots.orders).await;
        }
    }

    /// What `work` comes to; where it takes longer than usual, the place is another's before.
    pub(super) async fn ordering<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        match timeout(self.slots.patience, work.as_mut()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.hold(None);
                work.await
            }
        }
    }

    /// Waits until there is place for one more that is stored, and leaves the orders'.
    pub(super) async fn to_store(&self) {
        self.take(Stage::Storing, &self.slots.stores).await;
    }

    async fn take(&self, stage: Stage, of: &Arc<Queue>) {
        let permit = of.acquire(self.app.clone()).await;
        self.hold(permit.map(|_permit| Held { stage, _permit }));
    }

    fn hold(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    fn is_at(&self, stage: Stage) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().is_some_and(|held| held.stage == stage)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    async fn gets_to_order(slots: &Slots) -> Option<Slot> {
        let slot = slots.slot(None);
        let soon = timeout(Duration::from_millis(20), slot.to_order()).await;
        soon.is_ok().then_some(slot)
    }

    #[tokio::test]
    async fn what_is_stored_holds_up_no_order_and_only_so_many_are_stored() {
        let slots = Slots::new(1, Duration::MAX);
        let first = gets_to_order(&slots).await.unwrap();
        first.to_order().await;
        assert!(gets_to_order(&slots).await.is_none());
        first.to_store().await;
        let second = gets_to_order(&slots).await.unwrap();
        let waits = timeout(Duration::from_millis(20), second.to_store()).await;
        assert!(waits.is_err());
        assert!(
            gets_to_order(&slots).await.is_none(),
            "it gave its place away and waits"
        );
        drop(first);
        second.to_store().await;
        assert!(gets_to_order(&slots).await.is_some());
    }

    #[tokio::test]
    async fn an_order_that_hangs_holds_up_nobody_for_long() {
        let slots = Slots::new(1, Duration::from_millis(5));
        let hanging = gets_to_order(&slots).await.unwrap();
        let hangs = timeout(Duration::from_millis(50), hanging.ordering(pending::<()>())).await;
        assert!(hangs.is_err());
        assert!(gets_to_order(&slots).await.is_some());
        let brief = gets_to_order(&slots).await.unwrap();
        brief.ordering(async {}).await;
        assert!(gets_to_order(&slots).await.is_none());
    }
}
