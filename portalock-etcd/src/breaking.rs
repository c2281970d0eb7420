//! Breaking a lock: the mark, and how the holder's client responds to it.
//!
//! A mark is a key below the holder's session key, on the holder's lease, so both end together. Each renewal reads the
//! marks together with the session's key, after etcd has renewed the lease. A renewal that misses a mark was therefore
//! sent before etcd confirmed the mark, and the lease that it extends has ended once a whole lease time has passed
//! since. The session's watch also reports marks, and then the next renewal is sent at once.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp};
use portalock_core::{
    BackendError, BackendErrorKind, Holder, LockName, Loss, Marked, OwnerId, Released,
    session::spawn,
};

use crate::{
    client::Server,
    inspect::in_order,
    keys::{mark, marked_owner},
    place::Place,
    session::Session,
};

const BREAKING: &str = "break a lock";
const HEEDING: &str = "remove the mark on a lock that was broken";

/// The key of an owner that holds.
struct Hold {
    key: Vec<u8>,
    /// The revision at which the key was put. It identifies this use of the key.
    taken: i64,
    lease: i64,
    mark: String,
}

impl Server {
    /// Marks the hold of `owner` as broken. Returns the revision at which it was taken, and how long its client may still
    /// rely on the lock without knowing of the mark.
    pub(crate) async fn mark(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        let Some(hold) = self.hold_of(name, owner).await? else {
            return Ok(None);
        };
        // The value is for people, so the lock is broken even if it can't be encoded.
        let by = serde_json::to_vec(by).unwrap_or_default();
        let options = PutOptions::new().with_lease(hold.lease);
        // Or the mark is that of an earlier hold of this owner.
        let unmarked = Compare::mod_revision(hold.mark.as_str(), CompareOp::Less, hold.taken);
        let put = TxnOp::put(hold.mark.as_str(), by, Some(options));
        let marking = TxnOp::txn(Txn::new().when([unmarked]).and_then([put]));
        let transaction = Txn::new().when([hold.is_there()]).and_then([marking]);
        let answer = self.transact(BREAKING, transaction).await;
        match answer.value {
            Ok(answer) if answer.succeeded() => {}
            Err(error) if error.kind() != BackendErrorKind::SessionEnded => return Err(error),
            // The hold has ended meanwhile, perhaps with its lease. An earlier try without an answer may have marked it.
            _ => return Ok(answer.repeated.then(Marked::has_ended)),
        }
        let looking = self.endpoints.call(BREAKING, |client| async move {
            client.lease_client().time_to_live(hold.lease, None).await
        });
        // A member that was deposed without knowing it has seen no renewals since. So this returns the whole time, not
        // the remaining time.
        let relies_for = match looking.await.value?.granted_ttl() {
            // The lease has ended, and with it the hold. Never evict because of that answer.
            ..=0 => return Ok(Some(Marked::has_ended())),
            granted => Duration::from_secs(granted.unsigned_abs()),
        };
        Ok(Some(Marked::new(relies_for, hold.taken.unsigned_abs())))
    }

