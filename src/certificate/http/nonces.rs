//! P: nonces that came with an answer and were not sent back (RFC 8555 §6.5).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

/// Of one CA. Each order begins with one that an earlier order has left, instead of with a request
/// for one.
#[derive(Debug, Default)]
pub(super) struct Nonces(Mutex<Vec<(HeaderValue, Instant)>>);

/// As many as there are orders at a time.
const MOST: usize = 8;
/// A CA forgets nonces after a while, and an order that begins with such a one loses the time that
/// this is to save.
const LIFETIME: Duration = Duration::from_secs(60);

impl Nonces {
    pub(super) fn keep(&self, nonce: HeaderValue, now: Instant) {
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.len() == MOST {
            nonces.remove(0);
        }
        nonces.push((nonce, now));
    }

    /// The newest, for whoever sends it back.
    pub(super) fn take(&self, now: Instant) -> Option<HeaderValue> {
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.retain(|(_, kept)| now.saturating_duration_since(*kept) < LIFETIME);
        nonces.pop().map(|(nonce, _)| nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_once_the_newest_first_and_none_that_is_old() {
        let (nonces, begin) = (Nonces::default(), Instant::now());
        let after = |seconds| begin + Duration::from_secs(seconds);
        for (nonce, at) in [("a", 0), ("b", 30), ("c", 31)] {
            nonces.keep(HeaderValue::from_static(nonce), after(at));
        }
        assert_eq!(nonces.take(after(59)).unwrap(), "c");
        assert_eq!(nonces.take(after(61)).unwrap(), "b");
        assert_eq!(nonces.take(after(61)), None);
    }

    #[test]
    fn no_more_are_kept_than_are_used_at_a_time() {
        let (nonces, now) = (Nonces::default(), Instant::now());
        for _ in 0..100 {
            nonces.keep(HeaderValue::from_static("a"), now);
        }
        let taken = std::iter::from_fn(|| nonces.take(now));
        assert_eq!(taken.count(), MOST);
    }
}
