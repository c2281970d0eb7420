//! What all clones of a backend share: the connection, the session, and how a request is served, lock or semaphore.

use std::{sync::Arc, time::Duration};

use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Contention, Grant, Holder, Loss, LostSignal, OwnerId,
    Patience, Released, Wakeups, session::Sessions, wakeups,
};

use crate::{
    EtcdSettings,
    blockers::{Blockers, Waiting},
    endpoints::Endpoints,
    error::session_ended,
    keep,
    keys::{Keys, Queue, Rule},
    look::Standing,
    places::{Debt, Place, Places},
    queue::Entry,
    record::{decode, encode, token},
    session::Session,
};

/// After how long a waiter looks again without having been told to. Wake-ups are not lost by design; this bounds what a
/// bug, here or at the server, could cost.
const RECHECK_AFTER: Duration = Duration::from_secs(5);

/// One client of etcd.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) settings: EtcdSettings,
    pub(crate) keys: Keys,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) places: Arc<Places>,
    sessions: Sessions<Session>,
}

/// A request, stripped of what it is for.
#[derive(Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) queue: Queue,
    pub(crate) owner: OwnerId,
    pub(crate) patience: Patience,
    pub(crate) holder: &'a Holder,
}

impl Client {
    /// A client without a session. Nothing is sent yet.
    pub(crate) fn new(settings: EtcdSettings) -> Result<Self, BackendError> {
        Ok(Self {
            keys: Keys::new(&settings.prefix),
            endpoints: Arc::new(Endpoints::new(&settings)?),
            settings,
            places: Arc::default(),
            sessions: Sessions::new(),
        })
    }

