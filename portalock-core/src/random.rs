//! Random numbers for ids that must never repeat.

use std::{collections::hash_map::RandomState, hash::BuildHasher};

use crate::clock::wall_clock;

/// 64 random bits that nobody can guess.
///
/// The standard library's hash keys come from the system's random numbers. `fastrand` is seeded with the monotonic clock
/// only: two processes that read the same time would have the same numbers. A forked child inherits either state, so the
/// process id and the time are part of the number.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one((std::process::id(), wall_clock()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_also_in_processes_with_the_same_generator() {
        let numbers: std::collections::HashSet<_> = (0..1000)
            .map(|_| {
                // The state that a forked child inherits.
                fastrand::seed(7);
                random()
            })
            .collect();
        assert_eq!(numbers.len(), 1000);
    }
}
