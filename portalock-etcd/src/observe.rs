//! Watches the exclusive holder of a name, for observers of elections.
//!
//! The queue is read once, and watched from the next revision on. So no change is missed or reported twice: the events
//! come in the order of their revisions, and after each revision the first request of the queue is the holder. When the
//! watch ends, for any reason, the channel ends too, and the observer starts a new watch.

use std::collections::BTreeMap;

use etcd_client::{Error, Event, EventType, KeyValue, ResponseHeader, WatchOptions, WatchStream};
use portalock_core::{
    BackendError, Claim, ClaimKind, HolderSender, HolderWatch, LockName, holder_watch,
    session::{Session as _, spawn},
};

use crate::{client::Client, endpoints::Connection, inspect::claim, record::token};

const OBSERVING: &str = "watch who holds a lock";

/// A name's queue, according to the events so far.
#[derive(Debug)]
struct Observed {
    queue: String,
    /// Keys and claims by create revision, which is their order. A key that this crate did not write has no claim, but
    /// the requests behind it wait for it.
    claims: BTreeMap<i64, (Vec<u8>, Option<Claim>)>,
    /// The place of the last exclusive holder that was reported.
    told: Option<i64>,
}

/// Watches the holder of `name`, from now on.
pub(crate) async fn observe(client: &Client, name: &LockName) -> Result<HolderWatch, BackendError> {
    // The session's renewals notice when a member stops answering.
    let session = client.session().await?;
    let server = client.shared().clone();
    let queue = server.keys.lock_queue(name);
    let found = server.read_queue(OBSERVING, &queue).await?;
    let revision = found.header().map_or(0, ResponseHeader::revision);
    let mut observed = Observed {
        queue,
        claims: BTreeMap::new(),
        told: None,
    };
    for key in found.kvs() {
        observed.comes(key);
    }
    let (sender, watch) = holder_watch();
    sender.tell(observed.holder());
    observed.told = observed.exclusive().map(|(place, _)| place);
    let following = spawn(async move {
        let (endpoints, within) = (&server.endpoints, server.settings.request_timeout);
        let Ok(connection) = endpoints.connection(OBSERVING, within).await else {
            return;
        };
        let ended = session.lease().signal();
        let error = tokio::select! {
            followed = observed.follow(&connection, revision, &sender) => followed.err(),
            () = endpoints.moved_from(&connection) => None,
            _ = ended.lost() => None,
        };
        tracing::debug!(?error, queue = observed.queue, "an observer's watch ended");
        // A refused watch needs another connection, for example because the token has expired.
        endpoints.fail(&connection);
    })?;
    Ok(watch.with_subscription(following))
}

impl Observed {
    /// Reports every change after `revision`, until the watch ends.
    async fn follow(
        &mut self,
        connection: &Connection,
        revision: i64,
        sender: &HolderSender,
    ) -> Result<(), Error> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision + 1);
        let mut stream: WatchStream = connection
            .client
            .watch_client()
            // etcd tells an observer that fell behind of up to 1,000 changes at once, each with a holder's label.
            .max_decoding_message_size(usize::MAX)
            .watch(self.queue.as_str(), Some(options))
            .await?;
        while let Some(response) = stream.message().await? {
            if response.canceled() {
                return Ok(());
            }
            for events in response
                .events()
                .chunk_by(|one, next| happened_at(one) == happened_at(next))
            {
                self.take_in(events, sender);
            }
        }
        Ok(())
    }

    /// Applies the events of one revision, and reports the holder if it has changed.
    fn take_in(&mut self, events: &[Event], sender: &HolderSender) {
        for event in events {
            match (event.event_type(), event.kv()) {
                (EventType::Put, Some(key)) => self.comes(key),
                (EventType::Delete, Some(key)) => {
                    self.claims.retain(|_, (claimed, _)| claimed != key.key());
                }
                _ => {}
            }
        }
        let now = self.exclusive().map(|(place, _)| place);
        if now != self.told {
            self.told = now;
            sender.tell(self.holder());
        }
    }

    fn comes(&mut self, key: &KeyValue) {
        let place = key.create_revision();
        let claim = claim(&self.queue, key).map(|claim| claim.with_token(token(place)));
        self.claims.insert(place, (key.key().to_vec(), claim.ok()));
    }

    /// The first request of the queue, if it is exclusive: then it holds.
    fn exclusive(&self) -> Option<(i64, &Claim)> {
        let (place, (_, claim)) = self.claims.first_key_value()?;
        let claim = claim.as_ref()?;
        (claim.kind == ClaimKind::Exclusive).then_some((*place, claim))
    }

    fn holder(&self) -> Option<Claim> {
        self.exclusive().map(|(_, claim)| claim.clone())
    }
}

fn happened_at(event: &Event) -> i64 {
    event.kv().map_or(0, KeyValue::mod_revision)
}
