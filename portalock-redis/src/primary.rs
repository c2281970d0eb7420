//! A server that has just become the primary grants nothing at first.
//!
//! It may not know what was granted before: see `primary.lua`. Whoever held then keeps its lease for the session's time at most, unless
//! its session is taken up here, where it learns what is missing. So after that time nobody believes to hold what this
//! server doesn't know of.
//!
//! Only what can grant waits: connections of calls, and new sessions. A session that the server still knows goes on at once.
//!
//! Behind sentinels and in a cluster a former primary may go on, and refresh sessions until their clients see the switch: they look three
//! times in a session's time, and have half as long for an answer. So the wait is longer by half there.
//!
//! In a cluster each tag has a key of its own for this, which goes with its slot from node to node. It tells since when the node before was
//! the primary, so that a move can't cut short what is left of a wait. A node that was ever promoted counts as promoted just now when a slot
//! comes to it: nothing that is kept with the slot tells that it came by a move.
//!
//! # Why the session's time is enough where replicas confirm
//!
//! With [`wait_replicas`](crate::RedisSettings::with_wait_replicas) a session's time is extended only by refreshes that so many
//! replicas have, and the time here begins when so many follow the new primary. If that is at least half of the replicas, either
//! two sets of servers, a primary and those that confirm, have one in common. So when the new primary has its replicas, the old one
//! has lost the last of its own that could confirm, and extends nobody's session from then on, whatever it believes to be.

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

/// Returns when the server at the other end may grant. At once if it has been the primary for long enough.
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
        // So long may the one before have gone on to refresh sessions, until their clients had seen the switch.
        wait = wait.saturating_add(wait / 2);
    }
    let key = format!("{}/primary", route.prefix());
    let wait = wait.as_millis().to_string();
    let mut confirmed = settings.wait_replicas() == 0;
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
                if left > 0 {
                    tracing::info!(
                        left,
                        "Redis has just started or been promoted: locks are granted once all earlier holders know what they have lost"
                    );
                    tokio::time::sleep(Duration::from_millis(left)).await;
                }
                return Ok(());
            }
        }
    }
}