    /// Deletes the key by which `owner` holds, if it was put at the revision `taken`.
    pub(crate) async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        taken: u64,
    ) -> Result<Released, BackendError> {
        let found = self.hold_of(name, owner).await?;
        let Some(hold) = found.filter(|hold| hold.taken.unsigned_abs() == taken) else {
            return Ok(Released::NotHeld);
        };
        let transaction = Txn::new().when([hold.is_there()]).and_then([
            TxnOp::delete(hold.key.as_slice(), None),
            TxnOp::delete(hold.mark.as_str(), None),
        ]);
        let answer = self.transact("end a hold", transaction).await;
        // An earlier try without an answer may have deleted the key, so that this one did not find it.
        Ok(if answer.value?.succeeded() || answer.repeated {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }

    /// The key by which `owner` holds, if it holds.
    async fn hold_of(&self, name: &LockName, owner: OwnerId) -> Result<Option<Hold>, BackendError> {
        let queue = self.keys.lock_queue(name);
        let found = self.read_queue(BREAKING, &queue).await?;
        for claimed in in_order(&queue, found.kvs()) {
            let (key, claim, holds) = claimed?;
            if !holds {
                break;
            }
            if claim.owner == Some(owner) {
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

/// Tells the guards whose locks these marks break; the marks are keys below the session's key. Their places are due for
/// release. A mark is removed when nothing is left that it belongs to.
pub(crate) fn heed(session: &Arc<Session>, marks: Vec<KeyValue>) {
    for mark in marks {
        let loss = Loss::broken_by(serde_json::from_slice(mark.value()).ok());
        // A place that was taken after the mark is not the one that was broken.
        let is_of = |place: &Arc<Place>| {
            let taken = place.taken();
            taken.is_none_or(|taken| taken < mark.mod_revision())
        };
        let owner = marked_owner(session.service().key(), mark.key());
        if owner.is_some_and(|owner| session.places().broken(owner, &loss, is_of)) {
            session.look_within(Duration::ZERO);
        } else {
            remove(session.service().server.clone(), mark);
        }
    }
}

/// Removes a mark, in the background. If this fails, the next renewal finds the mark again.
fn remove(server: Arc<Server>, mark: KeyValue) {
    let removing = spawn(async move {
        let there = Compare::mod_revision(mark.key(), CompareOp::Equal, mark.mod_revision());
        let deleting = TxnOp::delete(mark.key(), None);
        let transaction = Txn::new().when([there]).and_then([deleting]);
        if let Err(error) = server.transact(HEEDING, transaction).await.value {
            tracing::debug!(%error, "a mark on a lock that was broken is not removed yet");
        }
    });
    if let Ok(removing) = removing {
        removing.detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::ranges;
    use crate::{
        EtcdSettings,
        client::{Client, Wish},
    };
    use portalock_core::{Attempt, Mode, Patience, Request};
    use portalock_testkit::servers::EtcdServer;

    #[tokio::test]
    async fn a_mark_is_on_the_place_that_was_taken_before_it() {
        let server = EtcdServer::start().unwrap();
        let settings = EtcdSettings::new(server.endpoints()).unwrap();
        let client = Client::new(Arc::new(Server::new(settings).unwrap()));
        let session = client.session().await.unwrap();
        let name = LockName::new("marked").unwrap();
        let request = Request::new(name, Mode::Exclusive, Patience::Queue);
        let wish = Wish::new(client.shared().keys.lock(&request), &request);
        let admin = etcd_client::Client::connect(server.endpoints(), None);
        let store = admin.await.unwrap().kv_client();
        let marking = async || {
            let key = mark(session.service().key(), request.owner);
            store.clone().put(key.as_str(), "{}", None).await.unwrap();
            let found = store.clone().get(key, None).await.unwrap();
            found.kvs().first().cloned()
        };
        let early = loop {
            // The session may have removed the mark already.
            if let Some(mark) = marking().await {
                break mark;
            }
        };
        let is_there = async || {
            let reading = vec![TxnOp::get(early.key(), None)];
            let found = client.shared().read(BREAKING, reading).await.unwrap();
            !ranges(&found).concat().is_empty()
        };
        let removed = async {
            while is_there().await {
                tokio::task::yield_now().await;
            }
        };
        let long = Duration::from_secs(60);
        tokio::time::timeout(long, removed).await.unwrap();
        let attempt = client.attempt(request.owner, &wish).await.unwrap();
        let Attempt::Granted(grant) = attempt else {
            panic!("{attempt:?}")
        };
        heed(&session, vec![early]);
        assert!(!grant.lost.is_lost());
        marking().await;
        let loss = tokio::time::timeout(long, grant.lost.lost());
        let loss = loss.await.unwrap();
        assert!(matches!(loss, Loss::Removed(_) | Loss::Broken(_)), "{loss}");
    }

    /// The mark of an earlier hold is still there, because the session has not removed it yet.
    #[tokio::test]
    async fn an_owner_that_holds_anew_is_marked_anew() {
        let server = EtcdServer::start().unwrap();
        let settings = EtcdSettings::new(server.endpoints()).unwrap();
        let client = Client::new(Arc::new(Server::new(settings).unwrap()));
        let session = client.session().await.unwrap();
        let name = LockName::new("marked").unwrap();
        let request = Request::new(name.clone(), Mode::Exclusive, Patience::Queue);
        let wish = Wish::new(client.shared().keys.lock(&request), &request);
        let admin = etcd_client::Client::connect(server.endpoints(), None);
        let mut store = admin.await.unwrap().kv_client();
        let key = mark(session.service().key(), request.owner);
        // The session's thread is busy.
        let (goes_on, busy) = std::sync::mpsc::channel::<()>();
        let (is_busy, begun) = tokio::sync::oneshot::channel();
        let blocked = spawn(async move {
            let _ = is_busy.send(());
            let _ = busy.recv();
        });
        let _blocked = blocked.unwrap();
        begun.await.unwrap();
        store.put(key.as_str(), "{}", None).await.unwrap();
        let attempt = client.attempt(request.owner, &wish).await.unwrap();
        let Attempt::Granted(grant) = attempt else {
            panic!("{attempt:?}")
        };
        let by = Holder::this_process(Some("operator".into()));
        let marked = client.shared().mark(&name, request.owner, &by).await;
        let found = store.get(key, None).await.unwrap();
        drop(goes_on);
        let marked = marked.unwrap().unwrap();
        assert_eq!(found.kvs()[0].value(), serde_json::to_vec(&by).unwrap());
        assert!(found.kvs()[0].mod_revision().unsigned_abs() > marked.hold);
        let told = tokio::time::timeout(Duration::from_secs(60), grant.lost.lost());
        let loss = told.await.unwrap();
        assert!(matches!(loss, Loss::Broken(_)), "{loss}");
    }
}
