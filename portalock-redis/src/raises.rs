//! Gives a session its next stamp, which makes its late requests void: see `session.rs`.
//!
//! Each raise also makes all attempts in flight stale, so they are sent again. After a reset of a busy client, hundreds of
//! places may be withdrawn, each of which needs a raise. If each had its own, attempts would be stale at every try, fail, and
//! need further raises. So those who ask while a raise is under way share the next one.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use portalock_core::{BackendError, session::SingleFlight};

use crate::session::{Session, forgotten};

/// The raises of one session.
#[derive(Debug, Default)]
pub(crate) struct Raises {
    flight: SingleFlight<Raised>,
    /// How many calls have asked for a raise. The number of a call is the count with it.
    asked: AtomicU64,
    /// The last call that a raise has served, and with it all calls before.
    served: AtomicU64,
}

/// The last call that had asked when a raise began, and its outcome. It serves no later call: a request of that one may have
/// been sent after the raise, and with the new stamp.
type Raised = (u64, Result<(), BackendError>);

impl Raises {
    /// Makes void all requests that the session has sent before this call. The session ends if the server has forgotten it.
    ///
    /// # Errors
    ///
    /// The error of the service.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call doesn't stop the raise, which may also serve other calls.
    pub(crate) async fn raise(&self, session: &Arc<Session>) -> Result<(), BackendError> {
        let own = self.asked.fetch_add(1, SeqCst) + 1;
        loop {
            let ready = || {
                let served = self.served.load(SeqCst);
                (served >= own).then_some((served, Ok(())))
            };
            let make = || raise(session.clone());
            let (served, raised) = self.flight.run(ready, make).await?;
            if served >= own {
                return raised;
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }
}

async fn raise(session: Arc<Session>) -> Result<Raised, BackendError> {
    let key = session.service();
    // Before the request is sent.
    let asked = key.raises.asked.load(SeqCst);
    let raised = key.server.raise(key).await.map(|stamp| match stamp {
        Some(stamp) => key.stamp_is(stamp),
        None => session.end(forgotten()),
    });
    if raised.is_ok() {
        key.raises.served.fetch_max(asked, SeqCst);
    }
    Ok((asked, raised))
}
