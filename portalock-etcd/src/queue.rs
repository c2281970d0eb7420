//! Taking a place in a queue, and giving it up, each in one transaction. The module [`look`](crate::look) reads the
//! queue.
//!
//! The order of a queue is the order in which its keys were created, and a key's create revision is its request's
//! fencing token. A request holds when no request ahead of it is in its way. That follows from the queue alone, so a
//! grant needs no write. The keys ahead of a request can only be deleted, so a request that holds once keeps holding.
//!
//! Taking a place means to put a key and to count the keys that could be in its way; etcd counts them without reading
//! them. Only a request that is not alone reads the other keys, in a read-only transaction. etcd answers those without
//! its log, while a transaction that reads a long queue and also writes would delay all other requests.
//!
//! A place is taken with a condition on the session's own key: it must not have changed since this client last saw it.
//! So a place can only be taken while the session lives, and by modifying that key a client can stop a request without
//! an answer from taking effect later. A place is given up with the condition that the key has this place's value, so
//! that a late deletion can't remove the place that uses the key next (see [`numbers`](crate::numbers)). No attempt gives
//! up its own place, because the next attempt may hold by the same place when the deletion arrives: only a place that no
//! attempt uses any more is given up.

use std::sync::atomic::Ordering;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, SortOrder, SortTarget,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use portalock_core::{BackendError, BackendErrorKind, Holder, session::Answered};

use crate::{
    keys::Rule,
    look::Standing,
    place::Place,
    record::{decode, foreign},
    session::SessionLease,
};

const ENTERING: &str = "take a place in the queue";
pub(crate) const RELEASING: &str = "release";

impl Place {
    /// Takes the last place in the queue, or finds that it was already taken. With `only_if_free`, it takes no place if
    /// a request is in the way. `None` if the place was taken and the queue must be read, or if the session's key was
    /// modified meanwhile.
    pub(crate) async fn enter(
        &self,
        session: &SessionLease,
        only_if_free: bool,
    ) -> Result<Answered<Option<Standing>>, BackendError> {
        let (key, known) = (&*self.key, session.known());
        self.named.fetch_max(known, Ordering::AcqRel);
        let mut conditions = vec![
            Compare::create_revision(key, CompareOp::Equal, 0),
            Compare::mod_revision(session.key(), CompareOp::Equal, known),
        ];
        if only_if_free {
            // A missing key has create revision 0.
            let free = Compare::create_revision(self.queue.in_the_way(), CompareOp::Less, 1);
            conditions.push(free.with_prefix());
        }
        let options = PutOptions::new().with_lease(session.id());
        let put = TxnOp::put(key, self.value.as_slice(), Some(options));
        let count = GetOptions::new().with_prefix().with_count_only();
        let transaction = Txn::new()
            .when(conditions)
            .and_then([put, TxnOp::get(self.queue.in_the_way(), Some(count))])
            // To find out why it was not taken, and who holds.
            .or_else([TxnOp::get(key, None), session.own(), self.first()]);
        let Answered { value, repeated } = session.transact(ENTERING, transaction).await;
        let value = match value {
            Ok(answer) if answer.succeeded() => self.taken_by(&answer)?,
            Ok(answer) => self.not_taken_by(&answer, session, known)?,
            Err(error) => Some(Standing::Failed(error)),
        };
        Ok(Answered { value, repeated })
    }

    fn taken_by(&self, answer: &TxnResponse) -> Result<Option<Standing>, BackendError> {
        // The new key has the transaction's revision. The transaction counts after the put.
        let at = revision(answer);
        self.was_taken(at);
        let alone = match &self.queue.rule {
            Rule::Shared { .. } => 0,
            // Its own key.
            Rule::Exclusive | Rule::Permits(_) => 1,
        };
        match answer.op_responses().get(1) {
            Some(TxnOpResponse::Get(counted)) => {
                Ok((counted.count() == alone).then_some(Standing::Granted(at)))
            }
            _ => Err(not_understood()),
        }
    }

    fn not_taken_by(
        &self,
        answer: &TxnResponse,
        session: &SessionLease,
        known: i64,
    ) -> Result<Option<Standing>, BackendError> {
        let ranges = ranges(answer);
        let [own, lives, first] = ranges.as_slice() else {
            return Err(not_understood());
        };
        let Some(lives) = lives.first() else {
            return Ok(Some(Standing::Ended));
        };
        session.key_modified(lives.mod_revision());
        match own.first() {
            // Taken by an earlier try, whose answer never came.
            Some(own) if own.value() == self.value => {
                self.was_taken(own.create_revision());
                Ok(None)
            }
            // In this session only this place uses the key. A former use of it is back after a restore.
            Some(own) if own.lease() == session.id() => Ok(Some(Standing::Ended)),
            Some(own) => Err(foreign(own.key())),
            None if lives.mod_revision() == known => Ok(Some(Standing::Refused(holder(first)))),
            None => Ok(None),
        }
    }

    /// Gives up the place, and ensures that no earlier request of this session for a place can take effect later. If
    /// etcd's store is full, it refuses this, but for now it refuses a late request for a place too.
    pub(crate) async fn withdraw_for_good(
        &self,
        session: &SessionLease,
    ) -> Result<(), BackendError> {
        // A later modification has stopped these requests. So one modification is enough for many requests without an
        // answer, and each modification makes all other requests of the session try again.
        if session.known() > self.named.load(Ordering::Acquire) {
            let deleted = session.transact(RELEASING, self.delete()).await;
            return deleted.value.map(drop);
        }
        let options = PutOptions::new().with_lease(session.id());
        // Without the session's key, no place can be taken in the session.
        let lives = Compare::create_revision(session.key(), CompareOp::Greater, 0);
        let transaction = Txn::new().when([lives]).and_then([
            TxnOp::txn(self.delete()),
            TxnOp::put(session.key(), "", Some(options)),
        ]);
        let answer = session.transact(RELEASING, transaction).await.value?;
        if answer.succeeded() {
            session.key_modified(revision(&answer));
        }
        Ok(())
    }

