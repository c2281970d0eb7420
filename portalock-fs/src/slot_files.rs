//! Slot files: each permit of a semaphore is a lock on one of them.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Contention, CrashRelease, Grant, Mode, Patience,
    PermitRequest, Permits, Released, Scope, Semaphore, Wakeups, wakeups,
};

use crate::{FileMode, FsError, LockKind, line::Line, one_file::OneFile, spec::Spec};

/// Where the slot files are, and how they are tried.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) kind: LockKind,
    pub(crate) random_order: bool,
    pub(crate) create_directory: bool,
}

impl Slots {
    /// portalocker's `{name}.{number:02d}.lock`.
    pub(crate) fn file_name(&self, number: u32) -> String {
        format!("{}.{number:02}.lock", self.name)
    }

    pub(crate) fn path(&self, number: u32) -> PathBuf {
        self.directory.join(self.file_name(number))
    }

    fn spec(&self, number: u32) -> Result<Spec, FsError> {
        let mut spec = Spec::new(&self.path(number))?;
        spec.mode = FileMode::Append;
        spec.kind = self.kind;
        spec.follow = false;
        Ok(spec)
    }

    /// All slots by number, none of them open yet. Makes the directory if that was asked for.
    fn files(&self, capacity: u32) -> Result<Vec<OneFile>, FsError> {
        if self.create_directory {
            std::fs::create_dir_all(&self.directory)
                .map_err(|error| FsError::new("create the directory", error).at(&self.directory))?;
        }
        (0..capacity)
            .map(|number| self.spec(number).map(OneFile::new))
            .collect()
    }

    fn order(&self, capacity: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..capacity).collect();
        if self.random_order {
            fastrand::shuffle(&mut order);
        }
        order
    }
}

/// The slot files in one acquisition, as the engine sees them.
#[derive(Debug)]
pub(crate) struct SlotFiles {
    slots: Slots,
    state: Mutex<State>,
    /// Where the waiter is woken, once the engine listens.
    line: OnceLock<Line>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// All of them, those that others hold kept open between two attempts: closing one would wake its other waiters.
    Waiting(Vec<OneFile>),
    /// Those that are ours.
    Held(Vec<OneFile>),
}

impl SlotFiles {
    pub(crate) fn new(slots: Slots) -> Self {
        Self {
            slots,
            state: Mutex::default(),
            line: OnceLock::new(),
        }
    }

    fn attempt(&self, permits: Permits, patience: Patience) -> Result<Attempt, FsError> {
        let mut state = self.lock_state();
        let files = match std::mem::take(&mut *state) {
            held @ State::Held(_) => {
                *state = held;
                return Ok(Attempt::Granted(Grant::new()));
            }
            State::Waiting(files) => files,
            State::Idle => self.slots.files(permits.capacity())?,
        };
        // On any way out but success or patience the files are freed by being dropped.
        let mut taken = Vec::new();
        let mut holder = None;
        for number in self.slots.order(files.len()) {
            let file = &files[number];
            if let Some(line) = self.line.get() {
                file.listen_on(line.clone());
            }
            match file.attempt(Mode::Exclusive, patience)? {
                Attempt::Granted(_) => taken.push(number),
                Attempt::Contended(contention) => holder = holder.or(contention.holder),
            }
            if taken.len() as u64 == u64::from(permits.count()) {
                *state = State::Held(keep(files, &taken));
                return Ok(Attempt::Granted(Grant::new()));
            }
        }
        for number in taken {
            files[number].end()?;
        }
        if patience == Patience::Queue {
            *state = State::Waiting(files);
        }
        Ok(Attempt::Contended(Contention::new().with_holder(holder)))
    }

    /// Frees every slot; the first failure is reported, and none keeps the rest from being freed. `NotHeld` if one of them
    /// was lost before.
    fn end(&self) -> Result<Released, FsError> {
        match std::mem::take(&mut *self.lock_state()) {
            State::Held(taken) => {
                let ends: Vec<_> = taken.iter().map(OneFile::end).collect();
                let ends = ends.into_iter().collect::<Result<Vec<_>, _>>()?;
                Ok(if ends.contains(&Released::NotHeld) {
                    Released::NotHeld
                } else {
                    Released::Freed
                })
            }
            State::Waiting(_) | State::Idle => Ok(Released::NotHeld),
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep(files: Vec<OneFile>, numbers: &[usize]) -> Vec<OneFile> {
    let files = files.into_iter().enumerate();
    files
        .filter_map(|(number, file)| numbers.contains(&number).then_some(file))
        .collect()
}

#[async_trait]
impl Semaphore for SlotFiles {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Host)
            .with_crash_release(CrashRelease::WithProcess)
            .with_releases_now(true)
            .with_needs_runtime(false)
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        Ok(self.attempt(request.demand, request.patience)?)
    }

    async fn subscribe(&self, _request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        let (sender, wakeups) = wakeups();
        let Some(line) = Line::new(sender) else {
            return Ok(None);
        };
        // The engine asks once, and tries again afterwards: that attempt starts to listen.
        Ok(self.line.set(line).is_ok().then_some(wakeups))
    }

    async fn release(&self, _request: &PermitRequest) -> Result<Released, BackendError> {
        Ok(self.end()?)
    }

    fn release_now(&self, _request: &PermitRequest) -> bool {
        if let Err(error) = self.end() {
            let source = error.io_error();
            tracing::warn!(%error, %source, "permits were dropped, and a slot could not be unlocked");
        }
        true
    }
}
