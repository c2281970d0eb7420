//! Calls with an unknown outcome: what they may have done is undone for good before their owner is forgotten.

use std::time::Duration;

use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Lock, LockBackend, LockName, LockRequest, Mode,
    OwnerId, Patience, Permits, Policy, Released, Request,
};
use portalock_etcd::EtcdBackend;
use portalock_etcd::etcd_client::{AlarmAction, AlarmOptions, AlarmType, MaintenanceClient};
use portalock_testkit::proxy::{Direction, FaultProxy};

use crate::support::{Server, patient, until, with_users};

/// A request timeout. Half of it is for the first line: within this half the test must see the place and change the
/// server.
const FOR_BOTH_LINES: Duration = Duration::from_secs(16);

fn request(name: &str) -> LockRequest {
    Request::new(
        LockName::new(name).unwrap(),
        Mode::Exclusive,
        Patience::Queue,
    )
}

/// Sets or clears the server's alarm for a full store.
async fn full(admin: &mut MaintenanceClient, is_full: bool) {
    let status = admin.status().await.unwrap();
    let mut options = AlarmOptions::new();
    options.with_member(status.header().unwrap().member_id());
    let action = if is_full {
        AlarmAction::Activate
    } else {
        AlarmAction::Deactivate
    };
    admin
        .alarm(action, AlarmType::Nospace, Some(options))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_withdrawn_though_the_next_try_says_that_the_store_is_full()
 {
    let server = Server::start();
    let (first, second) = (server.line(0), server.line(0));
    let client = server
        .lasting_client_through(&[&first, &second], FOR_BOTH_LINES)
        .await;
    first.black_hole(Direction::ToClient);
    let lock = Lock::new(client, "orphan").unwrap();
    let attempt = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_with(&patient()).await.map(drop) }
    });
    server
        .until("placed", async || server.lock_keys().await.len() == 1)
        .await;
    let mut admin = server.admin().await.maintenance_client();
    full(&mut admin, true).await;
    attempt.await.unwrap().unwrap_err();
    full(&mut admin, false).await;
    first.heal();
    until("nothing is left", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
    drop(lock.acquire_with(&patient()).await.unwrap());
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_withdrawn_though_the_next_try_is_not_permitted() {
    let server = Server::with_cheap_passwords();
    let root = with_users(&server).await;
    let (first, second) = (server.line(0), server.line(0));
    let client = server
        .client_through(&[&first, &second], |settings| {
            settings
                .with_request_timeout(FOR_BOTH_LINES)
                .unwrap()
                .with_lease_time(Duration::from_secs(600))
                .unwrap()
                .with_user("billing", "hunter2")
                .with_prefix("billing")
                .unwrap()
        })
        .await;
    let inspector = server.settings().with_user("root", "hunter2");
    let inspector = inspector.with_prefix("billing").unwrap();
    let inspector = portalock_etcd::EtcdBackend::with_settings(inspector)
        .await
        .unwrap();
    let held = async || {
        let name = LockName::new("orphan").unwrap();
        let found = LockBackend::inspect(&inspector, &name).await.unwrap();
        found.holders.len()
    };
    // Connect and log in on this runtime before the line breaks.
    let warm = Lock::new(client.clone(), "warm").unwrap();
    warm.acquire().await.unwrap().release().await.unwrap();
    first.black_hole(Direction::ToClient);
    let lock = Lock::new(client, "orphan").unwrap();
    let attempt = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_with(&patient()).await.map(drop) }
    });
    until("placed", async || held().await == 1).await;
    let mut users = root.auth_client();
    users.user_revoke_role("billing", "billing").await.unwrap();
    attempt.await.unwrap().unwrap_err();
    users.user_grant_role("billing", "billing").await.unwrap();
    first.heal();
    until("nothing is left", async || held().await == 0).await;
}

#[tokio::test]
async fn a_release_that_was_carried_out_unheard_says_so_though_the_next_try_finds_the_store_full() {
    let server = Server::start();
    let (first, second) = (server.line(0), server.line(0));
    let client = server
        .lasting_client_through(&[&first, &second], FOR_BOTH_LINES)
        .await;
    let request = request("unheard");
    let mut admin = server.admin().await.maintenance_client();
    // Granted over the second line: the answer on the first line was lost, so that request may still be in flight.
    first.black_hole(Direction::ToClient);
    let attempt = LockBackend::try_acquire(&client, &request).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)));
    first.heal();
    second.black_hole(Direction::ToClient);
    let release = tokio::spawn({
        let client = client.clone();
        async move { LockBackend::release(&client, &request).await }
    });
    until("it is carried out", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
    full(&mut admin, true).await;
    let released = release.await.unwrap().unwrap();
    assert_eq!(released, portalock_core::Released::Freed);
}

