//! Whom a request waits for, and what it means for it when one of them goes.
//!
//! # What an event tells
//!
//! What a request saw of those before it, at some revision after it took its place, stays true except that each of them may
//! go. None can come, because whoever comes is behind. So when a request hears, at a later revision, that a key it saw has
//! been deleted, it knows what a look at the queue would find. If nobody else was before it, the way is free.
//!
//! Its own key is another matter: it goes with the session, or by somebody's hand, and the event doesn't tell. So the last
//! step of every grant is a read of the own key, which also shows that the session lives.
//!
//! A lost event delays a grant and never makes one: whenever events may have been missed, the request looks again.

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

/// Whom a request waits for, as of the revision it looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blockers {
    /// For this key to go: nobody else is in the way.
    Last(String),
    /// For the second nearest to go, and maybe for others before it. Then it is time to look whether `nearest` is the last:
    /// so the look is made while that one holds, not after its release.
    Far { nearest: String, second: String },
    /// For so many permits of those before it to come back that its own fit.
    Permits(Line),
}

/// What it means for a request that a key has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nothing.
    Same,
    /// This key may be the last now: watch it, and look.
    Near(String),
    /// The way is free.
    Free,
}

/// The part of a semaphore's queue that is before a request, and the request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) queue: String,
    pub(crate) earlier: HashMap<Vec<u8>, Weight>,
    pub(crate) own: Weight,
}

impl Line {
    /// Whether all permits of the line fit under its smallest capacity. Then everyone in it holds: weights only add up,
    /// and a smallest capacity only shrinks, towards the line's end.
    pub(crate) fn fits(&self) -> bool {
        let sum = self
            .earlier
            .values()
            .map(|weight| u64::from(weight.count))
            .sum::<u64>()
            + u64::from(self.own.count);
        let capacity = self
            .earlier
            .values()
            .map(|weight| weight.capacity)
            .fold(self.own.capacity, u32::min);
        sum <= u64::from(capacity)
    }
}

impl Blockers {
    /// What is to be watched for it.
    pub(crate) fn watched(&self) -> Watched {
        match self {
            Self::Last(key) | Self::Far { second: key, .. } => Watched::Key(key.clone()),
            Self::Permits(line) => Watched::Queue(line.queue.clone()),
        }
    }

    /// Takes note of a deleted key.
    pub(crate) fn gone(&mut self, key: &[u8]) -> Way {
        match self {
            Self::Last(last) if last.as_bytes() == key => Way::Free,
            Self::Far { nearest, second } if second.as_bytes() == key => Way::Near(nearest.clone()),
            Self::Permits(line) => {
                if line.earlier.remove(key).is_some() && line.fits() {
                    Way::Free
                } else {
                    Way::Same
                }
            }
            Self::Last(_) | Self::Far { .. } => Way::Same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(earlier: &[(u32, u32)], own: (u32, u32)) -> Line {
        let weight = |(count, capacity)| Weight { count, capacity };
        Line {
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
    fn a_line_fits_under_its_smallest_capacity() {
        assert!(line(&[], (3, 3)).fits());
        assert!(line(&[(1, 3), (1, 3)], (1, 3)).fits());
        assert!(!line(&[(1, 3), (2, 3)], (1, 3)).fits());
        assert!(!line(&[(1, 2), (1, 9)], (1, 9)).fits());
        assert!(!line(&[(u32::MAX, u32::MAX)], (u32::MAX, u32::MAX)).fits());
    }

    #[test]
    fn permits_that_come_back_free_the_way_once_they_suffice() {
        let mut blockers = Blockers::Permits(line(&[(1, 3), (1, 3), (1, 3)], (2, 3)));
        assert_eq!(blockers.gone(&[0]), Way::Same);
        assert_eq!(blockers.gone(&[0]), Way::Same, "a key goes once");
        assert_eq!(blockers.gone(&[9]), Way::Same, "of a later request");
        assert_eq!(blockers.gone(&[2]), Way::Free);
    }

    #[test]
    fn only_the_last_one_before_frees_the_way() {
        let mut last = Blockers::Last("a".to_owned());
        assert_eq!(last.gone(b"b"), Way::Same);
        assert_eq!(last.gone(b"a"), Way::Free);
        let mut far = Blockers::Far {
            nearest: "b".to_owned(),
            second: "a".to_owned(),
        };
        assert_eq!(far.gone(b"b"), Way::Same, "it has given up");
        assert_eq!(far.gone(b"a"), Way::Near("b".to_owned()));
    }
}
