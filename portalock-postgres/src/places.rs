//! What this client knows of its own requests: in which session each has its place, and who is to be told what becomes of it.
//!
//! One rule covers every call that failed, was dropped, or may have been carried out without an answer: what it may have
//! done is unknown until the place has been released for good. Until then the place stays in this book, and the session
//! releases it once the server answers again.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use portalock_core::{
    BackendError, BackendErrorKind, FencingToken, Grant, Lease, Loss, LostSignal, OwnerId,
    WakeSender, Wakeups, wakeups,
};
use tokio::sync::Notify;

use crate::{error::session_ended, keys::Spot};

/// The places of all owners of a backend, from the first attempt until nothing can be left of them.
#[derive(Debug, Default)]
pub(crate) struct Places {
    book: Mutex<HashMap<OwnerId, Place>>,
    taken: AtomicU64,
    /// Told when a release is due again.
    pub(crate) owed: Notify,
}

#[derive(Debug)]
struct Place {
    /// What the server calls its owner. Each place has a name of its own: a release that arrives late finds nothing of the
    /// owner's next place.
    name: Arc<str>,
    session: Arc<str>,
    spot: Spot,
    phase: Phase,
    /// Whether a request for it may still be on its way: its answer never came.
    unsure: bool,
    /// Somebody has broken the lock, which may not be known to be held yet.
    broken: Option<Loss>,
    /// Grows with every change of the phase.
    version: u64,
    waiting: Option<Box<Waiting>>,
}

#[derive(Debug)]
enum Phase {
    /// Asked for; not answered yet.
    Asked,
    /// The server has answered that it waits.
    Queued,
    /// Granted. The lease ends if somebody removes the claim from the server.
    Held(FencingToken, Lease),
    /// A release is under way: that the claim is missing at the server means nothing any more.
    Releasing,
    /// A release failed or was dropped: the session tries again.
    Due,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Where the waiter listens, once it does.
    line: Option<WakeSender>,
    /// A grant that came before the waiter listened.
    unheard: Option<Grant>,
}

/// What a release needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Leaving {
    pub(crate) name: Arc<str>,
    pub(crate) session: Arc<str>,
    pub(crate) spot: Spot,
    pub(crate) held: bool,
    pub(crate) unsure: bool,
}

/// A place that the server is asked about.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) owner: OwnerId,
    pub(crate) name: Arc<str>,
    version: u64,
}

/// A place as an attempt finds it.
#[derive(Debug)]
pub(crate) struct Expected {
    /// What the server calls its owner.
    pub(crate) name: Arc<str>,
    /// Whether an earlier request may still be on its way.
    pub(crate) unsure: bool,
}

/// The owner that a place's name is of.
fn owner_of(name: &str) -> Option<OwnerId> {
    name.split_once('.')?.0.parse().ok()
}

impl Places {
    /// Whether a release of `owner` is under way or due.
    pub(crate) fn is_leaving(&self, owner: OwnerId) -> bool {
        self.lock().get(&owner).is_some_and(Place::is_leaving)
    }