    /// Deletes the key, if it is this place's.
    pub(crate) fn delete(&self) -> Txn {
        let key = &*self.key;
        Txn::new()
            .when([Compare::value(key, CompareOp::Equal, self.value.as_slice())])
            .and_then([TxnOp::delete(key, None)])
    }

    /// Reads the first request of the queue, which holds.
    pub(crate) fn first(&self) -> TxnOp {
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        TxnOp::get(self.queue.keys.as_str(), Some(options))
    }
}

pub(crate) fn holder(first: &[KeyValue]) -> Option<Holder> {
    Some(decode(first.first()?.value())?.holder)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EtcdSettings,
        client::{Client, Server, Wish},
    };
    use etcd_client::{AlarmAction, AlarmType};
    use portalock_core::{Attempt, LockName, Mode, OwnerId, Patience, Released, Request};
    use portalock_testkit::servers::EtcdServer;
    use std::{sync::Arc, time::Duration};

    fn client(server: &EtcdServer) -> Client {
        client_that_waits(server, Duration::from_secs(60))
    }

    fn client_that_waits(server: &EtcdServer, time: Duration) -> Client {
        let settings = EtcdSettings::new(server.endpoints()).unwrap();
        let settings = settings.with_request_timeout(time);
        Client::new(Arc::new(Server::new(settings.unwrap()).unwrap()))
    }

    async fn attempt(client: &Client, patience: Patience) -> (OwnerId, Attempt) {
        let name = LockName::new("queue").unwrap();
        let request = Request::new(name, Mode::Exclusive, patience);
        let wish = Wish::new(client.shared().keys.lock(&request), &request);
        let attempt = client.attempt(request.owner, &wish).await.unwrap();
        (request.owner, attempt)
    }

    #[tokio::test]
    async fn a_request_that_knows_an_old_modification_of_the_sessions_key_is_made_again() {
        let server = EtcdServer::start().unwrap();
        let client = client(&server);
        let session = client.session().await.unwrap();
        for patience in [Patience::Queue, Patience::Once] {
            session.service().key_modified(0);
            let (owner, attempt) = attempt(&client, patience).await;
            assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
            client.release(owner).await.unwrap();
        }
    }

    #[tokio::test]
    async fn one_modification_of_the_sessions_key_stops_all_requests_before_it() {
        let server = EtcdServer::start().unwrap();
        let client = client(&server);
        let session = client.session().await.unwrap();
        let lease = session.service();
        let places = ["a", "b", "c"].map(|name| {
            let name = LockName::new(name).unwrap();
            let request = Request::new(name, Mode::Exclusive, Patience::Queue);
            let wish = Wish::new(client.shared().keys.lock(&request), &request);
            Place::new(request.owner, &wish, lease.id(), &lease.numbers)
        });
        for place in &places {
            let entered = place.enter(lease, false).await.unwrap();
            assert!(matches!(entered.value, Some(Standing::Granted(_))));
        }
        for place in &places {
            place.withdraw_for_good(lease).await.unwrap();
        }
        let own = TxnOp::get(lease.key(), None);
        let all = GetOptions::new().with_prefix().with_keys_only();
        let all = TxnOp::get(client.shared().keys.locks(), Some(all));
        for place in &places {
            let found = lease.server.read("look", vec![own.clone(), all.clone()]);
            let found = ranges(&found.await.unwrap());
            assert_eq!((found[0][0].version(), found[1].len()), (2, 0));
            // Now a request of before arrives.
            lease.key_modified(place.named.load(Ordering::Acquire));
            let entered = place.enter(lease, false).await.unwrap();
            assert!(entered.value.is_none());
        }
    }

    #[tokio::test]
    async fn what_was_taken_though_the_store_was_full_is_given_up_with_its_owner() {
        let server = EtcdServer::start().unwrap();
        let client = client(&server);
        let name = LockName::new("full").unwrap();
        let request = Request::new(name, Mode::Exclusive, Patience::Queue);
        let wish = Wish::new(client.shared().keys.lock(&request), &request);
        let _taken = client.attempt(request.owner, &wish).await.unwrap();
        // As if the answer had been that the store is full.
        client.held(request.owner).unwrap().0.was_deleted();
        let admin = etcd_client::Client::connect(server.endpoints(), None);
        let mut admin = admin.await.unwrap();
        let full = AlarmType::Nospace;
        let raised = admin.alarm(AlarmAction::Activate, full, None).await;
        raised.unwrap();
        let error = client.attempt(request.owner, &wish).await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::OutOfSpace, "{error}");
        client.release(request.owner).await.unwrap();
        let options = GetOptions::new().with_prefix();
        let left = admin.get(client.shared().keys.locks(), Some(options));
        assert_eq!(left.await.unwrap().kvs().len(), 0);
    }

    #[tokio::test]
    async fn nothing_is_watched_for_one_that_has_given_up() {
        let server = EtcdServer::start().unwrap();
        let client = client(&server);
        let _held = attempt(&client, Patience::Queue).await;
        let (waits, contended) = attempt(&client, Patience::Queue).await;
        assert!(matches!(contended, Attempt::Contended(_)));
        let session = client.session().await.unwrap();
        let watches = &session.service().watches;
        assert!(watches.waiting(waits).is_some());
        let released = client.release(waits).await.unwrap();
        assert_eq!(released, Released::NotHeld);
        assert!(watches.waiting(waits).is_none());
    }
}
