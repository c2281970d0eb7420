//! Breaking a backend in one place: a [`Flaw`] is the bug, and [`Flawed`] the backend that has it.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use futures_util::FutureExt;
use portalock_core::{
    Attempt, BackendError, Capabilities, DynSemaphore, Holder, HolderWatch, Inspection,
    LockBackend, LockName, LockRequest, Loss, Marked, MemoryBackend, Mode, OwnerId, PermitRequest,
    Permits, Released, Semaphore, Wakeups,
};

use super::{
    line::Line,
    locked,
    sound::{LEASE, Sound},
};
use crate::{Fixture, FixtureError, Restore};

/// One bug of a backend. The default of every method is correct.
///
/// All clients of a store share one flaw; `sound` is the client of the call.
#[async_trait]
pub trait Flaw: Debug + Send + Sync + 'static {
    /// See [`LockBackend::capabilities`].
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound)
    }

    /// See [`LockBackend::try_acquire`]. Every grant comes from here: a wake-up only tells a waiter to try.
    ///
    /// # Errors
    ///
    /// As there.
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        LockBackend::try_acquire(sound, request).await
    }

    /// See [`LockBackend::release`]; a dropped guard comes here too.
    ///
    /// # Errors
    ///
    /// As there.
    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        LockBackend::release(sound, request).await
    }

    /// See [`LockBackend::release_now`]: a release that needs one poll only.
    fn release_now(&self, sound: &Sound, request: &LockRequest) -> bool {
        matches!(self.release(sound, request).now_or_never(), Some(Ok(_)))
    }

    /// See [`LockBackend::subscribe`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn subscribe(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Option<Wakeups>, BackendError> {
        LockBackend::subscribe(sound, request).await
    }

    /// See [`LockBackend::inspect`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn inspect(&self, sound: &Sound, name: &LockName) -> Result<Inspection, BackendError> {
        LockBackend::inspect(sound, name).await
    }

    /// See [`LockBackend::names`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn names(&self, sound: &Sound) -> Result<Vec<LockName>, BackendError> {
        sound.names().await
    }

    /// See [`LockBackend::watch`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn watch(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Option<HolderWatch>, BackendError> {
        LockBackend::watch(sound, name).await
    }

    /// See [`LockBackend::mark_broken`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn mark_broken(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        LockBackend::mark_broken(sound, name, owner, by).await
    }

    /// See [`LockBackend::evict`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn evict(
        &self,
        sound: &Sound,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        LockBackend::evict(sound, name, owner, hold).await
    }

    /// See [`LockBackend::close`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn close(&self, sound: &Sound) -> Result<(), BackendError> {
        LockBackend::close(sound).await
    }

    /// See [`Semaphore::capabilities`].
    fn claims_permits(&self, sound: &Sound) -> Capabilities {
        self.claims(sound)
    }

    /// See [`Semaphore::try_acquire`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        Semaphore::try_acquire(sound, request).await
    }

    /// See [`Semaphore::release`]; a dropped guard comes here too.
    ///
    /// # Errors
    ///
    /// As there.
    async fn release_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Released, BackendError> {
        Semaphore::release(sound, request).await
    }

    /// See [`Semaphore::inspect`].
    ///
    /// # Errors
    ///
    /// As there.
    async fn inspect_permits(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Inspection, BackendError> {
        Semaphore::inspect(sound, name).await
    }

    /// Called when a client that was cut off is heard again.
    async fn heal(&self, sound: &Sound) {
        sound.reconnect();
    }

    /// Called for each client when a stalled store answers again.
    async fn recover(&self, sound: &Sound) {
        let _ = sound;
    }

    /// Called for each client when the store is restarted: its session ends, and its next call starts another.
    async fn restart(&self, sound: &Sound) {
        sound
            .expire(Loss::SessionEnded("the store was restarted".into()))
            .await;
        sound.reconnect();
    }

    /// Called when an attempt arrives late at the store. By then its owner may have been `released`.
    async fn arrive(&self, sound: &Sound, attempt: &LockRequest, released: bool) {
        if !released {
            let _ = self.try_acquire(sound, attempt).await;
        }
    }

    /// Called when an attempt for permits arrives late at the store. By then its owner may have been `released`.
    async fn arrive_for_permits(&self, sound: &Sound, attempt: &PermitRequest, released: bool) {
        if !released {
            let _ = self.try_acquire_permits(sound, attempt).await;
        }
    }

    /// Called when `name` is taken away from its holders.
    async fn take_away(&self, memory: &MemoryBackend, name: &LockName) {
        memory.lose(name);
    }

    /// Called for each client when another store is put at the store's address: its guards are lost, and it can't
    /// continue.
    async fn moved(&self, sound: &Sound) {
        sound
            .expire(Loss::Removed("another store is at its address".into()))
            .await;
        sound.cut_off();
    }

    /// Called when the store has not heard a client for the time of its lease.
    async fn expire(&self, sound: &Sound) {
        sound.expire(Loss::Expired).await;
    }
}

/// No flaw: all cases must pass.
#[derive(Debug, Default)]
pub struct Flawless;

impl Flaw for Flawless {}

/// One client of a store with a flaw.
#[derive(Debug)]
pub struct Flawed {
    sound: Sound,
    flaw: Arc<dyn Flaw>,
    locks: Line<Mode>,
    permits: Line<Permits>,
}

