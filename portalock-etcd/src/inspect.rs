//! A look at a queue: who holds and who waits follows from its order.

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget};
use portalock_core::{BackendError, Claim, ClaimKind, Inspection};

use crate::{
    endpoints::{Endpoints, reader},
    keys::{kind_in, weight_in},
    record::{decode, decode_owner, foreign, token},
};

/// Who holds and who waits in the queue.
pub(crate) async fn inspect(
    endpoints: &Endpoints,
    queue: String,
) -> Result<Inspection, BackendError> {
    let found = endpoints
        .call("look at the queue", |client| {
            let queue = queue.clone();
            async move {
                let options = GetOptions::new()
                    .with_prefix()
                    .with_sort(SortTarget::Create, SortOrder::Ascend);
                reader(&client).get(queue, Some(options)).await
            }
        })
        .await?;
    let mut order = Order::default();
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    let mut last_token = None;
    for key in found.kvs() {
        let claim = claim(&queue, key)?;
        if order.admits(&queue, key, claim.kind) {
            let token = token(key.create_revision());
            holders.push(claim.with_token(token));
            last_token = Some(token);
        } else {
            waiters.push(claim);
        }
    }
    Ok(Inspection::new(holders, waiters).with_last_token(last_token))
}

pub(crate) fn claim(queue: &str, key: &KeyValue) -> Result<Claim, BackendError> {
    let kind = kind_in(queue, key.key()).ok_or_else(|| foreign(key.key()))?;
    let holder = decode(key.value()).ok_or_else(|| foreign(key.key()))?;
    let claim = Claim::new(holder, kind);
    Ok(match decode_owner(key.value()) {
        Some(owner) => claim.with_owner(owner),
        None => claim,
    })
}

/// Who of a queue holds, told from its order alone.
#[derive(Debug, Default)]
pub(crate) struct Order {
    first: Option<ClaimKind>,
    full: bool,
    permits: u64,
    capacity: Option<u32>,
}

impl Order {
    /// Whether the next in the queue holds too.
    pub(crate) fn admits(&mut self, queue: &str, key: &KeyValue, kind: ClaimKind) -> bool {
        let first = *self.first.get_or_insert(kind);
        let alone = self.permits == 0;
        let admitted = !self.full
            && match kind {
                ClaimKind::Shared => first == ClaimKind::Shared,
                ClaimKind::Permits(count) => {
                    let own = weight_in(queue, key.key()).map_or(count, |weight| weight.capacity);
                    let capacity = self.capacity.map_or(own, |least| least.min(own));
                    self.capacity = Some(capacity);
                    self.permits + u64::from(count) <= u64::from(capacity)
                }
                _ => alone,
            };
        self.permits += match kind {
            ClaimKind::Permits(count) => u64::from(count),
            _ => 1,
        };
        self.full |= !admitted;
        admitted
    }
}
