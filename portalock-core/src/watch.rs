//! How a backend reports each change of a name's holder to an observer.

use std::{any::Any, fmt};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{Claim, wakeups::run_wake_ups};

/// The observer's end: each change of a name's exclusive holder, in order. Created by [`holder_watch`].
pub struct HolderWatch {
    changes: UnboundedReceiver<Option<Claim>>,
    #[allow(dead_code, reason = "kept for its drop")]
    subscription: Option<Box<dyn Any + Send + Sync>>,
}

/// The backend's end. Cheap to clone; when the last clone is dropped the watch ends.
#[derive(Debug, Clone)]
pub struct HolderSender(UnboundedSender<Option<Claim>>);

/// Creates a connected pair. Unread changes are all kept, and never merged.
pub fn holder_watch() -> (HolderSender, HolderWatch) {
    let (sender, changes) = unbounded_channel();
    let watch = HolderWatch {
        changes,
        subscription: None,
    };
    (HolderSender(sender), watch)
}

impl HolderSender {
    /// Sends the new exclusive holder, or `None` for no holder. False if the observer has stopped watching.
    pub fn tell(&self, holder: Option<Claim>) -> bool {
        let mut sent = true;
        run_wake_ups(|| sent = self.0.send(holder).is_ok());
        sent
    }

    /// Whether the observer has stopped watching.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl HolderWatch {
    /// Attaches `subscription` to the observer: it is dropped when the observer stops watching.
    #[must_use]
    pub fn with_subscription(mut self, subscription: impl Any + Send + Sync) -> Self {
        self.subscription = Some(Box::new(subscription));
        self
    }

    /// Returns the next change: the new holder, or `Some(None)` for no holder. `None` if the backend has ended the
    /// watch.
    ///
    /// # Cancel safety
    ///
    /// Safe: a change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Option<Claim>> {
        self.changes.recv().await
    }
}

impl fmt::Debug for HolderWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HolderWatch").finish_non_exhaustive()
    }
}
