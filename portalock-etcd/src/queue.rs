//! A place in a queue: taken, looked at, given up. Each is one transaction.
//!
//! The order of a queue is the order in which its keys were created, and a key's create revision is its request's fencing
//! token. A request holds when nobody before it is in its way; that is a matter of the queue alone, so a grant needs no
//! write. Keys before one's own can only go, so who holds once goes on holding.
//!
//! A place is taken under a condition on the session's own key: that it is as this client last knew it. So a place can only be
//! taken while the session lives, and a request whose answer never came can be stopped from taking effect later, by
//! modifying that key.

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, PutOptions, ResponseHeader, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use portalock_core::{BackendError, BackendErrorKind, Holder};

use crate::{
    blockers::{Blockers, Line},
    endpoints::{Answer, Endpoints},
    error::session_ended,
    keys::{Rule, Spot, Weight, weight_in},
    record::{decode, foreign},
    session::Session,
};

/// How often a place is tried for again because the session's key was modified meanwhile, by this very client.
const ATTEMPTS: u32 = 16;

/// One owner's dealings with a queue, in one session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue<'a> {
    pub(crate) endpoints: &'a Endpoints,
    pub(crate) session: &'a Session,
    pub(crate) spot: &'a Spot,
}

/// How a request stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It holds.
    Granted {
        /// When its place was taken: the fencing token.
        revision: i64,
    },
    /// It waits, in its place.
    Waiting {
        revision: i64,
        /// Whom for, as seen at revision `seen`.
        blockers: Blockers,
        seen: i64,
        holder: Option<Holder>,
    },
    /// It has no place: it would have had to wait.
    Refused { holder: Option<Holder> },
    /// It has no place: somebody deleted its key.
    Gone,
}

