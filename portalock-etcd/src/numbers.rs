//! Which keys of a session are in use: a name that is locked again and again is locked by the same few keys.
//!
//! etcd keeps a deleted key in its index until its history is compacted, and whatever looks at a queue passes all of them. If
//! every place had a key of its own, a busy lock would get slower by the second. So a session numbers the places that it
//! has in a queue at the same time, and takes the smallest number that is free.
//!
//! # Why a key's next owner is safe from its former one
//!
//! A number is in use from before its key is asked for until nothing of its owner's can take effect any more:
//! - its deletion was answered, or it was answered that it is not there; and
//! - if any request for it went without an answer, the session's own key was modified after it. Each such request names the
//!   modification that it knew, so it fails should it arrive yet (see [`queue`](crate::queue)).
//!
//! Deletions may still be on their way then: of tries that went without an answer. They harm nobody, since each place is
//! told by its value, which is like no other of the session, and a deletion is made under the condition that it finds
//! its own. What others wait for, or hold by, they know by key and create revision.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use portalock_core::Holder;

/// The numbers that are in use, by what their keys begin with. Where none is in use nothing is kept.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<HashMap<String, Directory>>);

#[derive(Debug, Default)]
struct Directory {
    /// All numbers are smaller.
    end: usize,
    free: BTreeSet<usize>,
    /// Who held as far as one of this session knew last, for people.
    holder: Option<Holder>,
}

impl Numbers {
    /// The smallest number that is free among the keys that begin so.
    pub(crate) fn take(&self, directory: &str) -> usize {
        let mut directories = self.lock();
        let directory = directories.entry(directory.to_owned()).or_default();
        directory.free.pop_first().unwrap_or_else(|| {
            directory.end += 1;
            directory.end - 1
        })
    }

    /// Nothing of this use of a key is left, nor will be.
    pub(crate) fn give_back(&self, directory: &str, number: usize) {
        let mut directories = self.lock();
        if let Some(found) = directories.get_mut(directory) {
            found.free.insert(number);
            if found.free.len() == found.end {
                directories.remove(directory);
            }
        }
    }

    /// One of those whose keys begin so knows who holds.
    pub(crate) fn note_holder(&self, directory: &str, holder: Option<Holder>) {
        if let Some(found) = self.lock().get_mut(directory) {
            found.holder = holder;
        }
    }

    /// Who holds, as far as those whose keys begin so know.
    pub(crate) fn holder(&self, directory: &str) -> Option<Holder> {
        self.lock().get(directory)?.holder.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Directory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
