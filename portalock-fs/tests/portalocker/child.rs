//! A child process: the same test binary, with its task in an environment variable.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

#[cfg(unix)]
use portalock_core::LockError;
#[cfg(unix)]
use portalock_fs::open_atomic;
use portalock_fs::{
    AtomicFile, BoundedSemaphore, FileLock, LockKind, Mode, PidFileLock, TemporaryFileLock, lock,
};

const TASK: &str = "PORTALOCK_TEST_TASK";
const PLACE: &str = "PORTALOCK_TEST_PLACE";
const SIGN: &str = "portalock-child:";

/// A process that does a step, reports it, and continues on request. Killed when dropped.
pub(crate) struct Other {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Other {
    /// Starts a process that does the first step of `task` at `place`, and waits until it is done.
    pub(crate) fn that_has(task: &str, place: &Path) -> Self {
        let mut other = Self::start(task, place);
        other.expect("ready");
        other
    }

    pub(crate) fn start(task: &str, place: &Path) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child::acts", "--nocapture"])
            .env(TASK, task)
            .env(PLACE, place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self { process, said }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it prints `word`; any other output, except that of the test harness, is a failure.
    pub(crate) fn expect(&mut self, word: &str) {
        let said = self.hear();
        assert_eq!(said, word);
    }

    /// Waits for its next word.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.said.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "the other process ended without a word");
            if let Some((_, word)) = line.split_once(SIGN) {
                return word.trim().to_owned();
            }
        }
    }

    /// Lets it continue, and waits until it has ended successfully.
    pub(crate) fn finish(mut self) {
        self.process.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.process.wait().unwrap().success());
    }

    /// Kills it, like a crash.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn say(word: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{SIGN}{word}").unwrap();
    out.flush().unwrap();
}

fn say_ready_and_wait() {
    say("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Does nothing unless this is the child process.
#[test]
fn acts() {
    let Ok(task) = env::var(TASK) else { return };
    let place = std::path::PathBuf::from(env::var_os(PLACE).unwrap());
    match task.as_str() {
        "file" => {
            let _held = FileLock::new(&place).unwrap().try_acquire().unwrap();
            say_ready_and_wait();
        }
        "temporary" => {
            let lock = TemporaryFileLock::new(&place).unwrap();
            let _held = lock.try_acquire().unwrap();
            say_ready_and_wait();
        }
        "pid" => {
            let _held = PidFileLock::new(&place).unwrap().try_acquire().unwrap();
            say_ready_and_wait();
        }
        "slot" => {
            let semaphore = BoundedSemaphore::new("jobs", 2).unwrap();
            let semaphore = semaphore.in_directory(&place).unwrap();
            let _held = semaphore.try_acquire().unwrap();
            say_ready_and_wait();
        }
        "flock" | "record" => {
            let file = fs::OpenOptions::new()
                .append(true)
                .read(true)
                .open(&place)
                .unwrap();
            let kind = if task == "record" {
                LockKind::Record
            } else {
                LockKind::Flock
            };
            lock(&file, Mode::Exclusive, kind).unwrap();
            say_ready_and_wait();
        }
        "bystander" => say_ready_and_wait(),
        "elsewhere" => elsewhere(&place),
        #[cfg(unix)]
        "umask" => {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
            open_atomic(place, |file| file.write_all(b"content")).unwrap();
            say("ready");
        }
        #[cfg(unix)]
        "no handles left" => {
            let lock = FileLock::new(&place).unwrap();
            let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            limit.current = Some(0);
            rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
            let Err(LockError::Backend { source, .. }) = lock.try_acquire() else {
                panic!("opened a file without a handle");
            };
            say(&format!("{:?}", source.kind()));
        }
        "half" => {
            let mut file = AtomicFile::create(place).unwrap();
            file.write_all(b"half of it").unwrap();
            say_ready_and_wait();
        }
        other => panic!("nobody knows the task {other}"),
    }
}

/// Uses relative paths, and changes the working directory before any of them is used.
fn elsewhere(place: &Path) {
    fs::create_dir(place.join("elsewhere")).unwrap();
    env::set_current_dir(place).unwrap();
    let file = FileLock::new("file").unwrap();
    let temporary = TemporaryFileLock::new("temporary").unwrap();
    let pid = PidFileLock::new("pid").unwrap();
    let semaphore = BoundedSemaphore::new("jobs", 1).unwrap();
    let semaphore = semaphore.in_directory(".").unwrap();
    let atomic = AtomicFile::create("atomic").unwrap();
    env::set_current_dir(place.join("elsewhere")).unwrap();

    let held = temporary.try_acquire().unwrap();
    assert!(place.join("temporary").exists());
    held.release().unwrap();
    assert!(!place.join("temporary").exists());
    drop(file.try_acquire().unwrap());
    assert!(place.join("file").exists());
    let held = pid.try_acquire().unwrap();
    assert!(place.join("pid").exists());
    held.release().unwrap();
    assert!(!place.join("pid").exists());
    drop(semaphore.try_acquire().unwrap());
    assert!(place.join("jobs.00.lock").exists());
    atomic.publish().unwrap();
    assert!(place.join("atomic").exists());
    assert_eq!(fs::read_dir(".").unwrap().count(), 0);
    say("ready");
}
