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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EtcdSettings,
        client::{Client, Server, Wish},
    };
    use portalock_core::{Attempt, LockName, Loss, Mode, Patience, Request};
    use portalock_testkit::servers::EtcdServer;
    use std::time::Duration;
    use tokio::{task::yield_now, time::sleep};

    /// A client whose next renewal is due in minutes.
    fn client(server: &EtcdServer) -> Client {
        let settings = EtcdSettings::new(server.endpoints()).unwrap();
        let settings = settings.with_lease_time(Duration::from_secs(600)).unwrap();
        let settings = settings.with_request_timeout(Duration::from_secs(60));
        Client::new(Arc::new(Server::new(settings.unwrap()).unwrap()))
    }

    fn is_heard(line: &Line) -> bool {
        line.listener.lock().unwrap().is_some()
    }

    /// The session's line once its stream is heard.
    async fn heard(session: &Session) -> Line {
        let line = loop {
            match session.connection() {
                Some(line) if is_heard(&line) => break line,
                _ => yield_now().await,
            }
        };
        // The renewal after the connect ends within this time. If it takes longer, it finds out what these tests look for.
        sleep(Duration::from_millis(300)).await;
        line
    }

    #[tokio::test]
    async fn a_session_whose_stream_is_silent_is_ended_by_its_next_look() {
        let server = EtcdServer::start().unwrap();
        let client = client(&server);
        let session = client.session().await.unwrap();
        // It still counts as open, but nobody reads its events.
        heard(&session).await.set_listener(None);
        let name = LockName::new("silent").unwrap();
        let request = Request::new(name, Mode::Exclusive, Patience::Queue);
        let wish = Wish::new(client.shared().keys.lock(&request), &request);
        let attempt = client.attempt(request.owner, &wish).await.unwrap();
        let Attempt::Granted(grant) = attempt else {
            panic!("{attempt:?}")
        };
        session.service().revoke().await.unwrap();
        let soon = Duration::from_secs(60);
        let loss = timeout(soon, grant.lost.lost()).await.unwrap();
        assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    }

    #[tokio::test]
    async fn a_new_stream_notices_that_the_session_has_ended_before_it() {
        let server = EtcdServer::start().unwrap();
        let client = client(&server);
        let session = client.session().await.unwrap();
        let line = heard(&session).await;
        line.close();
        assert!(!is_heard(&line) && !line.is_open());
        session.service().revoke().await.unwrap();
        let next = Line::new(line.connection.clone());
        next.listen(&session).await.unwrap();
        session.ensure_live().unwrap_err();
    }
}
