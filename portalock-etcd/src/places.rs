//! What this client knows of its own requests: in which session each has its place, and what is not known of it.
//!
//! One rule covers every call that failed, was dropped, or may have been carried out without an answer: what it may have
//! done is unknown until the place has been withdrawn for good. Until then the place stays in this book, and the session
//! withdraws it once etcd answers again, as long as the session lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portalock_core::{Lease, Loss, LostSignal, OwnerId};

use crate::{keys::Queue, session::Session};

/// The places of all owners of a backend, from the first attempt until nothing can be left of them.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<OwnerId, Place>>);

/// One owner's place in a queue: one use of one of the session's keys.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) session: Arc<Session>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) number: usize,
    pub(crate) key: Arc<str>,
    /// What the key holds then, which tells this use of it from all others.
    pub(crate) value: Arc<[u8]>,
    /// At which revision it was taken, once etcd has said so.
    pub(crate) taken: Option<i64>,
    /// Its lock, once it was granted. Ends if somebody deletes the key.
    pub(crate) held: Option<Lease>,
    /// Somebody has broken the lock, which may not be known to be held yet.
    pub(crate) broken: Option<Loss>,
    /// Whether a request for it may still be on its way: its answer never came.
    pub(crate) unsure: bool,
    pub(crate) debt: Debt,
}

/// Whether a place is to be withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debt {
    /// It is in use.
    None,
    /// A release is under way.
    Paying,
    /// A release failed or was dropped: the session tries again.
    Due,
}

impl Places {
    /// What is known of `owner`.
    pub(crate) fn get(&self, owner: OwnerId) -> Option<Place> {
        self.lock().get(&owner).cloned()
    }

    /// `owner` has a place from now on.
    pub(crate) fn insert(&self, owner: OwnerId, place: Place) {
        self.lock().insert(owner, place);
    }

    /// Takes note of what is known now.
    pub(crate) fn note(&self, owner: OwnerId, change: impl FnOnce(&mut Place)) {
        if let Some(place) = self.lock().get_mut(&owner) {
            change(place);
        }
    }

    /// `owner` holds by its place: when that was taken, and what fires if its key is deleted. The same if said again.
    pub(crate) fn hold(&self, owner: OwnerId) -> Option<(i64, LostSignal)> {
        let mut places = self.lock();
        let place = places.get_mut(&owner)?;
        let held = place.held.get_or_insert_with(Lease::unbounded);
        if let Some(loss) = &place.broken {
            held.end(loss.clone());
        }
        Some((place.taken?, held.signal()))
    }

    /// Who holds in this session and has not begun to release.
    pub(crate) fn held(&self, session: &Session) -> Vec<(OwnerId, Place)> {
        self.of(session, |place| {
            place.held.is_some() && place.debt == Debt::None
        })
    }

    /// Who of this session is to be withdrawn.
    pub(crate) fn due(&self, session: &Session) -> Vec<(OwnerId, Place)> {
        self.of(session, |place| place.debt == Debt::Due)
    }

    /// The key of what `owner` holds by this place has gone: unless it has begun to release meanwhile, that is a loss.
    pub(crate) fn lose(&self, owner: OwnerId, place: &Place) {
        if let Some(known) = self.lock().get(&owner)
            && known.taken == place.taken
            && known.debt == Debt::None
            && let Some(held) = &known.held
        {
            tracing::warn!(key = &*known.key, "the key of a held lock was deleted");
            held.end(Loss::Removed("its key was deleted by somebody".into()));
        }
    }

    /// Somebody has broken what `owner` holds in this session, by a mark that was made at this revision: its guard is told, and it is
    /// due to be released. False if it has nothing that the mark can be on.
    pub(crate) fn broken(
        &self,
        owner: OwnerId,
        session: &Session,
        marked: i64,
        loss: &Loss,
    ) -> bool {
        let mut places = self.lock();
        // A place that was taken after the mark is another one than was broken.
        let is_on = |place: &&mut Place| {
            std::ptr::eq(Arc::as_ptr(&place.session), session)
                && place.taken.is_none_or(|taken| taken < marked)
        };
        let Some(place) = places.get_mut(&owner).filter(is_on) else {
            return false;
        };
        if place.debt == Debt::None {
            if let Some(held) = &place.held {
                held.end(loss.clone());
            }
            place.broken = Some(loss.clone());
            place.debt = Debt::Due;
        }
        true
    }

