//! How a waiter for one file is woken: by being told that somebody closed it.

use std::{
    fs::File,
    sync::{Arc, Weak},
};

use portalock_core::WakeSender;

use crate::{sys, watch::Watched};

/// A waiter's end of the watcher. There is none where the system, or its limits, can't watch: then the engine polls.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    watcher: Arc<sys::Watcher>,
    told: Arc<Told>,
}

/// One file that is listened to, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Listening {
    _registration: sys::Registration,
}

#[derive(Debug)]
struct Told(
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        allow(dead_code, reason = "nobody tells where nothing can be watched")
    )]
    WakeSender,
);

impl Line {
    pub(crate) fn new(sender: WakeSender) -> Option<Self> {
        let watcher = sys::Watcher::shared().ok()?;
        sys::Watcher::start(&watcher).ok()?;
        Some(Self {
            watcher,
            told: Arc::new(Told(sender)),
        })
    }

    /// Wakes the waiter whenever somebody closes `file`; `None` if it can't be watched.
    pub(crate) fn listen(&self, file: &File) -> Option<Listening> {
        let told: Weak<Told> = Arc::downgrade(&self.told);
        let registration = sys::Watcher::watch_closing(&self.watcher, file, told).ok()?;
        Some(Listening {
            _registration: registration,
        })
    }
}

impl Watched for Told {
    fn closed(&self, _file: &str) {
        self.0.wake();
    }

    fn replaced(&self, _file: &str) {
        self.0.wake();
    }

    fn everything_changed(&self) {
        self.0.wake();
    }

    fn look(&self) -> bool {
        // Each attempt looks at the path itself.
        false
    }
}
