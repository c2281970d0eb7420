//! Which keys of a session are in use: a name that is locked again and again is locked by the same few keys.
//!
//! etcd keeps a deleted key in its index until its history is compacted, and whatever looks at a queue passes all of them. If
//! every place had a key of its own, a busy lock would get slower by the second. So a session numbers the places that it
//! has in a queue at the same time, and takes the smallest number that is free.
//!
//! # Why a key's next owner is safe from its former one
//!
//! A key is in use from before it is asked for until nothing of its owner's can take effect any more:
//! - its deletion was answered, or it was answered that it is not there; and
//! - if any request for it went without an answer, the session's own key was modified after it. Each such request names the
//!   modification that it knew, so it fails should it arrive yet (see [`queue`](crate::queue)).
//!
//! Deletions may still be on their way then: of tries that went without an answer. They harm nobody, since each place is
//! told by its value, which is like no other of the session, and a deletion is made under the condition that it finds
//! its own. What others wait for, or hold by, they know by key and create revision.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The keys of a session that are in use.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By what the keys begin with. Where none is in use nothing is kept.
    directories: HashMap<String, Directory>,
    uses: u64,
}

#[derive(Debug, Default)]
struct Directory {
    /// The present use of each number.
    uses: Vec<Option<u64>>,
    free: BinaryHeap<Reverse<usize>>,
}

/// A key's number, and the one use of it that this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: usize,
    /// Unlike all others of the session.
    pub(crate) usage: u64,
}

impl Slots {
    /// The smallest number that is free among the keys that begin so.
    pub(crate) fn take(&self, directory: &str) -> Slot {
        let mut state = self.lock();
        state.uses += 1;
        let usage = state.uses;
        if !state.directories.contains_key(directory) {
            state
                .directories
                .insert(directory.to_owned(), Directory::default());
        }
        let number = state
            .directories
            .get_mut(directory)
            .map_or(0, |directory| directory.take(usage));
        Slot { number, usage }
    }

    /// Nothing of this use of a key is left, nor will be. Said again it means nothing.
    pub(crate) fn give_back(&self, directory: &str, slot: Slot) {
        let mut state = self.lock();
        if let Some(found) = state.directories.get_mut(directory)
            && found.give_back(slot)
        {
            state.directories.remove(directory);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory {
    fn take(&mut self, usage: u64) -> usize {
        if let Some(Reverse(number)) = self.free.pop() {
            self.uses[number] = Some(usage);
            number
        } else {
            self.uses.push(Some(usage));
            self.uses.len() - 1
        }
    }

    /// True if none is in use any more.
    fn give_back(&mut self, slot: Slot) -> bool {
        if let Some(usage) = self.uses.get_mut(slot.number)
            && *usage == Some(slot.usage)
        {
            *usage = None;
            self.free.push(Reverse(slot.number));
        }
        self.free.len() == self.uses.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers<const N: usize>(slots: [Slot; N]) -> [usize; N] {
        slots.map(|slot| slot.number)
    }

    #[test]
    fn the_smallest_free_number_is_taken() {
        let slots = Slots::default();
        let [a, b, c] = [(); 3].map(|()| slots.take("x/"));
        assert_eq!(numbers([a, b, c]), [0, 1, 2]);
        assert_eq!(slots.take("y/").number, 0);
        slots.give_back("x/", b);
        slots.give_back("x/", a);
        let again = [(); 3].map(|()| slots.take("x/"));
        assert_eq!(numbers(again), [0, 1, 3]);
        assert!(again.iter().all(|slot| ![a, b, c].contains(slot)));
    }

    #[test]
    fn what_is_given_back_twice_is_free_once() {
        let slots = Slots::default();
        let (first, _stays) = (slots.take("x/"), slots.take("x/"));
        slots.give_back("x/", first);
        let next = slots.take("x/");
        slots.give_back("x/", first);
        assert_eq!((next.number, slots.take("x/").number), (0, 2));
    }

    #[test]
    fn a_name_that_nobody_uses_takes_no_room() {
        let slots = Slots::default();
        let taken = [(); 3].map(|()| slots.take("x/"));
        for slot in taken {
            slots.give_back("x/", slot);
        }
        assert!(slots.lock().directories.is_empty());
    }
}
