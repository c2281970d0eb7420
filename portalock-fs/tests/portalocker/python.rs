//! A real Python program and a Rust program exclude each other, with both kinds of lock.
#![cfg(unix)]

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
};

use portalock_core::LockError;
use portalock_fs::{FileLock, LockKind, PidFileLock};

use crate::{kinds, patient, place};

/// A Python program that prints the result of its lock and keeps it until its input ends. Its arguments are the kind of
/// lock and the file.
struct Python(Child);

impl Python {
    /// None, with a message, if Python or a module is missing.
    fn running(test: &str, script: &str, kind: LockKind, path: &Path) -> Option<Self> {
        let word = if kind == LockKind::Record {
            "lockf"
        } else {
            "flock"
        };
        let child = Command::new("python3")
            .args(["-c", script, word])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                println!("SKIPPED {test}: this needs python3: {error}");
                None
            }
        }
    }

    /// What it says first.
    fn word(&mut self) -> String {
        let mut line = String::new();
        let out = self.0.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn finish(mut self) {
        drop(self.0.stdin.take());
        let out = self.0.stdout.as_mut().unwrap();
        out.read_to_string(&mut String::new()).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PLAIN: &str = "
import fcntl, sys
file = open(sys.argv[2], 'a')
try:
    getattr(fcntl, sys.argv[1])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print('held', flush=True)
except OSError:
    print('refused', flush=True)
sys.stdin.read()
";

const PORTALOCKER: &str = "
import fcntl, sys
try:
    import portalocker
except ImportError:
    print('missing', flush=True)
    sys.exit()
portalocker.portalocker.LOCKER = getattr(fcntl, sys.argv[1])
try:
    with portalocker.PidFileLock(sys.argv[2]) as pid:
        print('held' if pid is None else f'refused {pid}', flush=True)
        sys.stdin.read()
except portalocker.AlreadyLocked:
    print('refused', flush=True)
";

#[test]
fn a_program_that_locks_by_fcntl_and_ours_keep_each_other_out() {
    let test = "a_program_that_locks_by_fcntl_and_ours_keep_each_other_out";
    for &kind in kinds() {
        let (_dir, path) = place("ledger");
        let ours = FileLock::new(&path).unwrap().with_kind(kind);
        let held = ours.try_acquire().unwrap();
        let Some(mut python) = Python::running(test, PLAIN, kind, &path) else {
            return;
        };
        assert_eq!(python.word(), "refused", "{kind:?}");
        python.finish();
        held.release().unwrap();
        let mut python = Python::running(test, PLAIN, kind, &path).unwrap();
        assert_eq!(python.word(), "held", "{kind:?}");
        assert!(ours.try_acquire().unwrap_err().is_contention());
        python.finish();
        drop(ours.blocking_acquire_with(&patient()).unwrap());
    }
}

#[test]
fn portalockers_pid_file_lock_and_ours_keep_each_other_out() {
    let test = "portalockers_pid_file_lock_and_ours_keep_each_other_out";
    for &kind in kinds() {
        let (_dir, path) = place("daemon.pid");
        let ours = PidFileLock::new(&path).unwrap().with_kind(kind);
        let held = ours.try_acquire().unwrap();
        let Some(mut python) = Python::running(test, PORTALOCKER, kind, &path) else {
            return;
        };
        let word = python.word();
        if word == "missing" {
            println!("SKIPPED {test}: this needs Python's portalocker 4.4.2");
            return;
        }
        assert_eq!(word, format!("refused {}", std::process::id()), "{kind:?}");
        python.finish();
        held.release().unwrap();
        let mut python = Python::running(test, PORTALOCKER, kind, &path).unwrap();
        assert_eq!(python.word(), "held", "{kind:?}");
        let error = ours.try_acquire().unwrap_err();
        assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
        assert_eq!(ours.read_pid(), Some(python.0.id()));
        python.finish();
        drop(ours.blocking_acquire_with(&patient()).unwrap());
    }
}
