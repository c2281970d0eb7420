//! What all clones of a backend share, and how a request is served, lock or semaphore.

use std::sync::Arc;

use etcd_client::{Txn, TxnOp, TxnResponse};
use portalock_core::{
    BackendError, BackendErrorKind, Holder, Patience,
    session::{Answered, Entered, Leaving, Service as _},
};

use crate::{
    EtcdSettings,
    blockers::{Blockers, Waiting},
    endpoints::{Endpoints, reader},
    keys::{Keys, Queue, Rule},
    look::{LOOK_EVERY, Standing},
    place::Place,
    queue::Entry,
    record::token,
    session::{Session, SessionLease, gone},
};

/// One client of etcd.
pub(crate) type Client = portalock_core::session::Client<SessionLease>;

/// The way to the cluster.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) settings: EtcdSettings,
    pub(crate) keys: Keys,
    pub(crate) endpoints: Endpoints,
}

/// A request, stripped of what it is for.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) queue: Arc<Queue>,
    pub(crate) patience: Patience,
    pub(crate) holder: Holder,
}

impl Server {
    /// Nothing is sent yet.
    pub(crate) fn new(settings: EtcdSettings) -> Result<Self, BackendError> {
        Ok(Self {
            keys: Keys::new(&settings.prefix),
            endpoints: Endpoints::new(&settings)?,
            settings,
        })
    }

    /// Carries out a transaction.
    pub(crate) async fn transact(
        &self,
        doing: &'static str,
        transaction: Txn,
    ) -> Result<Answered<TxnResponse>, BackendError> {
        self.endpoints
            .call(doing, |client| {
                let transaction = transaction.clone();
                async move { reader(&client).txn(transaction).await }
            })
            .await
    }

    /// Reads, in one transaction, what is so now.
    pub(crate) async fn read(
        &self,
        doing: &'static str,
        operations: Vec<TxnOp>,
    ) -> Result<TxnResponse, BackendError> {
        let reading = Txn::new().and_then(operations);
        Ok(self.transact(doing, reading).await?.value)
    }
}

/// One attempt: finds how the place stands, or takes it.
pub(crate) async fn enter(
    session: &Session,
    place: &Place,
    wish: &Wish,
) -> Result<Answered<Entered>, BackendError> {
    let lease = session.service();
    let Answered { value, repeated } = match find(session, place).await? {
        Some(value) => Answered {
            value,
            repeated: false,
        },
        None => take(lease, place, wish).await?,
    };
    let holder = || lease.numbers.holder(&place.queue.keys);
    let value = match value {
        Standing::Granted(taken) => {
            lease.watches.leave(place.owner);
            let holder = Some(wish.holder.clone());
            lease.numbers.note_holder(&place.queue.keys, holder);
            session.look_within(LOOK_EVERY);
            Entered::Granted(token(taken))
        }
        Standing::Waiting(waiting) if wish.patience == Patience::Queue => {
            if lease.watches.wait(place.owner, waiting) {
                session.places().wake(place.owner);
            }
            Entered::Queued {
                holder: holder(),
                look_in: Some(LOOK_EVERY),
            }
        }
        Standing::Waiting(_) => {
            place.withdraw(lease).await?;
            Entered::Refused(holder())
        }
        Standing::Refused(holder) => Entered::Refused(holder),
        Standing::Gone => {
            return Err(BackendError::new(
                BackendErrorKind::SessionEnded,
                "a place in a queue was deleted by somebody",
            ));
        }
        Standing::Ended => Entered::Ended(gone()),
    };
    Ok(Answered { value, repeated })
}

/// How the place stands, if there is one.
async fn find(session: &Session, place: &Place) -> Result<Option<Standing>, BackendError> {
    let lease = session.service();
    let Some(taken) = place.taken() else {
        return Ok(None);
    };
    let waiting = lease.watches.waiting(place.owner);
    let waiting = waiting.or_else(|| behind_another(lease, place, taken));
    let standing = place.look(lease, taken, waiting).await?;
    if matches!(standing, Standing::Gone) {
        // It takes another one, with another token.
        session.places().retake(place.owner, SessionLease::NAME);
        place.was_deleted();
        return Ok(None);
    }
    Ok(Some(standing))
}

/// Takes the place, and finds how it stands.
async fn take(
    lease: &SessionLease,
    place: &Place,
    wish: &Wish,
) -> Result<Answered<Standing>, BackendError> {
    let queues = wish.patience == Patience::Queue;
    // Whether permits are free is seen from a place only: many can take one at once.
    let only_if_free = !queues && !matches!(place.queue.rule, Rule::Permits(_));
    let Answered { value, repeated } = place.enter(lease, only_if_free).await?;
    let value = match value {
        Entry::Placed(taken) => match behind_another(lease, place, taken) {
            Some(waiting) if queues => Standing::Waiting(waiting),
            _ => place.look(lease, taken, None).await?,
        },
        Entry::Stands(standing) => standing,
    };
    Ok(Answered { value, repeated })
}

/// Whom the place taken at `taken` waits for, if another of this session is before it: that one is in the way as long as it has its
/// place. A look costs etcd time with the queue's length. So of a thousand who wait in one session only the first looks; if each
/// did when it comes, that would cost etcd a thousand times as much.
fn behind_another(lease: &SessionLease, place: &Place, taken: i64) -> Option<Waiting> {
    if matches!(place.queue.rule, Rule::Permits(_)) {
        return None;
    }
    let (seen, nearest) = lease.numbers.nearest_before(&place.queue, taken)?;
    Some(Waiting {
        blockers: Blockers::Nearest(nearest.to_string()),
        seen,
    })
}

/// Frees what the place's owner has.
pub(crate) async fn leave(
    lease: &SessionLease,
    leaving: &Leaving<Arc<Place>>,
) -> Result<Answered<bool>, BackendError> {
    let place = &leaving.at;
    lease.watches.leave(place.owner);
    place.gives_up();
    if place.taken().is_none() && !leaving.unsure {
        // It was answered that there is no place.
        return Ok(Answered {
            value: false,
            repeated: false,
        });
    }
    let Answered { value, repeated } = place.withdraw(lease).await?;
    Ok(Answered {
        value: value && leaving.held,
        repeated,
    })
}
