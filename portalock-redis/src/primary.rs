//! A server that has just become the primary grants nothing at first.
//!
//! It may lack earlier grants: see `primary.lua`. An earlier holder keeps its lease for the session's time at most,
//! unless its session is resumed at this server; then it learns which locks are missing. So after that time, no client
//! relies on a lock that this server doesn't know of.
//!
//! Only connections that can grant locks wait: connections of calls, and new sessions. A session that the server still
//! knows continues at once.
//!
//! Behind sentinels and in a cluster, a former primary may still run and refresh sessions until their clients see the
//! switch. Clients check three times in a session's time, and wait for an answer for half of that interval. A refresh
//! counts only after such a check, because a client can be paused for longer. So the wait is longer by half there.
//!
//! In a cluster each tag has its own key for this, which moves with its slot. The key says since when the previous node
//! was the primary, so that a move can't shorten the rest of a wait. When a slot comes to a node that was ever
//! promoted, the node counts as promoted at that moment: no data in the slot shows that it came by a move.
//!
//! # Why the session's time is enough where replicas confirm
//!
//! With [`wait_replicas`](crate::RedisSettings::with_wait_replicas), only a refresh that this number of replicas have
//! extends a session's time, and the wait here starts when this number of replicas follow the new primary. Take a
//! primary and the replicas that confirm its writes as one set. If the number is at least half of the replicas, any two
//! such sets share a server. So when the new primary has its replicas, the old primary has lost the last replica that
//! could confirm. From then on it extends no session, even if it still believes to be the primary. It would again if that
//! replica came back to it, and would not wait: `docs/guarantees.md` excludes this.

use std::time::Duration;

use portalock_core::BackendError;
use redis::aio::MultiplexedConnection;

use crate::{
    error::{failed, unexpected},
    record::text,
    replicas::replicated,
    route::Route,
    scripts::PRIMARY,
};

/// Returns when the server may grant locks: at once if it has been the primary for long enough.
pub(crate) async fn may_grant(
    connection: &mut MultiplexedConnection,
    route: &Route,
) -> Result<(), BackendError> {
    const WHAT: &str = "ask Redis since when it is the primary";
    let settings = route.settings();
    let mut wait = settings.restart_wait();
    if wait.is_zero() {
        return Ok(());
    }
    if route.is_followed() && settings.wait_replicas() == 0 {
        // The former primary may have refreshed sessions for this time, until their clients saw the switch.
        wait = wait.saturating_add(wait / 2);
    }
    let key = format!("{}/primary", route.prefix());
    let wait = wait.as_millis().to_string();
    let confirms = settings.wait_replicas() > 0;
    let (mut confirmed, mut told) = (!confirms, false);
    loop {
        let arguments = [&*wait, if confirmed { "1" } else { "0" }];
        let answer = PRIMARY
            .run_in(route.tag(), connection, &[&key], &arguments)
            .await
            .map_err(|error| failed(WHAT, error))?;
        match text(&answer).ok_or_else(|| unexpected(WHAT))? {
            "unconfirmed" if !confirmed => {
                replicated(connection, settings).await?;
                confirmed = true;
            }
            left => {
                let left = left.parse().map_err(|_| unexpected(WHAT))?;
                if left == 0 {
                    return Ok(());
                }
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        left,
                        "Redis has just started or been promoted: locks are granted once all earlier holders know what they have lost"
                    );
                }
                // If another server becomes the primary meanwhile, its wait begins when a client asks it.
                tokio::time::sleep(settings.look_interval().min(Duration::from_millis(left))).await;
                confirmed = !confirms;
            }
        }
    }
}
