//! Which of the servers a client dials first.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The order in which a client dials its servers. A former primary that still runs accepts connections and statements, and can confirm
/// no change, because its standby has left it. A client that began with the first server each time would never get to the new one.
///
/// So the order begins with the server that has last confirmed a change, or with the next one after a server that did not. A server that
/// was slow once is dialled again at once if the next one is a standby, which is refused.
#[derive(Debug, Default)]
pub(crate) struct Route(AtomicUsize);

impl Route {
    /// The indexes of all servers, of which there are `servers`.
    pub(crate) fn order(&self, servers: usize) -> Vec<usize> {
        let first = self.0.load(Ordering::Acquire) % servers.max(1);
        (first..servers).chain(0..first).collect()
    }

    /// This server has confirmed a change.
    pub(crate) fn confirmed(&self, server: usize) {
        self.0.store(server, Ordering::Release);
    }

    /// This server was connected and did not confirm a change in time.
    pub(crate) fn failed(&self, server: usize) {
        self.0.store(server.wrapping_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_its_turn_until_one_confirms() {
        let route = Route::default();
        assert_eq!(route.order(3), [0, 1, 2]);
        route.failed(0);
        assert_eq!(route.order(3), [1, 2, 0]);
        // The next one refused connections.
        route.failed(2);
        assert_eq!(route.order(3), [0, 1, 2]);
        route.confirmed(2);
        assert_eq!(route.order(3), [2, 0, 1]);
    }

    #[test]
    fn the_only_server_is_dialled_whatever_it_did() {
        let route = Route::default();
        route.failed(0);
        assert_eq!(route.order(1), [0]);
        assert_eq!(route.order(0), [0; 0]);
    }
}
