//! A critical section that detects too many holders inside.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portalock_core::{Mode, clock::Instant};

use crate::verdict::{CaseResult, ensure};

/// How long each holder stays inside. A section of nanoseconds would hide overlaps.
pub(crate) const STAY: Duration = Duration::from_micros(60);

/// A section with a maximum weight. All clones are the same section.
#[derive(Debug, Clone)]
pub(crate) struct Section(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    capacity: u64,
    used: AtomicU64,
    overlaps: AtomicU64,
    entries: AtomicU64,
    /// A counter that exclusive holders read and write back later: if holders overlap, counts are lost.
    tally: AtomicU64,
    alone: AtomicU64,
}

/// A writer takes the whole weight of a lock's section, and a reader one unit.
const ROOM: u64 = 1 << 32;

impl Section {
    /// The section of a lock.
    pub(crate) fn of_a_lock() -> Self {
        Self::with_capacity(ROOM)
    }

    /// The section of a semaphore.
    pub(crate) fn of_permits(capacity: u32) -> Self {
        Self::with_capacity(u64::from(capacity))
    }

    fn with_capacity(capacity: u64) -> Self {
        Self(Arc::new(Inside {
            capacity,
            used: AtomicU64::new(0),
            overlaps: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            tally: AtomicU64::new(0),
            alone: AtomicU64::new(0),
        }))
    }

    /// Stays inside for a moment, while other tasks run.
    pub(crate) async fn visit(&self, mode: Mode) {
        self.stay(self.weight(mode), tokio::task::yield_now).await;
    }

    /// Stays inside for a moment, with this number of permits.
    pub(crate) async fn visit_with(&self, permits: u32) {
        self.stay(u64::from(permits), tokio::task::yield_now).await;
    }

    /// Stays inside for a moment, on a thread that has no runtime.
    pub(crate) fn visit_blocking(&self, mode: Mode) {
        let stay = self.stay(self.weight(mode), || {
            std::thread::yield_now();
            std::future::ready(())
        });
        // Nothing in it is ever pending.
        let mut stay = std::pin::pin!(stay);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        while stay.as_mut().poll(&mut context).is_pending() {}
    }

    fn weight(&self, mode: Mode) -> u64 {
        match mode {
            Mode::Exclusive => self.0.capacity,
            Mode::Shared => 1,
        }
    }

    async fn stay<F: Future<Output = ()>>(&self, weight: u64, give_way: impl Fn() -> F) {
        let inside = &self.0;
        let until = Instant::now() + STAY;
        let used = inside.used.fetch_add(weight, Ordering::SeqCst) + weight;
        if used > inside.capacity {
            inside.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        let alone = weight == inside.capacity;
        let tally = inside.tally.load(Ordering::SeqCst);
        loop {
            give_way().await;
            if Instant::now() >= until {
                break;
            }
        }
        if alone {
            inside.tally.store(tally + 1, Ordering::SeqCst);
            inside.alone.fetch_add(1, Ordering::SeqCst);
        }
        inside.entries.fetch_add(1, Ordering::SeqCst);
        inside.used.fetch_sub(weight, Ordering::SeqCst);
    }

    /// How often it was entered and left.
    pub(crate) fn entries(&self) -> u64 {
        self.0.entries.load(Ordering::SeqCst)
    }

    /// Ends the case as failed if there were ever too many holders inside.
    pub(crate) fn ensure_never_crowded(&self) -> CaseResult {
        let overlaps = self.0.overlaps.load(Ordering::SeqCst);
        let (tally, alone) = (
            self.0.tally.load(Ordering::SeqCst),
            self.0.alone.load(Ordering::SeqCst),
        );
        ensure!(
            overlaps == 0,
            "holders that exclude each other were inside together {overlaps} times in {} visits",
            self.entries()
        );
        ensure!(
            tally == alone,
            "{alone} holders each added one to a counter that only they should touch: it stands at {tally}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_at_once_are_noticed() {
        let section = Section::of_a_lock();
        tokio::join!(
            section.visit(Mode::Exclusive),
            section.visit(Mode::Exclusive)
        );
        assert!(section.ensure_never_crowded().is_err());
    }

    #[tokio::test]
    async fn a_reader_beside_a_writer_is_noticed() {
        let section = Section::of_a_lock();
        tokio::join!(section.visit(Mode::Exclusive), section.visit(Mode::Shared));
        assert!(section.ensure_never_crowded().is_err());
    }

    #[tokio::test]
    async fn readers_together_are_fine_and_so_is_one_after_the_other() {
        let section = Section::of_a_lock();
        tokio::join!(section.visit(Mode::Shared), section.visit(Mode::Shared));
        section.visit(Mode::Exclusive).await;
        section.visit_blocking(Mode::Exclusive);
        assert!(section.ensure_never_crowded().is_ok());
        assert_eq!(section.entries(), 4);
    }

    #[tokio::test]
    async fn one_permit_too_many_is_noticed() {
        let section = Section::of_permits(3);
        tokio::join!(section.visit_with(2), section.visit_with(2));
        assert!(section.ensure_never_crowded().is_err());
    }
}
