//! A session: one lease, in which all of a backend's keys live. How it starts and is looked after see
//! [`keep`](crate::keep), how it is renewed [`renewal`](crate::renewal).

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use etcd_client::{Error, GetOptions, KeyValue, ResponseHeader, Txn, TxnOp, TxnResponse};
use portalock_core::{BackendError, BackendErrorKind, Lease, OwnerId};
use tokio::sync::Notify;

use crate::{
    endpoints::{Connection, Endpoints, reader},
    error::{session_ended, session_gone},
    keys::{marked_owner, session_end},
    numbers::Numbers,
    watch::Watches,
    witness::LastWitness,
};

/// One lease and what hangs on it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) lease_id: i64,
    pub(crate) lease: Lease,
    /// How long etcd keeps the session without a renewal.
    pub(crate) granted_time: Duration,
    /// The key that exists as long as the session.
    pub(crate) key: String,
    /// The key's latest modification. Every request for a place says which one it knows; so a request whose answer
    /// never came can be made to fail, should it arrive yet, by modifying the key.
    pub(crate) key_revision: AtomicI64,
    pub(crate) watches: Watches,
    /// Told when the watch has seen a mark: the next renewal comes at once.
    pub(crate) marked: Notify,
    pub(crate) numbers: Numbers,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) witness: LastWitness,
}

impl portalock_core::session::Session for Session {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Session {
    /// The error of a session that is certain no more.
    pub(crate) fn ended(&self) -> Option<BackendError> {
        self.lease
            .loss()
            .map(|loss| session_ended(&loss.to_string()))
    }

    /// The latest modification of the session's key that is known here.
    pub(crate) fn known(&self) -> i64 {
        self.key_revision.load(Ordering::Acquire)
    }

    /// Takes note of a modification of the session's key.
    pub(crate) fn key_modified(&self, revision: i64) {
        // The newest answer counts, not the largest revision: a restore from a snapshot takes revisions back. What an older
        // answer overwrites is corrected by the next transaction that fails for it.
        self.key_revision.store(revision, Ordering::Release);
    }

    /// Ends the session because etcd no longer knows it: its locks are lost.
    pub(crate) fn end_gone(&self) {
        self.lease.end(session_gone());
    }

    /// Gives the lease back: etcd deletes the session's keys at once. Idempotent.
    pub(crate) async fn revoke(&self) -> Result<(), BackendError> {
        let lease_id = self.lease_id;
        let revoked = self
            .endpoints
            .call("end the session", |client| async move {
                client.lease_client().revoke(lease_id).await
            })
            .await;
        match revoked {
            // There is no such lease any more.
            Err(error) if error.kind() != BackendErrorKind::SessionEnded => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads, in one transaction, what is so now.
    pub(crate) async fn read(
        &self,
        doing: &'static str,
        operations: Vec<TxnOp>,
    ) -> Result<TxnResponse, BackendError> {
        self.endpoints
            .call(doing, |client| {
                let transaction = Txn::new().and_then(operations.clone());
                async move { reader(&client).txn(transaction).await }
            })
            .await
    }

    /// Asks for the session's key.
    pub(crate) fn own(&self) -> TxnOp {
        let keys_only = GetOptions::new().with_keys_only();
        TxnOp::get(self.key.as_str(), Some(keys_only))
    }

    /// A linearizable look at the session's key and all below it; `None` if the key is gone.
    pub(crate) async fn read_key(&self, connection: &Connection) -> Result<Option<Own>, Error> {
        let options = GetOptions::new().with_range(session_end(&self.key));
        let mut read = connection
            .client
            .kv_client()
            .get(self.key.as_str(), Some(options))
            .await?;
        let header = read.take_header();
        let keys = read.take_kvs();
        let (own, marks): (Vec<_>, Vec<_>) = keys
            .into_iter()
            .partition(|key| key.key() == self.key.as_bytes());
        Ok((!own.is_empty()).then_some(Own { header, marks }))
    }

    /// The owner that a mark is on, if this is the key of one in this session.
    pub(crate) fn marked_owner(&self, key: &[u8]) -> Option<OwnerId> {
        marked_owner(&self.key, key)
    }
}

/// What a session finds of itself.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) header: Option<ResponseHeader>,
    /// The marks on what it holds, see [`breaking`](crate::breaking).
    pub(crate) marks: Vec<KeyValue>,
}
