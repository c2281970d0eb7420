//! A lock as a condition of the user's own transaction: etcd itself refuses the write of a former holder.

use etcd_client::{Compare, CompareOp};

/// The key of a held lock, and the revision at which it was created.
///
/// The key exists with this revision for exactly as long as the lock is held. A transaction in the same etcd that
/// compares the two can't take effect after the lock was released or lost, however late it arrives. No check before a
/// write can guarantee that.
///
/// ```no_run
/// use etcd_client::{Client, Txn, TxnOp};
/// use portalock_core::Lock;
/// use portalock_etcd::EtcdBackend;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backend = EtcdBackend::connect("127.0.0.1:2379").await?;
/// let guard = Lock::new(backend.clone(), "billing")?.acquire().await?;
/// let fence = backend.fence(guard.owner()).ok_or("the lock is not held")?;
///
/// let client = Client::connect(["127.0.0.1:2379"], None).await?;
/// let write = Txn::new()
///     .when([fence.compare()])
///     .and_then([TxnOp::put("billing/last-run", "2026-11-23", None)]);
/// let written = client.kv_client().txn(write).await?.succeeded();
/// assert!(written, "the lock was lost: nothing was written");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fence {
    /// The key.
    pub key: String,
    /// The key's create revision, which is the grant's fencing token.
    pub revision: i64,
}

impl Fence {
    /// The condition "the lock is still held", for your own transactions.
    pub fn compare(&self) -> Compare {
        Compare::create_revision(self.key.as_str(), CompareOp::Equal, self.revision)
    }
}
