//! How a backend reports each change of a name's holder to an observer.

use std::{any::Any, fmt};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{Claim, own::Own, wakeups::run_wake_ups};

/// The observer's end: each change of a name's exclusive holder, in order. Created by [`holder_watch`].
pub struct HolderWatch(Own<Watching>);

struct Watching {
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
    let watching = Watching {
        changes,
        subscription: None,
    };
    (HolderSender(sender), HolderWatch(Own::new(Some(watching))))
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
    /// Attaches `subscription` to the observer: it is dropped when the observer stops watching,
    /// except in a forked child.
    #[must_use]
    pub fn with_subscription(mut self, subscription: impl Any + Send + Sync) -> Self {
        if let Some(watching) = &mut self.0.value {
            watching.subscription = Some(Box::new(subscription));
        }
        self
    }

    /// Returns the next change: the new holder, or `Some(None)` for no holder. `None` if the backend has ended the
    /// watch, or in a forked child, which nobody tells of changes.
    ///
    /// # Cancel safety
    ///
    /// Safe: a change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Option<Claim>> {
        match self.0.here() {
            Some(watching) => watching.changes.recv().await,
            None => None,
        }
    }
}

impl fmt::Debug for HolderWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HolderWatch").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_forked_childs_watch_has_ended_and_it_drops_nothing_of_its_parents() {
        let kept = Arc::new(());
        let (sender, watch) = holder_watch();
        let mut watch = watch.with_subscription(kept.clone());
        assert!(sender.tell(None));
        assert_eq!(watch.next().await, Some(None));
        watch.0.inherit();
        assert_eq!(watch.next().await, None);
        drop(watch);
        assert_eq!(Arc::strong_count(&kept), 2);
        assert!(!sender.is_closed());
    }
}
