//! The places of a session's owners at the service, and their waiters.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::fast::RandomState;
use tokio::sync::Notify;

use self::place::{News, Phase, Place};
pub use self::releasing::Releasing;
use crate::{
    BackendError, BackendErrorKind, FencingToken, Grant, Loss, LostSignal, OwnerId, Wakeups,
    wakeups,
};

mod neighbours;
mod place;
mod releasing;

/// The places of one session's owners. A place exists from the first attempt until nothing can be left of it at the
/// service.
///
/// `P` is the backend's data of a place: its name at the service, and what is locked.
///
/// One rule covers every call that failed, was dropped, or may have been executed without an answer: its outcome is
/// unknown until the place has been released for good. Until then the place stays here, and the session releases it.
#[derive(Debug)]
pub struct Places<P> {
    /// `None` when the session has ended.
    book: Mutex<Option<Book<P>>>,
    session: LostSignal,
    /// How many times the session has reconnected. Changed under the book's lock.
    reconnects: AtomicU64,
    left: OnceLock<Vec<P>>,
    /// A release failed or was dropped.
    pub(super) owed: Notify,
    /// The service has a place whose release it lost.
    pub(super) unknown: Notify,
}

type Book<P> = HashMap<OwnerId, Place<P>, RandomState>;

/// A place at the start of an attempt.
#[derive(Debug)]
#[non_exhaustive]
pub struct Expected<P> {
    /// The backend's data of the place.
    pub at: P,
    /// Whether an earlier request may still be in flight.
    pub unsure: bool,
}

/// The data for a release.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Leaving<P> {
    /// What the backend knows of the place.
    pub at: P,
    /// Whether the owner held the lock.
    pub held: bool,
    /// Whether the owner waited, and never held.
    pub waits: bool,
    /// Whether a request may still be in flight: the release must make it fail.
    pub unsure: bool,
    /// The waiter that [holds from now on](Places::follow), without a message of the service.
    pub next: Option<P>,
}

/// A place whose state is read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Asked<P> {
    /// What the backend knows of the place.
    pub at: P,
    /// Whether its owner holds, as far as the session knows. Otherwise it waits.
    pub held: bool,
    pub(super) owner: OwnerId,
    version: u64,
}

/// The state of a place at the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// It is granted, with this token.
    Held(FencingToken),
    /// It waits.
    Waits,
    /// It waits, and has this token: it may [hold already](Places::follow).
    Follows(FencingToken),
    /// The service has no record of it.
    Gone,
}

impl<P: Clone> Places<P> {
    /// Creates an empty record for a session. `session` is the signal of the session's end.
    pub(super) fn new(session: LostSignal) -> Self {
        Self {
            book: Mutex::new(Some(Book::default())),
            session,
            reconnects: AtomicU64::new(0),
            left: OnceLock::new(),
            owed: Notify::new(),
            unknown: Notify::new(),
        }
    }

