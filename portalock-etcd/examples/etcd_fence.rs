//! etcd itself refuses a write that arrives too late: the lock is a condition of the transaction.
//!
//! Run it against your own etcd: `cargo run -p portalock-etcd --example etcd_fence -- 127.0.0.1:2379`

use std::error::Error;

use portalock_core::Lock;
use portalock_etcd::{
    EtcdBackend, Fence,
    etcd_client::{Client, Txn, TxnOp},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:2379".to_owned());
    for line in run(&endpoint).await? {
        println!("{line}");
    }
    Ok(())
}

/// Two holders of one lock. The first one writes once more after it has lost the lock.
pub(crate) async fn run(endpoint: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let store = Client::connect([endpoint], None).await?;
    let (slow, quick) = (
        EtcdBackend::connect(endpoint).await?,
        EtcdBackend::connect(endpoint).await?,
    );
    let mut seen = Vec::new();

    let guard = Lock::new(slow.clone(), "ledger")?.acquire().await?;
    let fence = slow.fence(guard.owner()).ok_or("not held")?;
    let written = write(&store, &fence, "slow: opening balance").await?;
    seen.push(format!("slow holds, its write was taken: {written}"));

    // Its session ends, as if the process had been stopped for longer than its lease. It still has its fence.
    slow.close().await?;

    let next = Lock::new(quick.clone(), "ledger")?.acquire().await?;
    let newer = quick.fence(next.owner()).ok_or("not held")?;
    let written = write(&store, &newer, "quick: corrected balance").await?;
    seen.push(format!("quick holds, its write was taken: {written}"));

    // It resumes, and writes without checking its lock.
    let written = write(&store, &fence, "slow: stale balance").await?;
    seen.push(format!(
        "slow wrote too late, its write was taken: {written}"
    ));

    next.release().await?;
    Ok(seen)
}

/// Writes if the lock of `fence` is still held. This is one transaction, so nothing can happen between the check and
/// the write.
async fn write(store: &Client, fence: &Fence, line: &str) -> Result<bool, Box<dyn Error>> {
    let transaction =
        Txn::new()
            .when([fence.compare()])
            .and_then([TxnOp::put("ledger/latest", line, None)]);
    Ok(store.kv_client().txn(transaction).await?.succeeded())
}
