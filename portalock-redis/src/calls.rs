//! The calls of one connection: requests that come while others are in flight are gathered, and sent as one script.
//!
//! To call a script takes the server a multiple of what a usual attempt or release takes inside it, and each call takes
//! the client a timer, a message to the task of the connection and a wake-up. So an attempt or a release that finds two
//! others in flight is sent in a [`Batch`]: a task sends it when those tasks have run that the last answers woke. Any other
//! request is sent at once, by itself.
//!
//! On a runtime of one thread, batches take turns: the answers of one are given out when the requests that followed the one
//! before are sent. Otherwise the client and the server would mostly wait for each other. Answers that come together wake many
//! tasks, the connection's task runs only after all of them, so their requests are sent together too; and the server
//! replies to what it has read together when all of it is done.
//!
//! - Each request of a batch has the effect of its own script, at that moment. An attempt carries the stamp that its caller
//!   knew when it asked, so an attempt that is sent after its withdrawal is refused: see `session.rs`.
//! - The task that sends a batch serves all its callers, so a caller that is dropped takes nothing from the others.
//! - A request without an answer is sent again by its caller, by itself: if the connection breaks; if the request fails in
//!   the script, so that the caller gets the error of its own request; and if the runtime ends.
//! - A request whose answer takes longer than the response timeout fails, as one that was sent by itself: the task may stand behind
//!   another one that computes.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use redis::aio::MultiplexedConnection;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
    task::yield_now,
};

use crate::{
    batch::{Answer, Batch},
    connection::Call,
    route::Route,
};

/// The largest batch. With several smaller ones the server works while the client reads answers, and other clients wait
/// less.
const AT_ONCE: usize = 32;

/// How many other calls in flight make a request wait for company. A script for two requests takes the server as long as two.
const COMPANY: usize = 2;

/// The calls of one connection.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    in_flight: AtomicUsize,
    gathered: Mutex<Gathered>,
    /// Held by the batch whose answers are given out, where batches take turns.
    turns: tokio::sync::Mutex<()>,
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

    /// Adds a request to the next batch, which a task on `runtime` sends. `None` if it must be sent by itself.
    pub(crate) fn gather(
        self: &Arc<Self>,
        call: Call<'_>,
        route: &Arc<Route>,
        connection: &MultiplexedConnection,
        runtime: &Handle,
    ) -> Option<oneshot::Receiver<Answer>> {
        let mut gathered = self.lock();
        let answered = gathered.batch.add(call)?;
        let full = (gathered.batch.len() == AT_ONCE).then(|| std::mem::take(&mut gathered.batch));
        let is_due = full.is_some() || std::mem::replace(&mut gathered.is_due, true);
        // A runtime that has ended drops a new task at once, which takes the lock.
        drop(gathered);
        if let Some(batch) = full {
            runtime.spawn(self.clone().serve(batch, route.clone(), connection.clone()));
        } else if !is_due {
            let due = Due(Some(self.clone()));
            let (calls, route, connection) = (self.clone(), route.clone(), connection.clone());
            runtime.spawn(async move {
                yield_now().await;
                calls.serve(due.take(), route, connection).await;
            });
        }
        Some(answered)
    }

    /// Sends a batch and gives out its answers. Where batches take turns, the next one's answers are given out when the
    /// tasks that these answers woke have run, and the connection has sent their requests.
    async fn serve(
        self: Arc<Self>,
        batch: Batch,
        route: Arc<Route>,
        connection: MultiplexedConnection,
    ) {
        let answered = batch.send(&route, connection).await;
        if !is_on_one_thread() {
            return answered.give_out();
        }
        let _turn = self.turns.lock().await;
        answered.give_out();
        yield_now().await;
    }

    #[cfg(test)]
    pub(crate) fn is_gathering(&self) -> bool {
        self.lock().is_due
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // No code panics while it holds the lock.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_on_one_thread() -> bool {
    Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::CurrentThread)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_company_while_two_others_are_in_flight() {
        let calls = Calls::default();
        let (one, two) = (calls.begin(), calls.begin());
        assert!(!one.has_company && !two.has_company);
        assert!(calls.begin().has_company);
        drop(one);
        assert!(!calls.begin().has_company);
    }
}