    /// Records that an attempt for `owner` is about to be sent. From now on a grant may come, even without an answer. `new`
    /// makes the place if the owner has none.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](BackendErrorKind::Unavailable) while a release of the owner is in flight or due,
    /// [`SessionEnded`](BackendErrorKind::SessionEnded) if the session has ended.
    pub fn expect(
        &self,
        owner: OwnerId,
        new: impl FnOnce() -> P,
    ) -> Result<Expected<P>, BackendError> {
        let mut book = self.lock();
        let place = book
            .as_mut()
            .ok_or_else(|| self.over())?
            .entry(owner)
            .or_insert_with(|| Place::new(new(), Phase::Asked));
        if place.is_leaving() {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                "what an earlier attempt may have left is not released yet",
            ));
        }
        Ok(Expected {
            at: place.at.clone(),
            unsure: std::mem::replace(&mut place.unsure, true),
        })
    }

    /// Records that the attempt for the place `at` was answered, or has failed or was dropped. `unsure` says whether requests
    /// may still be in flight. Returns false if the owner was released meanwhile, for example because its lock was broken.
    /// The attempt may have taken the place again, so the session releases it again.
    pub(super) fn answered(&self, owner: OwnerId, at: &P, unsure: bool) -> bool {
        let mut book = self.lock();
        let Some(places) = book.as_mut() else {
            return false;
        };
        let place = match places.entry(owner) {
            Entry::Occupied(found) if !matches!(found.get().phase, Phase::Releasing { .. }) => {
                found.into_mut().unsure = unsure;
                return true;
            }
            Entry::Occupied(found) => {
                let place = found.into_mut();
                place.enter(Phase::Due);
                place
            }
            Entry::Vacant(free) => free.insert(Place::new(at.clone(), Phase::Due)),
        };
        place.unsure = true;
        self.owed.notify_one();
        false
    }

    /// Records the answer that the owner waits.
    pub(super) fn queued(&self, owner: OwnerId) {
        self.change(owner, |place| {
            if matches!(place.phase, Phase::Asked) {
                place.enter(Phase::Queued);
            }
        });
    }

    /// Records the answer that the owner holds, and returns its grant. `None` if the session has reconnected since there were
    /// `reconnects`, and did not know of the hold: the service may have lost it by then, and the session did not check it.
    ///
    /// # Errors
    ///
    /// [`SessionEnded`](BackendErrorKind::SessionEnded) if the session has ended meanwhile, and the lock with it.
    pub(super) fn hold(
        &self,
        owner: OwnerId,
        token: FencingToken,
        reconnects: u64,
    ) -> Result<Option<Grant>, BackendError> {
        // Under the book's lock, so that a later reconnect finds the hold.
        let grant = self.change(owner, |place| {
            let is_known = !place.waits() || self.reconnects() == reconnects;
            is_known.then(|| place.hold(token, &self.session))
        });
        grant.ok_or_else(|| self.over())
    }

    /// Records the message that the owner was granted. `is_of` says whether the message is for this place, and not for an
    /// earlier one of this owner.
    ///
    /// If there is no such place, it was released, and the service has freed it. If the waiter has stopped listening, the
    /// place is about to be released, or the waiter is about to listen again.
    pub fn granted(&self, owner: OwnerId, token: FencingToken, is_of: impl FnOnce(&P) -> bool) {
        // After the session's end no grant is certain.
        if !self.session.is_lost() {
            let _news = self.change(owner, |place| {
                is_of(&place.at).then(|| place.granted(token, &self.session))
            });
        }
    }

    /// Tells the waiter `owner` to repeat its attempt, because it may be its turn. For a service whose messages report a change
    /// and grant nothing.
    pub fn wake(&self, owner: OwnerId) {
        let _news = self.change(owner, |place| place.waits().then(|| place.wake()));
    }

    /// Ends the wait of this owner with an error. `is_of` says whether the failure is of this place.
    pub fn failed(&self, owner: OwnerId, error: BackendError, is_of: impl FnOnce(&P) -> bool) {
        let _news = self.change(owner, |place| is_of(&place.at).then(|| place.fail(error)));
    }

    /// Records that `owner` has no place at `service` any more, and that an attempt takes it again. If the owner held, its lock
    /// is lost.
    pub fn retake(&self, owner: OwnerId, service: &str) {
        let _news = self.change(owner, |place| {
            if place.is_leaving() {
                return None;
            }
            let news = place.lose(service);
            place.enter(Phase::Asked);
            // It was for the lost hold.
            place.waiting().unheard = None;
            news
        });
    }

    /// Records a place that the service has. If `owner` has no place here, the service lost its release, and the session
    /// repeats it.
    pub fn found_unknown(&self, owner: OwnerId, at: P) {
        if let Some(places) = &mut *self.lock()
            && let Entry::Vacant(free) = places.entry(owner)
        {
            free.insert(Place::new(at, Phase::Due));
            self.unknown.notify_one();
        }
    }

    /// Subscribes a waiter.
    pub fn listen(&self, owner: OwnerId) -> Wakeups {
        let (sender, line) = wakeups();
        let former = self.change(owner, |place| {
            let waiting = place.waiting();
            if let Some(grant) = waiting.unheard.take() {
                sender.grant(grant);
            }
            if std::mem::take(&mut waiting.unheard_wake) {
                sender.wake();
            }
            waiting.line.replace(sender.clone())
        });
        if former.is_none() {
            sender.fail(self.over());
        }
        line
    }

    /// Records that the lock of `owner` was broken: its guard is told of `loss`, and the session releases it. `is_of` says
    /// whether the mark is for this place, and not for an earlier one of this owner. Returns false if the owner has no such
    /// place.
    pub fn broken(&self, owner: OwnerId, loss: &Loss, is_of: impl FnOnce(&P) -> bool) -> bool {
        let found = self.change(owner, |place| {
            if !is_of(&place.at) {
                return None;
            }
            if place.is_leaving() {
                return Some([None, None]);
            }
            let ended = place.end(loss.clone());
            place.broken = Some(Box::new(loss.clone()));
            place.enter(Phase::Due);
            // An owner that has not received its grant repeats its attempt.
            Some([ended, place.wake()])
        });
        found.flatten().is_some()
    }

    /// Whether a release of `owner` is in flight or due.
    pub(super) fn is_leaving(&self, owner: OwnerId) -> bool {
        self.change(owner, |place| place.is_leaving()) == Some(true)
    }

    /// The place and the token of `owner`, if it holds a lock.
    pub fn held(&self, owner: OwnerId) -> Option<(P, FencingToken)> {
        self.change(owner, |place| match place.phase {
            Phase::Held(token, _) => Some((place.at.clone(), token)),
            _ => None,
        })?
    }

    /// Begins a release of `owner`. If the returned value is dropped before the release is done, the release is due again.
    /// `None` if the service has nothing of this owner.
    pub fn release(&self, owner: OwnerId) -> Option<Releasing<'_, P>> {
        self.begin_release(owner, |_| true)
    }

    /// The same, unless another call is already releasing it.
    pub(super) fn release_due(&self, owner: OwnerId) -> Option<Releasing<'_, P>> {
        self.begin_release(owner, |phase| matches!(phase, Phase::Due))
    }

    fn begin_release(
        &self,
        owner: OwnerId,
        which: impl FnOnce(&Phase) -> bool,
    ) -> Option<Releasing<'_, P>> {
        // Declared first, so that it is dropped after the book is unlocked.
        let _news;
        let mut book = self.lock();
        let places = book.as_mut()?;
        let place = places.get_mut(&owner).filter(|place| which(&place.phase))?;
        let mut leaving = Leaving {
            at: place.at.clone(),
            held: matches!(place.phase, Phase::Held(..)),
            waits: place.waits(),
            unsure: place.unsure,
            next: None,
        };
        let passes_on = place.holds_for_certain();
        place.enter(Phase::Releasing { passes_on });
        let version = place.version;
        if passes_on {
            (leaving.next, _news) = self.pass_on(places, owner).unzip();
        }
        Some(Releasing {
            places: self,
            owner,
            version,
            reconnects: self.reconnects(),
            leaving,
        })
    }

    /// The owners that must be released. The one that was tried last is the last one: it may fail again, and end a round.
    pub(super) fn due(&self) -> Vec<OwnerId> {
        let is_due = |place: &Place<P>| matches!(place.phase, Phase::Due);
        let mut due = self.list(|owner, place| is_due(place).then_some((place.version, owner)));
        due.sort_unstable();
        due.into_iter().map(|(_, owner)| owner).collect()
    }

    /// Records that an attempt for `owner` failed, and whether it may have `left` something at the service. If no attempt has, the owner
    /// is forgotten.
    pub(super) fn refused(&self, owner: OwnerId, left: bool) {
        let is_left = self.change(owner, |place| {
            // In a later phase it is the place of an earlier attempt, which did not fail.
            place.left |= left || !matches!(place.phase, Phase::Asked);
            place.left
        });
        if is_left == Some(false) {
            self.forget(owner);
        }
    }

    /// Forgets `owner`. Call this when the service has nothing of it, and no request for it is in flight.
    pub(super) fn forget(&self, owner: OwnerId) {
        let removed = (self.lock().as_mut()).and_then(|places| places.remove(&owner));
        let _told = removed.map(|place| self.removed(place));
    }

    /// Tells the waiter of a removed place, if it still listens, that it waits in its next place from now on: one whose lock was broken
    /// before it heard of its grant, or whose place at the service was deleted. Drop the returned value after the book is unlocked.
    fn removed(&self, place: Place<P>) -> (Option<News>, Place<P>) {
        (place.fail(self.over()), place)
    }

    /// How many times the session has reconnected.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Acquire)
    }

    /// Records that the session has reconnected. Returns the places of holders and waiters at this moment.
    pub(super) fn reconnected(&self) -> Vec<Asked<P>> {
        let book = self.lock();
        self.reconnects.fetch_add(1, Ordering::AcqRel);
        listed(book.as_ref(), |owner, place| place.asked(owner, true))
    }

    /// The places of holders, and with `waiters` also those of waiters.
    pub(super) fn standing(&self, waiters: bool) -> Vec<Asked<P>> {
        self.list(|owner, place| place.asked(owner, waiters))
    }

    /// Records the state of a place that was read at `service`.
    pub(super) fn found(&self, asked: &Asked<P>, stand: Stand, service: &str) {
        let _news = self.change(asked.owner, |place| {
            // The place has changed since the request, so the answer is stale.
            if place.version != asked.version {
                return None;
            }
            match (&place.phase, stand) {
                (Phase::Held(token, _), Stand::Held(found) | Stand::Follows(found))
                    if found == *token =>
                {
                    None
                }
                (Phase::Held(..), _) => place.lose(service),
                (Phase::Queued, Stand::Gone) => place.fail(BackendError::new(
                    BackendErrorKind::SessionEnded,
                    format!("a place in a queue of {service} is gone"),
                )),
                (Phase::Queued, Stand::Held(token)) => place.granted(token, &self.session),
                _ => None,
            }
        });
    }

    /// Records the session's end: tells its waiters, and forgets its places.
    pub(super) fn close(&self) {
        let over = self.over();
        let closed = self.lock().take().into_iter().flatten();
        let left = closed.map(|(_, place)| {
            place.fail(over.clone());
            place.at
        });
        self.left.get_or_init(|| left.collect());
    }

    /// The places that its owners had when the session ended. Empty before.
    pub fn left(&self) -> &[P] {
        self.left.get().map_or(&[], Vec::as_slice)
    }

    /// The error of an ended session, or of a place that ended with it.
    pub(super) fn over(&self) -> BackendError {
        let why = match self.session.loss() {
            Some(loss) => loss.to_string(),
            None => "the place was given up meanwhile".to_owned(),
        };
        BackendError::new(BackendErrorKind::SessionEnded, why)
    }

    fn change<T>(&self, owner: OwnerId, change: impl FnOnce(&mut Place<P>) -> T) -> Option<T> {
        self.lock().as_mut()?.get_mut(&owner).map(change)
    }

    fn list<T>(&self, which: impl Fn(OwnerId, &Place<P>) -> Option<T>) -> Vec<T> {
        listed(self.lock().as_ref(), which)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Book<P>>> {
        // No code panics while it holds the lock.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listed<P, T>(book: Option<&Book<P>>, which: impl Fn(OwnerId, &Place<P>) -> Option<T>) -> Vec<T> {
    let places = book.into_iter().flatten();
    places
        .filter_map(|(owner, place)| which(*owner, place))
        .collect()
}

#[cfg(test)]
mod tests;
