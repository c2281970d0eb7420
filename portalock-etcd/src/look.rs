//! A look at a queue: how one's place in it stands.
//!
//! Every look reads the own key, and a place is as good as the lease it hangs on: that the key is there says that the session
//! lived at the look. So nothing is granted to one whose session has ended at etcd.

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, TxnOp, TxnResponse};
use portalock_core::{BackendError, Holder};

use crate::{
    blockers::{Blockers, Line, Waiting},
    keys::{Rule, Weight, weight_in},
    places::Place,
    queue::{holder, not_understood, ranges, revision},
    record::foreign,
};

/// How a request stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It holds.
    Granted,
    /// It waits, in its place.
    Waiting(Waiting),
    /// It has no place: it would have had to wait.
    Refused(Option<Holder>),
    /// It has no place: somebody deleted its key.
    Gone,
}

impl Place {
    /// Looks at the queue from this place, taken at `taken`. `waiting` is how it stood at its latest look, unless it has been
    /// told of a change since.
    pub(crate) async fn look(
        &self,
        taken: i64,
        waiting: Option<Waiting>,
    ) -> Result<Standing, BackendError> {
        // etcd sorts a queue by reading all of it. Most looks find what the one before found, and two keys tell that.
        if let Some(waiting) = waiting
            && let Blockers::Nearest(nearest) = &waiting.blockers
        {
            let nearest = TxnOp::get(nearest.as_str(), Some(GetOptions::new().with_keys_only()));
            let answer = self.read(vec![self.own(), nearest]).await?;
            let ranges = ranges(&answer);
            let [own, nearest] = ranges.as_slice() else {
                return Err(not_understood());
            };
            if !is_there(own, taken) {
                return Ok(Standing::Gone);
            }
            if nearest.iter().any(|key| key.create_revision() < taken) {
                let seen = revision(&answer);
                return Ok(Standing::Waiting(Waiting { seen, ..waiting }));
            }
        }
        let operations = vec![self.own(), self.before(taken), self.first()];
        let answer = self.read(operations).await?;
        let ranges = ranges(&answer);
        let [own, before, first] = ranges.as_slice() else {
            return Err(not_understood());
        };
        if !is_there(own, taken) {
            return Ok(Standing::Gone);
        }
        let Some(blockers) = self.blockers(before)? else {
            return Ok(Standing::Granted);
        };
        let numbers = &self.session.numbers;
        numbers.note_holder(&self.queue.directory, holder(first));
        Ok(Standing::Waiting(Waiting {
            blockers,
            seen: revision(&answer),
        }))
    }

    async fn read(&self, operations: Vec<TxnOp>) -> Result<TxnResponse, BackendError> {
        self.session.read("look at the queue", operations).await
    }

    pub(crate) fn own(&self) -> TxnOp {
        TxnOp::get(&*self.key, Some(GetOptions::new().with_keys_only()))
    }

    /// Asks for those before the place taken at `taken`, as far as they matter.
    fn before(&self, taken: i64) -> TxnOp {
        let mut options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_max_create_revision(taken - 1);
        if !matches!(self.queue.rule, Rule::Permits(_)) {
            options = options
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(1);
        }
        TxnOp::get(self.queue.in_the_way(), Some(options))
    }

    /// Whom those before the place make it wait for.
    fn blockers(&self, before: &[KeyValue]) -> Result<Option<Blockers>, BackendError> {
        if let Rule::Permits(own) = &self.queue.rule {
            let line = self.line(before, *own)?;
            return Ok((!line.fits()).then_some(Blockers::Permits(line)));
        }
        let Some(nearest) = before.first() else {
            return Ok(None);
        };
        let nearest = nearest.key_str().map_err(|_| foreign(nearest.key()))?;
        Ok(Some(Blockers::Nearest(nearest.to_owned())))
    }

    fn line(&self, keys: &[KeyValue], own: Weight) -> Result<Line, BackendError> {
        let queue = &self.queue.keys;
        let earlier = keys
            .iter()
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

/// Whether the own key is there as it was put at `taken`.
pub(crate) fn is_there(own: &[KeyValue], taken: i64) -> bool {
    own.first()
        .is_some_and(|own| own.create_revision() == taken)
}
