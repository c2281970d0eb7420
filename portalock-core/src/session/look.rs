//! When a session checks its places at the service.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout_at};

use crate::clock::Instant;

/// How many places one check reads.
pub(super) const SEEN_AT_ONCE: usize = 500;
/// Each place is checked within this time, for any number of places. A service may drop a place that was not checked for a
/// multiple of it.
const SEEN_WITHIN: Duration = Duration::from_secs(600);
/// When a failed check is repeated, and when the session repeats a release that failed.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The shortest time between two checks.
const AT_MOST_EVERY: Duration = Duration::from_millis(50);

/// How many places one check reads, of `places` in all, if checks come at this interval.
pub(super) fn seen_at_once(places: usize, interval: Duration) -> usize {
    let looks = SEEN_WITHIN.as_millis() / interval.as_millis().max(1);
    let looks = usize::try_from(looks).unwrap_or(usize::MAX).max(1);
    places.div_ceil(looks).max(SEEN_AT_ONCE)
}

/// The time of the next check.
#[derive(Debug, Default)]
pub(super) struct Looks {
    at: Mutex<Option<Instant>>,
    sooner: Notify,
}

impl Looks {
    /// The next check comes after this time at the latest.
    pub(super) fn within(&self, time: Duration) {
        let Some(sooner) = Instant::now().checked_add(time.max(AT_MOST_EVERY)) else {
            return;
        };
        let mut at = self.lock();
        if at.is_none_or(|at| sooner < at) {
            *at = Some(sooner);
            drop(at);
            self.sooner.notify_one();
        }
    }

    /// Waits for the next check, which comes after `interval` if no earlier one is requested.
    pub(super) async fn next(&self, interval: Duration) {
        loop {
            let at = *self.lock().get_or_insert_with(|| Instant::now() + interval);
            if timeout_at(at, self.sooner.notified()).await.is_err() {
                *self.lock() = None;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // No code panics while it holds the lock.
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(3);

    #[test]
    fn every_place_has_its_turn_within_ten_minutes() {
        for (places, interval) in [(100_000, 20), (3_000, 400), (1_000_000, 1), (600, 400)] {
            let interval = Duration::from_secs(interval);
            let at_once = seen_at_once(places, interval);
            let turns = u32::try_from(places.div_ceil(at_once)).unwrap();
            assert!(interval * turns <= SEEN_WITHIN, "{places} in {interval:?}");
        }
        assert_eq!(seen_at_once(10, INTERVAL), SEEN_AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_comes_after_the_interval_or_when_it_is_asked_for() {
        let looks = Looks::default();
        let start = Instant::now();
        looks.next(INTERVAL).await;
        assert_eq!(start.elapsed(), INTERVAL);
        looks.within(Duration::from_secs(2));
        looks.within(Duration::from_secs(1));
        looks.within(Duration::from_secs(2));
        looks.next(INTERVAL).await;
        assert_eq!(start.elapsed(), INTERVAL + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_waits_already_hears_of_an_earlier_time_and_looks_keep_apart() {
        let looks = Looks::default();
        let start = Instant::now();
        tokio::join!(looks.next(INTERVAL), async {
            tokio::task::yield_now().await;
            looks.within(Duration::ZERO);
        });
        assert_eq!(start.elapsed(), AT_MOST_EVERY);
    }
}
