//! Calls whose runtime ends before they do, and calls outside a runtime.

use std::{pin::pin, time::Duration};

use futures_util::FutureExt as _;
use portalock_core::{BackendErrorKind, LockError, OwnerId};
use portalock_testkit::{refuses_in_a_child, servers::RedisServer};
use tokio::{runtime::Builder, time::timeout};

use crate::fixture::{client, lock};

/// It pauses between its tries, because the server is away.
#[test]
fn a_look_whose_runtime_has_ended_fails_and_its_timers_do_not_panic() {
    let server = RedisServer::start().unwrap();
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let other = runtime();
    let backend = other.block_on(client(&server));
    drop(server);
    for round in 0..8 {
        let (own, lock) = (runtime(), lock(&backend, "a"));
        let mut looks = pin!(lock.inspect());
        // At different moments of its pauses.
        let brief = Duration::from_millis(20 + 17 * round);
        let early = own.block_on(async { timeout(brief, &mut looks).await });
        drop(own);
        if early.is_err() {
            let failed = other.block_on(looks).unwrap_err();
            assert!(matches!(failed, LockError::Backend { .. }), "{failed}");
        }
    }
}

#[test]
fn a_call_outside_a_runtime_says_what_to_do() {
    let server = RedisServer::start().unwrap();
    let own = Builder::new_current_thread().enable_all().build().unwrap();
    let lock = lock(&own.block_on(client(&server)), "a");
    let refused = |error: Option<LockError>| {
        let Some(LockError::Backend { source, .. }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), BackendErrorKind::Misconfigured, "{source}");
    };
    let acquired = lock.acquire().now_or_never();
    refused(acquired.map(Result::unwrap_err));
    refused(lock.inspect().now_or_never().map(Result::unwrap_err));
    let broken = lock.break_holder(OwnerId::mint()).now_or_never();
    refused(broken.map(Result::unwrap_err));
}

#[test]
fn a_forked_child_is_refused_what_needs_no_session_too() {
    let server = RedisServer::start().unwrap();
    let own = Builder::new_current_thread().enable_all().build().unwrap();
    refuses_in_a_child(&own.block_on(client(&server))).unwrap();
}
