//! The holders and waiters of a name in one backend object, first come, first served.
//!
//! The process has one contender per name: the first waiter of this queue, or all shared waiters at its head. Only they
//! use the file system.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use portalock_core::{Grant, Holder, Lease, LostSignal, Mode, OwnerId, WakeSender, clock::Instant};

use super::{grant::Written, name::FileName, record::Entry};
use crate::locking::{Contender, LockFile};

/// The first pause of a waiter that polls.
const FIRST_POLL: Duration = Duration::from_micros(500);

/// All names in use. A name without holders and waiters takes no memory.
#[derive(Debug, Default)]
pub(crate) struct Places {
    places: Mutex<Names>,
}

type Names = HashMap<FileName, Arc<Mutex<Place>>>;

/// Access to the state of one name, which exists at least as long as this.
#[derive(Debug)]
pub(crate) struct Visit<'p> {
    places: &'p Places,
    name: &'p FileName,
    place: Arc<Mutex<Place>>,
    /// At the end, the locked map, until `place` above is dropped: so of two visits that end at once, one is the last.
    ending: Option<MutexGuard<'p, Names>>,
}

impl Places {
    /// Accesses the state of `name`, which is created if it doesn't exist.
    pub(crate) fn enter<'p>(&'p self, name: &'p FileName) -> Visit<'p> {
        let place = lock(&self.places).entry(name.clone()).or_default().clone();
        Visit::of(self, name, place)
    }

    /// Accesses the state of `name` if it has holders or waiters.
    pub(crate) fn find<'p>(&'p self, name: &'p FileName) -> Option<Visit<'p>> {
        let place = lock(&self.places).get(name)?.clone();
        Some(Visit::of(self, name, place))
    }

    /// Whether any name may have a holder of this client.
    pub(crate) fn have_holders(&self) -> bool {
        lock(&self.places).values().any(|place| {
            let place = place.try_lock();
            // Somebody who uses the state at the moment may be about to hold it.
            place.map_or(true, |place| !place.held.is_empty())
        })
    }

    /// The names in use.
    pub(crate) fn names(&self) -> Vec<FileName> {
        lock(&self.places).keys().cloned().collect()
    }
}

impl<'p> Visit<'p> {
    fn of(places: &'p Places, name: &'p FileName, place: Arc<Mutex<Place>>) -> Self {
        Self {
            places,
            name,
            place,
            ending: None,
        }
    }

    /// The locked state.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Place> {
        lock(&self.place)
    }

    /// Changes the state, and wakes the waiters whose turn it is then.
    pub(crate) fn change<T>(self, change: impl FnOnce(&mut Place) -> T) -> T {
        let mut place = self.lock();
        let changed = change(&mut place);
        let called = place.call_first();
        place.settle();
        // They use the place at once.
        drop(place);
        drop(self);
        for line in called {
            line.wake();
        }
        changed
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut places = lock(&self.places.places);
        // Only the map and this value have references: no other thread uses the state, and none can start while the map
        // is locked.
        if Arc::strong_count(&self.place) == 2 && lock(&self.place).is_idle() {
            places.remove(self.name);
        }
        self.ending = Some(places);
    }
}

/// One name's state.
#[derive(Debug, Default)]
pub(crate) struct Place {
    pub(crate) held: Vec<Held>,
    /// In the order in which their owners were minted, at the start of each call.
    waiters: BTreeMap<OwnerId, Waiter>,
    /// The open file of the first waiter.
    pub(crate) contender: Contender,
    /// Since when holders of this client have passed on the lock among themselves.
    pub(crate) ours_since: Option<Instant>,
    /// They have had it for long enough: the first waiter waits for the event of the release, which other processes get
    /// too.
    pub(crate) yields: bool,
}

/// A grant that has not been released.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) written: Written,
    pub(crate) file: LockFile,
    /// Ends if the lock file is removed; none if that can't be noticed.
    pub(crate) lease: Option<Lease>,
}

#[derive(Debug)]
struct Waiter {
    mode: Mode,
    holder: Holder,
    line: Option<WakeSender>,
    /// It was told to try before it had subscribed.
    was_called: bool,
    /// Its next pause if it polls. None if nothing has changed since it began to wait.
    next_poll: Option<Duration>,
}

impl Held {
    pub(crate) const fn entry(&self) -> &Entry {
        &self.written.entry
    }

    pub(crate) fn grant(&self) -> Grant {
        let lease = self.lease.as_ref();
        let lost = lease.map_or(LostSignal::never(), Lease::signal);
        Grant::new().with_token(self.entry().token).with_lost(lost)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lease.as_ref().and_then(Lease::loss).is_some()
    }
}

impl Place {
    /// The hold of this owner.
    pub(crate) fn held_by(&self, owner: OwnerId) -> Option<&Held> {
        self.held.iter().find(|held| held.entry().owner == owner)
    }

