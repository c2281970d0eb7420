//! The session's watch stream: opened, served, and opened anew when it ends.

use std::{convert::Infallible, time::Duration};

use etcd_client::{Error, WatchFilterType, WatchOptions, WatchRequestSender, WatchResponseStream};
use portalock_core::clock::Instant;

use crate::{
    blockers::Watched,
    endpoints::Connection,
    keys::session_end,
    session::Session,
    watch::{Order, Verdict, Watches},
};

/// How long to wait before a broken stream is opened again; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Session {
    /// Keeps a watch stream open, for as long as it is polled.
    pub(crate) async fn watch(&self) -> Infallible {
        let mut pause = FIRST_PAUSE;
        loop {
            let opened = Instant::now();
            let within = self.endpoints.request_timeout();
            if let Ok(connection) = self.endpoints.connection("watch", within).await {
                let ended = tokio::select! {
                    ended = self.stream(&connection) => Some(ended),
                    () = self.endpoints.moved_from(&connection) => None,
                };
                match ended {
                    // Nothing here uses the former member any more.
                    None => self.endpoints.fail(&connection),
                    Some(Ok(Verdict::SessionGone)) => self.end_gone(),
                    Some(ended) => {
                        tracing::debug!(?ended, "the watch stream ended");
                        self.endpoints.fail(&connection);
                    }
                }
            }
            if opened.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Opens a watch stream and serves it until it ends.
    async fn stream(&self, connection: &Connection) -> Result<Verdict, Error> {
        let options = WatchOptions::new()
            .with_watch_id(Watches::SESSION_ID)
            .with_range(session_end(&self.key));
        let open = async {
            let stream = connection
                .client
                .watch_client()
                .watch(self.key.as_str(), Some(options))
                .await?;
            // What happened to the session before, or between two streams, no event will tell.
            let key = self.read_key(connection).await?;
            Ok::<_, Error>((stream, key))
        };
        let Ok(opened) = tokio::time::timeout(self.endpoints.request_timeout(), open).await else {
            return Err(Error::WatchError("not opened in time".to_owned()));
        };
        let (stream, key) = opened?;
        if key.is_none() {
            return Ok(Verdict::SessionGone);
        }
        let (mut orders, mut responses) = stream.split();
        self.watches.start_over();
        // Both ways at once: if neither side read while it wrote, many orders could block both.
        tokio::select! {
            verdict = self.hear(&mut responses) => verdict,
            error = self.order(&mut orders) => Err(error),
        }
    }

    async fn order(&self, stream: &mut WatchRequestSender) -> Error {
        loop {
            for order in self.watches.take_orders() {
                let sent = match order {
                    Order::Begin(id, watched) => {
                        let (key, options) = watch_options(id, watched);
                        stream.watch(key, Some(options)).await
                    }
                    Order::Cancel(id) => stream.cancel(id).await,
                };
                if let Err(error) = sent {
                    return error;
                }
            }
            self.watches.ordered.notified().await;
        }
    }

    async fn hear(&self, responses: &mut WatchResponseStream) -> Result<Verdict, Error> {
        while let Some(response) = responses.message().await? {
            match self.watches.hear(&response, &self.key) {
                Verdict::GoOn => {}
                Verdict::Marked => self.marked.notify_one(),
                verdict => return Ok(verdict),
            }
        }
        Err(Error::WatchError("ended by the server".to_owned()))
    }
}

fn watch_options(id: i64, watched: Watched) -> (String, WatchOptions) {
    let options = WatchOptions::new()
        .with_watch_id(id)
        .with_filters([WatchFilterType::NoPut]);
    match watched {
        Watched::Key(key) => (key, options),
        Watched::Queue(queue) => (queue, options.with_prefix()),
    }
}
