//! Linux and Android: a thread waits until there are events, or until another thread wakes it.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
};

/// The longest wait in one call: the kernel counts milliseconds in 31 bits.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Waits until there are events, or until it is woken.
#[derive(Debug)]
pub(super) struct EventWait {
    epoll: OwnedFd,
    wakes: OwnedFd,
}

impl EventWait {
    /// Of all of these for one source of events, an event ends the wait at the one that was made first, if a thread waits there.
    pub(super) fn new(events: &OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wakes = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = EventData::new_u64(0);
        epoll::add(&epoll, events, data, EventFlags::IN | EventFlags::EXCLUSIVE)?;
        // Each wake-up is reported once, so nothing has to read it.
        epoll::add(&epoll, &wakes, data, EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll, wakes })
    }

    /// Waits for at most `timeout`.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Result<(), Errno> {
        let timeout = timeout.map(|timeout| timeout.min(LONGEST));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut happened = [MaybeUninit::uninit(); 2];
        epoll::wait(&self.epoll, &mut happened, timeout.as_ref()).map(drop)
    }

    /// Ends the wait, or the next one if nobody waits.
    pub(super) fn wake(&self) {
        // It fails only after 2^64 wake-ups.
        let _ = rustix::io::write(&self.wakes, &1_u64.to_ne_bytes());
    }
}
