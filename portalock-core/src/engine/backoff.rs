//! The pauses between two attempts at a contended lock.

use std::time::Duration;

use crate::Policy;

/// The first pause is the policy's first check. Each pause is twice the last, up to the check interval, and randomly
/// shortened.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    most: Duration,
    jitter: f64,
    random: fastrand::Rng,
}

impl Backoff {
    pub(crate) fn new(policy: &Policy) -> Self {
        Self::from_to(policy.first_check(), policy.check_interval(), policy)
    }

    /// For a service that failed: the first pause is longer than that of a contended lock, which may be a millisecond. The longest
    /// is that of the default policy: a waiter whose wake-ups are rarely lost may check once an hour.
    pub(crate) fn after_failure(policy: &Policy) -> Self {
        let most = policy.check_interval().min(Policy::DEFAULT_CHECK_INTERVAL);
        Self::from_to(most / 4, most, policy)
    }

    fn from_to(first: Duration, most: Duration, policy: &Policy) -> Self {
        let first = first.min(most);
        Self {
            next: first,
            first,
            most,
            jitter: policy.jitter(),
            random: fastrand::Rng::new(),
        }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.most);
        let part = 1.0 - self.jitter * self.random.f64();
        // Rounding can make the longest durations overflow.
        Duration::try_from_secs_f64(whole.as_secs_f64() * part).unwrap_or(whole)
    }

    /// A wake-up said that the lock is free: if it isn't yet, try again soon.
    pub(crate) fn restart(&mut self) {
        self.next = self.first;
    }

    /// A wake-up will say when the lock is free: try rarely.
    pub(crate) fn slow_down(&mut self) {
        self.next = self.most;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_check_interval() {
        let policy = Policy::new().with_jitter(0.0).unwrap();
        let mut backoff = Backoff::new(&policy);
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 250, 250]);
        backoff.restart();
        assert_eq!(backoff.pause().as_millis(), 1);
        backoff.slow_down();
        assert_eq!(backoff.pause().as_millis(), 250);
    }

    #[test]
    fn jitter_only_shortens() {
        let policy = Policy::new().with_jitter(1.0).unwrap();
        let mut backoff = Backoff::new(&policy);
        backoff.slow_down();
        let pauses: Vec<_> = (0..100).map(|_| backoff.pause()).collect();
        assert!(pauses.iter().all(|pause| *pause <= policy.check_interval()));
        assert!(
            pauses
                .iter()
                .any(|pause| *pause < policy.check_interval() / 2),
            "a hundred pauses and no jitter"
        );
    }

    #[test]
    fn jitter_shortens_by_no_more_than_its_part() {
        let policy = Policy::new().with_jitter(0.25).unwrap();
        let mut backoff = Backoff::new(&policy);
        backoff.slow_down();
        let longest = policy.check_interval();
        for _ in 0..100 {
            let pause = backoff.pause();
            assert!(pause <= longest && pause >= longest * 3 / 4, "{pause:?}");
        }
    }

    #[test]
    fn the_longest_interval_is_a_pause_like_any_other() {
        for jitter in [0.0, 1.0] {
            let policy = Policy::new()
                .with_check_interval(Duration::MAX)
                .and_then(|policy| policy.with_first_check(Duration::MAX))
                .and_then(|policy| policy.with_jitter(jitter))
                .unwrap();
            let mut backoff = Backoff::new(&policy);
            backoff.pause();
            backoff.slow_down();
            let pause = backoff.pause();
            assert!(jitter > 0.0 || pause == Duration::MAX, "{pause:?}");
        }
    }

    #[test]
    fn a_first_check_longer_than_the_interval_is_cut_to_it() {
        let policy = Policy::new()
            .with_first_check(Duration::from_secs(9))
            .and_then(|policy| policy.with_check_interval(Duration::from_secs(1)))
            .and_then(|policy| policy.with_jitter(0.0))
            .unwrap();
        assert_eq!(Backoff::new(&policy).pause(), Duration::from_secs(1));
    }
}
