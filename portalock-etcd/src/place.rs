//! An owner's place in a queue: one use of one of the session's keys.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use portalock_core::OwnerId;

use crate::{client::Wish, keys::Queue, numbers::Numbers, record::encode};

/// One owner's place in a queue. When it is dropped, its key can be used again.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) owner: OwnerId,
    pub(crate) queue: Arc<Queue>,
    pub(crate) key: Arc<str>,
    /// The key's value, which identifies this use of the key.
    pub(crate) value: Vec<u8>,
    number: usize,
    numbers: Arc<Numbers>,
    /// The revision at which it was taken; zero until etcd has answered it.
    taken: AtomicI64,
    /// The latest modification of the session's key that a request for this place has named.
    pub(crate) named: AtomicI64,
}

impl Place {
    /// A key of the session of `lease`, for a place that is not yet taken. Nothing is sent yet.
    pub(crate) fn new(owner: OwnerId, wish: &Wish, lease: i64, numbers: &Arc<Numbers>) -> Self {
        let queue = wish.queue.clone();
        let number = numbers.take(&queue.keys);
        Self {
            owner,
            key: queue.key(number, lease).into(),
            value: encode(&wish.holder, owner),
            queue,
            number,
            numbers: numbers.clone(),
            taken: AtomicI64::new(0),
            named: AtomicI64::new(0),
        }
    }

    /// The revision at which it was taken, if etcd has answered it.
    pub(crate) fn taken(&self) -> Option<i64> {
        Some(self.taken.load(Ordering::Acquire)).filter(|taken| *taken > 0)
    }

    /// Records that it was taken at this revision.
    pub(crate) fn was_taken(&self, at: i64) {
        self.taken.store(at, Ordering::Release);
        self.numbers.taken(&self.queue.keys, at, &self.key);
    }

    /// Records that its key was deleted by somebody else.
    pub(crate) fn was_deleted(&self) {
        self.gives_up();
        self.taken.store(0, Ordering::Release);
    }

    /// From now on no place of its session waits for it.
    pub(crate) fn gives_up(&self) {
        if let Some(taken) = self.taken() {
            self.numbers.gives_up(&self.queue.keys, taken);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gives_up();
        self.numbers.give_back(&self.queue.keys, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use portalock_core::{LockName, Mode, Patience, Request};

    #[test]
    fn nobody_waits_for_a_place_that_was_given_up_deleted_or_dropped() {
        let name = LockName::new("a").unwrap();
        let request = Request::new(name, Mode::Exclusive, Patience::Queue);
        let wish = Wish::new(Keys::new("test").lock(&request), &request);
        let numbers: Arc<Numbers> = Arc::default();
        let new = || Place::new(OwnerId::mint(), &wish, 1, &numbers);
        let (place, _behind) = (new(), new());
        let ahead = || numbers.nearest_before(&wish.queue, 9);
        for ends in [Place::gives_up, Place::was_deleted] {
            place.was_taken(5);
            assert_eq!(ahead(), Some((5, place.key.clone())));
            ends(&place);
            assert_eq!(ahead(), None);
        }
        assert_eq!(place.taken(), None);
        place.was_taken(7);
        drop(place);
        assert_eq!(ahead(), None);
        assert_eq!(new().number, 0);
    }
}