    /// The nearest place of the same session that is in the way of `place`, taken at `taken`.
    pub(crate) fn nearest_before(&self, place: &Place, taken: i64) -> Option<Place> {
        let before = |other: &Place| {
            other.taken.is_some_and(|other| other < taken)
                && other.debt == Debt::None
                && other.key.starts_with(place.queue.in_the_way())
        };
        self.lock()
            .values()
            .filter(|other| Arc::ptr_eq(&other.session, &place.session) && before(other))
            .max_by_key(|other| other.taken)
            .cloned()
    }

    /// A release of `owner`'s place begins. It is due again when the returned value is dropped.
    pub(crate) fn paying<'a>(&'a self, owner: OwnerId, place: &'a Place) -> Paying<'a> {
        self.note(owner, |known| known.debt = Debt::Paying);
        Paying {
            places: self,
            owner,
            place,
        }
    }

    /// Forgets who held in a session that has ended.
    pub(crate) fn forget_grants(&self, session: &Arc<Session>) {
        self.lock()
            .retain(|_, place| place.held.is_none() || !Arc::ptr_eq(&place.session, session));
    }

    /// Forgets everyone of a session that has been revoked or has run out.
    pub(crate) fn forget_all(&self, session: &Arc<Session>) {
        self.lock()
            .retain(|_, place| !Arc::ptr_eq(&place.session, session));
    }

    /// Nothing is left of `owner`'s place, nor can anything come: its key may be used again.
    pub(crate) fn remove(&self, owner: OwnerId, place: &Place) {
        let mut places = self.lock();
        // Another release may have come before this one, and the owner may have another place since.
        if places.get(&owner).is_some_and(|known| known.is(place)) {
            places.remove(&owner);
            let numbers = &place.session.numbers;
            numbers.give_back(&place.queue.directory, place.number);
        }
    }

    fn of(&self, session: &Session, which: impl Fn(&Place) -> bool) -> Vec<(OwnerId, Place)> {
        self.lock()
            .iter()
            .filter(|(_, place)| std::ptr::eq(Arc::as_ptr(&place.session), session) && which(place))
            .map(|(owner, place)| (*owner, place.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnerId, Place>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether this is the same use of the same key.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value)
    }
}

/// A release under way.
#[derive(Debug)]
pub(crate) struct Paying<'a> {
    places: &'a Places,
    owner: OwnerId,
    place: &'a Place,
}

