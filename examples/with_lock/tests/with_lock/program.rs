//! `with_lock` as a process, with its own home and lock directory; tests wait for its output without sleeping.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long an event may take. Far more than needed, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A home directory, with the directory of the default backend.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The default directory of `fs:`.
    pub(crate) fn locks(&self) -> PathBuf {
        self.path(".local/state/portalock/locks")
    }

    /// The only lock file, for tests that remove it.
    #[cfg(target_os = "linux")]
    pub(crate) fn lock_file(&self) -> PathBuf {
        let mut files = fs::read_dir(self.locks())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file());
        let file = files.next().expect("no lock file");
        assert_eq!(files.next(), None, "more than one lock file");
        file
    }

    /// `with_lock` with these arguments, split at spaces.
    pub(crate) fn with_lock(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_with_lock"));
        command.args(words.split(' ').filter(|word| !word.is_empty()));
        self.settle(&mut command);
        command
    }

    /// `with_lock` with these arguments, run by another program, such as `setsid`.
    #[cfg(target_os = "linux")]
    pub(crate) fn through(&self, program: &[&str], words: &str) -> Command {
        let mut command = Command::new(program[0]);
        command
            .args(&program[1..])
            .arg(env!("CARGO_BIN_EXE_with_lock"))
            .args(words.split(' '));
        self.settle(&mut command);
        command
    }

    /// A shell script in this home.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        self.settle(&mut command);
        command
    }

    fn settle(&self, command: &mut Command) {
        command.env("HOME", self.0.path());
        for variable in [
            "PORTALOCK_BACKEND",
            "PORTALOCK_CONFIG",
            "PORTALOCK_NAME",
            "PORTALOCK_TOKEN",
            "XDG_CONFIG_HOME",
        ] {
            command.env_remove(variable);
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, words: &str) -> Finished {
        Running::start(self.with_lock(words)).finish()
    }

    /// Runs it with this shell script as its command.
    pub(crate) fn run_script(&self, words: &str, script: &str) -> Finished {
        Running::start(self.with_script(words, script)).finish()
    }

    /// `with_lock` with this shell script as its command.
    pub(crate) fn with_script(&self, words: &str, script: &str) -> Command {
        let mut command = self.with_lock(words);
        command.args(["--", "sh", "-c", script]);
        command
    }

    /// Starts a holder, which holds the lock until its input is closed.
    pub(crate) fn hold(&self, words: &str) -> Running {
        let mut holder = Running::start(self.with_script(words, "echo held; exec cat"));
        assert_eq!(holder.line(), "held");
        holder
    }

    /// Whether the default backend's lock is free.
    pub(crate) fn is_free(&self, name: &str) -> bool {
        let tried = self.run(&format!("-n -E 99 {name} -- true"));
        match tried.status.code() {
            Some(0) => true,
            Some(99) => false,
            _ => panic!("{tried:?}"),
        }
    }
}

/// A running process. Killed when dropped.
pub(crate) struct Running {
    pub(crate) pid: Pid,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Receiver<Vec<u8>>,
    ended: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

/// An ended process.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, stdout) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let (text, stderr) = channel();
        let mut errors = child.stderr.take().unwrap();
        thread::spawn(move || {
            let mut all = Vec::new();
            let _ = errors.read_to_end(&mut all);
            let _ = text.send(all);
        });
        let (status, ended) = channel();
        let pid = Pid::from_child(&child);
        let stdin = child.stdin.take();
        thread::spawn(move || status.send(child.wait().unwrap()));
        Self {
            pid,
            stdin,
            stdout,
            stderr,
            ended,
            status: None,
        }
    }

    /// The next line of its output or its command's.
    pub(crate) fn line(&mut self) -> String {
        match self.stdout.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("no line came: {error}; it said {:?}", self.said()),
        }
    }

    fn said(&mut self) -> String {
        self.kill();
        let said = self.stderr.recv_timeout(PATIENCE).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// The next line, as a process id.
    pub(crate) fn pid_line(&mut self) -> Pid {
        Pid::from_raw(self.line().trim().parse().unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    fn kill(&mut self) {
        if self.status.is_none() {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    /// Waits until the process itself has ended, even if another process still has its output open.
    pub(crate) fn status(&mut self) -> ExitStatus {
        let status = self.ended.recv_timeout(PATIENCE);
        let status = status.expect("it did not end");
        self.status = Some(status);
        status
    }

    /// Closes its input, which ends a [holder](Home::hold), and waits until all of its output is there.
    pub(crate) fn finish(mut self) -> Finished {
        self.stdin = None;
        let status = self.status();
        let stderr = self
            .stderr
            .recv_timeout(PATIENCE)
            .expect("its output is still open");
        let mut stdout = String::new();
        while let Ok(line) = self.stdout.recv_timeout(PATIENCE) {
            stdout.push_str(&line);
            stdout.push('\n');
        }
        Finished {
            status,
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Finished {
    #[track_caller]
    pub(crate) fn code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn by(&self, signal: Signal) -> &Self {
        assert_eq!(self.status.signal(), Some(signal.as_raw()), "{self:?}");
        self
    }

    /// Checks that it printed one line that contains this text.
    #[track_caller]
    pub(crate) fn said(&self, part: &str) -> &Self {
        assert!(self.stderr.contains(part), "no {part:?} in {self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        assert!(self.stderr.starts_with("with_lock: "), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn silent(&self) -> &Self {
        assert_eq!(self.stderr, "", "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn wrote(&self, text: &str) -> &Self {
        assert_eq!(self.stdout, text, "{self:?}");
        self
    }
}

/// Waits until the process is gone, or is a zombie.
pub(crate) fn wait_until_gone(pid: Pid) {
    wait_until(|| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        // The state follows the name, which is in parentheses.
        stat.map_or(true, |stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
        })
    });
}

/// Waits for a condition without an event, by polling.
#[track_caller]
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    // Nothing is sent, so this is a pause.
    let (_sender, pause) = channel::<()>();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "it never came to be");
        let _ = pause.recv_timeout(Duration::from_millis(5));
    }
}

/// A file with this text.
pub(crate) fn write(path: impl AsRef<Path>, text: impl AsRef<OsStr>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text.as_ref().as_encoded_bytes()).unwrap();
}