    /// Ends the hold of this owner.
    pub(crate) fn take(&mut self, owner: OwnerId) -> Option<Held> {
        let mut held = self.held.iter();
        let at = held.position(|held| held.entry().owner == owner)?;
        Some(self.held.swap_remove(at))
    }

    /// A holder of this client that excludes `mode`. A holder that has lost the lock excludes nobody.
    pub(crate) fn in_the_way(&self, mode: Mode) -> Option<&Held> {
        let mut held = self.held.iter();
        held.find(|held| !compatible(held.entry().mode, mode) && !held.is_lost())
    }

    /// Whether it is this owner's turn among the waiters of this client.
    pub(crate) fn has_turn(&self, owner: OwnerId, mode: Mode) -> bool {
        let mut ahead = self.waiters.range(..owner);
        ahead.all(|(_, waiter)| compatible(waiter.mode, mode))
    }

    /// Takes a place in the queue, unless the owner has one.
    pub(crate) fn join(&mut self, owner: OwnerId, mode: Mode, holder: &Holder) {
        self.waiters.entry(owner).or_insert_with(|| Waiter {
            mode,
            holder: holder.clone(),
            line: None,
            was_called: false,
            next_poll: None,
        });
    }

    /// Subscribes the owner. False if it does not wait here. A wake-up from before the subscription is sent now.
    pub(crate) fn listen(&mut self, owner: OwnerId, line: WakeSender) -> bool {
        let Some(waiter) = self.waiters.get_mut(&owner) else {
            return false;
        };
        if std::mem::take(&mut waiter.was_called) {
            line.wake();
        }
        waiter.line = Some(line);
        true
    }

    /// Removes the owner from the queue.
    pub(crate) fn leave(&mut self, owner: OwnerId) {
        self.waiters.remove(&owner);
    }

    /// The first waiter, or all shared waiters at the head, to be woken. Only they poll; their next pause is short again,
    /// because something has changed.
    #[must_use = "they have not been woken yet"]
    fn call_first(&mut self) -> Vec<WakeSender> {
        let mut called = Vec::new();
        let mut is_last = false;
        for (at, waiter) in self.waiters.values_mut().enumerate() {
            if is_last || at > 0 && waiter.mode == Mode::Exclusive {
                break;
            }
            is_last = waiter.mode == Mode::Exclusive;
            waiter.next_poll = Some(FIRST_POLL);
            match &waiter.line {
                Some(line) => called.push(line.clone()),
                None => waiter.was_called = true,
            }
        }
        called
    }

    /// The owner's next pause if it polls: twice as long each time, and randomly shortened, so that waiters of several
    /// processes don't try at the same time.
    ///
    /// If the system reports releases, the pause is short only after a change: a process that has died is reported just before its
    /// files are unlocked.
    pub(crate) fn next_poll(
        &mut self,
        owner: OwnerId,
        most: Duration,
        is_watched: bool,
    ) -> Option<Duration> {
        let first = if is_watched { most } else { FIRST_POLL };
        let waiter = self.waiters.get_mut(&owner)?;
        let pause = waiter.next_poll.unwrap_or(first).min(most);
        waiter.next_poll = Some(pause.saturating_mul(2).min(most));
        Some(pause.mul_f64(1.0 - 0.25 * fastrand::f64()))
    }

    /// The waiters of this client, in order.
    pub(crate) fn waiters(&self) -> impl Iterator<Item = (&Holder, Mode)> {
        let waiters = self.waiters.values();
        waiters.map(|waiter| (&waiter.holder, waiter.mode))
    }

    /// Closes the files that only waiters need, if there are no waiters.
    pub(crate) fn settle(&mut self) {
        if self.waiters.is_empty() {
            self.contender = Contender::default();
            self.ours_since = None;
            self.yields = false;
        }
    }

    fn is_idle(&self) -> bool {
        self.held.is_empty() && self.waiters.is_empty()
    }
}

