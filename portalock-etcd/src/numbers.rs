//! The keys of a session that are in use: a name that is locked often is locked with the same few keys.
//!
//! etcd keeps a deleted key in its index until its history is compacted, and every read of a queue passes all of them.
//! If every place had a new key, a busy lock would get slower every second. So a session numbers the places that it has
//! in a queue at the same time, and takes the smallest free number.
//!
//! Why a former use of a key can't affect the next one
//!
//! A number is in use as long as its [`Place`](crate::place::Place). The session keeps the place from before the first
//! request for its key until no request of its owner can take effect any more. This is the case when:
//! - etcd answered that the key was deleted, or that it doesn't exist; and
//! - if a request for the key got no answer, the session's own key was modified after it. Each such request names the
//!   modification that it knew, so it fails if it arrives later (see [`queue`](crate::queue)).
//!
//! Deletions may still arrive then, from tries that got no answer. They are harmless: each place has a value that no
//! other place of the session has, and a deletion has the condition that it finds its own value. Waiters and holders
//! know a place by its key and create revision.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portalock_core::Holder;

use crate::keys::Queue;

/// The keys that a session has in each queue. A queue without keys has no entry.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<HashMap<String, InQueue>>);

#[derive(Debug, Default)]
struct InQueue {
    /// All numbers are smaller than this.
    end: usize,
    free: BTreeSet<usize>,
    /// The keys of places that were taken and not given up, by the revision at which they were taken.
    taken: BTreeMap<i64, Arc<str>>,
    /// The last holder that a place of this session has seen, for people.
    holder: Option<Holder>,
}

impl Numbers {
    /// The smallest free number in this queue.
    pub(crate) fn take(&self, queue: &str) -> usize {
        let mut queues = self.lock();
        let found = queues.entry(queue.to_owned()).or_default();
        found.free.pop_first().unwrap_or_else(|| {
            found.end += 1;
            found.end - 1
        })
    }

    /// Frees a number: nothing of this use of its key is left, and nothing can arrive later.
    pub(crate) fn give_back(&self, queue: &str, number: usize) {
        let mut queues = self.lock();
        if let Some(found) = queues.get_mut(queue) {
            found.free.insert(number);
            if found.free.len() == found.end {
                queues.remove(queue);
            }
        }
    }

    /// Records that a place in this queue was taken at this revision.
    pub(crate) fn taken(&self, queue: &str, at: i64, key: &Arc<str>) {
        self.change(queue, |found| found.taken.insert(at, key.clone()));
    }

    /// Records that the place taken at this revision is given up.
    pub(crate) fn gives_up(&self, queue: &str, at: i64) {
        self.change(queue, |found| found.taken.remove(&at));
    }

    /// The nearest place of this session that blocks the one taken at `taken`: the revision at which it was taken, and
    /// its key.
    pub(crate) fn nearest_before(&self, queue: &Queue, taken: i64) -> Option<(i64, Arc<str>)> {
        let in_the_way = |key: &Arc<str>| key.starts_with(queue.in_the_way());
        self.change(&queue.keys, |found| {
            let mut before = found.taken.range(..taken).rev();
            let (at, key) = before.find(|(_, key)| in_the_way(key))?;
            Some((*at, key.clone()))
        })?
    }

    /// Records the holder that a place of this session has seen.
    pub(crate) fn note_holder(&self, queue: &str, holder: Option<Holder>) {
        self.change(queue, |found| found.holder = holder);
    }

    /// The holder, as last seen by a place of this session.
    pub(crate) fn holder(&self, queue: &str) -> Option<Holder> {
        self.change(queue, |found| found.holder.clone())?
    }

    fn change<T>(&self, queue: &str, change: impl FnOnce(&mut InQueue) -> T) -> Option<T> {
        self.lock().get_mut(queue).map(change)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, InQueue>> {
        // No code panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use portalock_core::{LockName, Mode, Patience, Request};

    #[test]
    fn the_smallest_free_number_is_taken() {
        let numbers = Numbers::default();
        assert_eq!([(); 3].map(|()| numbers.take("x/")), [0, 1, 2]);
        assert_eq!(numbers.take("y/"), 0);
        numbers.give_back("x/", 1);
        numbers.give_back("x/", 0);
        assert_eq!([(); 3].map(|()| numbers.take("x/")), [0, 1, 3]);
    }

    #[test]
    fn a_name_that_nobody_uses_takes_no_room() {
        let numbers = Numbers::default();
        let taken = [(); 3].map(|()| numbers.take("x/"));
        for number in taken {
            numbers.give_back("x/", number);
        }
        assert!(numbers.lock().is_empty());
    }

    #[test]
    fn one_waits_for_the_latest_before_it_that_is_in_its_way_and_keeps_its_place() {
        let numbers = Numbers::default();
        let queue = |name, mode| {
            let name = LockName::new(name).unwrap();
            Keys::new("test").lock(&Request::new(name, mode, Patience::Queue))
        };
        let exclusive = queue("a", Mode::Exclusive);
        let shared = queue("a", Mode::Shared);
        let take = |queue: &Queue, at| {
            let key = queue.key(numbers.take(&queue.keys), 1).into();
            numbers.taken(&queue.keys, at, &key);
            key
        };
        take(&exclusive, 1);
        let writer = take(&exclusive, 2);
        let reader = take(&shared, 3);
        take(&exclusive, 4);
        numbers.gives_up(&exclusive.keys, 4);
        take(&queue("b", Mode::Exclusive), 5);
        take(&exclusive, 7);
        assert_eq!(numbers.nearest_before(&exclusive, 6), Some((3, reader)));
        assert_eq!(numbers.nearest_before(&shared, 6), Some((2, writer)));
        assert_eq!(numbers.nearest_before(&exclusive, 1), None);
    }
}
