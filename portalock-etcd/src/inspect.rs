//! Inspection of a queue: the order of its keys determines the holders and the waiters.

use std::sync::Arc;

use etcd_client::{GetOptions, GetResponse, KeyValue, SortOrder, SortTarget};
use portalock_core::{BackendError, Claim, ClaimKind, Inspection, LockName};

use crate::{
    client::Server,
    endpoints::reader,
    keys::{kind_in, weight_in},
    record::{decode, foreign, token},
};

/// How many keys [`Server::names`] reads at once, so that an answer has at most a few megabytes.
const PAGE: i64 = 5_000;

impl Server {
    /// Reads a queue, in its order.
    pub(crate) async fn read_queue(
        &self,
        doing: &'static str,
        queue: &str,
    ) -> Result<GetResponse, BackendError> {
        let read = |client: Arc<_>| async move {
            let options = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Create, SortOrder::Ascend);
            reader(&client).get(queue, Some(options)).await
        };
        self.endpoints.call(doing, read).await.value
    }

    /// The holders and the waiters of the queue.
    pub(crate) async fn inspect(&self, queue: &str) -> Result<Inspection, BackendError> {
        let found = self.read_queue("look at the queue", queue).await?;
        let (mut holders, mut waiters) = (Vec::new(), Vec::new());
        let mut last_token = None;
        for claimed in in_order(queue, found.kvs()) {
            let (key, claim, holds) = claimed?;
            if holds {
                let token = token(key.create_revision());
                holders.push(claim.with_token(token));
                last_token = Some(token);
            } else {
                waiters.push(claim);
            }
        }
        Ok(Inspection::new(holders, waiters).with_last_token(last_token))
    }

    /// The names of the locks that have holders or waiters.
    pub(crate) async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let locks = self.keys.locks();
        // The end of the range: `0` is the character after the slash.
        let end = format!("{}0", locks.trim_end_matches('/'));
        let mut names: Vec<LockName> = Vec::new();
        let mut from = locks.into_bytes();
        loop {
            let read = |client: Arc<_>| {
                let (from, end) = (from.clone(), end.clone());
                async move {
                    let options = GetOptions::new()
                        .with_range(end)
                        .with_keys_only()
                        .with_limit(PAGE);
                    reader(&client).get(from, Some(options)).await
                }
            };
            let page = self.endpoints.call("list the locks", read).await.value?;
            names.extend(
                page.kvs()
                    .iter()
                    .filter_map(|key| self.keys.name_of_lock(key.key())),
            );
            // The keys of one name are adjacent.
            names.dedup();
            match page.kvs().last() {
                Some(last) if page.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => break,
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// The claims in a queue, and whether each of them holds.
pub(crate) fn in_order<'a>(
    queue: &'a str,
    keys: &'a [KeyValue],
) -> impl Iterator<Item = Result<(&'a KeyValue, Claim, bool), BackendError>> {
    let mut order = Order::default();
    keys.iter().map(move |key| {
        let claim = claim(queue, key)?;
        let holds = order.admits(queue, key, claim.kind);
        Ok((key, claim, holds))
    })
}

pub(crate) fn claim(queue: &str, key: &KeyValue) -> Result<Claim, BackendError> {
    let kind = kind_in(queue, key.key()).ok_or_else(|| foreign(key.key()))?;
    let record = decode(key.value()).ok_or_else(|| foreign(key.key()))?;
    let mut claim = Claim::new(record.holder, kind);
    claim.owner = record.owner;
    Ok(claim)
}

/// Finds the holders of a queue from its order alone.
#[derive(Debug, Default)]
struct Order {
    /// There was an earlier claim.
    any: bool,
    /// No later claim holds.
    full: bool,
    permits: u64,
    capacity: Option<u32>,
}

impl Order {
    /// Whether the next claim in the queue holds too.
    fn admits(&mut self, queue: &str, key: &KeyValue, kind: ClaimKind) -> bool {
        let fits = match kind {
            ClaimKind::Shared => true,
            ClaimKind::Permits(count) => {
                let own = weight_in(queue, key.key()).map_or(count, |weight| weight.capacity);
                let capacity = self.capacity.map_or(own, |least| least.min(own));
                self.capacity = Some(capacity);
                self.permits += u64::from(count);
                self.permits <= u64::from(capacity)
            }
            _ => !self.any,
        };
        let admitted = fits && !self.full;
        self.any = true;
        self.full |= !admitted || kind == ClaimKind::Exclusive;
        admitted
    }
}
