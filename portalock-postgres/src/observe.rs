//! Watches the exclusive holder of a name, for observers of elections.
//!
//! An observer is a row at the server. A transaction that changes the holder of the observed name also notifies the
//! observer's session, under the name's lock, so the messages come in the order of the changes. The first message is
//! the state when the row was written, and it comes in the same way. When the connection that receives the messages
//! breaks, the channels of all observers end, and each observer starts a new watch.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::select;
use portalock_core::{
    BackendError, Claim, ClaimKind, FencingToken, HolderSender, HolderWatch, LockName,
    holder_watch,
    session::{Session as _, spawn},
};
use tokio_postgres::types::Type;

use crate::{
    client::Client,
    connection::Connections,
    error::failed,
    keys::Kind,
    look::over,
    queue::token,
    record::decode,
    session::{Session, gone},
};

const OBSERVING: &str = "watch who holds a lock";

/// How long to wait before another try to remove an observer's row.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The observers of one session, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Observers {
    observers: Mutex<HashMap<i64, Observer>>,
    numbers: AtomicI64,
}

#[derive(Debug)]
struct Observer {
    sender: HolderSender,
    told: Told,
}

/// The last change that was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Nobody,
    Holder(FencingToken),
}

impl Observers {
    fn add(&self, sender: HolderSender) -> i64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let observer = Observer {
            sender,
            told: Told::Nothing,
        };
        self.lock().insert(number, observer);
        number
    }

    fn remove(&self, number: i64) {
        // Dropped when it is not locked, as below: that wakes the observer's task. The wake-up may drop the task, which calls this.
        let _ended = self.lock().remove(&number);
    }

    /// Ends all observers when the returned value is dropped.
    pub(crate) fn as_long_as_this_lives(&self) -> impl Drop {
        EndAll(self)
    }

    /// Ends all observers, because changes may have been missed.
    pub(crate) fn end_all(&self) {
        let _ended = std::mem::take(&mut *self.lock());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Processes a message: the observer's number and, if there is a holder, the owner, token, start time and holder.
    /// Returns the number if there is no such observer here.
    fn hear(&self, message: &str) -> Option<i64> {
        let mut parts = message.splitn(5, ' ');
        let number = parts.next()?.parse().ok()?;
        let mut observers = self.lock();
        let Some(observer) = observers.get_mut(&number) else {
            return Some(number);
        };
        let claim = match parts.next() {
            None => None,
            Some(owner) => {
                let Some(claim) = holding(owner, parts.next(), parts.next(), parts.next()) else {
                    // The message can't be read, so the observer must start a new watch.
                    drop(observers);
                    self.remove(number);
                    return None;
                };
                Some(claim)
            }
        };
        let token = claim.as_ref().and_then(|claim| claim.token);
        let now = token.map_or(Told::Nobody, Told::Holder);
        // A message contains the state, even if nothing has changed.
        if observer.told != now {
            observer.told = now;
            let sender = observer.sender.clone();
            drop(observers);
            sender.tell(claim);
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Observer>> {
        self.observers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct EndAll<'a>(&'a Observers);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

fn holding(
    owner: &str,
    number: Option<&str>,
    since: Option<&str>,
    who: Option<&str>,
) -> Option<Claim> {
    let holder = decode(who?, since?.parse().ok()?)?;
    let mut claim =
        Claim::new(holder, ClaimKind::Exclusive).with_token(token(number?.parse().ok()?));
    claim.owner = owner.parse().ok();
    Some(claim)
}

/// An observer's row. Dropping this removes the row.
struct Observing {
    session: Arc<Session>,
    number: i64,
}

impl Drop for Observing {
    fn drop(&mut self) {
        self.session.service().observers.remove(self.number);
        leave(&self.session, self.number);
    }
}

/// Processes a message about the holder of an observed name.
pub(crate) fn hear(session: &Arc<Session>, message: &str) {
    if let Some(number) = session.service().observers.hear(message) {
        // The row was written after its observer had been dropped, so nothing else would remove it.
        leave(session, number);
    }
}

/// Removes an observer's row, in the background. Each change would cost a message as long as the row exists.
fn leave(session: &Arc<Session>, number: i64) {
    let session = session.clone();
    let leaving = spawn(async move {
        let ended = session.lease().signal();
        // The end of the session removes the row too.
        select(pin!(stop_observing(&session, number)), pin!(ended.lost())).await;
    });
    if let Ok(leaving) = leaving {
        leaving.detach();
    }
}

/// Watches the holder of `name`, from now on.
pub(crate) async fn observe(client: &Client, name: &LockName) -> Result<HolderWatch, BackendError> {
    let session = client.session().await?;
    let row = session.service();
    let (sender, watch) = holder_watch();
    let number = row.observers.add(sender);
    let observing = Observing {
        session: session.clone(),
        number,
    };
    // If the session has ended, it has ended its observers before this one was added.
    session.ensure_live()?;
    let connections = &client.shared().connections;
    let reconnects = session.places().reconnects();
    let observes = connections.observe(&row.id, number, name).await?;
    // Otherwise this may be the answer of a server that the session has left meanwhile. That has also ended this watch.
    if !observes && session.places().reconnects() == reconnects {
        session.end(gone());
        session.ensure_live()?;
    }
    // To find a holder that has died, if nobody waits behind it.
    session.look_within(row.settings().lease_time / 3);
    Ok(watch.with_subscription(observing))
}

impl Connections {
    async fn observe(
        &self,
        session: &str,
        number: i64,
        name: &LockName,
    ) -> Result<bool, BackendError> {
        let kind = Kind::Lock.as_str();
        let answer = self
            .call(OBSERVING, |connection| async move {
                connection
                    .query(
                        "SELECT portalock.observe($1, $2, $3, $4)",
                        &[
                            (&session, Type::TEXT),
                            (&number, Type::INT8),
                            (&kind, Type::TEXT),
                            (&name.as_str(), Type::TEXT),
                        ],
                    )
                    .await
            })
            .await?;
        let observes = answer.value.first().map_or(Ok(false), |row| row.try_get(0));
        observes.map_err(|error| failed(OBSERVING, error))
    }
}

async fn stop_observing(session: &Session, number: i64) {
    // Observers end and start again exactly when there is no connection, so the first tries may fail.
    while !over(session, async |line| {
        line.query(
            "SELECT portalock.stop_observing($1, $2)",
            &[(&&*session.service().id, Type::TEXT), (&number, Type::INT8)],
        )
        .await
        .map(drop)
    })
    .await
    {
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        task::{Context, Wake, Waker},
    };

    use super::*;

    /// Some executors drop a task in its wake-up, if they have ended.
    struct DroppedWhenWoken(Mutex<Option<HolderTask>>);

    type HolderTask = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

    impl Wake for DroppedWhenWoken {
        fn wake(self: Arc<Self>) {
            let task = self.0.lock().unwrap().take();
            drop(task);
        }
    }

    /// As [`Observing`].
    struct Removes(Arc<Observers>, i64);

    impl Drop for Removes {
        fn drop(&mut self) {
            self.0.remove(self.1);
        }
    }

    #[test]
    fn an_observer_may_be_dropped_by_its_wake_up() {
        let news: [fn(&Observers); 3] = [
            |observers| {
                observers.hear("0");
            },
            |observers| {
                observers.hear("0 not to be read");
            },
            Observers::end_all,
        ];
        for news in news {
            let observers = Arc::new(Observers::default());
            let (sender, watch) = holder_watch();
            let number = observers.add(sender);
            let mut watch = watch.with_subscription(Removes(observers.clone(), number));
            let mut task: HolderTask = Box::pin(async move { drop(watch.next().await) });
            let dropped = Arc::new(DroppedWhenWoken(Mutex::default()));
            let waker = Waker::from(dropped.clone());
            let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            *dropped.0.lock().unwrap() = Some(task);
            let (told, is_told) = mpsc::channel();
            let told_of = observers.clone();
            std::thread::spawn(move || {
                news(&told_of);
                told.send(())
            });
            assert_eq!(is_told.recv_timeout(Duration::from_secs(30)), Ok(()));
            assert!(dropped.0.lock().unwrap().is_none());
            assert!(observers.is_empty());
        }
    }
}
