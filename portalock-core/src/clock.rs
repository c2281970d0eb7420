//! The two clocks: a monotonic one for deadlines, the wall clock for people and for tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The monotonic clock for deadlines. It is tokio's clock, so that paused time works in tests.
///
/// It can be read with and without a runtime. On Linux it stops while the machine is suspended; `docs/guarantees.md`
/// says what that means for a lease.
pub use tokio::time::Instant;

/// The wall clock, for times that people read, such as since when a holder holds.
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
