//! A session's connection: to one member, with the watch stream that reports the changes its waiters need.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use etcd_client::{Error, WatchFilterType, WatchOptions, WatchRequestSender, WatchResponseStream};
use portalock_core::{
    BackendError,
    session::{Task, spawn},
};
use tokio::time::timeout;

use crate::{
    blockers::Watched,
    endpoints::Connection,
    error::{backend_error, timed_out},
    keys::session_end,
    session::{Session, gone},
    watch::{Order, Verdict, Watches},
};

const WATCHING: &str = "watch";

/// A connection to one member, and its watch stream, if there is one.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) connection: Connection,
    is_open: Arc<AtomicBool>,
    listener: Arc<Mutex<Option<Task>>>,
}

impl Line {
    pub(crate) fn new(connection: Connection) -> Self {
        Self {
            connection,
            is_open: Arc::default(),
            listener: Arc::default(),
        }
    }

    /// Whether the stream is open.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Records that the stream has ended.
    pub(crate) fn close(&self) {
        self.is_open.store(false, Ordering::Release);
        self.set_listener(None);
    }

    /// Opens the watch stream, and serves it in the background until it ends.
    pub(crate) async fn listen(&self, session: &Arc<Session>) -> Result<(), BackendError> {
        let lease = session.service();
        let options = WatchOptions::new()
            .with_watch_id(Watches::SESSION_ID)
            .with_range(session_end(lease.key()));
        let open = async {
            let mut watching = self.connection.client.watch_client();
            let stream = watching.watch(lease.key(), Some(options)).await?;
            // No event reports what happened to the session before the stream, or between two streams.
            let key = lease.read_key(&self.connection).await?;
            Ok((stream, key))
        };
        let opened = timeout(lease.patience(), open).await;
        let (stream, key) = opened
            .map_err(|_| timed_out(WATCHING))?
            .map_err(|error| backend_error(error, WATCHING))?;
        if key.is_none() {
            session.end(gone());
        }
        let (mut orders, mut responses) = stream.split();
        let (watches, server) = (lease.watches.clone(), lease.server.clone());
        let (connection, is_open) = (self.connection.clone(), self.is_open.clone());
        let hearer = Arc::downgrade(session);
        watches.start_over();
        is_open.store(true, Ordering::Release);
        let listener = spawn(async move {
            // Reads and writes run concurrently: if each side only wrote and did not read, many orders could block
            // both.
            let ended = tokio::select! {
                heard = hear(&hearer, &mut responses) => heard.err(),
                error = order(&watches, &mut orders) => Some(error),
                () = server.endpoints.moved_from(&connection) => None,
            };
            tracing::debug!(?ended, "the watch stream ended");
            is_open.store(false, Ordering::Release);
            server.endpoints.fail(&connection);
            if let Some(session) = hearer.upgrade() {
                session.connection_ended();
            }
        })?;
        self.set_listener(Some(listener));
        Ok(())
    }

    fn set_listener(&self, listener: Option<Task>) {
        // No code panics while the lock is held.
        let mut held = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        *held = listener;
    }
}

/// Sends the orders for the stream.
async fn order(watches: &Watches, stream: &mut WatchRequestSender) -> Error {
    loop {
        for order in watches.take_orders() {
            let sent = match order {
                Order::Begin(id, what) => {
                    let (key, options) = watch_options(id, what);
                    stream.watch(key, Some(options)).await
                }
                Order::Cancel(id) => stream.cancel(id).await,
            };
            if let Err(error) = sent {
                return error;
            }
        }
        watches.ordered.notified().await;
    }
}

/// Processes the server's messages, until the stream fails.
async fn hear(session: &Weak<Session>, responses: &mut WatchResponseStream) -> Result<(), Error> {
    while let Some(response) = responses.message().await? {
        let Some(session) = session.upgrade() else {
            return Ok(());
        };
        let lease = session.service();
        match lease.watches.hear(&response, lease.key()) {
            Verdict::GoOn(woken) => {
                for owner in woken {
                    session.places().wake(owner);
                }
            }
            Verdict::Marked => session.renew_now(),
            Verdict::SessionGone => session.end(gone()),
            Verdict::Refused => return Ok(()),
        }
    }
    Ok(())
}

fn watch_options(id: i64, what: Watched) -> (String, WatchOptions) {
    let options = WatchOptions::new()
        .with_watch_id(id)
        .with_filters([WatchFilterType::NoPut]);
    match what {
        Watched::Key(key) => (key, options),
        Watched::Queue(queue) => (queue, options.with_prefix()),
    }
}