impl Drop for Paying<'_> {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        match places.get_mut(&self.owner) {
            Some(known) if known.is(self.place) => known.debt = Debt::Due,
            // It was withdrawn for good, and the owner has another place.
            Some(_) => return,
            None => {}
        }
        self.place.session.watches.leave(self.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EtcdSettings, endpoints::Endpoints, keys::Keys, numbers::Numbers, watch::Watches,
        witness::LastWitness,
    };
    use portalock_core::{LockName, Mode, Patience, Request};
    use std::time::Duration;
    use tokio::sync::Notify;

    /// A session that nothing is sent in.
    fn session() -> Arc<Session> {
        let settings = EtcdSettings::new(["127.0.0.1:1"]).unwrap();
        Arc::new(Session {
            lease_id: 1,
            lease: Lease::unbounded(),
            granted_time: Duration::ZERO,
            key: "session".to_owned(),
            key_revision: 0.into(),
            watches: Watches::default(),
            numbers: Numbers::default(),
            endpoints: Arc::new(Endpoints::new(&settings).unwrap()),
            witness: LastWitness::default(),
            marked: Notify::new(),
        })
    }

    /// A place in the queue of `name`, taken at `taken` and entered in the book.
    fn placed(places: &Places, session: &Arc<Session>, name: &str, taken: i64) -> (OwnerId, Place) {
        let name = LockName::new(name).unwrap();
        let request = Request::new(name, Mode::Exclusive, Patience::Queue);
        let queue = Keys::new("test").lock(&request);
        let number = session.numbers.take(&queue.directory);
        let place = Place {
            session: session.clone(),
            number,
            key: queue.key(number, session.lease_id).into(),
            value: Arc::from(*b"value"),
            queue: Arc::new(queue),
            taken: Some(taken),
            held: None,
            unsure: false,
            broken: None,
            debt: Debt::None,
        };
        places.insert(request.owner, place.clone());
        (request.owner, place)
    }

    fn owners(found: Vec<(OwnerId, Place)>) -> Vec<OwnerId> {
        found.into_iter().map(|(owner, _)| owner).collect()
    }

    #[test]
    fn held_is_what_was_granted_in_this_session_and_is_not_being_released() {
        let (places, session, other) = (Places::default(), session(), session());
        let (holds, _) = placed(&places, &session, "a", 1);
        let (releases, _) = placed(&places, &session, "b", 2);
        let (elsewhere, _) = placed(&places, &other, "c", 3);
        placed(&places, &session, "d", 4);
        for owner in [holds, releases, elsewhere] {
            places.hold(owner).unwrap();
        }
        places.note(releases, |place| place.debt = Debt::Due);
        assert_eq!(owners(places.held(&session)), [holds]);
        assert_eq!(owners(places.due(&session)), [releases]);
    }

    #[test]
    fn a_lost_key_is_told_to_its_holder_alone() {
        let (places, session) = (Places::default(), session());
        let (owner, place) = placed(&places, &session, "a", 1);
        let (_, lost) = places.hold(owner).unwrap();
        let former = Place {
            taken: Some(0),
            ..place.clone()
        };
        places.lose(owner, &former);
        assert!(!lost.is_lost(), "an earlier use of the key");
        places.note(owner, |place| place.debt = Debt::Paying);
        places.lose(owner, &place);
        assert!(!lost.is_lost(), "its own release");
        places.note(owner, |place| place.debt = Debt::None);
        places.lose(owner, &place);
        assert!(lost.is_lost());
    }

    #[test]
    fn a_mark_is_on_the_place_that_was_taken_before_it() {
        let (places, session, other) = (Places::default(), session(), session());
        let broken = Loss::Removed("broken".into());
        let (owner, _) = placed(&places, &session, "a", 5);
        let (_, lost) = places.hold(owner).unwrap();
        assert!(
            !places.broken(owner, &session, 4, &broken),
            "an earlier one"
        );
        assert!(!places.broken(owner, &other, 6, &broken), "another session");
        assert!(!lost.is_lost());
        for _ in 0..2 {
            assert!(places.broken(owner, &session, 6, &broken));
            assert!(lost.is_lost());
            assert_eq!(owners(places.due(&session)), [owner]);
        }
    }

    #[test]
    fn one_waits_for_the_latest_before_it_that_keeps_its_place() {
        let (places, session, other) = (Places::default(), session(), session());
        placed(&places, &session, "a", 1);
        let (_, nearest) = placed(&places, &session, "a", 2);
        let (gives_up, _) = placed(&places, &session, "a", 3);
        places.note(gives_up, |place| place.debt = Debt::Paying);
        placed(&places, &session, "b", 4);
        placed(&places, &other, "a", 5);
        let (_, place) = placed(&places, &session, "a", 6);
        placed(&places, &session, "a", 7);
        let before = places.nearest_before(&place, 6).unwrap();
        assert_eq!((before.taken, before.key), (Some(2), nearest.key));
    }

    #[test]
    fn a_session_that_ended_leaves_those_to_withdraw_and_a_revoked_one_nobody() {
        let (places, session, other) = (Places::default(), session(), session());
        let (holds, _) = placed(&places, &session, "a", 1);
        let (waits, _) = placed(&places, &session, "a", 2);
        let (elsewhere, _) = placed(&places, &other, "b", 3);
        places.hold(holds).unwrap();
        places.hold(elsewhere).unwrap();
        places.forget_grants(&session);
        assert!(places.get(holds).is_none());
        assert!(places.get(waits).is_some());
        assert!(places.get(elsewhere).is_some());
        places.forget_all(&session);
        assert!(places.get(waits).is_none());
        assert!(places.get(elsewhere).is_some());
    }

    #[test]
    fn a_release_that_was_dropped_is_due_unless_the_owner_has_another_place() {
        let (places, session) = (Places::default(), session());
        let (owner, place) = placed(&places, &session, "a", 1);
        let paying = places.paying(owner, &place);
        assert_eq!(places.get(owner).unwrap().debt, Debt::Paying);
        drop(paying);
        assert_eq!(places.get(owner).unwrap().debt, Debt::Due);

        let paying = places.paying(owner, &place);
        let (_, another) = placed(&places, &session, "a", 2);
        places.insert(owner, another);
        places.remove(owner, &place);
        drop(paying);
        assert_eq!(places.get(owner).unwrap().debt, Debt::None);
    }
}
