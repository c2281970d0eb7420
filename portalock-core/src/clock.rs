//! The two clocks: a monotonic one for deadlines, the wall clock for people and for tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The monotonic clock that deadlines are counted on: tokio's, so that paused time works in tests.
///
/// It is readable with and without a runtime. On Linux it stands still while the machine is suspended; see
/// `docs/guarantees.md` for what that means for a lease.
pub use tokio::time::Instant;

/// The wall clock, for what people read: since when a holder has held.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Microseconds since 1970, for [`FencingToken::after`](crate::FencingToken::after). 0 if the clock is set before that.
pub fn wall_clock_micros() -> u64 {
    micros_since_epoch(wall_clock())
}

pub(crate) fn micros_since_epoch(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}
