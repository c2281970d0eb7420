//! What all clones of a backend share: the connection, the session, and how a request is served, lock or semaphore.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portalock_core::{
    Attempt, BackendError, Contention, Grant, Holder, Loss, LostSignal, OwnerId, Patience,
    Released, Wakeups, wakeups,
};

use crate::{
    EtcdSettings,
    endpoints::{Answer, Endpoints},
    error::{may_have_happened, session_ended},
    keys::{Keys, Rule, Spot},
    look::Standing,
    places::{Place, Places, Seat},
    queue::{Entry, Queue},
    record::{encode, token},
    session::Session,
    watch::Advice,
    withdraw::Withdrawn,
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
    pub(crate) places: Places,
    session: Mutex<Option<Arc<Session>>>,
    /// Held while a session is started; with the failure of the latest start, if it failed.
    starting: tokio::sync::Mutex<Option<BackendError>>,
    /// Counts the starts that have come to an end.
    starts: AtomicU64,
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
            places: Places::default(),
            session: Mutex::new(None),
            starting: tokio::sync::Mutex::new(None),
            starts: AtomicU64::new(0),
        })
    }

    /// The session, or a new one if there is none that is certain.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, BackendError> {
        if let Some(session) = self.live_session() {
            return Ok(session);
        }
        let starts = self.starts.load(Ordering::Acquire);
        let mut failure = self.starting.lock().await;
        if let Some(session) = self.live_session() {
            return Ok(session);
        }
        // Many callers wait for one start: what failed for the first has failed for those who waited meanwhile.
        if self.starts.load(Ordering::Acquire) != starts
            && let Some(error) = failure.as_ref()
        {
            return Err(error.clone());
        }
        let started = Session::start(&self.endpoints, &self.settings, &self.keys).await;
        *failure = started.as_ref().err().cloned();
        self.starts.fetch_add(1, Ordering::AcqRel);
        let session = started?;
        let former = self.lock_session().replace(session.clone());
        if let Some(former) = former {
            // Nobody releases what was lost.
            self.places.forget_grants(&former);
        }
        Ok(session)
    }

    fn live_session(&self) -> Option<Arc<Session>> {
        self.lock_session()
            .as_ref()
            .filter(|session| session.lease.loss().is_none())
            .cloned()
    }

    fn lock_session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One attempt for `wish`.
    pub(crate) async fn attempt(&self, wish: Wish<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let owner = wish.owner;
        if let Some(place) = self.places.get(owner)
            && (place.owed || !Arc::ptr_eq(&place.session, &session))
        {
            // What the owner had in a session that has ended may still be there. It would wait behind itself.
            self.release(&wish.spot, owner).await?;
        }
        let standing = match self.stand(&session, &wish).await {
            Ok(standing) => standing,
            Err(error) => {
                // A place may have been taken in a session that ended during the attempt.
                return Err(session.ended().unwrap_or(error));
            }
        };
        match standing {
            Standing::Granted { revision, seen_now } => {
                self.granted(&session, owner, revision, seen_now)
            }
            Standing::Waiting {
                revision,
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
                    self.release(&wish.spot, owner).await?;
                    return Ok(Attempt::Contended(contention));
                }
                if watches.wait(owner, blockers, seen)? {
                    return self.granted(&session, owner, revision, false);
                }
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
                self.release(&wish.spot, owner).await?;
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
        seen_now: bool,
    ) -> Result<Attempt, BackendError> {
        if let Some(error) = session.ended() {
            return Err(error);
        }
        session.watches.leave(owner);
        self.places.note(owner, |place| place.granted = true);
        let Some(place) = self.places.get(owner) else {
            return Err(session_ended("the place was given up meanwhile"));
        };
        let removed = session
            .holds
            .hold(owner, &place.seat.key, revision, seen_now);
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
            endpoints: &self.endpoints,
            session,
            spot: &wish.spot,
            seat: &place.seat,
        };
        if let Some(revision) = place.revision {
            let standing = match session.watches.advice(owner) {
                Advice::Look => queue.look(revision).await?,
                Advice::LookAhead => queue.look_ahead(revision).await?,
                Advice::Confirm(blockers) => queue.confirm(revision, blockers).await?,
                Advice::Hold => Standing::Granted {
                    revision,
                    seen_now: false,
                },
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
        let outcome = match wish.patience {
            Patience::Once => queue.enter_if_free().await,
            Patience::Queue => queue.enter().await,
        };
        let Answer { value, repeated } = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                if !may_have_happened(&error) {
                    self.places.note(owner, |known| known.unsure = place.unsure);
                }
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
            Entry::Granted(revision) => Ok(Standing::Granted {
                revision,
                seen_now: true,
            }),
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
            seat: Seat {
                slot,
                key: wish.spot.key(slot.number, session.lease_id).into(),
                value: value.into(),
            },
            revision: None,
            granted: false,
            unsure: false,
            owed: false,
        };
        self.places.insert(wish.owner, place.clone());
        Ok(place)
    }

    /// Frees what `owner` has, wherever it stands.
    pub(crate) async fn release(
        &self,
        spot: &Spot,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let Some(place) = self.places.get(owner) else {
            return Ok(Released::NotHeld);
        };
        let session = &place.session;
        session.holds.let_go(owner);
        let queue = Queue {
            endpoints: &self.endpoints,
            session,
            spot,
            seat: &place.seat,
        };
        let withdrawn = if place.unsure {
            queue.withdraw_for_good().await
        } else if place.revision.is_some() {
            queue.withdraw().await.map(|found| Withdrawn {
                found,
                for_good: true,
            })
        } else {
            // It has been answered that there is no place.
            Ok(Withdrawn {
                found: false,
                for_good: true,
            })
        };
        let withdrawn = match withdrawn {
            Ok(withdrawn) => withdrawn,
            Err(error) => {
                // Whoever asked may give up before etcd can be reached again, and the session may outlast that.
                self.places.note(owner, |place| place.owed = true);
                session.debts.owe(owner, spot, &place.seat);
                // Who follows it in a crowd must see for itself when its key goes.
                session.watches.leave(owner);
                return Err(error);
            }
        };
        if withdrawn.for_good {
            session.slots.give_back(&spot.directory, place.seat.slot);
        }
        self.places.remove(owner);
        session.debts.pay(owner);
        session.watches.leave(owner);
        Ok(if withdrawn.found && place.granted {
            Released::Freed
        } else {
            Released::NotHeld
        })
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
        let Some(session) = self.lock_session().take() else {
            return Ok(());
        };
        session.end(Loss::SessionEnded("it was closed".into()));
        self.places.forget_grants(&session);
        session.revoke().await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(session) = self.lock_session().take() {
            // Its task revokes the lease. Where its runtime is gone, etcd learns by the lease's own time.
            session.end(Loss::SessionEnded("the backend was dropped".into()));
        }
    }
}
