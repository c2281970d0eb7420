//! Which of the servers a client dials first, and which it refuses.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// The order in which a client dials its servers. A former primary that still runs accepts connections and statements, and can confirm
/// no change, because its standby has left it. A client that began with the first server each time would never get to the new one.
///
/// So the order begins with the server that has last confirmed a change, or with the next one after a server that did not. A server that
/// was slow once is dialled again at once if the next one is a standby, which is refused.
///
/// A former primary that confirms changes, without its standby, is refused once the promoted standby has confirmed one.
#[derive(Debug, Default)]
pub(crate) struct Route {
    first: AtomicUsize,
    /// Of the server that has last confirmed a change.
    latest: Mutex<Option<Timeline>>,
}

/// What a server writes. A standby that is promoted begins a new timeline, with a larger number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// The same at a primary and its standbys.
    pub(crate) system: String,
    pub(crate) number: u32,
}

impl Timeline {
    /// Whether a standby of this server, or of its primary, was promoted before `latest` was read.
    pub(crate) fn is_before(&self, latest: &Self) -> bool {
        self.system == latest.system && self.number < latest.number
    }
}

/// Which servers to dial.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Their indexes in the settings.
    pub(crate) servers: Vec<usize>,
    /// A server whose timeline is before this one is refused.
    pub(crate) latest: Option<Timeline>,
}

impl Order {
    /// All of `servers` servers, in their order in the settings.
    pub(crate) fn new(servers: usize) -> Self {
        Self {
            servers: (0..servers).collect(),
            latest: None,
        }
    }

    /// Only this server.
    pub(crate) fn only(server: usize) -> Self {
        Self {
            servers: vec![server],
            latest: None,
        }
    }
}

impl Route {
    /// The order of all servers, of which there are `servers`.
    pub(crate) fn order(&self, servers: usize) -> Order {
        let first = self.first.load(Ordering::Acquire) % servers.max(1);
        Order {
            servers: (first..servers).chain(0..first).collect(),
            latest: self.latest().clone(),
        }
    }

    /// This server has confirmed a change. Its timeline may be unknown.
    pub(crate) fn confirmed(&self, server: usize, timeline: Option<&Timeline>) {
        self.first.store(server, Ordering::Release);
        if let Some(timeline) = timeline {
            let mut latest = self.latest();
            // A renewal at a former primary may have been answered late.
            if !latest
                .as_ref()
                .is_some_and(|latest| timeline.is_before(latest))
            {
                *latest = Some(timeline.clone());
            }
        }
    }

    /// This server was connected and did not confirm a change in time.
    pub(crate) fn failed(&self, server: usize) {
        self.first.store(server.wrapping_add(1), Ordering::Release);
    }

    fn latest(&self) -> MutexGuard<'_, Option<Timeline>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_its_turn_until_one_confirms() {
        let route = Route::default();
        assert_eq!(route.order(3).servers, [0, 1, 2]);
        route.failed(0);
        assert_eq!(route.order(3).servers, [1, 2, 0]);
        // The next one refused connections.
        route.failed(2);
        assert_eq!(route.order(3).servers, [0, 1, 2]);
        route.confirmed(2, None);
        assert_eq!(route.order(3).servers, [2, 0, 1]);
    }

    #[test]
    fn the_only_server_is_dialled_whatever_it_did() {
        let route = Route::default();
        route.failed(0);
        assert_eq!(route.order(1).servers, [0]);
        assert_eq!(route.order(0).servers, [0; 0]);
    }

    #[test]
    fn a_timeline_counts_once_it_has_confirmed_and_within_its_own_system() {
        let of = |system: &str, number| Timeline {
            system: system.into(),
            number,
        };
        let route = Route::default();
        let latest = || route.order(2).latest;
        assert_eq!(latest(), None);
        route.confirmed(1, Some(&of("a", 10)));
        route.confirmed(0, Some(&of("a", 9)));
        route.confirmed(0, None);
        assert_eq!(latest(), Some(of("a", 10)));
        assert!(of("a", 9).is_before(&of("a", 10)));
        assert!(!of("a", 10).is_before(&of("a", 10)));
        // A new cluster, as after `pg_upgrade`.
        assert!(!of("b", 1).is_before(&of("a", 10)));
        route.confirmed(0, Some(&of("b", 1)));
        assert_eq!(latest(), Some(of("b", 1)));
    }
}
