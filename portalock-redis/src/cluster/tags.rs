//! All clients of a cluster and prefix must use the same number of tags. Otherwise two clients would look for one lock
//! in two slots, and both could be granted it.
//!
//! So the number is stored in the cluster. The first client writes it, and each client compares its own number before
//! it does anything else. The key has no time to live: running clients rely on it.

use std::time::Duration;

use portalock_core::{BackendError, BackendErrorKind, clock::Instant};

use super::moving::Nodes;
use crate::{config::RedisSettings, connect::connect, route::Route};

const AGREEING: &str = "compare the number of tags with what lies in the Redis cluster";
const PAUSE: Duration = Duration::from_millis(50);

/// Returns when this client's number is known to be the same as that of all clients. `route` leads to the keys that all
/// clients share.
pub(crate) async fn agree(route: Route) -> Result<(), BackendError> {
    let settings = route.settings();
    let begun = Instant::now();
    loop {
        match compare(&route, settings).await {
            // The node that has the key may be changing.
            Err(error)
                if error.kind() == BackendErrorKind::Unavailable
                    && begun.elapsed() < settings.patience() =>
            {
                tracing::debug!(%error, "the number of tags is compared again");
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn compare(route: &Route, settings: &RedisSettings) -> Result<(), BackendError> {
    let ours = settings.cluster_tags();
    let key = format!("{}/tags", route.prefix());
    let place = route.find().await?;
    let mut connection = connect(route, &place, |_| Ok::<(), ()>(())).await?;
    // The slot may be moving, for hours: running clients need nothing in it.
    let mut nodes = Nodes::new(route, &mut connection, AGREEING);
    let mut set = redis::cmd("SET");
    nodes.ask::<bool>(set.arg(&key).arg(ours).arg("NX")).await?;
    let theirs: u16 = nodes.ask(redis::cmd("GET").arg(&key)).await?;
    if theirs == ours {
        return Ok(());
    }
    Err(BackendError::new(
        BackendErrorKind::Misconfigured,
        format!(
            "`cluster_tags` is {ours}, but the locks of this Redis cluster are shared out to {theirs} tags: with two numbers one \
             lock would have two holders. To change it, end all programs that use it and delete the key {key}"
        ),
    ))
}
