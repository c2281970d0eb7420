//! Whom a request waits for.

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
#[derive(Debug, Clone)]
pub(crate) enum Blockers {
    /// For this key to go.
    Key(String),
    /// For so many permits of those before it to come back that its own fit.
    Permits(Line),
}

/// The part of a semaphore's queue that is before a request, and the request itself.
#[derive(Debug, Clone)]
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
            Self::Key(key) => Watched::Key(key.clone()),
            Self::Permits(line) => Watched::Queue(line.queue.clone()),
        }
    }

    /// Takes note of a deleted key. True if the way may be free now.
    pub(crate) fn gone(&mut self, key: &[u8]) -> bool {
        match self {
            Self::Key(blocker) => blocker.as_bytes() == key,
            Self::Permits(line) => line.earlier.remove(key).is_some() && line.fits(),
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
    fn permits_that_come_back_wake_once_they_suffice() {
        let mut blockers = Blockers::Permits(line(&[(1, 3), (1, 3), (1, 3)], (2, 3)));
        assert!(!blockers.gone(&[0]));
        assert!(!blockers.gone(&[0]), "a key goes once");
        assert!(!blockers.gone(&[9]), "of a later request");
        assert!(blockers.gone(&[2]));
    }
}
