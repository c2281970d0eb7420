//! A place in a queue: taken, looked at, given up. Each is one transaction.
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
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, SortOrder, SortTarget,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use portalock_core::{BackendError, BackendErrorKind, Holder};

use crate::{
    blockers::{Blockers, Line, Watched},
    endpoints::{Answer, Endpoints},
    error::session_ended,
    keys::{Rule, Spot, Weight, weight_in},
    places::Seat,
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
    pub(crate) seat: &'a Seat,
}

/// How a request stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It holds.
    Granted {
        /// When its place was taken: the fencing token.
        revision: i64,
        /// Whether its own key was seen to be there; else an event told that the way is free.
        seen_now: bool,
    },
    /// It waits, in its place.
    Waiting {
        revision: i64,
        /// Whom for, as seen at revision `seen`.
        blockers: Blockers,
        seen: i64,
        holder: Option<Holder>,
    },
    /// It waits, in its place, behind another of its session.
    Following,
    /// It has no place: it would have had to wait.
    Refused { holder: Option<Holder> },
    /// It has no place: somebody deleted its key.
    Gone,
}

/// What came of asking for a place.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It holds, by the place taken at this revision.
    Granted(i64),
    /// It has the place taken at this revision. Whether it holds is to be looked at.
    Placed(i64),
    /// It has no place: it would have had to wait.
    Refused { holder: Option<Holder> },
}

/// What came of giving a place up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Withdrawn {
    /// Whether there was one.
    pub(crate) found: bool,
    /// Whether none can come any more.
    pub(crate) for_good: bool,
}

