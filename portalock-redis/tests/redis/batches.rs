//! Many tasks of one client, whose requests are sent together.

use std::{future::poll_fn, task::Poll};

use portalock_core::{BackendErrorKind, LockBackend, LockError, Policy};
use portalock_redis::RedisBackend;
use portalock_testkit::{proxy::FaultProxy, servers::RedisServer};
use tokio::{runtime::Builder, task::JoinSet, time::timeout};

use crate::fixture::{Admin, ENOUGH, client, eventually, is_place, lock, settings_at};

const TASKS: usize = 64;

/// Takes and releases `times` locks, each of `names` by the tasks whose number says so.
fn work(backend: &RedisBackend, names: usize, times: usize) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let lock = lock(backend, &format!("name-{}", task % names));
        tasks.spawn(async move {
            let mut last = None;
            for _ in 0..times {
                let held = lock.acquire().await.unwrap();
                assert!(held.token() > last, "tokens grow");
                last = held.token();
                held.release().await.unwrap();
            }
        });
    }
    tasks
}

async fn done(mut tasks: JoinSet<()>) {
    let all = async {
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
    };
    timeout(ENOUGH, all).await.expect("all tasks end");
}

/// Waits until the server has no claim and no waiter.
async fn is_free(server: &RedisServer) {
    eventually(async || {
        let mut admin = Admin::of(server).await;
        for key in admin.keys().await {
            if key.contains("/lock-") {
                return false;
            }
            if key.contains("/lock/") {
                let fields: Vec<String> = admin.ask_words(&["HKEYS", &key]).await;
                if fields.iter().any(|field| is_place(field)) {
                    return false;
                }
            }
        }
        true
    })
    .await;
}

async fn scripts(server: &RedisServer) -> usize {
    Admin::of(server).await.calls("evalsha").await
}

#[tokio::test]
async fn many_tasks_share_scripts_and_one_task_sends_its_own_at_once() {
    const TIMES: usize = 50;
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let alone = lock(&backend, "alone");
    alone.acquire().await.unwrap().release().await.unwrap();
    let before = scripts(&server).await;
    for _ in 0..TIMES {
        alone.acquire().await.unwrap().release().await.unwrap();
    }
    assert_eq!(scripts(&server).await - before, 2 * TIMES);

    let before = scripts(&server).await;
    done(work(&backend, TASKS, TIMES)).await;
    let sent = scripts(&server).await - before;
    assert!(sent < TASKS * TIMES / 2, "{sent} scripts");
    is_free(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_on_few_locks_exclude_each_other_and_all_are_served() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    done(work(&backend, 5, 20)).await;
    is_free(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_are_dropped_take_nothing_from_the_others() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let others = work(&backend, TASKS, 100);
    let mut dropped = Vec::new();
    for number in 0..300 {
        let lock = lock(&backend, &format!("dropped-{}", number % 7));
        let task = tokio::spawn(async move { lock.acquire().await.map(drop) });
        dropped.push(task);
        if random.bool() {
            tokio::task::yield_now().await;
        }
        let one = random.usize(..dropped.len());
        dropped[one].abort();
    }
    for task in &dropped {
        task.abort();
    }
    done(others).await;
    is_free(&server).await;
}

#[tokio::test]
async fn requests_whose_answers_a_broken_connection_lost_are_sent_again() {
    let server = RedisServer::start().unwrap();
    let proxy = FaultProxy::start(server.addr()).unwrap();
    let backend = RedisBackend::with_settings(settings_at(&format!("redis://{}", proxy.addr())))
        .await
        .unwrap();
    let tasks = work(&backend, TASKS / 2, 100);
    let before = scripts(&server).await;
    // One call may be hit by all of them, and with five failures in a row it would give up.
    for cut in 1..=3 {
        eventually(async || scripts(&server).await > before + 20 * cut).await;
        proxy.cut();
    }
    done(tasks).await;
    is_free(&server).await;
}

#[tokio::test]
async fn a_flush_of_the_scripts_is_not_noticed() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let tasks = work(&backend, TASKS, 100);
    let before = scripts(&server).await;
    for flush in 1..=5 {
        eventually(async || scripts(&server).await > before + 20 * flush).await;
        Admin::of(&server).await.ask::<()>("SCRIPT FLUSH").await;
    }
    done(tasks).await;
    is_free(&server).await;
}

#[tokio::test]
async fn each_caller_gets_the_error_of_its_own_request() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    done(work(&backend, TASKS, 2)).await;
    Admin::of(&server)
        .await
        .ask::<()>("SET portalock/lock/spoiled by-another-program")
        .await;
    let others = work(&backend, TASKS, 50);
    let spoiled = lock(&backend, "spoiled");
    for _ in 0..10 {
        let error = spoiled.acquire().await.unwrap_err();
        assert!(
            matches!(&error, LockError::Backend { source, .. } if source.kind() == BackendErrorKind::Corrupt),
            "{error}"
        );
    }
    done(others).await;
    Admin::of(&server)
        .await
        .ask::<()>("DEL portalock/lock/spoiled")
        .await;
    is_free(&server).await;
}

/// A runtime that ends takes the task with it that would have sent the requests of its callers.
#[test]
fn a_call_goes_on_in_another_runtime_if_its_own_ends() {
    let server = RedisServer::start().unwrap();
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let backend = first.block_on(client(&server));
    // Without a timeout, which the timers of the first runtime would keep.
    let locks =
        ["a", "b", "c", "d"].map(|name| lock(&backend, name).with_policy(Policy::forever()));
    first.block_on(async {
        for lock in &locks {
            lock.acquire().await.unwrap().release().await.unwrap();
        }
    });
    let mut calls = locks.each_ref().map(|lock| Box::pin(lock.acquire()));
    first.block_on(poll_fn(|context| {
        for call in &mut calls {
            assert!(call.as_mut().poll(context).is_pending());
        }
        Poll::Ready(())
    }));
    drop(first);
    let [one, two, gathered @ ..] = calls;
    // These were sent by themselves, and have a timer in the first runtime.
    drop((one, two));
    second.block_on(async {
        for call in gathered {
            let held = timeout(ENOUGH, call).await.expect("it goes on").unwrap();
            held.release().await.unwrap();
        }
        is_free(&server).await;
        LockBackend::close(&backend).await.unwrap();
    });
}
