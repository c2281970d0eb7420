//! The recorder of events, in one order for all clients.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use portalock_core::{FencingToken, LockName, LostSignal, Mode, Permits, clock::Instant};

use super::{Happened, History};

/// The recorder that all clients share.
#[derive(Debug)]
pub(crate) struct Recorder {
    started: Instant,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    history: History,
    next: u64,
    /// The holders, as they believe.
    believers: HashMap<u64, LostSignal>,
    /// The acquisitions that have not ended.
    open: HashMap<u64, Open>,
    /// The names that are being taken away.
    robbing: Option<LockName>,
}

#[derive(Debug)]
struct Open {
    client: usize,
    name: LockName,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            notes: Mutex::default(),
        }
    }

    /// A client is about to request a lock. Returns the acquisition's number.
    pub(crate) fn asked(&self, client: usize, name: LockName, mode: Mode) -> u64 {
        let asked = Happened::Asked {
            client,
            name: name.clone(),
            mode,
        };
        self.begin(client, name, asked)
    }

    /// A client is about to request permits. Returns the acquisition's number.
    pub(crate) fn asked_permits(&self, client: usize, name: LockName, permits: Permits) -> u64 {
        let asked = Happened::AskedPermits {
            client,
            name: name.clone(),
            permits,
        };
        self.begin(client, name, asked)
    }

    fn begin(&self, client: usize, name: LockName, asked: Happened) -> u64 {
        let mut notes = self.lock();
        let acquisition = notes.next;
        notes.next += 1;
        let robbed = notes.robbing.as_ref() == Some(&name);
        notes.open.insert(acquisition, Open { client, name });
        self.note(&mut notes, acquisition, asked);
        if robbed {
            self.note(&mut notes, acquisition, Happened::TakenAway);
        }
        acquisition
    }

    /// The lock was granted. Holders whose lost signal has fired are recorded as lost first: the signal counts, not the
    /// time when their task runs.
    pub(crate) fn granted(
        &self,
        acquisition: u64,
        token: Option<FencingToken>,
        signal: LostSignal,
    ) {
        let mut notes = self.lock();
        let lost: Vec<u64> = notes
            .believers
            .iter()
            .filter(|(_, signal)| signal.is_lost())
            .map(|(believer, _)| *believer)
            .collect();
        for believer in lost {
            notes.believers.remove(&believer);
            self.note(&mut notes, believer, Happened::Lost);
        }
        if !notes.open.contains_key(&acquisition) {
            return;
        }
        if signal.is_lost() {
            // The grant was taken away before it was recorded: nobody relied on it, and another may already hold the
            // lock.
            notes.open.remove(&acquisition);
            self.note(&mut notes, acquisition, Happened::GaveUp);
            return;
        }
        notes.believers.insert(acquisition, signal);
        self.note(&mut notes, acquisition, Happened::Granted { token });
    }

    /// Anything else that happens to an acquisition that has not ended yet.
    pub(crate) fn happened(&self, acquisition: u64, what: Happened) {
        let mut notes = self.lock();
        match what {
            Happened::Lost | Happened::Releasing => {
                let believed = notes.believers.remove(&acquisition).is_some();
                if what == Happened::Lost && !believed {
                    return;
                }
            }
            _ => {}
        }
        if !notes.open.contains_key(&acquisition) {
            return;
        }
        if matches!(
            what,
            Happened::Released | Happened::GaveUp | Happened::TimedOut
        ) {
            notes.open.remove(&acquisition);
        }
        self.note(&mut notes, acquisition, what);
    }

    /// A client is about to be crashed, with all that it holds and waits for.
    pub(crate) fn crashed(&self, client: usize) {
        let mut notes = self.lock();
        let mut doomed: Vec<u64> = notes
            .open
            .iter()
            .filter(|(_, open)| open.client == client)
            .map(|(acquisition, _)| *acquisition)
            .collect();
        doomed.sort_unstable();
        for acquisition in doomed {
            notes.open.remove(&acquisition);
            notes.believers.remove(&acquisition);
            self.note(&mut notes, acquisition, Happened::Crashed);
        }
    }

    /// The test is about to take `name` away from its holders and from requests in flight. Until [`taken_away`] is
    /// called, this may affect every new request too.
    ///
    /// [`taken_away`]: Self::taken_away
    pub(crate) fn taking_away(&self, name: &LockName) {
        let mut notes = self.lock();
        notes.robbing = Some(name.clone());
        let mut robbed: Vec<u64> = notes
            .open
            .iter()
            .filter(|(_, open)| open.name == *name)
            .map(|(acquisition, _)| *acquisition)
            .collect();
        robbed.sort_unstable();
        for acquisition in robbed {
            self.note(&mut notes, acquisition, Happened::TakenAway);
        }
    }

    /// The name was taken away: later requests are not affected.
    pub(crate) fn taken_away(&self) {
        self.lock().robbing = None;
    }

    pub(crate) fn history(&self) -> History {
        self.lock().history.clone()
    }

    fn note(&self, notes: &mut Notes, acquisition: u64, what: Happened) {
        notes
            .history
            .push(self.started.elapsed(), acquisition, what);
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
