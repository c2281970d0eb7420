//! Writing a grant: its token, which is drawn and kept in the lock file, and its holder.
//!
//! The lock protects the record of an exclusive holder. Shared holders need a token each. They draw them one after the
//! other, under a lock on the file of readers, which takes a few microseconds. That file is also their list: each has a
//! slot, which is blank after the release. The first reader after a writer starts the list again, so the rest of a
//! crash does not stay. The slot of a process that is gone is ignored and reused. The list is read without that lock,
//! which takes longer the more readers there are: a process that is stopped meanwhile would keep all readers out.

use std::{
    fs::File,
    io,
    time::{Duration, Instant, SystemTime},
};

use portalock_core::{FencingToken, Holder, LockRequest, Mode};

use super::{
    name::{FileName, INFO_SUFFIX, READERS_SUFFIX},
    record::{self, Entry, LONGEST, Record, SLOT},
    store::Store,
};
use crate::{
    locking::{FOREIGN, FsError, Location, LockFile},
    sys,
};

/// How long the lock on the file of readers is retried. It is held for microseconds, unless its holder is stopped
/// meanwhile.
const PATIENCE: Duration = Duration::from_millis(2);

/// How long a torn record is read again. A grant is written in less than a microsecond, and a record that a power loss has
/// damaged stays torn: each look at it takes this long.
const TORN_FOR: Duration = Duration::from_micros(200);

/// How many slots are tried besides the last one before the list of readers gets longer.
const TRIED_SLOTS: usize = 4;

/// A written grant.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) entry: Entry,
    /// A shared holder's slot in the file of readers.
    reader: Option<u64>,
}

impl Store {
    /// Draws a token, and writes it with the holder. The lock must be held in the requested mode. `None` if another
    /// reader is drawing a token and does not finish in time.
    pub(crate) fn write_grant(
        &self,
        file_name: &FileName,
        file: &LockFile,
        now: FencingToken,
        request: &LockRequest,
        holder: Holder,
    ) -> Result<Option<Written>, FsError> {
        let write = |readers: Option<&File>| {
            self.with_record(file_name, file, |record| {
                write_grant(record, readers, now, request, holder)
            })
        };
        match request.demand {
            Mode::Exclusive => write(None).map(Some),
            Mode::Shared => self.with_readers(file_name, |readers| write(Some(readers))),
        }
    }

    /// Writes that a holder has released. Only `inspect` and breaks read it, so a failure has no other effect.
    pub(crate) fn note_release(&self, name: &FileName, file: &LockFile, written: &Written) {
        let noted = match written.reader {
            None => self.with_record(name, file, |record| {
                write(record, Record::write_released(written.entry.token))
            }),
            Some(slot) => {
                let leave = |readers: &File| leave_slot(readers, slot, &written.entry);
                match self.with_readers(name, leave) {
                    // The process that has it locked does not get to run. Nobody else uses the slot of one that holds.
                    Ok(None) => self.readers(name).and_then(|readers| leave(readers.file())),
                    noted => noted.map(drop),
                }
            }
        };
        if let Err(error) = noted {
            tracing::debug!(%error, file = name.as_str(), "a release could not be recorded");
        }
    }

    /// The content of the lock file. Another reader's grant that is half written is waited for.
    pub(crate) fn read(&self, name: &FileName, file: &LockFile) -> Result<Record, FsError> {
        let start = Instant::now();
        loop {
            let record = self.with_record(name, file, read)?;
            if !record.is_torn || start.elapsed() > TORN_FOR {
                return Ok(record);
            }
            std::thread::yield_now();
        }
    }

    /// When a grant was last written.
    pub(crate) fn last_written(
        &self,
        name: &FileName,
        file: &LockFile,
    ) -> Result<SystemTime, FsError> {
        self.with_record(name, file, |record| {
            let written = record.metadata().and_then(|metadata| metadata.modified());
            written.map_err(|error| FsError::new("look at", error))
        })
    }

