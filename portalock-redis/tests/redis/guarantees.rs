//! The table of `docs/guarantees.md`, row by row, in both forms of a session.

use std::{fs, path::PathBuf, time::Duration};

use portalock_core::{Guard, LockError, Loss, LostSignal, clock::Instant};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::{RedisOptions, RedisServer},
};
use tokio::{task::JoinHandle, time::timeout};

use crate::fixture::{Admin, ENOUGH, granted, lock, settings_at, waiting};

/// Short enough for a test to wait for it, and long enough for a loaded machine to be in time.
const SESSION: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Default,
    WithoutNotice,
}
use Form::{Default, WithoutNotice};

impl Form {
    fn settings(self, url: &str) -> RedisSettings {
        settings_at(url)
            .with_session_ttl(SESSION)
            .unwrap()
            .with_release_without_notice(self == WithoutNotice)
    }
}

/// A holder with its own proxy, and a waiter.
struct Scene {
    server: RedisServer,
    line: FaultProxy,
    held: Guard<RedisBackend>,
    lost: LostSignal,
    waiter: JoinHandle<Result<Guard<RedisBackend>, LockError>>,
    other: RedisBackend,
    /// The holder's connections at the server.
    connections: Vec<String>,
}

impl Scene {
    async fn set(form: Form) -> Self {
        Self::on(form, RedisServer::start().unwrap()).await
    }

    async fn on(form: Form, server: RedisServer) -> Self {
        let line = FaultProxy::start(server.addr()).unwrap();
        let settings = form.settings(&format!("redis://{}", line.addr()));
        let holder = RedisBackend::with_settings(settings).await.unwrap();
        let held = lock(&holder, "a").acquire().await.unwrap();
        let connections = clients(&server).await;
        let other = RedisBackend::with_settings(form.settings(&server.url()))
            .await
            .unwrap();
        Self {
            connections,
            lost: held.lost_signal(),
            waiter: waiting(&other, "a").await,
            server,
            line,
            held,
            other,
        }
    }

    async fn admin(&self) -> Admin {
        Admin::of(&self.server).await
    }

    /// The waiter is granted the lock, and the holder was told before that.
    async fn tells_first(self) {
        let next = granted(self.waiter).await;
        assert!(
            self.lost.is_lost(),
            "granted to another before the holder was told"
        );
        next.ensure_held().unwrap();
    }

    /// The holder is told within this time, whether or not another owner holds the lock by then.
    async fn tells_within(self, bound: Duration) -> Loss {
        timeout(bound, self.lost.lost())
            .await
            .expect("the holder should have been told by now")
    }

    /// Nothing changes for longer than a session's time, and the waiter keeps its place.
    async fn loses_nothing(self) {
        tokio::time::sleep(SESSION * 3 / 2).await;
        self.held.ensure_held().unwrap();
        assert!(!self.waiter.is_finished(), "two hold, or the wait failed");
        let token = self.held.token();
        self.held.release().await.unwrap();
        let next = granted(self.waiter).await;
        assert!(next.token() > token);
        let again = lock(&self.other, "a").try_acquire().await;
        assert!(again.unwrap_err().is_contention());
    }

    /// Closes the holder's connections at the server, without the holder noticing.
    async fn reset_unheard(&self) {
        self.line.black_hole(Direction::ToClient);
        let mut admin = self.admin().await;
        for id in &self.connections {
            // One of the ids belonged to an `Admin`.
            let _: u32 = admin.ask(&format!("CLIENT KILL ID {id}")).await;
        }
    }
}

