//! How a backend tells an observer who holds a name, change by change.

use std::{any::Any, fmt};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Claim;

/// The observer's end: each change of a name's exclusive holder, in order. Made by [`holder_watch`].
pub struct HolderWatch {
    changes: UnboundedReceiver<Option<Claim>>,
    #[allow(dead_code, reason = "kept for its drop")]
    subscription: Option<Box<dyn Any + Send + Sync>>,
}

/// The backend's end. Cheap to clone; when the last clone is dropped the watch ends.
#[derive(Debug, Clone)]
pub struct HolderSender(UnboundedSender<Option<Claim>>);

/// A connected pair. Changes that are not read yet are kept, however many there are: none is merged with another.
pub fn holder_watch() -> (HolderSender, HolderWatch) {
    let (sender, changes) = unbounded_channel();
    let watch = HolderWatch {
        changes,
        subscription: None,
    };
    (HolderSender(sender), watch)
}

impl HolderSender {
    /// Tells who holds exclusively from now on, or that nobody does. False if nobody watches any more.
    pub fn tell(&self, holder: Option<Claim>) -> bool {
        self.0.send(holder).is_ok()
    }

    /// Whether nobody watches any more.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl HolderWatch {
    /// Ties `subscription` to the observer: it is dropped when the observer stops watching.
    #[must_use]
    pub fn with_subscription(mut self, subscription: impl Any + Send + Sync) -> Self {
        self.subscription = Some(Box::new(subscription));
        self
    }

    /// The next change: who holds from then on, or `Some(None)` for nobody. `None` if the backend stopped telling.
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
