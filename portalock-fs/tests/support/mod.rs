//! Shared by the tests of the backend: a directory, policies, and a second process.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

pub(crate) mod wine;

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use portalock_core::{
    Attempt, Grant, Lock, LockBackend, LockName, LockRequest, Mode, Patience, Policy,
};
use portalock_fs::{FsBackend, FsSettings};

/// Longer than any event here takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A directory for locks, removed at the end.
pub(crate) struct Locks(tempfile::TempDir);

impl Locks {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("locks")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.lock"))
    }

    /// The file with the token and the holder of a lock.
    pub(crate) fn record(&self, name: &str) -> PathBuf {
        let suffix = if cfg!(windows) { "info" } else { "lock" };
        self.path().join(format!("{name}.{suffix}"))
    }

    /// A client that is independent of the others. If it is watched, it tries so rarely that a lost wake-up is noticed.
    pub(crate) fn client(&self) -> FsBackend {
        let settings = FsSettings::new(self.path()).with_poll_interval(10 * LONG);
        FsBackend::with_settings(&settings.unwrap()).unwrap()
    }
}

pub(crate) fn lock(client: &FsBackend, name: &str) -> Lock<FsBackend> {
    Lock::new(client.clone(), name)
        .unwrap()
        .with_policy(patience())
}

/// Wake-ups matter here: with the usual check interval, a lost one would not be noticed.
pub(crate) fn patience() -> Policy {
    Policy::new()
        .with_timeout(20 * LONG)
        .with_check_interval(10 * LONG)
        .unwrap()
}

/// The output of `task`, which must end before a waiter would poll.
pub(crate) async fn soon<T>(task: tokio::task::JoinHandle<T>) -> T {
    let done = tokio::time::timeout(LONG, task).await;
    done.expect("nobody woke it").unwrap()
}

pub(crate) fn request(name: &str, mode: Mode, patience: Patience) -> LockRequest {
    LockRequest::new(LockName::new(name).unwrap(), mode, patience)
}

pub(crate) fn granted(attempt: Attempt) -> Grant {
    match attempt {
        Attempt::Granted(grant) => grant,
        Attempt::Contended(contention) => panic!("contended: {contention:?}"),
    }
}

/// Tries once. None if another owner holds the lock.
pub(crate) async fn try_once(
    client: &FsBackend,
    name: &str,
    mode: Mode,
) -> Option<(LockRequest, Grant)> {
    let request = request(name, mode, Patience::Once);
    match client.try_acquire(&request).await.unwrap() {
        Attempt::Granted(grant) => Some((request, grant)),
        Attempt::Contended(_) => None,
    }
}

/// Another process, which runs the test `child` of the same binary.
pub(crate) struct Process {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const ROLE: &str = "PORTALOCK_FS_TEST_DIRECTORY";

impl Process {
    /// Starts a process that uses the locks in `directory`.
    pub(crate) fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            orders,
            answers,
        }
    }

    pub(crate) fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        self.orders.flush().unwrap();
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "the child process ended");
            // The test harness prints lines too, and an unfinished one before the first answer.
            if let Some((_, answer)) = line.trim_end().split_once('@') {
                return answer.to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.order(order);
        self.answer()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL, or the equivalent.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child process: one order per line, with one line as the answer.
pub(crate) async fn child() {
    let Ok(directory) = std::env::var(ROLE) else {
        return;
    };
    let client = FsBackend::open(directory).unwrap();
    let mut guards = Vec::new();
    let say = |what: &str| {
        println!("@{what}");
        std::io::stdout().flush().unwrap();
    };
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (order, name) = line.split_once(' ').unwrap_or((&line, ""));
        match order {
            "hold" | "share" => {
                let lock = lock(&client, name);
                let guard = if order == "hold" {
                    lock.acquire().await
                } else {
                    lock.acquire_shared().await
                };
                match guard {
                    Ok(guard) => {
                        say(&guard.token().unwrap().to_string());
                        guards.push(guard);
                    }
                    Err(error) => say(&format!("refused: {error}")),
                }
            }
            "try" => match lock(&client, name).try_acquire().await {
                Ok(_) => say("free"),
                Err(error) => say(&error.to_string()),
            },
            "release" => {
                for guard in guards.drain(..) {
                    guard.release().await.unwrap();
                }
                say("released");
            }
            "count" => {
                // A counter that is protected by the lock only.
                let (times, name) = name.split_once(' ').unwrap();
                let (lock, path) = (lock(&client, "counter"), Path::new(name));
                for _ in 0..times.parse::<u32>().unwrap() {
                    let guard = lock.acquire().await.unwrap();
                    let count: u64 = std::fs::read_to_string(path).unwrap().parse().unwrap();
                    std::fs::write(path, (count + 1).to_string()).unwrap();
                    drop(guard);
                }
                say("counted");
            }
            "spawn" => {
                // A grandchild that lives longer than the guard.
                let mut sleeper = Command::new("sleep");
                let sleeper = sleeper.arg("30").stdin(Stdio::null());
                let sleeper = sleeper.stdout(Stdio::null()).stderr(Stdio::null());
                say(&sleeper.spawn().unwrap().id().to_string());
            }
            other => panic!("no such order: {other}"),
        }
    }
}
