//! A look at a queue: how one's place in it stands.

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp, TxnResponse};
use portalock_core::{BackendError, Holder};

use crate::{
    blockers::{Blockers, Line, Watched},
    keys::{Rule, Weight, weight_in},
    queue::{Queue, holder, not_understood, ranges, revision},
    record::foreign,
};

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

impl Queue<'_> {
    /// Looks at the queue from the place taken at `place`.
    pub(crate) async fn look(&self, place: i64) -> Result<Standing, BackendError> {
        let operations = vec![self.get_own(), self.before(place), self.first()];
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
        if self.spot.rule != Rule::Exclusive {
            // The one before it may wait for others.
            return self.look(place).await;
        }
        let answer = self.read(vec![self.get_own(), self.before(place)]).await?;
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

    /// Looks whether the place is still there, of one who has been told that the way is free. The session was alive at this
    /// look, as its key is: an event alone could grant to one whose session has been revoked meanwhile.
    pub(crate) async fn hold(&self, place: i64) -> Result<Standing, BackendError> {
        Ok(match self.stay(place).await? {
            Standing::Following => granted(place),
            standing => standing,
        })
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
                seen: revision(&answer),
                // Of others it isn't known here who holds; a later look tells.
                holder: match (&self.spot.rule, &blockers) {
                    (Rule::Exclusive, Blockers::Last(_)) => holder(Some(blocker)),
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
            .session
            .endpoints
            .call("look at the queue", |client| {
                let transaction = Txn::new().and_then(operations.clone());
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        // Nothing was written: no try can take effect later.
        Ok(answer.value)
    }

    fn get_own(&self) -> TxnOp {
        let options = GetOptions::new().with_keys_only();
        TxnOp::get(self.seat.key.as_bytes(), Some(options))
    }

    /// Asks for those before the place taken at `place`, as far as they matter.
    fn before(&self, place: i64) -> TxnOp {
        let mut options = GetOptions::new()
            .with_prefix()
            .with_max_create_revision(place - 1);
        options = match &self.spot.rule {
            Rule::Exclusive | Rule::Shared { .. } => options
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(2),
            Rule::Permits(_) => options.with_keys_only(),
        };
        TxnOp::get(self.in_the_way(), Some(options))
    }

    /// Asks for the first of the queue, who holds.
    pub(crate) fn first(&self) -> TxnOp {
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
}

const fn granted(place: i64) -> Standing {
    Standing::Granted { revision: place }
}

/// Whether the own key is there as it was put at `place`. A place is as good as the lease it hangs on: that the key is still
/// there says that the lease is.
fn is_there(own: &[KeyValue], place: i64) -> bool {
    own.first()
        .is_some_and(|own| own.create_revision() == place)
}

fn text(key: &[u8]) -> Result<String, BackendError> {
    String::from_utf8(key.to_vec()).map_err(|_| foreign(key))
}