const fn compatible(one: Mode, other: Mode) -> bool {
    matches!((one, other), (Mode::Shared, Mode::Shared))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of the state is complete in itself, so a panic elsewhere leaves it consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering::SeqCst},
        thread,
    };

    use super::*;
    use portalock_core::{LockName, Wake, wakeups};

    fn queue(modes: &[Mode]) -> (Place, Vec<OwnerId>) {
        let mut place = Place::default();
        let owners: Vec<_> = modes.iter().map(|_| OwnerId::mint()).collect();
        for (owner, mode) in owners.iter().zip(modes) {
            place.join(*owner, *mode, &Holder::this_process(None));
        }
        (place, owners)
    }

    use Mode::{Exclusive, Shared};

    /// For a second, on names that nobody has used.
    #[test]
    fn of_two_visits_that_end_at_once_one_forgets_the_name() {
        let places = Places::default();
        let name = |round: u32| FileName::of(&LockName::new(format!("{round}")).unwrap());
        let (begun, last, start) = (AtomicU32::new(0), AtomicU32::new(u32::MAX), Instant::now());
        let visit_many = || {
            for round in 0.. {
                let name = name(round);
                let visit = places.enter(&name);
                if start.elapsed() >= Duration::from_secs(1) {
                    last.fetch_min(round, SeqCst);
                }
                begun.fetch_add(1, SeqCst);
                while begun.load(SeqCst) < 2 * (round + 1) {
                    thread::yield_now();
                }
                drop(visit);
                if last.load(SeqCst) == round {
                    break;
                }
            }
        };
        thread::scope(|threads| {
            threads.spawn(visit_many);
            visit_many();
        });
        assert_eq!(places.names(), []);
    }

    #[test]
    fn only_the_first_has_the_turn_and_shared_ones_have_it_together() {
        let (place, owners) = queue(&[Shared, Shared, Exclusive, Shared]);
        let turns: Vec<_> = owners
            .iter()
            .zip([Shared, Shared, Exclusive, Shared])
            .map(|(owner, mode)| place.has_turn(*owner, mode))
            .collect();
        assert_eq!(turns, [true, true, false, false]);
        assert!(
            !place.has_turn(OwnerId::mint(), Shared),
            "a newcomer barges"
        );
    }

    #[test]
    fn a_writer_that_leaves_lets_the_readers_behind_it_through() {
        let (mut place, owners) = queue(&[Exclusive, Shared, Shared]);
        assert!(!place.has_turn(owners[1], Shared));
        place.leave(owners[0]);
        place.leave(owners[0]);
        assert!(place.has_turn(owners[1], Shared) && place.has_turn(owners[2], Shared));
    }

    #[test]
    fn joining_twice_keeps_the_place() {
        let (mut place, owners) = queue(&[Exclusive, Exclusive]);
        place.join(owners[0], Exclusive, &Holder::this_process(None));
        assert_eq!(place.waiters().count(), 2);
        assert!(place.has_turn(owners[0], Exclusive));
    }

    #[test]
    fn the_call_that_began_first_is_first_even_if_it_waits_later() {
        let [first, second] = [OwnerId::mint(), OwnerId::mint()];
        let mut place = Place::default();
        for owner in [second, first] {
            assert!(place.has_turn(owner, Exclusive));
            place.join(owner, Exclusive, &Holder::this_process(None));
        }
        assert!(place.has_turn(first, Exclusive) && !place.has_turn(second, Exclusive));
    }

    #[tokio::test]
    async fn only_those_whose_turn_it_is_are_woken() {
        for (modes, woken) in [
            (&[Exclusive, Exclusive, Shared][..], &[0][..]),
            (&[Shared, Shared, Exclusive, Shared], &[0, 1]),
            (&[Shared, Exclusive], &[0]),
            (&[Exclusive, Shared], &[0]),
        ] {
            let (mut place, owners) = queue(modes);
            let mut lines = Vec::new();
            for owner in &owners {
                let (sender, line) = wakeups();
                assert!(place.listen(*owner, sender));
                lines.push(line);
            }
            for line in place.call_first() {
                line.wake();
            }
            drop(place);
            for (at, line) in lines.iter_mut().enumerate() {
                let is_woken = matches!(line.next().await, Wake::TryNow);
                assert_eq!(is_woken, woken.contains(&at), "{modes:?} {at}");
            }
        }
    }

    #[test]
    fn a_watched_waiter_tries_rarely_and_soon_after_a_change() {
        let (mut place, owners) = queue(&[Exclusive]);
        let most = Duration::from_secs(10);
        let pause = |place: &mut Place| place.next_poll(owners[0], most, true).unwrap();
        for _ in 0..2 {
            assert!(pause(&mut place) > most / 2);
        }
        assert!(place.call_first().is_empty());
        assert!(pause(&mut place) <= FIRST_POLL);
        let rest: Vec<_> = (0..15).map(|_| pause(&mut place)).collect();
        assert!(rest[0] <= 2 * FIRST_POLL && rest[14] > most / 2, "{rest:?}");
    }

    #[test]
    fn a_name_takes_no_room_once_nobody_uses_it() {
        let places = Places::default();
        let name = FileName::of(&LockName::new("a").unwrap());
        let owner = OwnerId::mint();
        let visit = places.enter(&name);
        visit
            .lock()
            .join(owner, Exclusive, &Holder::this_process(None));
        drop(visit);
        assert_eq!(places.names().len(), 1);
        let visit = places.find(&name).unwrap();
        let second = places.enter(&name);
        visit.lock().leave(owner);
        drop(visit);
        assert_eq!(places.names().len(), 1, "somebody is still visiting");
        drop(second);
        assert!(places.names().is_empty());
    }
}