    /// The record, and the recorded holders whose process exists, up to a maximum number. It finds one if the lock was held all
    /// the time, unless the record is torn.
    pub(crate) fn look(
        &self,
        name: &FileName,
        file: &LockFile,
        most: usize,
    ) -> Result<(Record, Vec<Entry>), FsError> {
        let record = self.read(name, file)?;
        if record.last.as_ref().map(|last| last.mode) != Some(Mode::Shared) {
            let entry = record.present().filter(|entry| !is_gone(entry));
            return Ok((record, entry.into_iter().collect()));
        }
        let present = self.present_readers(name, most)?;
        if !present.is_empty() {
            return Ok((record, present));
        }
        // The list changes while it is read: one reader may come into a slot that was read already, and the others leave before
        // theirs are. A grant writes its slot before the record, so each that isn't seen has a new token. The newest of
        // them held the lock meanwhile.
        let again = self.read(name, file)?;
        let is_new = again.last_token() != record.last_token();
        let newest = again.present().filter(|_| is_new);
        Ok((again, newest.into_iter().collect()))
    }

    /// The shared holders in the list whose process exists, up to a maximum number. A slot that is half written is skipped. Where
    /// locks are mandatory, the list is locked, or this would fail while others have it locked.
    fn present_readers(&self, name: &FileName, most: usize) -> Result<Vec<Entry>, FsError> {
        let read = |readers: &File| present_readers(readers, most);
        if self.beside
            && let Some(present) = self.with_readers(name, read)?
        {
            return Ok(present);
        }
        read(self.readers(name)?.file()).map_err(|error| error.at(name.as_str()))
    }

    /// Runs a function on the record of the lock `file`. If locks are mandatory, the record is in a file of its own,
    /// because other handles can't read a locked file.
    fn with_record<T>(
        &self,
        name: &FileName,
        file: &LockFile,
        act: impl FnOnce(&File) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        let open = || self.named(&name.beside(INFO_SUFFIX)).open();
        let beside = self.beside.then(open).transpose()?;
        let file = beside.as_ref().unwrap_or(file).file();
        act(file).map_err(|error| error.at(name.as_str()))
    }

    fn readers(&self, name: &FileName) -> Result<LockFile, FsError> {
        self.named(&name.beside(READERS_SUFFIX)).open()
    }

    /// Runs a function on the list of readers. `None` if another process has it locked and does not finish in time.
    fn with_readers<T>(
        &self,
        name: &FileName,
        act: impl FnOnce(&File) -> Result<T, FsError>,
    ) -> Result<Option<T>, FsError> {
        let readers = self.readers(name)?;
        let start = Instant::now();
        while !readers.try_lock(Mode::Exclusive)? {
            if start.elapsed() > PATIENCE {
                return Ok(None);
            }
            std::thread::yield_now();
        }
        let done = act(readers.file());
        readers.free();
        done.map(Some).map_err(|error| error.at(name.as_str()))
    }
}

fn write_grant(
    file: &File,
    readers: Option<&File>,
    now: FencingToken,
    request: &LockRequest,
    holder: Holder,
) -> Result<Written, FsError> {
    let record = read(file)?;
    if record.name.as_deref() != Some(request.name.as_str()) {
        // A new file, or one that a power loss damaged. No two names have the same file.
        write(file, Record::write_name(&request.name))?;
    }
    let entry = Entry {
        token: token_after(record.last_token(), now)?,
        mode: request.demand,
        owner: request.owner,
        holder,
    };
    let last = record.last.as_ref();
    let is_first = last.is_none_or(|last| last.mode == Mode::Exclusive);
    let reader = readers.map(|readers| add_reader(readers, &entry, is_first));
    let reader = reader.transpose()?;
    write(file, (0, record::render_slot(&entry)))?;
    Ok(Written { entry, reader })
}

fn token_after(last: Option<FencingToken>, now: FencingToken) -> Result<FencingToken, FsError> {
    let next = last.map_or(Some(0), |last| last.get().checked_add(1));
    let next = next.ok_or_else(|| foreign("the largest possible fencing token"))?;
    Ok(now.max(FencingToken::new(next)))
}

