//! What the holder of a pid file writes, and how a reader interprets it.
//!
//! The pid file contains only the pid, because other programs read it. The sidecar, which is locked, contains one line
//! that identifies this process among all with the same pid.

use std::{
    ffi::OsString,
    fmt,
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use portalock_core::{Holder, clock};
use serde::{Deserialize, Serialize};

use super::temp_file::TempFile;
use crate::{
    locking::FsError,
    sys::{self, ProcessLife},
};

/// No pid and no record is longer. A longer file has other content.
const LONGEST: usize = 1024;

/// The process that wrote a pid file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PidHolder {
    /// The pid in the file.
    pub pid: u32,
    /// The state of the process that wrote it.
    pub state: PidState,
}

/// The state of the process that wrote a pid file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PidState {
    /// The process that wrote the file runs (Linux).
    Running,
    /// The process is gone, and another process has its pid (Linux).
    Reused,
    /// There is no process with that pid.
    Gone,
    /// There may be a process with that pid, but it is unknown whether it wrote the file: the system is not Linux, or
    /// portalocker or another host or container wrote the file.
    Unknown,
}

impl fmt::Display for PidState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Reused => "gone, and its pid reused",
            Self::Gone => "gone",
            Self::Unknown => "perhaps running",
        })
    }
}

impl PidHolder {
    /// Whether that process can be the holder of the lock.
    pub fn may_be_holding(&self) -> bool {
        matches!(self.state, PidState::Running | PidState::Unknown)
    }
}

/// The identity of one process: the line of JSON in the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: u32,
    life: ProcessLife,
    host: String,
}

impl Record {
    fn of_this_process() -> Option<Self> {
        let pid = std::process::id();
        Some(Self {
            pid,
            life: sys::process_life(pid)?,
            host: Holder::this_process(None).host.to_string(),
        })
    }

    fn state(&self) -> PidState {
        let here = Self::of_this_process().filter(|here| here.host == self.host);
        let Some(here) = here else {
            return PidState::Unknown;
        };
        if self.life.boot != here.life.boot {
            return PidState::Gone;
        }
        if self.life.namespace != here.life.namespace {
            return PidState::Unknown;
        }
        match sys::process_life(self.pid) {
            Some(now) if now.start == self.life.start => PidState::Running,
            Some(_) => PidState::Reused,
            None if sys::process_exists(self.pid) == Some(false) => PidState::Gone,
            None => PidState::Unknown,
        }
    }
}

/// The file beside `pid_file` that is locked.
pub(crate) fn sidecar_of(pid_file: &Path) -> PathBuf {
    let mut name = OsString::from(pid_file);
    name.push(".lock");
    PathBuf::from(name)
}

/// Writes this process as the holder: first into the locked sidecar, and then, in one step, into the pid file.
pub(crate) fn write(pid_file: &Path, mut sidecar: &File) -> Result<(), FsError> {
    if let Some(record) = Record::of_this_process() {
        let emptied = sidecar.set_len(0);
        emptied
            .and_then(|()| sidecar.write_all(&serde_json::to_vec(&record)?))
            .map_err(|error| FsError::new("write", error).at(sidecar_of(pid_file)))?;
    }
    let directory = pid_file.parent().unwrap_or(pid_file);
    let temp = TempFile::create_in(directory)?;
    let mut file = temp.file();
    writeln!(file, "{}", std::process::id())
        .map_err(|error| FsError::new("write", error).at(temp.path()))?;
    temp.sync()?;
    temp.replace(pid_file)
}

/// Parses the pid strictly, because `kill` treats -1 as "all processes".
pub(crate) fn read_pid(pid_file: &Path) -> Option<u32> {
    let (content, _) = read(pid_file)?;
    let digits = content.trim();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|pid| *pid != 0)
}

pub(crate) fn read_holder(pid_file: &Path) -> Option<PidHolder> {
    let record = read(&sidecar_of(pid_file)).and_then(|(line, _)| serde_json::from_str(&line).ok());
    holder_by(pid_file, record.as_ref())
}

fn holder_by(pid_file: &Path, record: Option<&Record>) -> Option<PidHolder> {
    let pid = read_pid(pid_file)?;
    let recorded = record.map(|record| PidHolder {
        pid: record.pid,
        state: record.state(),
    });
    // The running process holds the lock, and is about to replace the pid of a dead process.
    let told = recorded.filter(|told| told.pid == pid || told.state == PidState::Running);
    Some(told.unwrap_or_else(|| PidHolder {
        pid,
        state: match sys::process_exists(pid) {
            Some(false) => PidState::Gone,
            _ => PidState::Unknown,
        },
    }))
}

