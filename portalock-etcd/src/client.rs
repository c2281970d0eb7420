//! What all clones of a backend share: the connection, the session, and how a request is served, lock or semaphore.

use std::{sync::Arc, time::Duration};

use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Contention, Grant, Holder, Loss, LostSignal, OwnerId,
    Patience, Released, Wakeups, session::Sessions, wakeups,
};

use crate::{
    EtcdSettings,
    endpoints::{Answer, Endpoints, Failure},
    error::session_ended,
    keys::{Keys, Rule, Spot},
    look::Standing,
    places::{Debt, Place, Places, Seat},
    queue::{Entry, Queue},
    record::{encode, token},
    session::Session,
    watch::Advice,
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
    pub(crate) spot: Spot,
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
                Session::start(endpoints, &settings, &keys, places).await
            })
            .await
    }

    /// One attempt for `wish`.
    pub(crate) async fn attempt(&self, wish: Wish<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let owner = wish.owner;
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
        let standing = match self.stand(&session, &wish).await {
            Ok(standing) => standing,
            Err(error) => {
                // A place may have been taken in a session that ended during the attempt.
                return Err(session.ended().unwrap_or(error));
            }
        };
        match standing {
            Standing::Granted { revision } => self.granted(&session, owner, revision),
            Standing::Waiting {
                blockers,
                seen,
                holder,
            } => {
                let watches = &session.watches;
                if let Some(holder) = &holder {
                    watches.note_holder(&wish.spot.directory, holder);
                }
                let holder = holder.or_else(|| watches.holder(&wish.spot.directory));
                let contention = Contention::new().with_holder(holder);
                if wish.patience == Patience::Once {
                    self.release(owner).await?;
                    return Ok(Attempt::Contended(contention));
                }
                watches.wait(owner, blockers, seen)?;
                Ok(Attempt::Contended(
                    contention
                        .with_queued(true)
                        .with_recheck_after(RECHECK_AFTER),
                ))
            }
            Standing::Following => Ok(Attempt::Contended(
                Contention::new()
                    .with_holder(session.watches.holder(&wish.spot.directory))
                    .with_queued(true)
                    .with_recheck_after(RECHECK_AFTER),
            )),
            Standing::Refused { holder } => {
                self.release(owner).await?;
                Ok(Attempt::Contended(Contention::new().with_holder(holder)))
            }
            Standing::Gone => Err(session_ended("a place in a queue was deleted by somebody")),
        }
    }

    /// The grant of the place taken at `revision`.
    fn granted(
        &self,
        session: &Session,
        owner: OwnerId,
        revision: i64,
    ) -> Result<Attempt, BackendError> {
        if let Some(error) = session.ended() {
            return Err(error);
        }
        session.watches.leave(owner);
        self.places.note(owner, |place| place.granted = true);
        let Some(place) = self.places.get(owner) else {
            return Err(session_ended("the place was given up meanwhile"));
        };
        let removed = session.holds.hold(owner, &place.seat.key);
        let lost = LostSignal::any([session.lease.signal(), removed]);
        Ok(Attempt::Granted(
            Grant::new().with_token(token(revision)).with_lost(lost),
        ))
    }

    /// Finds or takes the place, and takes note of what is known of it.
    async fn stand(
        &self,
        session: &Arc<Session>,
        wish: &Wish<'_>,
    ) -> Result<Standing, BackendError> {
        let owner = wish.owner;
        let place = match self.places.get(owner) {
            Some(place) => place,
            None => self.new_place(session, wish)?,
        };
        let queue = Queue {
            session,
            spot: &wish.spot,
            seat: &place.seat,
        };
        if let Some(revision) = place.revision {
            let standing = match session.watches.advice(owner) {
                Advice::Look => queue.look(revision).await?,
                Advice::LookAhead => queue.look_ahead(revision).await?,
                Advice::Confirm(blockers) => queue.confirm(revision, blockers).await?,
                Advice::Hold => queue.hold(revision).await?,
                Advice::Stay => queue.stay(revision).await?,
            };
            if !matches!(standing, Standing::Gone) {
                return Ok(standing);
            }
            // Deleted by somebody: take another place, with another token.
            session.holds.let_go(owner);
            session.watches.misplaced(owner);
            self.places.note(owner, |place| {
                place.revision = None;
                place.granted = false;
            });
        }
        // Until it is answered nobody can tell what comes of it: also if this future is dropped.
        self.places.note(owner, |place| place.unsure = true);
        let outcome = match (wish.patience, &wish.spot.rule) {
            // Whether permits are free is seen from a place only: many can take one at once.
            (Patience::Queue, _) | (_, Rule::Permits(_)) => queue.enter().await,
            (Patience::Once, _) => queue.enter_if_free().await,
        };
        let Answer { value, repeated } = match outcome {
            Ok(answer) => answer,
            Err(Failure { error, unsure }) => {
                self.places
                    .note(owner, |known| known.unsure = place.unsure || unsure);
                return Err(error);
            }
        };
        self.places.note(owner, |known| {
            known.unsure = place.unsure || repeated;
            if let Entry::Granted(revision) | Entry::Placed(revision) = &value {
                known.revision = Some(*revision);
            }
        });
        match value {
            Entry::Granted(revision) => Ok(Standing::Granted { revision }),
            Entry::Placed(revision) => {
                let spot = &wish.spot;
                if wish.patience == Patience::Queue
                    && spot.rule == Rule::Exclusive
                    && session.watches.follow(owner, &spot.directory, revision)?
                {
                    return Ok(Standing::Following);
                }
                queue.look(revision).await
            }
            Entry::Refused { holder } => Ok(Standing::Refused { holder }),
        }
    }

    /// A key for `wish` to take its place by. Nothing is sent yet.
    fn new_place(&self, session: &Arc<Session>, wish: &Wish<'_>) -> Result<Place, BackendError> {
        let slot = session.slots.take(&wish.spot.directory);
        let value = match encode(wish.holder, wish.owner, slot) {
            Ok(value) => value,
            Err(error) => {
                session.slots.give_back(&wish.spot.directory, slot);
                return Err(error);
            }
        };
        let place = Place {
            session: session.clone(),
            spot: Arc::new(wish.spot.clone()),
            seat: Seat {
                slot,
                key: wish.spot.key(slot.number, session.lease_id).into(),
                value: value.into(),
            },
            revision: None,
            granted: false,
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
        session.end(Loss::SessionEnded("it was closed".into()));
        self.places.forget_grants(&session);
        session.revoke().await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.take() {
            // Its task revokes the lease.
            session.end(Loss::SessionEnded("the backend was dropped".into()));
        }
    }
}
