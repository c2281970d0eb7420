//! The requests that a request waits for, and what to do when one of them is gone.
//!
//! A request reads the queue ahead of it at a revision after its own place was taken. New requests come behind it, so
//! what it read can change in one way only: requests ahead of it end. The request therefore watches the nearest one
//! ahead of it, or a semaphore's whole queue, and reads the queue again after a change that may matter.
//!
//! An event alone grants nothing. The request's own key may be gone too, with the session or deleted by a person, and
//! the event doesn't show that; the read that follows does. A lost event delays a grant, and never causes one: whenever
//! events may have been missed, the request reads the queue again.

use std::collections::HashMap;

use crate::keys::Weight;

/// What is watched: a key, or all keys with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Watched {
    /// A single key.
    Key(String),
    /// A queue: all keys with this prefix.
    Queue(String),
}

/// What a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blockers {
    /// The nearest request ahead of it, by its key.
    Nearest(String),
    /// Enough permits of the requests ahead of it, so that its own fit.
    Permits(Ahead),
}

/// How a request waits, as read from the queue at revision `seen`.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) blockers: Blockers,
    pub(crate) seen: i64,
}

/// The part of a semaphore's queue ahead of a request, and the request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) queue: String,
    pub(crate) earlier: HashMap<Vec<u8>, Weight>,
    pub(crate) own: Weight,
}

impl Ahead {
    /// Whether all permits, including the request's own, fit under the smallest capacity. If so, every request in this
    /// part of the queue holds: further back in the queue, the sum of the weights only grows and the smallest capacity
    /// only shrinks.
    pub(crate) fn fits(&self) -> bool {
        let weights = self.earlier.values().chain([&self.own]);
        let sum: u64 = weights.clone().map(|weight| u64::from(weight.count)).sum();
        weights
            .map(|weight| u64::from(weight.capacity))
            .all(|capacity| sum <= capacity)
    }
}

impl Blockers {
    /// What to watch for it.
    pub(crate) fn watched(&self) -> Watched {
        match self {
            Self::Nearest(key) => Watched::Key(key.clone()),
            Self::Permits(ahead) => Watched::Queue(ahead.queue.clone()),
        }
    }

    /// Records a deleted key. Returns true if it is time to read the queue.
    pub(crate) fn gone(&mut self, key: &[u8]) -> bool {
        match self {
            Self::Nearest(nearest) => nearest.as_bytes() == key,
            Self::Permits(ahead) => ahead.earlier.remove(key).is_some() && ahead.fits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(earlier: &[(u32, u32)], own: (u32, u32)) -> Ahead {
        let weight = |(count, capacity)| Weight { count, capacity };
        Ahead {
            queue: "queue/".to_owned(),
            earlier: earlier
                .iter()
                .enumerate()
                .map(|(number, earlier)| (vec![u8::try_from(number).unwrap()], weight(*earlier)))
                .collect(),
            own: weight(own),
        }
    }

    #[test]
    fn permits_fit_under_the_smallest_capacity() {
        assert!(ahead(&[], (3, 3)).fits());
        assert!(ahead(&[(1, 3), (1, 3)], (1, 3)).fits());
        assert!(!ahead(&[(1, 3), (2, 3)], (1, 3)).fits());
        assert!(!ahead(&[(1, 2), (1, 9)], (1, 9)).fits());
        assert!(!ahead(&[(u32::MAX, u32::MAX)], (u32::MAX, u32::MAX)).fits());
    }

    #[test]
    fn permits_that_come_back_are_looked_at_once_they_suffice() {
        let mut blockers = Blockers::Permits(ahead(&[(1, 3), (1, 3), (1, 3)], (2, 3)));
        assert!(!blockers.gone(&[0]));
        assert!(!blockers.gone(&[0]), "a key goes once");
        assert!(!blockers.gone(&[9]), "of a later request");
        assert!(blockers.gone(&[2]));
    }

    #[test]
    fn only_the_nearest_matters() {
        let mut nearest = Blockers::Nearest("a".to_owned());
        assert!(!nearest.gone(b"b"));
        assert!(nearest.gone(b"a"));
    }
}