/// The holder of a held lock, if the written pid can be right. The open sidecar is used, because closing another handle
/// would wake all waiters.
pub(crate) fn holder_beside(pid_file: &Path, sidecar: &File) -> Option<Holder> {
    let mut line = [0; LONGEST];
    let length = sys::read_at(sidecar, &mut line, 0).unwrap_or_default();
    let record: Option<Record> = serde_json::from_slice(&line[..length]).ok();
    let holder = holder_by(pid_file, record.as_ref()).filter(PidHolder::may_be_holding)?;
    let (_, written) = read(pid_file)?;
    let record = record.filter(|record| record.pid == holder.pid);
    let host = record.map(|record| record.host.into());
    let host = host.unwrap_or_else(|| Holder::this_process(None).host);
    Some(Holder::new(host, holder.pid, None, written))
}

/// The content of a short text file, and when it was written.
fn read(path: &Path) -> Option<(String, SystemTime)> {
    let mut options = OpenOptions::new();
    options.read(true);
    sys::set_read_flags(&mut options);
    let file = options.open(path).ok()?;
    let written = file.metadata().and_then(|metadata| metadata.modified());
    let written = written.unwrap_or_else(|_| clock::wall_clock());
    let mut content = String::new();
    file.take(LONGEST as u64 + 1)
        .read_to_string(&mut content)
        .ok()?;
    (content.len() <= LONGEST).then_some((content, written))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.pid");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn only_a_plain_positive_number_is_a_pid() {
        for (content, pid) in [
            ("4711", Some(4711)),
            (" 4711\n", Some(4711)),
            ("", None),
            ("0", None),
            ("-1", None),
            ("+1", None),
            ("1_000", None),
            ("4711 x", None),
            ("\u{664}\u{667}", None),
            ("99999999999999999999999999", None),
        ] {
            let (_dir, path) = written(content);
            assert_eq!(read_pid(&path), pid, "{content:?}");
        }
        assert_eq!(read_pid(&written([0xff, 0xfe]).1), None);
        assert_eq!(read_pid(&written("1".repeat(5000)).1), None);
        for (spaces, pid) in [(LONGEST - 4, Some(4711)), (LONGEST, None)] {
            let (_dir, path) = written(format!("4711{}", " ".repeat(spaces)));
            assert_eq!(read_pid(&path), pid, "{spaces} spaces");
        }
        assert_eq!(read_pid(Path::new("/nonexistent/daemon.pid")), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pid_file_tells_a_reused_pid() {
        let here = Record::of_this_process().unwrap();
        assert_eq!(
            serde_json::from_str::<Record>(&serde_json::to_string(&here).unwrap()).unwrap(),
            here
        );
        let state_of = |change: &dyn Fn(&mut Record)| {
            let mut record = here.clone();
            change(&mut record);
            let (_dir, path) = written(record.pid.to_string());
            std::fs::write(sidecar_of(&path), serde_json::to_string(&record).unwrap()).unwrap();
            read_holder(&path).unwrap().state
        };
        assert_eq!(state_of(&|_| {}), PidState::Running);
        assert_eq!(state_of(&|record| record.life.start -= 1), PidState::Reused);
        assert_eq!(
            state_of(&|record| record.life.boot.push('x')),
            PidState::Gone
        );
        assert_eq!(
            state_of(&|record| record.pid = i32::MAX as u32),
            PidState::Gone
        );
        let elsewhere: [fn(&mut Record); 2] = [
            |record| record.host.push('x'),
            |record| record.life.namespace.push('x'),
        ];
        for change in elsewhere {
            assert_eq!(state_of(&change), PidState::Unknown);
        }
    }

    #[test]
    fn a_pid_that_portalocker_wrote_is_believed_with_reserve() {
        let (_dir, path) = written(std::process::id().to_string());
        let holder = read_holder(&path).unwrap();
        assert_eq!(holder.state, PidState::Unknown);
        assert!(holder.may_be_holding());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn between_lock_and_pid_the_new_holder_is_named() {
        let (_dir, path) = written("1");
        let here = Record::of_this_process().unwrap();
        std::fs::write(sidecar_of(&path), serde_json::to_string(&here).unwrap()).unwrap();
        assert_eq!(read_holder(&path).unwrap().pid, here.pid);
        // A record of a process that is gone says nothing about another pid.
        let gone = Record {
            pid: i32::MAX as u32,
            ..here
        };
        std::fs::write(sidecar_of(&path), serde_json::to_string(&gone).unwrap()).unwrap();
        assert_eq!(read_holder(&path).unwrap().pid, 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_holders_host_is_the_one_that_it_wrote() {
        let (_dir, path) = written("1");
        let here = Record::of_this_process().unwrap();
        let host_of = |pid| {
            let (host, life) = ("elsewhere".to_owned(), here.life.clone());
            let record = serde_json::to_string(&Record { pid, life, host }).unwrap();
            std::fs::write(sidecar_of(&path), record).unwrap();
            let sidecar = File::open(sidecar_of(&path)).unwrap();
            holder_beside(&path, &sidecar).unwrap().host
        };
        assert_eq!(&*host_of(1), "elsewhere");
        assert_eq!(*host_of(2), *here.host);
    }
}