#[tokio::test]
async fn a_request_that_was_dropped_before_its_answer_is_withdrawn_by_its_release() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(60))
        .await;
    let request = request("dropped");
    line.black_hole(Direction::ToClient);
    tokio::select! {
        answer = LockBackend::try_acquire(&client, &request) => panic!("{answer:?}"),
        () = until("placed", async || server.lock_keys().await.len() == 1) => {}
    }
    line.heal();
    line.cut();
    LockBackend::release(&client, &request).await.unwrap();
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_late_request_takes_no_lock_though_it_was_released_while_the_store_was_full() {
    let server = Server::start();
    let (slow, fast) = (server.line(0), server.line(0));
    let client = server
        .lasting_client_through(&[&slow, &fast], Duration::from_secs(2))
        .await;
    let mut admin = server.admin().await.maintenance_client();
    let late = Duration::from_millis(1_800);
    slow.delay(Direction::ToServer, late);
    let request = request("late");
    let attempt = LockBackend::try_acquire(&client, &request).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)));
    full(&mut admin, true).await;
    let released = LockBackend::release(&client, &request).await.unwrap();
    assert_eq!(released, portalock_core::Released::Freed);
    full(&mut admin, false).await;
    // The late request arrives now, or has been stopped.
    tokio::time::sleep(late).await;
    until("nothing is left", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
    let other = Lock::new(server.client().await, "late").unwrap();
    drop(other.acquire_with(&patient()).await.unwrap());
}

#[tokio::test]
async fn a_release_that_was_dropped_half_way_is_made_later() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(60))
        .await;
    let request = request("owed");
    let attempt = LockBackend::try_acquire(&client, &request).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)));
    line.black_hole(Direction::ToServer);
    let release = LockBackend::release(&client, &request);
    tokio::time::timeout(Duration::from_millis(100), release)
        .await
        .unwrap_err();
    line.cut();
    line.heal();
    until("it is released", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_client_goes_on_after_a_failed_call_to_a_stopped_server() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(4))
        .await;
    let lock = Lock::new(client, "on").unwrap();
    line.black_hole(Direction::ToClient);
    let brief = Policy::default().with_timeout(Duration::from_millis(200));
    lock.acquire_with(&brief).await.unwrap_err();
    line.heal();
    line.cut();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    guard.release().await.unwrap();
    until("nothing is left", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_place_that_is_to_be_withdrawn_is_not_used_again() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(2))
        .await;
    let request = request("owed");
    let granted = async || {
        let mut token = None;
        until("granted", async || {
            match LockBackend::try_acquire(&client, &request).await {
                Ok(Attempt::Granted(grant)) => token = grant.token,
                // The session may be releasing the place at this moment.
                Err(error) if error.kind() == BackendErrorKind::Unavailable => {}
                other => panic!("{other:?}"),
            }
            token.is_some()
        })
        .await;
        token.unwrap()
    };
    let first = granted().await;
    line.black_hole(Direction::ToServer);
    LockBackend::release(&client, &request).await.unwrap_err();
    line.cut();
    line.heal();
    assert!(granted().await > first, "the place that it gave up");
    let key = client.fence(request.owner).unwrap().key;
    // Longer than the session waits before it makes releases that are due.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(server.lock_keys().await, [key]);
}

/// How late answers are, so that a test can cut the connection before the client goes on.
const LATE: Duration = Duration::from_secs(1);

/// Attempts until `owner` is granted. Then what the client sent last on its former connection arrives, and its key is still
/// there.
async fn granted_for_good(
    server: &Server,
    line: &FaultProxy,
    client: &EtcdBackend,
    owner: OwnerId,
    attempt: impl AsyncFn() -> Result<Attempt, BackendError>,
) {
    line.delay(Direction::ToClient, Duration::ZERO);
    line.refuse(false);
    until("granted", async || match attempt().await {
        Ok(attempt) => matches!(attempt, Attempt::Granted(_)),
        // The session may be releasing the place at this moment.
        Err(error) => {
            assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error}");
            false
        }
    })
    .await;
    line.deliver().await;
    let key = client.fence(owner).unwrap().key;
    assert_eq!(server.lock_keys().await, [key]);
}