impl Queue<'_> {
    /// Takes the last place, or finds the one that the owner has.
    pub(crate) async fn enter(&self) -> Result<Answer<Entry>, BackendError> {
        let mut repeated = false;
        let (ahead, alone) = self.count();
        for _ in 0..ATTEMPTS {
            let conditions = vec![self.unplaced(), self.session_is(self.session.known())];
            let then = vec![self.put(), ahead.clone()];
            let answer = self.transact(conditions, then).await?;
            repeated |= answer.repeated;
            if answer.value.succeeded() {
                // What was put has the transaction's revision; what it counts it counts after the put.
                let place = revision(&answer.value);
                let value = match answer.value.op_responses().get(1) {
                    Some(TxnOpResponse::Get(counted)) if counted.count() == alone => {
                        Entry::Granted(place)
                    }
                    Some(TxnOpResponse::Get(_)) => Entry::Placed(place),
                    _ => return Err(not_understood()),
                };
                return Ok(Answer { value, repeated });
            }
            if let Some(place) = self.place_or_retry(&answer.value)? {
                let value = Entry::Placed(place);
                return Ok(Answer { value, repeated });
            }
        }
        Err(restless())
    }

    /// Takes a place only if it is granted at once; else nothing of the request stays.
    pub(crate) async fn enter_if_free(&self) -> Result<Answer<Entry>, BackendError> {
        let mut repeated = false;
        // What must be empty, or hold nothing newer than this revision.
        let mut newest = 0;
        for _ in 0..ATTEMPTS {
            let known = self.session.known();
            let conditions = vec![
                self.unplaced(),
                self.session_is(known),
                // Of keys that don't exist the create revision is zero.
                Compare::create_revision(self.in_the_way(), CompareOp::Less, newest + 1)
                    .with_prefix(),
            ];
            let answer = self.transact(conditions, vec![self.put()]).await?;
            repeated |= answer.repeated;
            if answer.value.succeeded() {
                let value = Entry::Granted(revision(&answer.value));
                return Ok(Answer { value, repeated });
            }
            if let Some(place) = self.place_or_retry(&answer.value)? {
                // Of an earlier try, whose answer never came.
                let value = Entry::Placed(place);
                return Ok(Answer { value, repeated });
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
                    Entry::Refused {
                        holder: before.holder,
                    }
                }
                Rule::Exclusive | Rule::Shared { .. } => Entry::Refused {
                    holder: holder(ranges(&answer.value).get(2)),
                },
            };
            return Ok(Answer { value, repeated });
        }
        Err(restless())
    }

    /// Looks at the queue from the place taken at `place`.
    pub(crate) async fn look(&self, place: i64) -> Result<Standing, BackendError> {
        let operations = vec![self.get_own(), self.before(Some(place)), self.first()];
        let answer = self.read(operations).await?;
        let ranges = ranges(&answer);
        let [own, before, first] = ranges.as_slice() else {
            return Err(not_understood());
        };
        if !is_there(own, place) {
            return Ok(Standing::Gone);
        }
        self.standing(place, revision(&answer), before, holder(Some(first)))
    }

    /// As [`look`](Self::look), from where there is most likely only one before it.
    pub(crate) async fn look_ahead(&self, place: i64) -> Result<Standing, BackendError> {
        let answer = self
            .read(vec![self.get_own(), self.before(Some(place))])
            .await?;
        let ranges = ranges(&answer);
        let [own, before] = ranges.as_slice() else {
            return Err(not_understood());
        };
        if !is_there(own, place) {
            return Ok(Standing::Gone);
        }
        if before.len() > 1 {
            return self.look(place).await;
        }
        self.standing(place, revision(&answer), before, holder(Some(before)))
    }

    /// Looks whether the place is still there, of one who knows that it waits.
    pub(crate) async fn stay(&self, place: i64) -> Result<Standing, BackendError> {
        let answer = self.read(vec![self.get_own()]).await?;
        Ok(match ranges(&answer).first() {
            Some(own) if is_there(own, place) => Standing::Following,
            _ => Standing::Gone,
        })
    }

    /// Looks whether what it waits for is still there.
    pub(crate) async fn confirm(
        &self,
        place: i64,
        blockers: Blockers,
    ) -> Result<Standing, BackendError> {
        let Watched::Key(key) = blockers.watched() else {
            return self.look(place).await;
        };
        let blocker = TxnOp::get(key, None);
        let answer = self.read(vec![self.get_own(), blocker]).await?;
        let ranges = ranges(&answer);
        let [own, blocker] = ranges.as_slice() else {
            return Err(not_understood());
        };
        if !is_there(own, place) {
            return Ok(Standing::Gone);
        }
        let stays = blocker.iter().any(|key| key.create_revision() < place);
        Ok(match (stays, &blockers) {
            (true, _) => Standing::Waiting {
                revision: place,
                seen: revision(&answer),
                // Of others it isn't known here who holds; a later look tells.
                holder: match &blockers {
                    Blockers::Last(_) => holder(Some(blocker)),
                    _ => None,
                },
                blockers,
            },
            (false, Blockers::Last(_)) => granted(place),
            (false, _) => return self.look(place).await,
        })
    }

    /// Reads, in one transaction, what is so now.
    async fn read(&self, operations: Vec<TxnOp>) -> Result<TxnResponse, BackendError> {
        let answer = self
            .endpoints
            .call("look at the queue", |client| {
                let transaction = Txn::new().and_then(operations.clone());
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        // Nothing was written: no try can take effect later.
        Ok(answer.value)
    }

    /// Gives up the place. True if there was one.
    pub(crate) async fn withdraw(&self) -> Result<bool, BackendError> {
        let answer = self
            .endpoints
            .call("release", |client| {
                let transaction = self.delete();
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        // A try without an answer may have deleted what the next one no longer found.
        Ok(answer.repeated || answer.value.succeeded())
    }

    /// As [`withdraw`](Self::withdraw), and sees to it that no earlier request of this session for a place takes effect
    /// any more, should it still be on its way.
    pub(crate) async fn withdraw_for_good(&self) -> Result<Withdrawn, BackendError> {
        let session_key = self.session.key.as_str();
        let delete = TxnOp::txn(self.delete());
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
            // A full store takes neither this modification nor, for now, a late place.
            Err(error) if error.kind() == BackendErrorKind::OutOfSpace => {
                return Ok(Withdrawn {
                    found: self.withdraw().await?,
                    for_good: false,
                });
            }
            Err(error) => return Err(error),
        };
        if answer.succeeded() {
            self.session.key_modified(revision(&answer));
        }
        let deleted = answer
            .op_responses()
            .iter()
            .any(|response| matches!(response, TxnOpResponse::Txn(deleted) if deleted.succeeded()));
        Ok(Withdrawn {
            found: repeated || deleted,
            for_good: true,
        })
    }

    /// Deletes the key, if it is this place's.
    fn delete(&self) -> Txn {
        let key = self.seat.key.as_bytes();
        Txn::new()
            .when([Compare::value(key, CompareOp::Equal, &*self.seat.value)])
            .and_then([TxnOp::delete(key, None)])
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

    fn get_own(&self) -> TxnOp {
        let options = GetOptions::new().with_keys_only();
        TxnOp::get(self.seat.key.as_bytes(), Some(options))
    }

    /// What the keys begin with that can be in the way.
    fn in_the_way(&self) -> &str {
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

    /// Asks for those before the place taken at `place`, as far as they matter.
    fn before(&self, place: Option<i64>) -> TxnOp {
        let mut options = GetOptions::new().with_prefix();
        if let Some(place) = place {
            options = options.with_max_create_revision(place - 1);
        }
        options = match &self.spot.rule {
            Rule::Exclusive | Rule::Shared { .. } => options
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(2),
            Rule::Permits(_) => options.with_keys_only(),
        };
        TxnOp::get(self.in_the_way(), Some(options))
    }

    /// Asks for the first of the queue, who holds.
    fn first(&self) -> TxnOp {
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        TxnOp::get(self.spot.queue.as_str(), Some(options))
    }

    /// What the keys before `place` mean for it.
    fn standing(
        &self,
        place: i64,
        seen: i64,
        before: &[KeyValue],
        holder: Option<Holder>,
    ) -> Result<Standing, BackendError> {
        let blockers = match &self.spot.rule {
            Rule::Exclusive | Rule::Shared { .. } => match before {
                [] => None,
                [last] => Some(Blockers::Last(text(last.key())?)),
                [nearest, second, ..] => Some(Blockers::Far {
                    nearest: text(nearest.key())?,
                    second: text(second.key())?,
                }),
            },
            Rule::Permits(own) => {
                let line = self.line(place, before, *own)?;
                (!line.fits()).then_some(Blockers::Permits(line))
            }
        };
        Ok(match blockers {
            None => granted(place),
            Some(blockers) => Standing::Waiting {
                revision: place,
                blockers,
                seen,
                holder,
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
        let answer = self.read(vec![self.before(None), self.first()]).await?;
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
        match own.first() {
            None => Ok(None),
            Some(own) if own.value() == &*self.seat.value => Ok(Some(own.create_revision())),
            // Nobody of this session uses the key but this place.
            Some(own) => Err(foreign(own.key())),
        }
    }
}

struct Before {
    revision: i64,
    keys: Vec<KeyValue>,
    holder: Option<Holder>,
}

const fn granted(place: i64) -> Standing {
    Standing::Granted {
        revision: place,
        seen_now: true,
    }
}

/// Whether the own key is there as it was put at `place`. A place is as good as the lease it hangs on: that the key is still
/// there says that the lease is.
fn is_there(own: &[KeyValue], place: i64) -> bool {
    own.first()
        .is_some_and(|own| own.create_revision() == place)
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