    /// An attempt for `owner` is about to be sent: from now on a grant may come, also if no answer does.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](BackendErrorKind::Unavailable) while a release of the owner is under way or due.
    pub(crate) fn expect(
        &self,
        owner: OwnerId,
        session: &Arc<str>,
        spot: &Spot,
    ) -> Result<Expected, BackendError> {
        let mut places = self.lock();
        let place = places.entry(owner).or_insert_with(|| Place {
            name: format!("{owner}.{}", self.taken.fetch_add(1, Ordering::Relaxed)).into(),
            session: session.clone(),
            spot: spot.clone(),
            phase: Phase::Asked,
            unsure: false,
            broken: None,
            version: 0,
            waiting: None,
        });
        if place.session != *session {
            // Nothing of a session that has ended counts, or can arrive any more.
            place.session = session.clone();
            place.unsure = false;
            place.broken = None;
            place.enter(Phase::Asked);
            place.waiting = None;
        }
        if place.is_leaving() {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                "what an earlier attempt may have left is not released yet",
            ));
        }
        Ok(Expected {
            name: place.name.clone(),
            unsure: std::mem::replace(&mut place.unsure, true),
        })
    }

    /// The attempt was answered; `unsure` as far as others may still be on their way.
    pub(crate) fn answered(&self, owner: OwnerId, unsure: bool) {
        if let Some(place) = self.lock().get_mut(&owner) {
            place.unsure = unsure;
        }
    }

    /// The owner waits, as an answer says.
    pub(crate) fn queued(&self, owner: OwnerId) {
        if let Some(place) = self.lock().get_mut(&owner)
            && matches!(place.phase, Phase::Asked)
        {
            place.enter(Phase::Queued);
        }
    }

    /// The owner has been granted, as an answer says: what it is given. `None` if its session has ended meanwhile.
    pub(crate) fn hold(
        &self,
        owner: OwnerId,
        token: FencingToken,
        session: &LostSignal,
    ) -> Option<Grant> {
        Some(self.lock().get_mut(&owner)?.hold(token, session))
    }

    /// The owner has been granted, as a message says.
    ///
    /// A place that is gone was released, and the server has freed it since. One whose waiter has stopped listening is
    /// about to be.
    pub(crate) fn granted(
        &self,
        session: &str,
        name: &str,
        token: FencingToken,
        lost: &LostSignal,
    ) {
        let Some(owner) = owner_of(name) else {
            return;
        };
        if let Some(place) = self.lock().get_mut(&owner)
            && *place.session == *session
            && *place.name == *name
        {
            place.granted(token, lost);
        }
    }

    /// Opens the line of a waiter.
    pub(crate) fn listen(&self, owner: OwnerId) -> Wakeups {
        let (sender, line) = wakeups();
        match self.lock().get_mut(&owner) {
            Some(place) => {
                let waiting = place.waiting();
                if let Some(grant) = waiting.unheard.take() {
                    sender.grant(grant);
                }
                waiting.line = Some(sender);
            }
            // Its session has ended since the attempt, and the place in the queue with it.
            None => drop(sender.fail(session_ended("there is no place to wait in"))),
        }
        line
    }

    /// By what `owner` holds: its name at the server and its token.
    pub(crate) fn held(&self, owner: OwnerId) -> Option<(Arc<str>, FencingToken)> {
        let places = self.lock();
        let place = places.get(&owner)?;
        match place.phase {
            Phase::Held(token, _) => Some((place.name.clone(), token)),
            _ => None,
        }
    }

    /// A release of `owner` begins. It is due again when the returned value is dropped. `None` if the server has nothing of it.
    pub(crate) fn release(&self, owner: OwnerId) -> Option<Releasing<'_>> {
        let mut places = self.lock();
        let place = places.get_mut(&owner)?;
        let leaving = Leaving {
            name: place.name.clone(),
            session: place.session.clone(),
            spot: place.spot.clone(),
            held: matches!(place.phase, Phase::Held(..)),
            unsure: place.unsure,
        };
        place.enter(Phase::Releasing);
        let version = place.version;
        drop(places);
        Some(Releasing {
            places: self,
            owner,
            version,
            leaving,
        })
    }

    /// The same, if nobody else releases it already.
    pub(crate) fn release_due(&self, owner: OwnerId) -> Option<Releasing<'_>> {
        let is_due = matches!(self.lock().get(&owner)?.phase, Phase::Due);
        is_due.then(|| self.release(owner)).flatten()
    }

    /// Who of this session is to be released.
    pub(crate) fn due(&self, session: &str) -> Vec<OwnerId> {
        self.lock()
            .iter()
            .filter(|(_, place)| *place.session == *session && matches!(place.phase, Phase::Due))
            .map(|(owner, _)| *owner)
            .collect()
    }

    /// The server keeps nothing of `owner` any more, and can't come to.
    pub(crate) fn forget(&self, owner: OwnerId) {
        self.lock().remove(&owner);
    }

    /// Those of the session who hold or wait.
    pub(crate) fn standing(&self, session: &str) -> Vec<Asked> {
        self.lock()
            .iter()
            .filter(|(_, place)| {
                *place.session == *session && matches!(place.phase, Phase::Queued | Phase::Held(..))
            })
            .map(|(owner, place)| Asked {
                owner: *owner,
                name: place.name.clone(),
                version: place.version,
            })
            .collect()
    }

    /// What the server knows of those who were asked about: its claims, with their tokens if they are granted.
    pub(crate) fn found(
        &self,
        asked: &[Asked],
        claims: &HashMap<String, Option<FencingToken>>,
        lost: &LostSignal,
    ) {
        let mut places = self.lock();
        for Asked {
            owner,
            name,
            version,
        } in asked
        {
            let Some(place) = places.get_mut(owner) else {
                continue;
            };
            // What has happened meanwhile, the answer doesn't know.
            if place.version != *version {
                continue;
            }
            match (&place.phase, claims.get(&**name)) {
                (Phase::Held(token, lease), claim) if claim != Some(&Some(*token)) => {
                    lease.end(Loss::Removed("its claim in Postgres is gone".into()));
                }
                (Phase::Queued, None) => {
                    place.fail(session_ended("its place in the queue is gone"));
                }
                (Phase::Queued, Some(Some(token))) => place.granted(*token, lost),
                _ => {}
            }
        }
    }

    /// Somebody has broken what is held in this session by the place of this name: its guard is told, and it is due to be
    /// released.
    pub(crate) fn broken(&self, session: &str, name: &str, loss: &Loss) {
        let Some(owner) = owner_of(name) else {
            return;
        };
        if let Some(place) = self.lock().get_mut(&owner)
            && *place.session == *session
            && *place.name == *name
            && !place.is_leaving()
        {
            if let Phase::Held(_, lease) = &place.phase {
                lease.end(loss.clone());
            }
            place.broken = Some(loss.clone());
            place.enter(Phase::Due);
            // One who has not heard of its grant asks again.
            if let Some(line) = place
                .waiting
                .as_ref()
                .and_then(|waiting| waiting.line.as_ref())
            {
                line.wake();
            }
        }
    }

    /// The session is over: those who wait in it are told, and nothing is kept of it.
    pub(crate) fn session_ended(&self, session: &str, error: &BackendError) {
        let mut places = self.lock();
        let ended = places.extract_if(|_, place| *place.session == *session);
        for (_, mut place) in ended {
            place.fail(error.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnerId, Place>> {
        // Nothing panics while it is held.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Releasing | Phase::Due)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.version += 1;
    }

    fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    fn fail(&mut self, error: BackendError) {
        if let Some(line) = self
            .waiting
            .as_ref()
            .and_then(|waiting| waiting.line.as_ref())
        {
            line.fail(error);
        }
    }

    fn granted(&mut self, token: FencingToken, session: &LostSignal) {
        if !matches!(self.phase, Phase::Asked | Phase::Queued) {
            return;
        }
        let grant = self.hold(token, session);
        let waiting = self.waiting();
        match &waiting.line {
            Some(line) => drop(line.grant(grant)),
            None => waiting.unheard = Some(grant),
        }
    }

    fn hold(&mut self, token: FencingToken, session: &LostSignal) -> Grant {
        let lease = match &self.phase {
            Phase::Held(_, lease) => lease.clone(),
            _ => Lease::unbounded(),
        };
        if let Some(loss) = &self.broken {
            lease.end(loss.clone());
        }
        let lost = LostSignal::any([session.clone(), lease.signal()]);
        if matches!(self.phase, Phase::Asked | Phase::Queued) {
            self.enter(Phase::Held(token, lease));
        }
        Grant::new().with_token(token).with_lost(lost)
    }
}

/// A release under way.
#[derive(Debug)]
pub(crate) struct Releasing<'a> {
    places: &'a Places,
    owner: OwnerId,
    version: u64,
    pub(crate) leaving: Leaving,
}

impl Releasing<'_> {
    /// The server keeps nothing of the place any more, and can't come to.
    pub(crate) fn done(self) {
        let mut places = self.places.lock();
        if places
            .get(&self.owner)
            .is_some_and(|place| self.is_of(place))
        {
            places.remove(&self.owner);
        }
    }

    /// Whether the place is still this release's: not one that the owner has taken since, nor taken over by a later release.
    fn is_of(&self, place: &Place) -> bool {
        place.name == self.leaving.name && place.version == self.version
    }
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        // One that was released for good is no longer in the book.
        if let Some(place) = self.places.lock().get_mut(&self.owner)
            && self.is_of(place)
        {
            place.enter(Phase::Due);
            self.places.owed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Kind;
    use portalock_core::LockName;

    fn spot() -> Spot {
        Spot {
            kind: Kind::Lock,
            name: LockName::new("a").unwrap(),
            weight: 1,
            capacity: 1,
        }
    }

    fn book() -> (Places, OwnerId, Arc<str>) {
        (Places::default(), OwnerId::mint(), "session".into())
    }

    #[test]
    fn nobody_asks_beside_a_release_of_what_it_had() {
        let (places, owner, session) = book();
        places.expect(owner, &session, &spot()).unwrap();
        let releasing = places.release(owner).unwrap();
        assert!(places.expect(owner, &session, &spot()).is_err());
        drop(releasing);
        assert_eq!(places.due(&session), [owner]);
        assert!(places.expect(owner, &session, &spot()).is_err());
        places.release_due(owner).unwrap().done();
        places.expect(owner, &session, &spot()).unwrap();
    }

    #[test]
    fn a_release_that_is_answered_late_leaves_what_came_after_it() {
        let (places, owner, session) = book();
        let first = places.expect(owner, &session, &spot()).unwrap();
        let late = places.release(owner).unwrap();
        places.release(owner).unwrap().done();
        let second = places.expect(owner, &session, &spot()).unwrap();
        assert_ne!(first.name, second.name, "the server can tell them apart");
        let lost = LostSignal::never();
        places.hold(owner, FencingToken::new(2), &lost).unwrap();
        late.done();
        let (name, token) = places.held(owner).unwrap();
        assert_eq!((name, token), (second.name, FencingToken::new(2)));
        assert!(places.due(&session).is_empty());
    }

    #[test]
    fn a_grant_told_late_is_not_the_next_places() {
        let (places, owner, session) = book();
        let first = places.expect(owner, &session, &spot()).unwrap();
        places.release(owner).unwrap().done();
        let second = places.expect(owner, &session, &spot()).unwrap();
        let lost = LostSignal::never();
        places.granted(&session, &first.name, FencingToken::new(1), &lost);
        assert!(places.held(owner).is_none());
        places.granted(&session, &second.name, FencingToken::new(2), &lost);
        assert!(places.held(owner).is_some());
    }

    #[test]
    fn a_place_that_is_broken_is_lost_and_due_and_the_owners_next_one_is_not() {
        let loss = Loss::Removed("broken".into());
        let never = LostSignal::never();
        for is_heard in [true, false] {
            let (places, owner, session) = book();
            let first = places.expect(owner, &session, &spot()).unwrap();
            let mut grant = None;
            if is_heard {
                grant = places.hold(owner, FencingToken::new(1), &never);
            }
            places.broken(&session, "another.0", &loss);
            places.broken(&session, &first.name, &loss);
            let grant = grant.or_else(|| places.hold(owner, FencingToken::new(1), &never));
            assert_eq!(grant.unwrap().lost.loss(), Some(loss.clone()));
            assert_eq!(places.due(&session), [owner]);
            places.release_due(owner).unwrap().done();
            places.expect(owner, &session, &spot()).unwrap();
            places.broken(&session, &first.name, &loss);
            let next = places.hold(owner, FencingToken::new(2), &never).unwrap();
            assert_eq!(next.lost.loss(), None);
        }
    }

    #[test]
    fn what_is_released_already_is_not_released_beside_it() {
        let (places, owner, session) = book();
        places.expect(owner, &session, &spot()).unwrap();
        let _releasing = places.release(owner).unwrap();
        assert!(places.release_due(owner).is_none());
    }
}