#[tokio::test]
async fn permits_that_were_granted_are_not_taken_back_by_what_an_earlier_try_sent() {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(5))
        .await;
    let name = LockName::new("late").unwrap();
    let request = Request::new(name, Permits::new(1, 1).unwrap(), Patience::Once);
    let attempt = async || portalock_core::Semaphore::try_acquire(&client, &request).await;
    // Somebody else's.
    let ahead = "portalock//permits/late/1of1/0@1";
    let mut store = server.raw().await;
    store.put(ahead, "", None).await.unwrap();
    assert!(matches!(attempt().await.unwrap(), Attempt::Contended(_)));
    assert_eq!(server.lock_keys().await, [ahead]);
    let (before, _) = server.requests().await;
    line.delay(Direction::ToClient, LATE);
    let meanwhile = async {
        // It takes a place and reads the queue. What it sends next is to be late.
        until("it has read the queue", async || {
            server.requests().await.0 == before + 2
        })
        .await;
        line.strand();
        line.refuse(true);
    };
    let (tried, ()) = tokio::join!(attempt(), meanwhile);
    tried.unwrap_err();
    store.delete(ahead, None).await.unwrap();
    granted_for_good(&server, &line, &client, request.owner, attempt).await;
}

#[tokio::test]
async fn a_lock_that_was_granted_is_not_taken_back_by_what_an_attempt_sent_while_the_store_was_full()
 {
    let server = Server::start();
    let line = server.line(0);
    let client = server
        .lasting_client_through(&[&line], Duration::from_secs(5))
        .await;
    let warm = Lock::new(client.clone(), "warm").unwrap();
    warm.acquire().await.unwrap().release().await.unwrap();
    let mut admin = server.admin().await.maintenance_client();
    full(&mut admin, true).await;
    let request = request("late");
    let attempt = async || LockBackend::try_acquire(&client, &request).await;
    let before = server.begun("Alarm").await;
    line.delay(Direction::ToClient, LATE / 2);
    let meanwhile = async {
        // It is refused, and asks why. What it sends next is to be late.
        until("it asks why", async || server.begun("Alarm").await > before).await;
        line.strand();
        line.refuse(true);
    };
    let (tried, ()) = tokio::join!(attempt(), meanwhile);
    tried.unwrap_err();
    full(&mut admin, false).await;
    granted_for_good(&server, &line, &client, request.owner, attempt).await;
}

#[test]
fn a_request_whose_runtime_ends_before_the_answer_is_withdrawn() {
    let server = Server::start();
    let line = server.line(0);
    let own = tokio::runtime::Runtime::new().unwrap();
    let client = own.block_on(server.lasting_client_through(&[&line], Duration::from_secs(5)));
    let other = tokio::runtime::Runtime::new().unwrap();
    let lock = Lock::new(client.clone(), "in flight").unwrap();
    let warm = Lock::new(client, "warm").unwrap();
    other.block_on(async { drop(warm.acquire().await.unwrap()) });
    own.block_on(async {
        until("nothing is left", async || {
            server.lock_keys().await.is_empty()
        })
        .await;
    });
    line.black_hole(Direction::ToClient);
    other.spawn(async move { lock.acquire_with(&patient()).await.map(drop) });
    own.block_on(async {
        until("placed", async || server.lock_keys().await.len() == 1).await;
    });
    other.shutdown_background();
    line.cut();
    line.heal();
    own.block_on(async {
        until("nothing is left", async || {
            server.lock_keys().await.is_empty()
        })
        .await;
    });
}

#[tokio::test]
async fn requests_that_a_full_store_refuses_leave_nothing_to_do() {
    let server = Server::start();
    let mut admin = server.admin().await.maintenance_client();
    let client = server.client().await;
    full(&mut admin, true).await;
    for _ in 0..50 {
        let request = request("full");
        let error = client.try_acquire(&request).await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::OutOfSpace, "{error}");
        client.release(&request).await.unwrap();
    }
    let before = server.requests().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.requests().await, before);
    full(&mut admin, false).await;
    let request = request("full");
    let attempt = client.try_acquire(&request).await.unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
    assert_eq!(client.release(&request).await.unwrap(), Released::Freed);
}