/// The ids of all connections to the server.
async fn clients(server: &RedisServer) -> Vec<String> {
    let clients: String = Admin::of(server).await.ask("CLIENT LIST").await;
    clients
        .lines()
        .filter_map(|client| client.strip_prefix("id=")?.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// The holder's process ends, and its connections with it.
fn crash(scene: &Scene) {
    scene.line.refuse(true);
    scene.line.cut();
}

#[tokio::test]
async fn a_crash_passes_the_lock_on_within_the_sessions_time() {
    let scene = Scene::set(Default).await;
    let crashed = Instant::now();
    crash(&scene);
    scene.tells_first().await;
    // A loaded machine may need more time.
    assert!(
        crashed.elapsed() < SESSION * 2,
        "after {:?}",
        crashed.elapsed()
    );
}

#[tokio::test]
async fn without_notice_a_crash_passes_the_lock_on_within_a_tick() {
    let scene = Scene::set(WithoutNotice).await;
    crash(&scene);
    let next = timeout(SESSION / 2, scene.waiter).await;
    let _next = next
        .expect("one look should have been enough")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_holder_that_is_cut_off_is_told_first() {
    for form in [Default, WithoutNotice] {
        let scene = Scene::set(form).await;
        scene.line.black_hole(Direction::Both);
        scene.tells_first().await;
    }
}

#[tokio::test]
async fn a_server_that_stands_still_for_less_loses_nothing() {
    for form in [Default, WithoutNotice] {
        let scene = Scene::set(form).await;
        scene.server.stall().unwrap();
        tokio::time::sleep(SESSION / 2).await;
        scene.server.resume().unwrap();
        scene.loses_nothing().await;
    }
}

#[tokio::test]
async fn a_server_that_stands_still_for_more_loses_all_and_the_holder_knows_by_its_own_clock() {
    for form in [Default, WithoutNotice] {
        let scene = Scene::set(form).await;
        scene.server.stall().unwrap();
        assert_eq!(scene.lost.lost().await, Loss::Expired);
        scene.server.resume().unwrap();
        scene.tells_first().await;
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_loses_nothing() {
    let scene = Scene::set(Default).await;
    let mut admin = scene.admin().await;
    admin.kill_sessions().await;
    admin.ask::<u32>("CLIENT KILL TYPE normal SKIPME yes").await;
    scene.loses_nothing().await;
}

#[tokio::test]
async fn without_notice_a_connection_that_is_reset_loses_its_locks() {
    let scene = Scene::set(WithoutNotice).await;
    scene.line.cut();
    let loss = scene.tells_within(ENOUGH).await;
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
}

#[tokio::test]
async fn a_reset_that_the_holder_does_not_hear_of_tells_it_first() {
    let scene = Scene::set(Default).await;
    scene.reset_unheard().await;
    scene.tells_first().await;
}

#[tokio::test]
async fn without_notice_a_reset_that_the_holder_does_not_hear_of_leaves_two_for_a_sessions_time() {
    let mut scene = Scene::set(WithoutNotice).await;
    scene.reset_unheard().await;
    let next = (&mut scene.waiter).await.unwrap().unwrap();
    assert!(!scene.lost.is_lost(), "that would be better than promised");
    timeout(SESSION * 2, scene.lost.lost()).await.unwrap();
    next.ensure_held().unwrap();
}

fn persistent() -> RedisServer {
    RedisOptions::new().persistent(true).start().unwrap()
}

#[tokio::test]
async fn a_restart_with_data_loses_nothing() {
    let mut scene = Scene::on(Default, persistent()).await;
    scene.server.restart().unwrap();
    scene.loses_nothing().await;
}

/// What has reached the file survives the server's process, whenever the file is synced.
#[tokio::test]
async fn a_restart_with_data_that_was_not_synced_loses_nothing() {
    let mut scene = Scene::on(Default, everysec()).await;
    written(&scene.server).await;
    scene.server.restart().unwrap();
    scene.loses_nothing().await;
}

fn everysec() -> RedisServer {
    let options = RedisOptions::new().setting("appendonly", "yes");
    options.setting("appendfsync", "everysec").start().unwrap()
}

/// Waits until all earlier writes are in the append-only file. Returns the file, and its length.
async fn written(server: &RedisServer) -> (PathBuf, u64) {
    let mut admin = Admin::of(server).await;
    let marker = format!("marker-{:016x}", fastrand::u64(..));
    admin.ask::<()>(&format!("SET {marker} x")).await;
    let dir: Vec<String> = admin.ask("CONFIG GET dir").await;
    let dir = PathBuf::from(&dir[1]).join("appendonlydir");
    let begun = Instant::now();
    loop {
        for entry in fs::read_dir(&dir).unwrap() {
            let file = entry.unwrap().path();
            let bytes = fs::read(&file).unwrap();
            let mut parts = bytes.windows(marker.len());
            if parts.any(|part| part == marker.as_bytes()) {
                return (file, u64::try_from(bytes.len()).unwrap());
            }
        }
        assert!(begun.elapsed() < ENOUGH, "the file should have it by now");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// With `everysec` a power cut loses the writes of about a second.
#[tokio::test]
async fn a_restart_without_the_last_writes_tells_of_lost_grants_first_and_repeats_lost_releases() {
    let mut server = everysec();
    let settings = |url: &str| RedisSettings::new(url).unwrap();
    let holder = settings(&server.url()).with_restart_wait(Duration::ZERO);
    let holder = RedisBackend::with_settings(holder).await.unwrap();
    let released = lock(&holder, "released").acquire().await.unwrap();
    let (file, length) = written(&server).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    released.release().await.unwrap();
    written(&server).await;
    server.stop();
    let lost_writes = fs::File::options().write(true).open(file).unwrap();
    lost_writes.set_len(length).unwrap();
    server.restart().unwrap();

    // The default settings, which don't assume that the server has all data.
    let other = RedisBackend::with_settings(settings(&server.url()))
        .await
        .unwrap();
    let next = lock(&other, "a").acquire().await.unwrap();
    assert!(
        held.is_lost(),
        "granted to another before the holder was told"
    );
    assert!(next.token() > held.token());
    // The session is the same: it lost one lock only.
    let keys = Admin::of(&server).await.keys().await;
    let sessions = keys.iter().filter(|key| key.contains("/session/"));
    assert_eq!(sessions.count(), 2, "{keys:?}");
    let _repeated = lock(&other, "released").acquire().await.unwrap();
}

#[tokio::test]
async fn without_notice_a_restart_with_data_loses_all() {
    let mut scene = Scene::on(WithoutNotice, persistent()).await;
    scene.server.restart().unwrap();
    let loss = scene.tells_within(ENOUGH).await;
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
}

#[tokio::test]
async fn a_restart_without_data_tells_the_holder_before_a_newcomer_is_granted() {
    for unheard in [false, true] {
        let mut scene = Scene::set(Default).await;
        // The waiter's settings skip the wait after a start.
        scene.waiter.abort();
        let _ = (&mut scene.waiter).await;
        if unheard {
            scene.line.black_hole(Direction::Both);
        }
        scene.server.restart().unwrap();
        // The default settings, which don't assume that this server is new.
        let newcomer = RedisSettings::new(&scene.server.url()).unwrap();
        let newcomer = newcomer.with_session_ttl(SESSION).unwrap();
        let newcomer = RedisBackend::with_settings(newcomer).await.unwrap();
        let _next = lock(&newcomer, "a").acquire().await.unwrap();
        assert!(scene.lost.is_lost(), "unheard: {unheard}");
    }
}

#[tokio::test]
async fn data_that_somebody_deletes_is_lost_and_noticed_at_the_next_refresh() {
    for form in [Default, WithoutNotice] {
        for deletion in ["FLUSHALL", "DEL portalock/lock/a"] {
            let scene = Scene::set(form).await;
            scene.waiter.abort();
            scene.admin().await.ask::<redis::Value>(deletion).await;
            // A third of the session's time, and some more for a loaded machine.
            scene.tells_within(SESSION).await;
        }
    }
}