    /// The session, or a new one if there is none that is certain.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, BackendError> {
        if let Some(session) = self.sessions.live() {
            return Ok(session);
        }
        let endpoints = self.endpoints.clone();
        let settings = self.settings.clone();
        let keys = self.keys.clone();
        let places = self.places.clone();
        self.sessions
            .get(|former| async move {
                if let Some(former) = former {
                    // Nobody releases what was lost.
                    places.forget_grants(&former);
                }
                keep::start(endpoints, &settings, &keys, places).await
            })
            .await
    }

    /// One attempt for `wish`.
    pub(crate) async fn attempt(&self, wish: Wish<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let (owner, patience) = (wish.owner, wish.patience);
        if let Some(place) = self.places.get(owner)
            && (place.debt != Debt::None || !Arc::ptr_eq(&place.session, &session))
        {
            // What the owner had in a session that has ended may still be there. It would wait behind itself.
            self.release(owner).await?;
            if self.places.get(owner).is_some() {
                return Err(BackendError::new(
                    BackendErrorKind::Unavailable,
                    "an earlier request may still arrive, and etcd can't be told to refuse it yet",
                ));
            }
        }
        let standing = match self.stand(&session, wish).await {
            Ok(standing) => standing,
            Err(error) => {
                // A place may have been taken in a session that ended during the attempt.
                return Err(session.ended().unwrap_or(error));
            }
        };
        match standing {
            Standing::Granted => self.granted(&session, owner),
            Standing::Waiting(waiting) => {
                let place = self.places.get(owner);
                let holder = place.and_then(|place| session.numbers.holder(&place.queue.directory));
                let contention = Contention::new().with_holder(holder);
                if patience == Patience::Once {
                    self.release(owner).await?;
                    return Ok(Attempt::Contended(contention));
                }
                session.watches.wait(owner, waiting)?;
                Ok(Attempt::Contended(
                    contention
                        .with_queued(true)
                        .with_recheck_after(RECHECK_AFTER),
                ))
            }
            Standing::Refused(holder) => {
                self.release(owner).await?;
                Ok(Attempt::Contended(Contention::new().with_holder(holder)))
            }
            Standing::Gone => Err(session_ended("a place in a queue was deleted by somebody")),
        }
    }

    /// The grant of the place that `owner` has.
    fn granted(&self, session: &Session, owner: OwnerId) -> Result<Attempt, BackendError> {
        if let Some(error) = session.ended() {
            return Err(error);
        }
        session.watches.leave(owner);
        let Some((taken, removed)) = self.places.hold(owner) else {
            return Err(session_ended("the place was given up meanwhile"));
        };
        let lost = LostSignal::any([session.lease.signal(), removed]);
        Ok(Attempt::Granted(
            Grant::new().with_token(token(taken)).with_lost(lost),
        ))
    }

    /// Finds or takes the place, and takes note of what is known of it.
    async fn stand(
        &self,
        session: &Arc<Session>,
        wish: Wish<'_>,
    ) -> Result<Standing, BackendError> {
        let (owner, patience) = (wish.owner, wish.patience);
        let place = match self.places.get(owner) {
            Some(place) => place,
            None => self.new_place(session, wish)?,
        };
        if let Some(taken) = place.taken {
            let waiting = session.watches.waiting(owner);
            let waiting = waiting.or_else(|| self.behind_another(&place, taken));
            let standing = place.look(taken, waiting).await?;
            if !matches!(standing, Standing::Gone) {
                return Ok(standing);
            }
            // Deleted by somebody: take another place, with another token.
            self.places.lose(owner, &place);
            self.places.note(owner, |place| {
                place.taken = None;
                place.held = None;
            });
        }
        // Until it is answered nobody can tell what comes of it: also if this future is dropped.
        self.places.note(owner, |place| place.unsure = true);
        let mut unsure = place.unsure;
        // Whether permits are free is seen from a place only: many can take one at once.
        let only_if_free =
            patience == Patience::Once && !matches!(place.queue.rule, Rule::Permits(_));
        let entry = place.enter(only_if_free, &mut unsure).await;
        self.places.note(owner, |place| {
            place.unsure = unsure;
            if let Ok(Entry::Granted(taken) | Entry::Placed(taken)) = &entry {
                place.taken = Some(*taken);
            }
        });
        match entry? {
            Entry::Granted(_) => Ok(Standing::Granted),
            Entry::Placed(taken) => match self.behind_another(&place, taken) {
                Some(waiting) if patience == Patience::Queue => Ok(Standing::Waiting(waiting)),
                _ => place.look(taken, None).await,
            },
            Entry::Refused(holder) => Ok(Standing::Refused(holder)),
        }
    }

    /// Whom the place taken at `taken` waits for, if another of this session is before it: that one is in the way as long as
    /// it has its place. A look costs etcd time with the queue's length. So of a thousand who wait in one session only the
    /// first looks; if each did when it comes, that would cost etcd a thousand times as much.
    fn behind_another(&self, place: &Place, taken: i64) -> Option<Waiting> {
        if matches!(place.queue.rule, Rule::Permits(_)) {
            return None;
        }
        let before = self.places.nearest_before(place, taken)?;
        if before.held.is_some() {
            let numbers = &place.session.numbers;
            numbers.note_holder(&place.queue.directory, decode(&before.value));
        }
        Some(Waiting {
            blockers: Blockers::Nearest(before.key.to_string()),
            seen: before.taken?,
        })
    }

    /// A key for `wish` to take its place by. Nothing is sent yet.
    fn new_place(&self, session: &Arc<Session>, wish: Wish<'_>) -> Result<Place, BackendError> {
        let value = encode(wish.holder, wish.owner)?.into();
        let number = session.numbers.take(&wish.queue.directory);
        let place = Place {
            session: session.clone(),
            number,
            key: wish.queue.key(number, session.lease_id).into(),
            value,
            queue: Arc::new(wish.queue),
            taken: None,
            held: None,
            broken: None,
            unsure: false,
            debt: Debt::None,
        };
        self.places.insert(wish.owner, place.clone());
        Ok(place)
    }

    /// Frees what `owner` has, wherever it stands.
    pub(crate) async fn release(&self, owner: OwnerId) -> Result<Released, BackendError> {
        self.places.release(owner).await
    }

    /// The line on which a waiter is told to look again.
    pub(crate) fn subscribe(&self, owner: OwnerId) -> Result<Wakeups, BackendError> {
        let Some(place) = self.places.get(owner) else {
            return Err(session_ended("there is no place to wait in"));
        };
        let (sender, wakeups) = wakeups();
        place.session.watches.listen(owner, sender);
        Ok(wakeups)
    }

    /// Ends the session in good order.
    pub(crate) async fn close(&self) -> Result<(), BackendError> {
        let Some(session) = self.sessions.take() else {
            return Ok(());
        };
        session
            .lease
            .end(Loss::SessionEnded("it was closed".into()));
        self.places.forget_grants(&session);
        session.revoke().await
    }
}
