//! A server's process: start it, wait until it is ready, stall it, kill it.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

#[cfg(unix)]
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take until it is ready. The time is generous for busy machines.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often a process that should end is checked.
#[cfg(unix)]
const POLL: Duration = Duration::from_millis(5);
/// How many of the last lines of a server's log an error shows.
const LAST_LINES: usize = 20;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The program is not installed.
    #[error("{program} is not installed: {install}")]
    NotInstalled {
        /// The program that was not found in the path.
        program: &'static str,
        /// What to do about it.
        install: &'static str,
    },
    /// The program ended instead of serving.
    #[error("{program} ended before it was ready; its last lines:\n{log}")]
    Ended {
        /// The program.
        program: &'static str,
        /// The end of its log.
        log: String,
    },
    /// The program runs, but did not report that it was ready.
    #[error("{program} was not ready within {} s; its last lines:\n{log}", READY_WITHIN.as_secs())]
    NotReady {
        /// The program.
        program: &'static str,
        /// The end of its log.
        log: String,
    },
    /// Another call failed.
    #[error("can't {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// What to start, and how to tell that it is ready.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The program's name in the path.
    pub name: &'static str,
    /// What to do if it is missing: "install it, for example with ...".
    pub install: &'static str,
    /// A part of the line that the server prints when it is ready.
    pub ready_line: &'static str,
}

/// A running server. Dropping it kills the process and waits for its end. It also ends with this process, for whatever
/// reason that ends.
///
/// ```no_run
/// use portalock_testkit::servers::{Program, ServerProcess};
///
/// const PROGRAM: Program = Program {
///     name: "nats-server",
///     install: "install NATS, such as by `apt install nats-server`",
///     ready_line: "Server is ready",
/// };
/// let server = ServerProcess::start(&PROGRAM, ["--jetstream", "--port", "-1"])?;
/// # Ok::<(), portalock_testkit::servers::StartError>(())
/// ```
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    _lifeline: Lifeline,
}

impl ServerProcess {
    /// Starts the program, and returns when it has printed its ready line, on stdout or stderr.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the program isn't installed, ends, or doesn't get ready within 30 s.
    pub fn start<A: AsRef<OsStr>>(
        program: &Program,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self, StartError> {
        Self::launch(program, Command::new(program.name).args(arguments))
    }

    /// Like [`start`](Self::start), with a prepared command.
    pub(super) fn launch(program: &Program, command: &mut Command) -> Result<Self, StartError> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => StartError::NotInstalled {
                    program: program.name,
                    install: program.install,
                },
                _ => StartError::Io {
                    what: "start the server",
                    source,
                },
            })?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let (ready, readiness) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            follow(stdout, program.ready_line, log.clone(), ready.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            follow(stderr, program.ready_line, log.clone(), ready.clone());
        }
        drop(ready);
        let server = Self {
            _lifeline: Lifeline::of(&child),
            child,
            log,
        };
        match readiness.recv_timeout(READY_WITHIN) {
            Ok(()) => Ok(server),
            // Both outputs are closed, so the process has ended.
            Err(RecvTimeoutError::Disconnected) => Err(StartError::Ended {
                program: program.name,
                log: server.last_lines(),
            }),
            Err(RecvTimeoutError::Timeout) => Err(StartError::NotReady {
                program: program.name,
                log: server.last_lines(),
            }),
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process with SIGKILL, even if it is stalled, and waits for its end. Has no effect if it has already
    /// ended.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn kill(&mut self) -> io::Result<()> {
        // Uses the handle, because the process id could already be reused.
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// The last lines of the server's output.
    pub fn last_lines(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log[log.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// Waits for the end of a process that should end. False if it did not end in time.
    #[cfg(unix)]
    pub(super) fn ends_within(&mut self, time: Duration) -> bool {
        let start = std::time::Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => return true,
                Ok(None) if start.elapsed() < time => thread::park_timeout(POLL),
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Stops the process (SIGSTOP): its sockets stay open, but nothing answers.
    ///
    /// # Errors
    ///
    /// The system's, if the process is gone.
    #[cfg(unix)]
    pub fn stall(&self) -> io::Result<()> {
        crate::stop::stop(Pid::from_child(&self.child))
    }

    /// Continues a stalled process.
    ///
    /// # Errors
    ///
    /// The system's, if the process is gone.
    #[cfg(unix)]
    pub fn resume(&self) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::CONT)?)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Reads an output to its end, so that a full pipe doesn't block the server.
fn follow(
    output: impl Read + Send + 'static,
    ready_line: &'static str,
    log: Arc<Mutex<Vec<String>>>,
    ready: mpsc::Sender<()>,
) {
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let is_ready = line.contains(ready_line);
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push(line);
            let surplus = log.len().saturating_sub(10 * LAST_LINES);
            log.drain(..surplus);
            drop(log);
            if is_ready {
                // Only the first ready line is received.
                let _ = ready.send(());
            }
        }
    });
}

/// Cleans up if this process ends without dropping it: statics are never dropped, and a killed test drops nothing.
///
/// A shell waits for the end of a pipe that only this process holds open. It ignores the signals that end a whole group of
/// processes, such as that of an interrupted test run.
#[derive(Debug)]
pub(super) struct Lifeline(Option<Child>);

impl Lifeline {
    /// Kills the server.
    fn of(server: &Child) -> Self {
        Self::shell("kill -9 \"$0\"", server.id().to_string())
    }

    /// Removes the directory, again and again while its server may still write.
    pub(super) fn of_directory(dir: &Path) -> Self {
        Self::shell(
            "for _ in 1 2 3; do rm -rf \"$0\"; sleep 1; done; rm -rf \"$0\"",
            dir,
        )
    }

    fn shell(script: &str, what: impl AsRef<OsStr>) -> Self {
        // Without a shell something may be left behind, which is the only disadvantage.
        Self(
            Command::new("sh")
                .args(["-c", &format!("trap '' HUP INT TERM; read -r _; {script}")])
                .arg(what)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .ok(),
        )
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if let Some(shell) = &mut self.0 {
            // Killed before its pipe closes, so that it never kills a reused process id.
            let _ = shell.kill();
            let _ = shell.wait();
        }
    }
}
