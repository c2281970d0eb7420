//! Locks that operators break: the mark, and how the holder's client heeds it.
//!
//! A mark is a key below the holder's session key, on the holder's lease, so it goes with what it is on. Each renewal reads the
//! marks with the session's key, after etcd has renewed the lease. So a renewal that misses a mark was sent before the mark was
//! answered, and the lease that it prolongs has run out when its whole time has passed since. A session's watch tells of marks
//! too, which makes the next renewal come at once.

use std::{sync::Arc, time::Duration};

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseTimeToLiveResponse, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp,
};
use portalock_core::{
    BackendError, BackendErrorKind, Holder, LockName, Loss, OwnerId, Released, session::spawn,
};

use crate::{
    client::Client,
    endpoints::reader,
    inspect::Order,
    keys::{kind_in, mark},
    places::Places,
    queue::ranges,
    record::{decode_owner, foreign},
    session::Session,
};

const BREAKING: &str = "break a lock";
const EVICTING: &str = "end a hold";
const HEEDING: &str = "remove the mark on a lock that was broken";

/// What an owner holds by.
struct Hold {
    key: Vec<u8>,
    /// At which revision it was put, which tells this use of the key from all others.
    taken: i64,
    lease: i64,
    mark: String,
}

impl Client {
    /// Marks what `owner` holds: for how long its client may go on relying on it without having heard of that.
    pub(crate) async fn mark(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        let Some(hold) = self.hold_of(name, owner).await? else {
            return Ok(None);
        };
        // It is for people: the lock is broken all the same.
        let by = serde_json::to_vec(by).unwrap_or_default();
        let options = PutOptions::new().with_lease(hold.lease);
        let transaction = Txn::new()
            .when([
                hold.is_there(),
                Compare::create_revision(hold.mark.as_str(), CompareOp::Equal, 0),
            ])
            .and_then([TxnOp::put(hold.mark.as_str(), by, Some(options))])
            .or_else([TxnOp::get(
                hold.key.as_slice(),
                Some(GetOptions::new().with_keys_only()),
            )]);
        let answer = match self.transact(BREAKING, &mut false, transaction).await {
            // The lease has ended meanwhile, and what was held with it.
            Err(error) if error.kind() == BackendErrorKind::SessionEnded => return Ok(None),
            answer => answer?,
        };
        let is_marked = answer.succeeded()
            || ranges(&answer)
                .concat()
                .iter()
                .any(|key| key.create_revision() == hold.taken);
        if !is_marked {
            return Ok(None);
        }
        let lease = self
            .endpoints
            .call(BREAKING, |client| async move {
                client.lease_client().time_to_live(hold.lease, None).await
            })
            .await?;
        // A member that was deposed without knowing has seen no renewals since. So it is the whole time, not what is left.
        Ok(Some(granted_time(&lease)))
    }

    /// Deletes what `owner` holds by.
    pub(crate) async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let Some(hold) = self.hold_of(name, owner).await? else {
            return Ok(Released::NotHeld);
        };
        let transaction = Txn::new().when([hold.is_there()]).and_then([
            TxnOp::delete(hold.key.as_slice(), None),
            TxnOp::delete(hold.mark.as_str(), None),
        ]);
        let mut repeated = false;
        let answer = self.transact(EVICTING, &mut repeated, transaction).await?;
        // A try without an answer may have deleted what the next one no longer found.
        Ok(if answer.succeeded() || repeated {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }

    async fn transact(
        &self,
        doing: &'static str,
        repeated: &mut bool,
        transaction: Txn,
    ) -> Result<etcd_client::TxnResponse, BackendError> {
        self.endpoints
            .call_noting(doing, repeated, |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await
    }

    /// What `owner` holds by, if it holds.
    async fn hold_of(&self, name: &LockName, owner: OwnerId) -> Result<Option<Hold>, BackendError> {
        let queue = self.keys.lock_queue(name);
        let found = self
            .endpoints
            .call(BREAKING, |client| {
                let queue = queue.clone();
                async move {
                    let options = GetOptions::new()
                        .with_prefix()
                        .with_sort(SortTarget::Create, SortOrder::Ascend);
                    reader(&client).get(queue, Some(options)).await
                }
            })
            .await?;
        let mut order = Order::default();
        for key in found.kvs() {
            let kind = kind_in(&queue, key.key()).ok_or_else(|| foreign(key.key()))?;
            if !order.admits(&queue, key, kind) {
                return Ok(None);
            }
            if decode_owner(key.value()) == Some(owner) {
                return Ok(Some(Hold {
                    key: key.key().to_vec(),
                    taken: key.create_revision(),
                    lease: key.lease(),
                    mark: mark(&self.keys.session(key.lease()), owner),
                }));
            }
        }
        Ok(None)
    }
}

impl Hold {
    fn is_there(&self) -> Compare {
        Compare::create_revision(self.key.as_slice(), CompareOp::Equal, self.taken)
    }
}

fn granted_time(lease: &LeaseTimeToLiveResponse) -> Duration {
    Duration::from_secs(u64::try_from(lease.granted_ttl()).unwrap_or(0))
}

/// Tells the guards whose locks were broken, as these keys below the session's say, and gives those locks back.
pub(crate) fn heed(session: &Arc<Session>, places: &Arc<Places>, marks: Vec<KeyValue>) {
    let mut leaving = Vec::new();
    for mark in marks {
        let loss = Loss::broken_by(serde_json::from_slice(mark.value()).ok());
        let owner = session
            .marked_owner(mark.key())
            .filter(|owner| places.broken(*owner, session, mark.create_revision(), &loss));
        leaving.push((owner, mark));
    }
    if leaving.is_empty() {
        return;
    }
    let (session, places) = (session.clone(), places.clone());
    // What fails here is done again by the next renewal, which finds the mark again.
    let giving_back = spawn(async move {
        for (owner, mark) in leaving {
            if let Err(error) = give_back(&session, &places, owner, &mark).await {
                tracing::debug!(%error, "a lock that was broken is not given back yet");
            }
        }
    });
    if let Ok(giving_back) = giving_back {
        giving_back.detach();
    }
}

/// Releases, and then removes the mark.
async fn give_back(
    session: &Session,
    places: &Places,
    owner: Option<OwnerId>,
    mark: &KeyValue,
) -> Result<(), BackendError> {
    if let Some(owner) = owner {
        places.release(owner).await?;
    }
    session
        .endpoints
        .call(HEEDING, |client| {
            let key = mark.key().to_vec();
            async move { client.kv_client().delete(key, None).await }
        })
        .await
        .map(drop)
}
