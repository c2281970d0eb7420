//! How long a lock may pass from one holder to the next within this process before others get their chance.

use std::time::{Duration, SystemTime};

/// How long the lock has been with this process: it may be handed from one holder to the next without being unlocked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stay {
    since: SystemTime,
    handed_on: u32,
}

impl Stay {
    /// How often a lock is handed on at most (64) before other processes get their chance.
    const MOST: u32 = 64;
    /// For how long it is (1 ms).
    const LONGEST: Duration = Duration::from_millis(1);

    /// It was locked just now.
    pub(crate) const fn from(since: SystemTime) -> Self {
        Self {
            since,
            handed_on: 0,
        }
    }

    /// Handed on once more. None if other processes have been kept waiting for long enough, or the clock can't tell.
    pub(crate) fn longer(self, now: SystemTime) -> Option<Self> {
        let lasted = now.duration_since(self.since).ok()?;
        (self.handed_on < Self::MOST && lasted < Self::LONGEST).then_some(Self {
            handed_on: self.handed_on + 1,
            ..self
        })
    }

    /// Whether it was handed on at all, past other processes that may have waited.
    pub(crate) const fn was_handed_on(self) -> bool {
        self.handed_on > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_stays_for_so_many_and_so_long() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let mut stay = Stay::from(start);
        assert!(!stay.was_handed_on());
        for _ in 0..Stay::MOST {
            stay = stay.longer(start).unwrap();
            assert!(stay.was_handed_on());
        }
        assert!(stay.longer(start).is_none(), "one more than the most");
        let stay = Stay::from(start);
        assert!(stay.longer(start + Stay::LONGEST / 2).is_some());
        assert!(stay.longer(start + Stay::LONGEST).is_none());
        let set_back = start - Duration::from_millis(1);
        assert!(stay.longer(set_back).is_none(), "the clock can't tell");
    }
}
