//! Which of the servers a client dials first, and which it refuses.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use portalock_core::{BackendError, BackendErrorKind};

/// The order in which a client dials its servers. A former primary that still runs accepts connections and statements, and can confirm
/// no change, because its standby has left it. A client that began with the first server each time would never get to the new one.
///
/// So the order begins with the server that has last confirmed a change, or with the next one after a server that did not. A server that
/// was slow once is dialled again at once if the next one is a standby, which is refused.
///
/// A former primary that confirms changes, without its standby, is refused once the promoted standby has told its timeline, whatever
/// it answers then: a fresh client must not leave a promoted standby that is slow at first.
#[derive(Debug, Default)]
pub(crate) struct Route {
    first: AtomicUsize,
    /// Of the server that has last confirmed a change, or the later one that a server has told since.
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
    /// It knows which of them is a former primary.
    pub(crate) route: Arc<Route>,
}

impl Route {
    /// The order of all servers, of which there are `servers`.
    pub(crate) fn order(self: &Arc<Self>, servers: usize) -> Order {
        let first = self.first.load(Ordering::Acquire) % servers.max(1);
        Order {
            servers: (first..servers).chain(0..first).collect(),
            route: self.clone(),
        }
    }

    /// Only this server.
    pub(crate) fn only(self: &Arc<Self>, server: usize) -> Order {
        Order {
            servers: vec![server],
            route: self.clone(),
        }
    }

    /// A new connection has told this timeline, before its first statement. `connecting` is for errors.
    ///
    /// Fails if this is a former primary: it would grant what the server that has followed it grants to others. A server that tells no
    /// timeline may be one, if another server of these has told its own.
    pub(crate) fn told(
        &self,
        timeline: Option<&Timeline>,
        connecting: &str,
    ) -> Result<(), BackendError> {
        let mut latest = self.latest();
        let problem = match (timeline, &*latest) {
            (Some(own), Some(latest)) if own.is_before(latest) => format!(
                "it is a former primary, with timeline {} after this client has met {}; if the server with the later one is gone \
                 for good, start the client again",
                own.number, latest.number
            ),
            (None, Some(latest)) => format!(
                "it does not tell its timeline, so it may be a former primary: this client has met timeline {}",
                latest.number
            ),
            (Some(own), None) => {
                *latest = Some(own.clone());
                return Ok(());
            }
            (Some(own), Some(before)) => {
                if before.is_before(own) {
                    *latest = Some(own.clone());
                }
                return Ok(());
            }
            (None, None) => return Ok(()),
        };
        Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("can't {connecting}: {problem}"),
        ))
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
        let route = Arc::new(Route::default());
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
        let route = Arc::new(Route::default());
        route.failed(0);
        assert_eq!(route.order(1).servers, [0]);
        assert_eq!(route.order(0).servers, [0; 0]);
    }

    fn of(system: &str, number: u32) -> Timeline {
        Timeline {
            system: system.into(),
            number,
        }
    }

    #[test]
    fn a_timeline_counts_within_its_own_system() {
        let route = Route::default();
        let latest = || route.latest().clone();
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

    #[test]
    fn a_former_primary_is_refused_once_another_server_has_told_its_timeline() {
        let route = Route::default();
        let told = |timeline: Option<Timeline>| route.told(timeline.as_ref(), "connect");
        // Some services have no timelines.
        told(None).unwrap();
        told(Some(of("a", 1))).unwrap();
        told(Some(of("a", 2))).unwrap();
        for refused in [Some(of("a", 1)), None] {
            let error = told(refused).unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
        }
        // A new cluster counts when it has confirmed a change.
        told(Some(of("b", 1))).unwrap();
        assert_eq!(*route.latest(), Some(of("a", 2)));
        told(Some(of("a", 2))).unwrap();
    }
}
