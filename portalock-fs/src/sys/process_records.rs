//! Systems whose record locks belong to the process (`fcntl` as POSIX has it): they don't keep two handles of one process
//! apart, so a table in memory does, keyed by the file's identity.
//!
//! A handle is known by its descriptor's number. If a handle is closed without being unlocked its entry stays until the
//! number is used again for a lock; hence the rule to unlock before closing.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
};

use portalock_core::Mode;
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
};

use crate::LockKind;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
}

/// What this process has to do with one file.
#[derive(Debug, Default)]
struct Entry {
    holders: HashMap<RawFd, Mode>,
    /// Handles that are done with, kept open since closing any of them would drop the holders' lock.
    deferred: Vec<File>,
}

type Table = HashMap<FileId, Entry>;

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
static CHANGED: Condvar = Condvar::new();

pub(crate) fn lock_record(file: &File, mode: Mode) -> io::Result<()> {
    let id = identify(file)?;
    let fd = file.as_raw_fd();
    let mut table = table();
    let before = held(&table, id, fd);
    while !claim(&mut table, id, fd, mode) {
        table = CHANGED.wait(table).unwrap_or_else(PoisonError::into_inner);
    }
    drop(table);
    let operation = match mode {
        Mode::Exclusive => FlockOperation::LockExclusive,
        Mode::Shared => FlockOperation::LockShared,
    };
    fcntl_lock(file, operation).map_err(|error| {
        restore(&mut self::table(), id, fd, before);
        error.into()
    })
}

pub(crate) fn try_lock_record(file: &File, mode: Mode) -> io::Result<bool> {
    let id = identify(file)?;
    let fd = file.as_raw_fd();
    let mut table = table();
    let before = held(&table, id, fd);
    if !claim(&mut table, id, fd, mode) {
        return Ok(false);
    }
    let operation = match mode {
        Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Mode::Shared => FlockOperation::NonBlockingLockShared,
    };
    match fcntl_lock(file, operation) {
        Ok(()) => Ok(true),
        Err(error) => {
            restore(&mut table, id, fd, before);
            // POSIX allows either for "held by another".
            match error {
                Errno::AGAIN | Errno::ACCESS => Ok(false),
                error => Err(error.into()),
            }
        }
    }
}

pub(crate) fn unlock_record(file: &File) -> io::Result<()> {
    let id = identify(file)?;
    let mut table = table();
    forget(&mut table, id, file.as_raw_fd());
    // The process has one lock for all its handles: it stays for as long as another of them shares it.
    if !table.contains_key(&id) {
        fcntl_lock(file, FlockOperation::Unlock)?;
    }
    Ok(())
}

/// Closes `file` as soon as that drops no lock of another handle of this process.
pub(crate) fn close(file: File, kind: LockKind) {
    if kind != LockKind::Record {
        return;
    }
    let Ok(id) = identify(&file) else { return };
    let mut table = table();
    forget(&mut table, id, file.as_raw_fd());
    if let Some(entry) = table.get_mut(&id) {
        entry.deferred.push(file);
    }
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a place for `fd` unless another handle of this process is in the way.
fn claim(table: &mut Table, id: FileId, fd: RawFd, mode: Mode) -> bool {
    // The number is ours now: an entry under it for another file was left by a handle that has been closed.
    table.retain(|other, entry| {
        if *other != id {
            entry.holders.remove(&fd);
        }
        !entry.holders.is_empty()
    });
    let free = table.get(&id).is_none_or(|entry| {
        entry
            .holders
            .iter()
            .all(|(other, held)| *other == fd || (mode == Mode::Shared && *held == Mode::Shared))
    });
    if free {
        table.entry(id).or_default().holders.insert(fd, mode);
    }
    free
}

fn held(table: &Table, id: FileId, fd: RawFd) -> Option<Mode> {
    table.get(&id)?.holders.get(&fd).copied()
}

/// A refused change of the mode leaves a record lock as it was.
fn restore(table: &mut Table, id: FileId, fd: RawFd, before: Option<Mode>) {
    match before {
        Some(mode) => {
            table.entry(id).or_default().holders.insert(fd, mode);
            CHANGED.notify_all();
        }
        None => forget(table, id, fd),
    }
}

fn forget(table: &mut Table, id: FileId, fd: RawFd) {
    if let Some(entry) = table.get_mut(&id) {
        entry.holders.remove(&fd);
        if entry.holders.is_empty() {
            table.remove(&id);
        }
    }
    CHANGED.notify_all();
}

fn identify(file: &File) -> io::Result<FileId> {
    let metadata = file.metadata()?;
    Ok(FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handles() -> (tempfile::NamedTempFile, File, File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(file.path())
                .unwrap()
        };
        let (a, b) = (open(), open());
        (file, a, b)
    }

    #[test]
    fn two_handles_of_one_process_exclude_each_other() {
        let (_file, a, b) = handles();
        assert!(try_lock_record(&a, Mode::Exclusive).unwrap());
        assert!(!try_lock_record(&b, Mode::Shared).unwrap());
        let waiter = std::thread::spawn(move || {
            lock_record(&b, Mode::Exclusive).unwrap();
            b
        });
        unlock_record(&a).unwrap();
        let b = waiter.join().unwrap();
        assert!(!try_lock_record(&a, Mode::Exclusive).unwrap());
        unlock_record(&b).unwrap();
        assert!(try_lock_record(&a, Mode::Exclusive).unwrap());
        unlock_record(&a).unwrap();
    }

    #[test]
    fn the_process_keeps_the_lock_while_one_handle_shares_it() {
        let (_file, a, b) = handles();
        assert!(try_lock_record(&a, Mode::Shared).unwrap());
        assert!(try_lock_record(&b, Mode::Shared).unwrap());
        unlock_record(&a).unwrap();
        assert!(!try_lock_record(&a, Mode::Exclusive).unwrap());
        unlock_record(&b).unwrap();
    }

    #[test]
    fn closing_a_second_handle_does_not_drop_the_lock() {
        let (file, a, b) = handles();
        assert!(try_lock_record(&a, Mode::Exclusive).unwrap());
        close(b, LockKind::Record);
        assert!(!child_can_lock(&file), "the lock was dropped");
        unlock_record(&a).unwrap();
        close(a, LockKind::Record);
        assert!(child_can_lock(&file));
    }

    const ASKED_FILE: &str = "PORTALOCK_TEST_RECORD_FILE";

    /// Asks from another process: inside one a record lock is never in the way.
    fn child_can_lock(file: &tempfile::NamedTempFile) -> bool {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "sys::process_records::tests::the_child_asks"])
            .env(ASKED_FILE, file.path())
            .output()
            .unwrap()
            .status
            .success()
    }

    /// Does nothing unless it is the child of [`child_can_lock`].
    #[test]
    fn the_child_asks() {
        if let Some(path) = std::env::var_os(ASKED_FILE) {
            let file = File::options().write(true).open(path).unwrap();
            fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        }
    }

    #[test]
    fn a_reused_number_forgets_the_closed_handle() {
        let (_one, a, b) = handles();
        let (_two, other, _) = handles();
        let mut table = Table::new();
        let (here, there) = (identify(&a).unwrap(), identify(&other).unwrap());
        assert!(claim(&mut table, here, 7, Mode::Exclusive));
        assert!(claim(&mut table, there, 7, Mode::Exclusive));
        assert!(claim(&mut table, here, b.as_raw_fd(), Mode::Exclusive));
    }
}
