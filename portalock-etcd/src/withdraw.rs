//! A place in a queue, given up: so that nothing of it is left, or can come any more.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use portalock_core::{BackendError, BackendErrorKind, OwnerId, Released};

use crate::{
    endpoints::Answer,
    places::{Place, Places},
    queue::{Queue, revision},
};

/// What came of giving a place up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Withdrawn {
    /// Whether there was one.
    pub(crate) found: bool,
    /// Whether none can come any more.
    pub(crate) for_good: bool,
}

impl Places {
    /// Frees what `owner` has. Whatever becomes of this call, the place stays in the book until nothing can be left of it.
    pub(crate) async fn release(&self, owner: OwnerId) -> Result<Released, BackendError> {
        let Some(place) = self.get(owner) else {
            return Ok(Released::NotHeld);
        };
        let session = &place.session;
        session.holds.let_go(owner);
        let _due_again = self.paying(owner, session);
        let withdrawn = place.withdraw().await?;
        if withdrawn.for_good {
            session
                .slots
                .give_back(&place.spot.directory, place.seat.slot);
            self.remove(owner);
        }
        Ok(if withdrawn.found && place.granted {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }
}

impl Place {
    async fn withdraw(&self) -> Result<Withdrawn, BackendError> {
        let queue = Queue {
            session: &self.session,
            spot: &self.spot,
            seat: &self.seat,
        };
        if self.unsure {
            return queue.withdraw_for_good().await;
        }
        let found = match self.revision {
            Some(_) => queue.withdraw().await?,
            // It has been answered that there is no place.
            None => false,
        };
        Ok(Withdrawn {
            found,
            for_good: true,
        })
    }
}

impl Queue<'_> {
    /// Gives up the place. True if there was one.
    pub(crate) async fn withdraw(&self) -> Result<bool, BackendError> {
        let answer = self
            .session
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
            .session
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
            Err(failure) if failure.error.kind() == BackendErrorKind::OutOfSpace => {
                return Ok(Withdrawn {
                    found: self.withdraw().await?,
                    for_good: false,
                });
            }
            Err(failure) => return Err(failure.into()),
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
}
