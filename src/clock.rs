//! R: the only room that reads the wall clock; everything else is told the time.
#![expect(clippy::disallowed_methods, reason = "the owner of the clock")]

use std::sync::Arc;

use time::OffsetDateTime;

/// Gives the present moment. Tests pass one that jumps.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// The host's own, in UTC.
pub fn system() -> Clock {
    Arc::new(OffsetDateTime::now_utc)
}
