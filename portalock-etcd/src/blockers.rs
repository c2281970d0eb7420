//! Whom a request waits for, and what it means for it when one of them goes.
//!
//! What a request saw of those before it, at some revision after it took its place, stays true except that each of them may
//! go. None can come, because whoever comes is behind. So it watches the nearest before it, or a semaphore's queue, and looks
//! when that tells of a change that may matter.
//!
//! An event grants nothing by itself. The request's own key goes with the session, or by somebody's hand, and the event
//! doesn't tell; the look that follows reads it. A lost event delays a grant and never makes one: whenever events may have
//! been missed, the request looks again.

use std::collections::HashMap;

use crate::keys::Weight;

/// What is watched: a key, or all keys that begin so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Watched {
    /// A single key.
    Key(String),
    /// A queue: all keys with this beginning.
    Queue(String),
}

/// Whom a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blockers {
    /// For the nearest before it, by its key.
    Nearest(String),
    /// For so many permits of those before it to come back that its own fit.
    Permits(Ahead),
}

/// How a request waits, as it saw the queue at revision `seen`.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) blockers: Blockers,
    pub(crate) seen: i64,
}

/// The part of a semaphore's queue that is before a request, and the request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) queue: String,
    pub(crate) earlier: HashMap<Vec<u8>, Weight>,
    pub(crate) own: Weight,
}

impl Ahead {
    /// Whether all permits, the request's too, fit under the smallest capacity. Then everyone in this part of the queue holds:
    /// towards its end weights only add up, and a smallest capacity only shrinks.
    pub(crate) fn fits(&self) -> bool {
        let weights = self.earlier.values().chain([&self.own]);
        let sum: u64 = weights.clone().map(|weight| u64::from(weight.count)).sum();
        weights
            .map(|weight| u64::from(weight.capacity))
            .all(|capacity| sum <= capacity)
    }
}

impl Blockers {
    /// What is to be watched for it.
    pub(crate) fn watched(&self) -> Watched {
        match self {
            Self::Nearest(key) => Watched::Key(key.clone()),
            Self::Permits(ahead) => Watched::Queue(ahead.queue.clone()),
        }
    }

    /// Takes note of a deleted key. True if it is time to look.
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
