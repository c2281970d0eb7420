//! What may happen between the two steps of a mark: the read that finds the hold, and the transaction that marks it.

use std::time::Duration;

use portalock_core::{BackendError, BackendErrorKind, Guard, Holder, Lock, LockBackend, Marked};
use portalock_etcd::EtcdBackend;
use portalock_testkit::proxy::{Direction, FaultProxy};
use tokio::task::JoinHandle;

use crate::support::Server;

/// A lock with a holder, and a client that is to mark it through a line of its own.
struct Held {
    guard: Guard<EtcdBackend>,
    operator: EtcdBackend,
    line: FaultProxy,
}

impl Held {
    async fn at(server: &Server) -> Self {
        let lock = Lock::new(server.client().await, "marked").unwrap();
        let line = server.line(0);
        let operator = server
            .lasting_client_through(&[&line], Duration::from_secs(60))
            .await;
        Self {
            guard: lock.acquire().await.unwrap(),
            operator,
            line,
        }
    }

    /// A mark whose transaction is held back until the line heals.
    async fn mark(&self, server: &Server) -> JoinHandle<Result<Option<Marked>, BackendError>> {
        let (name, owner) = (self.guard.name().clone(), self.guard.owner());
        // It connects before the answers are held back.
        LockBackend::inspect(&self.operator, &name).await.unwrap();
        let read = server.begun("Range").await;
        self.line.black_hole(Direction::ToClient);
        let operator = self.operator.clone();
        let marking = tokio::spawn(async move {
            let by = Holder::this_process(None);
            operator.mark_broken(&name, owner, &by).await
        });
        server
            .until("the hold is read", async || {
                server.begun("Range").await > read
            })
            .await;
        // The operator runs on this thread, so it sees no answer before its requests are held back.
        self.line.heal();
        self.line.black_hole(Direction::ToServer);
        marking
    }
}

#[tokio::test]
async fn a_hold_that_ends_before_it_is_marked_is_none() {
    let server = Server::start();
    for is_revoked in [false, true] {
        let held = Held::at(&server).await;
        let marking = held.mark(&server).await;
        if is_revoked {
            server.revoke_all().await;
        } else {
            held.guard.release().await.unwrap();
        }
        held.line.heal();
        let marked = marking.await.unwrap().unwrap();
        assert!(marked.is_none(), "revoked: {is_revoked}, {marked:?}");
    }
}

#[tokio::test]
async fn a_hold_that_may_not_be_marked_is_not_said_to_have_ended() {
    let server = Server::start();
    let held = Held::at(&server).await;
    let marking = held.mark(&server).await;
    held.line.refuse(true);
    held.line.cut();
    let error = marking.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
    held.guard.release().await.unwrap();
}
