//! The calls of one connection: requests that come while others are in flight are gathered, and sent as one script.
//!
//! To call a script takes the server a multiple of what a usual attempt or release takes inside it, and each call takes
//! the client a timer, a message to the task of the connection and a wake-up. So an attempt or a release that finds two
//! others in flight is sent in a [`Batch`]: a task sends it when those tasks have run that the last answers woke. Any other
//! request is sent at once, by itself.
//!
//! - Each request of a batch has the effect of its own script, at that moment. An attempt carries the stamp that its caller
//!   knew when it asked, so an attempt that is sent after its withdrawal is refused: see `session.rs`.
//! - The task that sends a batch serves all its callers, so a caller that is dropped takes nothing from the others.
//! - A request without an answer is sent again by its caller, by itself: if the connection breaks; if the request fails in
//!   the script, so that the caller gets the error of its own request; and if the runtime ends.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use redis::aio::MultiplexedConnection;
use tokio::{runtime::Handle, sync::oneshot, task::yield_now};

use crate::{
    batch::{Answer, Batch},
    connection::Call,
    route::Route,
};

/// The largest batch. With several smaller ones the server works while the client reads answers, and other clients wait
/// less.
const AT_ONCE: usize = 16;

/// How many other calls in flight make a request wait for company. A script for two requests takes the server as long as two.
const COMPANY: usize = 2;

/// The calls of one connection.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    in_flight: AtomicUsize,
    gathered: Mutex<Gathered>,
}

/// A call that is in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight<'c> {
    calls: &'c AtomicUsize,
    /// Whether enough other calls were in flight when it began.
    pub(crate) has_company: bool,
}

#[derive(Debug, Default)]
struct Gathered {
    batch: Batch,
    /// Whether a task will send the batch.
    is_due: bool,
}

/// The task that sends what has been gathered. If its runtime ends before that, the callers get no answer.
struct Due(Option<Arc<Calls>>);

impl Calls {
    /// Counts a call.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        InFlight {
            has_company: self.in_flight.fetch_add(1, Ordering::Relaxed) >= COMPANY,
            calls: &self.in_flight,
        }
    }

    /// Adds a request to the next batch. `None` if it must be sent by itself.
    pub(crate) fn gather(
        self: &Arc<Self>,
        call: Call<'_>,
        route: &Arc<Route>,
        connection: &MultiplexedConnection,
    ) -> Option<oneshot::Receiver<Answer>> {
        let runtime = Handle::try_current().ok()?;
        let mut gathered = self.lock();
        let answered = gathered.batch.add(call)?;
        let full = (gathered.batch.len() == AT_ONCE).then(|| std::mem::take(&mut gathered.batch));
        let is_due = full.is_some() || std::mem::replace(&mut gathered.is_due, true);
        // A runtime that has ended drops a new task at once, which takes the lock.
        drop(gathered);
        let (route, connection) = (route.clone(), connection.clone());
        if let Some(batch) = full {
            runtime.spawn(batch.send(route, connection));
        } else if !is_due {
            let due = Due(Some(self.clone()));
            runtime.spawn(async move {
                yield_now().await;
                due.take().send(route, connection).await;
            });
        }
        Some(answered)
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // No code panics while it holds the lock.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Due {
    fn take(mut self) -> Batch {
        self.end().batch
    }

    fn end(&mut self) -> Gathered {
        let calls = self.0.take();
        calls.map_or_else(Gathered::default, |calls| {
            std::mem::take(&mut *calls.lock())
        })
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.end();
    }
}