#[async_trait]
impl LockBackend for Flawed {
    fn capabilities(&self) -> Capabilities {
        self.flaw.claims(&self.sound)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.locks.send(request)?;
        self.flaw.try_acquire(&self.sound, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.locks.note_release(request);
        self.flaw.release(&self.sound, request).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.flaw.subscribe(&self.sound, request).await
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        self.flaw.release_now(&self.sound, request)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.flaw.inspect(&self.sound, name).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.flaw.names(&self.sound).await
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        self.flaw.watch(&self.sound, name).await
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        self.flaw.mark_broken(&self.sound, name, owner, by).await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        self.flaw.evict(&self.sound, name, owner, hold).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.flaw.close(&self.sound).await
    }
}

#[async_trait]
impl Semaphore for Flawed {
    fn capabilities(&self) -> Capabilities {
        self.flaw.claims_permits(&self.sound)
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        self.permits.send(request)?;
        self.flaw.try_acquire_permits(&self.sound, request).await
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        self.permits.note_release(request);
        self.flaw.release_permits(&self.sound, request).await
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        Semaphore::subscribe(&self.sound, request).await
    }

    fn release_now(&self, request: &PermitRequest) -> bool {
        let release = self.flaw.release_permits(&self.sound, request);
        matches!(release.now_or_never(), Some(Ok(_)))
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.flaw.inspect_permits(&self.sound, name).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.flaw.close(&self.sound).await
    }
}

impl Flawed {
    /// Cuts the client off. The store ends its session when its lease is over, unless the client is heard again before.
    fn fall_silent(&self) {
        self.sound.cut_off();
        let (sound, flaw) = (self.sound.clone(), self.flaw.clone());
        crate::spawn(async move {
            tokio::time::sleep(LEASE).await;
            if !sound.is_reachable() {
                flaw.expire(&sound).await;
            }
        });
    }
}

/// A new store with a flaw. It supports all faults of a fixture, but can't be reached from another process.
#[derive(Debug)]
pub struct FlawedStore {
    memory: Mutex<MemoryBackend>,
    flaw: Arc<dyn Flaw>,
    clients: Mutex<Vec<Sound>>,
}

impl FlawedStore {
    /// A new store with this flaw.
    pub fn new(flaw: impl Flaw) -> Self {
        Self::with(Arc::new(flaw))
    }

    pub(super) fn with(flaw: Arc<dyn Flaw>) -> Self {
        Self {
            memory: Mutex::default(),
            flaw,
            clients: Mutex::default(),
        }
    }
}

#[async_trait]
impl Fixture for FlawedStore {
    type Backend = Flawed;

    async fn client(&self) -> Result<Flawed, FixtureError> {
        let sound = Sound::new(locked(&self.memory).client());
        locked(&self.clients).push(sound.clone());
        Ok(Flawed {
            sound,
            flaw: self.flaw.clone(),
            locks: Line::default(),
            permits: Line::default(),
        })
    }

    fn semaphore(&self, client: &Arc<Flawed>) -> Option<DynSemaphore> {
        Some(client.clone())
    }

    async fn crash(&self, client: &Flawed) -> Result<(), FixtureError> {
        client.fall_silent();
        Ok(())
    }

    async fn cut_off(&self, client: &Flawed) -> Result<Restore, FixtureError> {
        client.fall_silent();
        let (sound, flaw) = (client.sound.clone(), client.flaw.clone());
        Ok(Restore::new(async move {
            flaw.heal(&sound).await;
            Ok(())
        }))
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        let (clients, flaw) = (locked(&self.clients).clone(), self.flaw.clone());
        for client in &clients {
            client.stall(true);
        }
        Ok(Restore::new(async move {
            for client in &clients {
                flaw.recover(client).await;
            }
            for client in &clients {
                client.stall(false);
            }
            Ok(())
        }))
    }

    async fn restart_service(&self) -> Result<(), FixtureError> {
        let clients = locked(&self.clients).clone();
        for client in &clients {
            self.flaw.restart(client).await;
        }
        Ok(())
    }

    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        let memory = locked(&self.memory).client();
        self.flaw.take_away(&memory, name).await;
        Ok(())
    }

    async fn lose_answers(&self, client: &Flawed) -> Result<Restore, FixtureError> {
        let sound = client.sound.clone();
        sound.lose_answers(true);
        Ok(Restore::new(async move {
            sound.lose_answers(false);
            Ok(())
        }))
    }

    async fn delay_requests(&self, client: &Flawed) -> Result<Restore, FixtureError> {
        let (sound, flaw) = (client.sound.clone(), client.flaw.clone());
        let (locks, permits) = (client.locks.clone(), client.permits.clone());
        locks.delay_next();
        permits.delay_next();
        Ok(Restore::new(async move {
            if let Some((attempt, released)) = locks.deliver() {
                flaw.arrive(&sound, &attempt, released).await;
            }
            if let Some((attempt, released)) = permits.deliver() {
                flaw.arrive_for_permits(&sound, &attempt, released).await;
            }
            Ok(())
        }))
    }

    async fn move_store(&self) -> Result<(), FixtureError> {
        let left_behind = std::mem::take(&mut *locked(&self.clients));
        for client in &left_behind {
            self.flaw.moved(client).await;
        }
        *locked(&self.memory) = MemoryBackend::new();
        Ok(())
    }
}