/// Writes `entry` into an unused slot. Returns the slot.
fn add_reader(readers: &File, entry: &Entry, is_first: bool) -> Result<u64, FsError> {
    if !record::is_ours(read_slot(readers, 0, &mut [0; SLOT])?) {
        return Err(foreign("not a list of shared holders"));
    }
    if is_first {
        let cleared = readers.set_len(0);
        cleared.map_err(|error| FsError::new("clear the list of shared holders of", error))?;
    }
    let slot = unused_slot(readers)?;
    write(readers, (slot * SLOT as u64, record::render_slot(entry)))?;
    Ok(slot)
}

/// The last slot, one of a few others, or a new one. So a grant reads no more if there are many readers. The list gets
/// longer only if those few slots are in use, which becomes rare when the list has many unused slots.
fn unused_slot(readers: &File) -> Result<u64, FsError> {
    let slots = count_slots(readers)?;
    let others = std::iter::repeat_with(|| fastrand::u64(..slots.max(1))).take(TRIED_SLOTS);
    for slot in slots.checked_sub(1).into_iter().chain(others) {
        if present_in(readers, slot)?.is_none() {
            return Ok(slot);
        }
    }
    Ok(slots)
}

/// Blanks the slot of a holder, which nobody else uses while it holds. If the lock file was replaced, the list is that of the
/// new file.
fn leave_slot(readers: &File, slot: u64, holder: &Entry) -> Result<(), FsError> {
    let present = record::parse_slot(read_slot(readers, slot, &mut [0; SLOT])?);
    if present.is_some_and(|present| present.owner == holder.owner) {
        write(readers, (slot * SLOT as u64, [0; SLOT]))?;
    }
    Ok(())
}

fn present_readers(readers: &File, most: usize) -> Result<Vec<Entry>, FsError> {
    (0..count_slots(readers)?)
        .filter_map(|slot| present_in(readers, slot).transpose())
        .take(most)
        .collect()
}

fn count_slots(readers: &File) -> Result<u64, FsError> {
    let length = readers.metadata().map(|metadata| metadata.len());
    let length = length.map_err(|error| FsError::new("look at", error))?;
    Ok(length.div_ceil(SLOT as u64))
}

/// The reader in this slot, if it has not released and its process exists.
fn present_in(readers: &File, slot: u64) -> Result<Option<Entry>, FsError> {
    let entry = record::parse_slot(read_slot(readers, slot, &mut [0; SLOT])?);
    Ok(entry.filter(|entry| !is_gone(entry)))
}

fn read_slot<'b>(
    readers: &File,
    slot: u64,
    bytes: &'b mut [u8; SLOT],
) -> Result<&'b [u8], FsError> {
    let is_whole = |bytes: &[u8]| bytes.len() == SLOT;
    read_at(readers, bytes, slot * SLOT as u64, is_whole)
}

/// Whether that process ended without a release, as far as this host can tell.
fn is_gone(Entry { holder, .. }: &Entry) -> bool {
    holder.host == Holder::this_process(None).host && sys::process_exists(holder.pid) == Some(false)
}

fn read(file: &File) -> Result<Record, FsError> {
    let mut bytes = [0; LONGEST];
    let bytes = read_at(file, &mut bytes, 0, record::is_whole)?;
    Record::parse(bytes).ok_or_else(|| foreign("not a record of a lock"))
}

/// Reads until `is_whole`, or to the end of the file.
fn read_at<'b>(
    file: &File,
    bytes: &'b mut [u8],
    at: u64,
    is_whole: fn(&[u8]) -> bool,
) -> Result<&'b [u8], FsError> {
    let mut filled = 0;
    while !is_whole(&bytes[..filled]) {
        let read = sys::read_at(file, &mut bytes[filled..], at + filled as u64);
        match read.map_err(|error| FsError::new("read", error))? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(&bytes[..filled])
}

fn write(file: &File, (at, bytes): (u64, impl AsRef<[u8]>)) -> Result<(), FsError> {
    let (bytes, mut written) = (bytes.as_ref(), 0);
    while written < bytes.len() {
        match sys::write_at(file, &bytes[written..], at + written as u64) {
            Ok(0) => return Err(FsError::new("write", io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) => return Err(FsError::new("write", error)),
        }
    }
    Ok(())
}

fn foreign(what: &'static str) -> FsError {
    FsError::new("use", io::Error::other(what)).meaning(FOREIGN)
}

#[cfg(test)]
mod tests;
