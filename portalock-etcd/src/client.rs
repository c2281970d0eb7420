//! The state that all clones of a backend share, and how requests for locks and semaphores are served.

use std::sync::Arc;

use etcd_client::{Txn, TxnOp, TxnResponse};
use portalock_core::{
    BackendError, BackendErrorKind, Holder, Patience, Request,
    session::{Answered, Entered, Leaving, Service as _},
};

use crate::{
    EtcdSettings,
    blockers::{Blockers, Waiting},
    endpoints::{Endpoints, reader},
    keys::{Keys, Queue, Rule},
    look::{LOOK_EVERY, Standing},
    place::Place,
    queue::RELEASING,
    record::token,
    session::{Session, SessionLease, gone},
};

/// How often a request tries to take a place, if each time the session's key was modified or the place's key was
/// deleted meanwhile.
const TRIES: u32 = 16;

/// One client of etcd.
pub(crate) type Client = portalock_core::session::Client<SessionLease>;

/// The server: its settings, keys and endpoints.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) settings: EtcdSettings,
    pub(crate) keys: Keys,
    pub(crate) endpoints: Endpoints,
}

/// A request, for a lock or for permits.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) queue: Arc<Queue>,
    pub(crate) patience: Patience,
    pub(crate) holder: Holder,
}

impl Wish {
    /// What `request` wishes in its queue.
    pub(crate) fn new<D>(queue: Queue, request: &Request<D>) -> Self {
        Self {
            queue: Arc::new(queue),
            patience: request.patience,
            holder: request.holder.clone(),
        }
    }
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

    /// Executes a transaction.
    pub(crate) async fn transact(
        &self,
        doing: &'static str,
        transaction: Txn,
    ) -> Answered<Result<TxnResponse, BackendError>> {
        let request = |client: Arc<_>| {
            let transaction = transaction.clone();
            async move { reader(&client).txn(transaction).await }
        };
        self.endpoints.call(doing, request).await
    }

    /// Executes a linearizable read, as one transaction.
    pub(crate) async fn read(
        &self,
        doing: &'static str,
        operations: Vec<TxnOp>,
    ) -> Result<TxnResponse, BackendError> {
        let reading = Txn::new().and_then(operations);
        self.transact(doing, reading).await.value
    }
}

/// Makes one attempt.
pub(crate) async fn enter(
    session: &Session,
    place: &Place,
    wish: &Wish,
) -> Result<Answered<Entered>, BackendError> {
    let lease = session.service();
    let queue = &place.queue.keys;
    let Answered { value, repeated } = stand(session, place, wish).await?;
    let value = match value {
        Standing::Granted(taken) => {
            lease.watches.leave(place.owner);
            lease.numbers.note_holder(queue, Some(wish.holder.clone()));
            session.look_within(LOOK_EVERY);
            Entered::Granted(token(taken))
        }
        Standing::Waiting(waiting) if wish.patience == Patience::Queue => {
            if lease.watches.wait(place.owner, waiting) {
                session.places().wake(place.owner);
            }
            Entered::Queued {
                holder: lease.numbers.holder(queue),
                look_in: Some(LOOK_EVERY),
            }
        }
        // Never given up here: without an answer, the next attempt could be granted, and the deletion arrive afterwards.
        Standing::Waiting(_) => Entered::Contended(lease.numbers.holder(queue)),
        Standing::Refused(holder) => Entered::Refused(holder),
        Standing::Failed(error) => match error.kind() {
            BackendErrorKind::PermissionDenied => Entered::Failed { error, left: false },
            // A request that etcd had accepted before its store became full is executed, and gets the same answer.
            BackendErrorKind::OutOfSpace | BackendErrorKind::Exhausted => {
                Entered::Failed { error, left: true }
            }
            _ => return Err(error),
        },
        Standing::Ended => Entered::Ended(gone()),
    };
    Ok(Answered { value, repeated })
}

/// Reads how the place stands, or takes the place.
async fn stand(
    session: &Session,
    place: &Place,
    wish: &Wish,
) -> Result<Answered<Standing>, BackendError> {
    let lease = session.service();
    let queues = wish.patience == Patience::Queue;
    // Only a request with a place can see whether permits are free, because many requests can take one at the same
    // time.
    let only_if_free = !queues && !matches!(place.queue.rule, Rule::Permits(_));
    let mut is_new = false;
    let mut repeated = false;
    for _ in 0..TRIES {
        let Some(taken) = place.taken() else {
            let entered = place.enter(lease, only_if_free).await?;
            repeated |= entered.repeated;
            if let Some(value) = entered.value {
                return Ok(Answered { value, repeated });
            }
            is_new = true;
            continue;
        };
        let waiting = lease.watches.waiting(place.owner);
        let waiting = waiting.or_else(|| behind_another(lease, place, taken));
        let found = match waiting {
            Some(waiting) if is_new && queues => Some(Standing::Waiting(waiting)),
            waiting => place.look(lease, taken, waiting).await?,
        };
        if let Some(value) = found {
            return Ok(Answered { value, repeated });
        }
        // The next try takes another place, with another token.
        session.places().retake(place.owner, SessionLease::NAME);
        lease.watches.leave(place.owner);
        place.was_deleted();
    }
    Err(BackendError::new(
        BackendErrorKind::Unavailable,
        "the queue changed at every try to take a place in it",
    ))
}

/// What the place taken at `taken` waits for, if another place of this session is ahead of it: that place blocks it as
/// long as it exists. Reading the queue costs etcd time in proportion to the queue's length. If a thousand requests
/// wait in one session, only the first reads the queue. If each of them read it on arrival, etcd would do a thousand
/// times the work.
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

/// Releases the place's owner.
pub(crate) async fn leave(
    lease: &SessionLease,
    leaving: &Leaving<Arc<Place>>,
) -> Result<Answered<bool>, BackendError> {
    let place = &leaving.at;
    lease.watches.leave(place.owner);
    place.gives_up();
    let Answered { value, repeated } = lease.transact(RELEASING, place.delete()).await;
    let value = value?.succeeded() && leaving.held;
    Ok(Answered { value, repeated })
}
