//! Reads of a queue from one place in it, and the session's check of all its places.
//!
//! Every read includes the place's own key. The key is attached to the session's lease, so if it exists, the session
//! was alive at the read. Therefore nothing is granted in a session that has ended at etcd.

use std::{sync::Arc, time::Duration};

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, TxnOp};
use futures_util::future::try_join_all;
use portalock_core::{
    BackendError, Holder,
    session::{Asked, Looked, Stand},
};

use crate::{
    blockers::{Ahead, Blockers, Waiting},
    keys::{Rule, Weight, weight_in},
    place::Place,
    queue::{holder, not_understood, ranges, revision},
    record::{foreign, token},
    session::{Session, SessionLease, gone},
};

/// How often a session checks that the keys of its places exist. etcd itself deletes a key only with its lease, and the
/// session notices the end of the lease anyway. So this is for keys that people or their tools delete. A lock that is
/// held for less than this time costs nothing.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many keys one transaction reads: etcd allows at most 128 operations by default.
const KEYS_AT_ONCE: usize = 100;

const LOOKING: &str = "look at the queue";
const LOOKING_AFTER: &str = "look for the keys of the session's places";

/// The state of a request.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It holds, with the place taken at this revision.
    Granted(i64),
    /// It waits, in its place.
    Waiting(Waiting),
    /// It has no place, because it would have had to wait.
    Refused(Option<Holder>),
    /// The request for a place failed.
    Failed(BackendError),
    /// It has no place: etcd no longer knows the session.
    Ended,
}

/// Whether the keys of these places exist. Places that wait are watched, so their changes arrive as events.
pub(crate) async fn look(
    session: &Session,
    asked: &[Asked<Arc<Place>>],
) -> Result<Looked, BackendError> {
    let lease = session.service();
    let mut stands = Vec::new();
    // Together, because the session waits for all answers no longer than for one.
    let reads = asked.chunks(KEYS_AT_ONCE).map(|some| {
        let keys = [lease.own()]
            .into_iter()
            .chain(some.iter().map(|asked| asked.at.own()));
        lease.server.read(LOOKING_AFTER, keys.collect())
    });
    let answers = try_join_all(reads).await?;
    for (some, answer) in asked.chunks(KEYS_AT_ONCE).zip(answers) {
        let mut found = ranges(&answer).into_iter();
        if found.next().is_none_or(|own| own.is_empty()) {
            session.end(gone());
            break;
        }
        stands.extend(
            some.iter()
                .zip(found)
                .map(|(asked, own)| match asked.at.taken() {
                    Some(taken) if !is_there(&own, taken) => Stand::Gone,
                    Some(taken) if asked.held => Stand::Held(token(taken)),
                    _ => Stand::Waits,
                }),
        );
    }
    Ok(Looked::new(stands, Some(LOOK_EVERY)))
}

impl Place {
    /// Reads the queue from this place, which was taken at `taken`; `None` if its key was deleted. `waiting` is the
    /// result of its latest read, unless a change was reported since.
    pub(crate) async fn look(
        &self,
        session: &SessionLease,
        taken: i64,
        waiting: Option<Waiting>,
    ) -> Result<Option<Standing>, BackendError> {
        // etcd sorts a queue by reading all of it. Most reads find the same as the one before, and two keys are enough
        // to see that.
        if let Some(waiting) = waiting
            && let Blockers::Nearest(nearest) = &waiting.blockers
        {
            let nearest = TxnOp::get(nearest.as_str(), Some(GetOptions::new().with_keys_only()));
            let answer = session
                .server
                .read(LOOKING, vec![self.own(), nearest])
                .await?;
            let ranges = ranges(&answer);
            let [own, nearest] = ranges.as_slice() else {
                return Err(not_understood());
            };
            if !is_there(own, taken) {
                return Ok(None);
            }
            if nearest.iter().any(|key| key.create_revision() < taken) {
                let seen = revision(&answer);
                return Ok(Some(Standing::Waiting(Waiting { seen, ..waiting })));
            }
        }
        let operations = vec![self.own(), self.before(taken), self.first()];
        let answer = session.server.read(LOOKING, operations).await?;
        let ranges = ranges(&answer);
        let [own, before, first] = ranges.as_slice() else {
            return Err(not_understood());
        };
        if !is_there(own, taken) {
            return Ok(None);
        }
        let Some(blockers) = self.blockers(before)? else {
            return Ok(Some(Standing::Granted(taken)));
        };
        let numbers = &session.numbers;
        numbers.note_holder(&self.queue.keys, holder(first));
        Ok(Some(Standing::Waiting(Waiting {
            blockers,
            seen: revision(&answer),
        })))
    }

    fn own(&self) -> TxnOp {
        TxnOp::get(&*self.key, Some(GetOptions::new().with_keys_only()))
    }

    /// Reads the requests ahead of the place taken at `taken`, as far as they matter.
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

    /// What the place waits for, given the requests ahead of it.
    fn blockers(&self, before: &[KeyValue]) -> Result<Option<Blockers>, BackendError> {
        if let Rule::Permits(own) = &self.queue.rule {
            let ahead = self.ahead(before, *own)?;
            return Ok((!ahead.fits()).then_some(Blockers::Permits(ahead)));
        }
        let Some(nearest) = before.first() else {
            return Ok(None);
        };
        let nearest = nearest.key_str().map_err(|_| foreign(nearest.key()))?;
        Ok(Some(Blockers::Nearest(nearest.to_owned())))
    }

    fn ahead(&self, keys: &[KeyValue], own: Weight) -> Result<Ahead, BackendError> {
        let queue = &self.queue.keys;
        let earlier = keys
            .iter()
            .map(|key| {
                weight_in(queue, key.key())
                    .map(|weight| (key.key().to_vec(), weight))
                    .ok_or_else(|| foreign(key.key()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Ahead {
            queue: queue.clone(),
            earlier,
            own,
        })
    }
}

/// Whether the place's own key still exists as it was put at `taken`.
fn is_there(own: &[KeyValue], taken: i64) -> bool {
    own.first()
        .is_some_and(|own| own.create_revision() == taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EtcdSettings,
        client::{Client, Server, Wish},
    };
    use portalock_core::{Attempt, LockName, Mode, Patience, Request};
    use portalock_testkit::servers::EtcdServer;

    #[tokio::test]
    async fn one_whose_key_was_put_again_by_somebody_else_has_no_place() {
        let server = EtcdServer::start().unwrap();
        let settings = EtcdSettings::new(server.endpoints()).unwrap();
        let settings = settings.with_request_timeout(Duration::from_secs(60));
        let client = Client::new(Arc::new(Server::new(settings.unwrap()).unwrap()));
        let name = LockName::new("look").unwrap();
        let request = Request::new(name, Mode::Exclusive, Patience::Queue);
        let wish = Wish::new(client.shared().keys.lock(&request), &request);
        let attempt = client.attempt(request.owner, &wish).await.unwrap();
        assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
        let place = client.held(request.owner).unwrap().0;
        let taken = place.taken().unwrap();
        let session = client.session().await.unwrap();
        let look = async || place.look(session.service(), taken, None).await.unwrap();
        assert!(matches!(look().await, Some(Standing::Granted(_))));
        let admin = etcd_client::Client::connect(server.endpoints(), None);
        let mut store = admin.await.unwrap().kv_client();
        store.delete(&*place.key, None).await.unwrap();
        store.put(&*place.key, "by hand", None).await.unwrap();
        assert!(look().await.is_none());
    }
}
