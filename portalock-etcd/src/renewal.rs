//! Until when a session is certain, and its renewals.
//!
//! etcd's leader counts a lease's time from when it carried out the grant or the latest renewal. That was after the request
//! was sent, so `sent + time` on this machine's clock comes before the lease's end on the leader's, up to what two
//! clocks drift apart meanwhile; [`certain_for`] takes off more than that. A new leader counts every lease's whole time
//! anew, from later still. So the deadline kept here passes before etcd deletes a key, whatever is lost on the way, but
//! for one thing: a renewal is carried out by whoever takes itself for the leader, without asking the others. A leader
//! that was stopped, deposed meanwhile and then resumed may still answer a renewal that its successor knows nothing of.
//! Therefore each renewal is followed by a linearizable read through the same member, and counts only if the member was
//! in one and the same term from before the renewal was sent until after it was answered: a majority has then confirmed
//! that term's leader after it renewed, and a later leader began counting after that. One read in a third of the lease's
//! time is what this costs.

use std::{sync::Arc, time::Duration};

use etcd_client::Error;
use portalock_core::{BackendError, BackendErrorKind, Renewal, clock::Instant};

use crate::{
    breaking::heed,
    endpoints::Connection,
    error::{backend_error, session_gone, timed_out},
    places::Places,
    session::{Own, Session},
    witness::Witness,
};

/// What a failed renewal could not do.
const RENEWING: &str = "renew the lease";

impl Session {
    /// How often it is renewed.
    pub(crate) fn renewal_interval(&self) -> Duration {
        self.granted_time / 3
    }

    /// Renews the lease, at one member after the other.
    pub(crate) async fn renew(
        self: Arc<Self>,
        places: Arc<Places>,
    ) -> Result<Renewal, BackendError> {
        // Half of what the keeper allows: a member that hangs leaves time for another.
        let patience = (self.renewal_interval() / 2).min(self.endpoints.request_timeout());
        let start = Instant::now();
        loop {
            let connection = self.endpoints.connection(RENEWING, patience).await?;
            let sent = Instant::now();
            let answer =
                tokio::time::timeout(patience, self.renew_through(&connection, &places)).await;
            let error = match answer {
                Ok(Ok(Some(true))) => {
                    return Ok(Renewal::Renewed(
                        certain_for(self.granted_time) + sent.duration_since(start),
                    ));
                }
                // Between two terms: what was answered counts for nothing, but the next answer may.
                Ok(Ok(Some(false))) => continue,
                Ok(Ok(None)) => return Ok(Renewal::Gone(session_gone())),
                Ok(Err(error)) => backend_error(error, RENEWING),
                Err(_) => timed_out(RENEWING),
            };
            self.endpoints.fail(&connection);
            if error.kind() != BackendErrorKind::Unavailable || self.endpoints.len() == 1 {
                return Err(error);
            }
            tracing::debug!(%error, "a renewal failed at one member");
        }
    }

    /// One renewal through one member: whether it counts, or `None` if there is no such session any more.
    async fn renew_through(
        self: &Arc<Self>,
        connection: &Connection,
        places: &Arc<Places>,
    ) -> Result<Option<bool>, Error> {
        let renewed = connection
            .client
            .lease_client()
            .keep_alive(self.lease_id)
            .await;
        let Some(Own { header, marks }) = self.read_key(connection).await? else {
            return Ok(None);
        };
        // Before the lease is prolonged: see there.
        heed(self, places, marks);
        let counts = header.is_some_and(|header| self.witness.same(Witness::of(&header)));
        // A lease that the leader calls unknown while its key is still there is about to be deleted.
        renewed?;
        Ok(Some(counts))
    }
}

/// For how long a lease of this time is certain, from when it was asked for: a hundredth less, since two clocks don't run
/// at quite the same speed.
pub(crate) fn certain_for(time: Duration) -> Duration {
    time.saturating_sub(time / 100)
}
