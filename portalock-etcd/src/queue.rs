//! A place in a queue, taken. How it is looked at and given up see [`look`](crate::look) and [`withdraw`](crate::withdraw): each
//! is one transaction.
//!
//! The order of a queue is the order in which its keys were created, and a key's create revision is its request's fencing
//! token. A request holds when nobody before it is in its way; that is a matter of the queue alone, so a grant needs no
//! write. Keys before one's own can only go, so who holds once goes on holding.
//!
//! To take a place is to put a key and to count those that could be in its way: etcd counts without reading them. Only who is
//! not alone looks who they are, in a transaction that reads and nothing else. Those etcd answers beside its log, while a
//! long queue read in a transaction that writes would hold up everyone.
//!
//! A place is taken under a condition on the session's own key: that it is as this client last knew it. So a place can only be
//! taken while the session lives, and a request whose answer never came can be stopped from taking effect later, by
//! modifying that key. It is given up under the condition that it is the very place that is meant, by its value: so that a
//! late deletion can't take away the place of who uses the key next (see [`slots`](crate::slots)).

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use portalock_core::{BackendError, BackendErrorKind, Holder};

use crate::{
    endpoints::{Answer, Failure},
    error::session_ended,
    keys::{Rule, Spot},
    places::Seat,
    record::{decode, foreign},
    session::Session,
};

/// How often a place is tried for again because the session's key was modified meanwhile, by this very client.
const ATTEMPTS: u32 = 16;

/// One owner's dealings with a queue, in one session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue<'a> {
    pub(crate) session: &'a Session,
    pub(crate) spot: &'a Spot,
    pub(crate) seat: &'a Seat,
}

/// What came of asking for a place.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It holds, by the place taken at this revision.
    Granted(i64),
    /// It has the place taken at this revision. Whether it holds is to be looked at.
    Placed(i64),
    /// It has no place: it would have to wait.
    Refused { holder: Option<Holder> },
}

impl Queue<'_> {
    /// Takes the last place, or finds the one that the owner has.
    pub(crate) async fn enter(&self) -> Result<Answer<Entry>, Failure> {
        let (ahead, alone) = self.count();
        self.place(Vec::new(), vec![ahead], |answer, revision| {
            // What was put has the transaction's revision; what it counts it counts after the put.
            match answer.op_responses().get(1) {
                Some(TxnOpResponse::Get(counted)) if counted.count() == alone => {
                    Ok(Entry::Granted(revision))
                }
                Some(TxnOpResponse::Get(_)) => Ok(Entry::Placed(revision)),
                _ => Err(not_understood()),
            }
        })
        .await
    }

    /// Takes a place only if nobody is in the way; else nothing of the request stays.
    pub(crate) async fn enter_if_free(&self) -> Result<Answer<Entry>, Failure> {
        // A missing key has create revision 0.
        let free = Compare::create_revision(self.in_the_way(), CompareOp::Less, 1).with_prefix();
        self.place(vec![free], Vec::new(), |_, revision| {
            Ok(Entry::Granted(revision))
        })
        .await
    }

    /// Takes a place under these conditions, and does `more` in the same transaction.
    async fn place(
        &self,
        conditions: Vec<Compare>,
        more: Vec<TxnOp>,
        placed: impl Fn(&TxnResponse, i64) -> Result<Entry, BackendError>,
    ) -> Result<Answer<Entry>, Failure> {
        let mut repeated = false;
        for _ in 0..ATTEMPTS {
            let known = self.session.known();
            let mut when = vec![self.unplaced(), self.session_is(known)];
            when.extend(conditions.iter().cloned());
            let mut then = vec![self.put()];
            then.extend(more.iter().cloned());
            let answer = match self.transact(when, then).await {
                Ok(answer) => answer,
                Err(failure) => {
                    return Err(Failure {
                        unsure: repeated || failure.unsure,
                        ..failure
                    });
                }
            };
            repeated |= answer.repeated;
            let failed = |error| Failure {
                error,
                unsure: repeated,
            };
            let entry = if answer.value.succeeded() {
                // Whatever the answer says of the rest, a place was taken.
                placed(&answer.value, revision(&answer.value)).map_err(|error| Failure {
                    error,
                    unsure: true,
                })?
            } else if let Some(place) = self.place_or_retry(&answer.value).map_err(failed)? {
                // Of an earlier try, whose answer never came.
                Entry::Placed(place)
            } else if self.session.known() != known {
                // The session's key was modified: nothing is said about the queue.
                continue;
            } else {
                Entry::Refused {
                    holder: holder(ranges(&answer.value).get(2)),
                }
            };
            return Ok(Answer {
                value: entry,
                repeated,
            });
        }
        Err(Failure {
            error: restless(),
            unsure: repeated,
        })
    }

    fn unplaced(&self) -> Compare {
        Compare::create_revision(self.seat.key.as_bytes(), CompareOp::Equal, 0)
    }

    fn session_is(&self, known: i64) -> Compare {
        Compare::mod_revision(self.session.key.as_str(), CompareOp::Equal, known)
    }

    fn put(&self) -> TxnOp {
        let options = PutOptions::new().with_lease(self.session.lease_id);
        TxnOp::put(self.seat.key.as_bytes(), &*self.seat.value, Some(options))
    }

    /// What the keys begin with that can be in the way.
    pub(crate) fn in_the_way(&self) -> &str {
        match &self.spot.rule {
            Rule::Shared { writers } => writers,
            Rule::Exclusive | Rule::Permits(_) => &self.spot.queue,
        }
    }

    /// Counts the keys that can be in the way; and how many there are if nobody is.
    fn count(&self) -> (TxnOp, i64) {
        let options = GetOptions::new().with_prefix().with_count_only();
        let alone = match &self.spot.rule {
            Rule::Shared { .. } => 0,
            // Its own.
            Rule::Exclusive | Rule::Permits(_) => 1,
        };
        (TxnOp::get(self.in_the_way(), Some(options)), alone)
    }

    /// Runs a transaction that takes a place; if its conditions don't hold it reads why, and who holds.
    async fn transact(
        &self,
        conditions: Vec<Compare>,
        then: Vec<TxnOp>,
    ) -> Result<Answer<TxnResponse>, Failure> {
        let keys_only = GetOptions::new().with_keys_only();
        let otherwise = [
            TxnOp::get(self.seat.key.as_bytes(), None),
            TxnOp::get(self.session.key.as_str(), Some(keys_only)),
            self.first(),
        ];
        let transaction = Txn::new()
            .when(conditions)
            .and_then(then)
            .or_else(otherwise);
        self.session
            .endpoints
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
        match own.first() {
            None => Ok(None),
            Some(own) if own.value() == &*self.seat.value => Ok(Some(own.create_revision())),
            // Nobody of this session uses the key but this place.
            Some(own) => Err(foreign(own.key())),
        }
    }
}

pub(crate) fn holder(first: Option<&Vec<KeyValue>>) -> Option<Holder> {
    decode(first?.first()?)
}

pub(crate) fn revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, ResponseHeader::revision)
}

pub(crate) fn ranges(answer: &TxnResponse) -> Vec<Vec<KeyValue>> {
    answer
        .op_responses()
        .into_iter()
        .map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs(),
            _ => Vec::new(),
        })
        .collect()
}

pub(crate) fn not_understood() -> BackendError {
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
