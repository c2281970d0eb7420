//! A place in a queue, given up: so that nothing of it is left, or can come any more.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use portalock_core::{BackendError, BackendErrorKind, OwnerId, Released};

use crate::{
    places::{Place, Places},
    queue::revision,
};

/// What a failed withdrawal could not do.
const RELEASE: &str = "release";

/// What came of giving a place up.
#[derive(Debug, Clone, Copy)]
struct Withdrawn {
    /// Whether there was one.
    found: bool,
    /// Whether none can come any more.
    for_good: bool,
}

impl Places {
    /// Frees what `owner` has. Whatever becomes of this call, the place stays in the book until nothing can be left of it.
    pub(crate) async fn release(&self, owner: OwnerId) -> Result<Released, BackendError> {
        let Some(place) = self.get(owner) else {
            return Ok(Released::NotHeld);
        };
        let _due_again = self.paying(owner, &place);
        let withdrawn = if place.unsure {
            place.withdraw_for_good().await?
        } else {
            Withdrawn {
                // Else it has been answered that there is no place.
                found: place.taken.is_some() && place.withdraw().await?,
                for_good: true,
            }
        };
        if withdrawn.for_good {
            self.remove(owner, &place);
        }
        Ok(if withdrawn.found && place.held.is_some() {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }
}

impl Place {
    /// Gives up the place. True if there was one.
    async fn withdraw(&self) -> Result<bool, BackendError> {
        let mut repeated = false;
        let answer = self
            .session
            .endpoints
            .call_noting(RELEASE, &mut repeated, |client| {
                let transaction = self.delete();
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        // A try without an answer may have deleted what the next one no longer found.
        Ok(repeated || answer.succeeded())
    }

    /// As [`withdraw`](Self::withdraw), and sees to it that no earlier request of this session for a place takes effect
    /// any more, should it still be on its way.
    async fn withdraw_for_good(&self) -> Result<Withdrawn, BackendError> {
        let session_key = self.session.key.as_str();
        let delete = TxnOp::txn(self.delete());
        let options = PutOptions::new().with_lease(self.session.lease_id);
        let transaction = Txn::new()
            .when([Compare::create_revision(session_key, CompareOp::Greater, 0)])
            .and_then([delete.clone(), TxnOp::put(session_key, "", Some(options))])
            // Without the session's key no place can be taken in it.
            .or_else([delete]);
        let mut repeated = false;
        let answer = self
            .session
            .endpoints
            .call_noting(RELEASE, &mut repeated, |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await;
        let answer = match answer {
            // A full store takes neither this modification nor, for now, a late place.
            Err(error)
                if matches!(
                    error.kind(),
                    BackendErrorKind::OutOfSpace | BackendErrorKind::Exhausted
                ) =>
            {
                return Ok(Withdrawn {
                    found: self.withdraw().await? || repeated,
                    for_good: false,
                });
            }
            answer => answer?,
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
        let key = &*self.key;
        Txn::new()
            .when([Compare::value(key, CompareOp::Equal, &*self.value)])
            .and_then([TxnOp::delete(key, None)])
    }
}
