//! Who holds a name exclusively, change by change: for observers of elections.
//!
//! The queue is read once, and watched from the revision after that. So no change is missed and none is told twice: the events
//! come in the order of their revisions, and the first of the queue after each revision is who holds. When the watch ends, for
//! whatever reason, so does what it tells; the observer then begins anew.

use std::collections::BTreeMap;

use etcd_client::{Error, Event, EventType, KeyValue, ResponseHeader, WatchOptions, WatchStream};
use portalock_core::{
    BackendError, Claim, ClaimKind, HolderSender, HolderWatch, LockName, holder_watch,
    session::{Session as _, spawn},
};

use crate::{client::Client, endpoints::Connection, inspect::claim, record::token};

const OBSERVING: &str = "watch who holds a lock";

/// A name's queue, as far as its events have been heard.
#[derive(Debug)]
struct Observed {
    queue: String,
    /// Keys and claims, by create revision, which is their order.
    claims: BTreeMap<i64, (Vec<u8>, Claim)>,
    /// By which place somebody held exclusively when that was told last.
    told: Option<i64>,
}

/// Who holds `name`, from now on.
pub(crate) async fn observe(client: &Client, name: &LockName) -> Result<HolderWatch, BackendError> {
    // Its renewals notice a member that doesn't answer any more.
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
        tracing::debug!(
            ?error,
            queue = observed.queue,
            "a watch over a lock's holders ended"
        );
    })?;
    Ok(watch.with_subscription(following))
}

impl Observed {
    /// Tells of every change after `revision`, until the watch ends.
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

    /// Takes in what happened at one revision, and tells if another holds now.
    fn take_in(&mut self, events: &[Event], sender: &HolderSender) {
        for event in events {
            match (event.event_type(), event.kv()) {
                (EventType::Put, Some(key)) => self.comes(key),
                (EventType::Delete, Some(key)) => self.goes(key),
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
        // A key that is none of ours is nobody's place.
        if let Ok(claim) = claim(&self.queue, key) {
            let place = key.create_revision();
            let claim = claim.with_token(token(place));
            self.claims.insert(place, (key.key().to_vec(), claim));
        }
    }

    fn goes(&mut self, key: &KeyValue) {
        self.claims.retain(|_, (claimed, _)| claimed != key.key());
    }

    /// The first of the queue, if it wants the lock exclusively: then it holds it.
    fn exclusive(&self) -> Option<(i64, &Claim)> {
        let (place, (_, claim)) = self.claims.first_key_value()?;
        (claim.kind == ClaimKind::Exclusive).then_some((*place, claim))
    }

    fn holder(&self) -> Option<Claim> {
        self.exclusive().map(|(_, claim)| claim.clone())
    }
}

fn happened_at(event: &Event) -> i64 {
    event.kv().map_or(0, KeyValue::mod_revision)
}