impl Queue<'_> {
    /// Takes the last place, or finds the one that the owner has.
    pub(crate) async fn enter(&self, value: &[u8]) -> Result<Answer<Standing>, BackendError> {
        let mut repeated = false;
        for _ in 0..ATTEMPTS {
            let conditions = vec![self.unplaced(), self.session_is(self.session.known())];
            let mut then = vec![self.put(value)];
            then.extend(self.look_before(None));
            let answer = self.transact(conditions, then).await?;
            repeated |= answer.repeated;
            let seen = revision(&answer.value);
            if answer.value.succeeded() {
                // What was put has the transaction's revision; what it reads it reads after the put.
                let ranges = ranges(&answer.value).split_off(1);
                let value = self.standing(seen, seen, &ranges)?;
                return Ok(Answer { value, repeated });
            }
            if let Some(place) = self.place_or_retry(&answer.value)? {
                let mut looked = self.look(place).await?;
                looked.repeated |= repeated;
                return Ok(looked);
            }
        }
        Err(restless())
    }

    /// Takes a place only if it is granted at once; else nothing of the request stays.
    pub(crate) async fn enter_if_free(
        &self,
        value: &[u8],
    ) -> Result<Answer<Standing>, BackendError> {
        let mut repeated = false;
        // What must be empty, or hold nothing newer than this revision.
        let mut newest = 0;
        for _ in 0..ATTEMPTS {
            let blocking = match &self.spot.rule {
                Rule::Shared { writers } => writers,
                Rule::Exclusive | Rule::Permits(_) => &self.spot.queue,
            };
            let known = self.session.known();
            let conditions = vec![
                self.unplaced(),
                self.session_is(known),
                // Of keys that don't exist the create revision is zero.
                Compare::create_revision(blocking.as_str(), CompareOp::Less, newest + 1)
                    .with_prefix(),
            ];
            let answer = self.transact(conditions, vec![self.put(value)]).await?;
            repeated |= answer.repeated;
            let seen = revision(&answer.value);
            if answer.value.succeeded() {
                let value = Standing::Granted { revision: seen };
                return Ok(Answer { value, repeated });
            }
            if let Some(place) = self.place_or_retry(&answer.value)? {
                // Of an earlier try, whose answer never came.
                let mut looked = self.look(place).await?;
                looked.repeated |= repeated;
                return Ok(looked);
            }
            if self.session.known() != known {
                // That may be why it failed: nothing is said about the queue.
                continue;
            }
            let value = match &self.spot.rule {
                Rule::Permits(own) => {
                    let before = self.read_before().await?;
                    let line = self.line(i64::MAX, &before.keys, *own)?;
                    if line.fits() {
                        newest = before.revision;
                        continue;
                    }
                    Standing::Refused {
                        holder: before.holder,
                    }
                }
                Rule::Exclusive | Rule::Shared { .. } => Standing::Refused {
                    holder: holder(ranges(&answer.value).get(2)),
                },
            };
            return Ok(Answer { value, repeated });
        }
        Err(restless())
    }

    /// Looks at the queue from the place taken at `place`.
    pub(crate) async fn look(&self, place: i64) -> Result<Answer<Standing>, BackendError> {
        let own = TxnOp::get(self.own_key(), Some(GetOptions::new().with_keys_only()));
        let mut operations = vec![own];
        operations.extend(self.look_before(Some(place)));
        let answer = self
            .endpoints
            .call("look at the queue", |client| {
                let transaction = Txn::new().and_then(operations.clone());
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        let seen = revision(&answer.value);
        let mut ranges = ranges(&answer.value);
        let before = ranges.split_off(1);
        let own = ranges.first().and_then(|keys| keys.first());
        let value = match own {
            // A place is as good as the lease it hangs on: that the key is still there says that the lease is.
            Some(own) if own.create_revision() == place => self.standing(place, seen, &before)?,
            Some(_) | None => Standing::Gone,
        };
        // Nothing was written: no try can take effect later.
        Ok(Answer {
            value,
            repeated: false,
        })
    }

    /// Gives up whatever the owner has, in any session. True if there was something.
    pub(crate) async fn withdraw(endpoints: &Endpoints, spot: &Spot) -> Result<bool, BackendError> {
        let deleted = endpoints
            .call("release", |client| {
                let stem = spot.stem.clone();
                async move {
                    let options = DeleteOptions::new().with_prefix();
                    client.kv_client().delete(stem, Some(options)).await
                }
            })
            .await?;
        // A try without an answer may have deleted what the next one no longer found.
        Ok(deleted.repeated || deleted.value.deleted() > 0)
    }

    /// As [`withdraw`](Self::withdraw), and sees to it that no earlier request of this session for a place takes effect
    /// any more, should it still be on its way.
    pub(crate) async fn withdraw_for_good(&self) -> Result<bool, BackendError> {
        let session_key = self.session.key.as_str();
        let delete = TxnOp::delete(
            self.spot.stem.as_str(),
            Some(DeleteOptions::new().with_prefix()),
        );
        let options = PutOptions::new().with_lease(self.session.lease_id);
        let transaction = Txn::new()
            .when([Compare::create_revision(session_key, CompareOp::Greater, 0)])
            .and_then([delete.clone(), TxnOp::put(session_key, "", Some(options))])
            // Without the session's key no place can be taken in it.
            .or_else([delete]);
        let answer = self
            .endpoints
            .call("release", |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await;
        let Answer {
            value: answer,
            repeated,
        } = match answer {
            Ok(answer) => answer,
            // A full store takes neither this modification nor a late place.
            Err(error) if error.kind() == BackendErrorKind::OutOfSpace => {
                return Self::withdraw(self.endpoints, self.spot).await;
            }
            Err(error) => return Err(error),
        };
        if answer.succeeded() {
            self.session.key_modified(revision(&answer));
        }
        let deleted = answer.op_responses().iter().any(
            |response| matches!(response, TxnOpResponse::Delete(deleted) if deleted.deleted() > 0),
        );
        Ok(repeated || deleted)
    }

    fn own_key(&self) -> String {
        self.spot.key(self.session.lease_id)
    }

    fn unplaced(&self) -> Compare {
        Compare::create_revision(self.own_key(), CompareOp::Equal, 0)
    }

    fn session_is(&self, known: i64) -> Compare {
        Compare::mod_revision(self.session.key.as_str(), CompareOp::Equal, known)
    }

    fn put(&self, value: &[u8]) -> TxnOp {
        let options = PutOptions::new().with_lease(self.session.lease_id);
        TxnOp::put(self.own_key(), value, Some(options))
    }

    /// Asks for those before the place taken at `place`, or in this same transaction, as far as they matter; and for the
    /// first in the queue, who holds.
    fn look_before(&self, place: Option<i64>) -> [TxnOp; 2] {
        let mut options = GetOptions::new().with_prefix().with_keys_only();
        if let Some(place) = place {
            options = options.with_max_create_revision(place - 1);
        }
        let latest = options
            .clone()
            .with_sort(SortTarget::Create, SortOrder::Descend);
        let before = match &self.spot.rule {
            // The own key is the latest of all, if it is among them.
            Rule::Exclusive => TxnOp::get(self.spot.queue.as_str(), Some(latest.with_limit(2))),
            Rule::Shared { writers } => TxnOp::get(writers.as_str(), Some(latest.with_limit(1))),
            Rule::Permits(_) => TxnOp::get(self.spot.queue.as_str(), Some(options)),
        };
        [before, self.first()]
    }

    fn first(&self) -> TxnOp {
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        TxnOp::get(self.spot.queue.as_str(), Some(options))
    }

    /// What the keys before `place` and the queue's first mean for it.
    fn standing(
        &self,
        place: i64,
        seen: i64,
        ranges: &[Vec<KeyValue>],
    ) -> Result<Standing, BackendError> {
        let [before, first] = ranges else {
            return Err(not_understood());
        };
        let blockers = match &self.spot.rule {
            Rule::Exclusive | Rule::Shared { .. } => before
                .iter()
                .find(|key| key.create_revision() < place)
                .map(|key| text(key.key()).map(Blockers::Key))
                .transpose()?,
            Rule::Permits(own) => {
                let line = self.line(place, before, *own)?;
                (!line.fits()).then_some(Blockers::Permits(line))
            }
        };
        Ok(match blockers {
            None => Standing::Granted { revision: place },
            Some(blockers) => Standing::Waiting {
                revision: place,
                blockers,
                seen,
                holder: holder(Some(first)),
            },
        })
    }

    fn line(&self, place: i64, keys: &[KeyValue], own: Weight) -> Result<Line, BackendError> {
        let queue = &self.spot.queue;
        let earlier = keys
            .iter()
            .filter(|key| key.create_revision() < place)
            .map(|key| {
                weight_in(queue, key.key())
                    .map(|weight| (key.key().to_vec(), weight))
                    .ok_or_else(|| foreign(key.key()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Line {
            queue: queue.clone(),
            earlier,
            own,
        })
    }

    async fn read_before(&self) -> Result<Before, BackendError> {
        let operations = self.look_before(None);
        let answer = self
            .endpoints
            .call("look at the queue", |client| {
                let transaction = Txn::new().and_then(operations.clone());
                async move { client.kv_client().txn(transaction).await }
            })
            .await?
            .value;
        let mut ranges = ranges(&answer);
        let first = ranges.pop();
        Ok(Before {
            revision: revision(&answer),
            keys: ranges.pop().unwrap_or_default(),
            holder: holder(first.as_ref()),
        })
    }

    /// Runs a transaction that takes a place; if its conditions don't hold it reads why, and who holds.
    async fn transact(
        &self,
        conditions: Vec<Compare>,
        then: Vec<TxnOp>,
    ) -> Result<Answer<TxnResponse>, BackendError> {
        let keys_only = || Some(GetOptions::new().with_keys_only());
        let otherwise = [
            TxnOp::get(self.own_key(), keys_only()),
            TxnOp::get(self.session.key.as_str(), keys_only()),
            self.first(),
        ];
        let transaction = Txn::new()
            .when(conditions)
            .and_then(then)
            .or_else(otherwise);
        self.endpoints
            .call("take a place in the queue", |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await
    }

    /// Why a place was not taken: the owner's place if it has one, `None` if the transaction may be tried again, an error
    /// if the session is gone.
    fn place_or_retry(&self, answer: &TxnResponse) -> Result<Option<i64>, BackendError> {
        let ranges = ranges(answer);
        let [own, session, _] = ranges.as_slice() else {
            return Err(not_understood());
        };
        let Some(session) = session.first() else {
            self.session.end_gone();
            return Err(session_ended(
                "its lease expired at the server or was revoked by somebody",
            ));
        };
        self.session.key_modified(session.mod_revision());
        Ok(own.first().map(KeyValue::create_revision))
    }
}

struct Before {
    revision: i64,
    keys: Vec<KeyValue>,
    holder: Option<Holder>,
}

fn holder(first: Option<&Vec<KeyValue>>) -> Option<Holder> {
    decode(first?.first()?)
}

fn text(key: &[u8]) -> Result<String, BackendError> {
    String::from_utf8(key.to_vec()).map_err(|_| foreign(key))
}

fn revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, ResponseHeader::revision)
}

fn ranges(answer: &TxnResponse) -> Vec<Vec<KeyValue>> {
    answer
        .op_responses()
        .into_iter()
        .map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs(),
            _ => Vec::new(),
        })
        .collect()
}

fn not_understood() -> BackendError {
    BackendError::new(
        BackendErrorKind::Unsupported,
        "the server's answer to a transaction has other parts than were asked for: it is no etcd",
    )
}

fn restless() -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        "the queue changed at every try to take a place in it",
    )
}
