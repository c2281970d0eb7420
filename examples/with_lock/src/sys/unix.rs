//! Unix: signals, process groups, and a child that is not reaped before all of its group has been signalled.

use std::{
    fs::File,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getpid, kill_process, kill_process_group,
    setrlimit, waitid,
};
use signal_hook::{
    consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2},
    flag, iterator,
    low_level::{emulate_default_handler, raise},
};
use tokio::sync::{mpsc, watch};

use super::{Orphaned, Received};
use crate::exit::Ending;

/// Whether there is a controlling terminal, whose keyboard sends signals and whose foreground the command may need.
pub(super) fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Signals to this program.
#[derive(Debug)]
pub(crate) struct Signals {
    inbox: mpsc::UnboundedReceiver<Received>,
    /// The signals of the keyboard, and whether one has come. The handler itself sets it, without the thread's delay.
    keyboard: Vec<(Signal, Arc<AtomicBool>)>,
}

impl Signals {
    /// Starts to listen. A signal that was ignored when the program started, as under `nohup`, stays ignored.
    pub(crate) fn listen() -> io::Result<Self> {
        keep_how_children_end()?;
        let mut wanted = vec![SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        if !has_terminal() {
            // With a terminal, the system stops and continues both processes together.
            wanted.extend([SIGTSTP, SIGCONT]);
        }
        wanted.retain(|signal| !is_ignored(*signal));
        let mut keyboard = Vec::new();
        for (number, signal) in [(SIGINT, Signal::INT), (SIGQUIT, Signal::QUIT)] {
            if wanted.contains(&number) {
                let has_come = Arc::new(AtomicBool::new(false));
                flag::register(number, has_come.clone())?;
                keyboard.push((signal, has_come));
            }
        }
        let mut signals = iterator::Signals::new(wanted)?;
        let (sender, inbox) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    let received = match signal {
                        SIGTSTP => Received::Stop,
                        SIGCONT => Received::Continue,
                        signal => Received::Ends(signal),
                    };
                    if sender.send(received).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self { inbox, keyboard })
    }

    /// The next signal. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Received {
        match self.inbox.recv().await {
            Some(received) => received,
            None => std::future::pending().await,
        }
    }
}

/// Makes the system keep how a child ended until this program asks. It doesn't while SIGCHLD is ignored, and the program may
/// have been started like that.
pub(super) fn keep_how_children_end() -> io::Result<()> {
    flag::register(SIGCHLD, Arc::default()).map(drop)
}

/// Whether the meaning of `signal` is up to the program that gets it.
pub(super) fn is_user_signal(signal: i32) -> bool {
    matches!(signal, SIGUSR1 | SIGUSR2)
}

#[cfg(target_os = "linux")]
fn is_ignored(signal: i32) -> bool {
    super::linux::is_ignored(signal)
}

/// The disposition can't be read here without changing it.
#[cfg(not(target_os = "linux"))]
fn is_ignored(_signal: i32) -> bool {
    false
}

/// The command that runs.
#[derive(Debug)]
pub(crate) struct Child {
    process: process::Child,
    pid: Pid,
    /// Whether it has its own process group.
    leads_group: bool,
    ended: watch::Receiver<bool>,
}

impl Child {
    /// Starts the command: without a terminal in its own process group, so that the whole group can be signalled; with
    /// a terminal in this program's group, so that it can read the terminal and gets the keyboard's signals.
    pub(crate) fn spawn(command: Command, orphaned: Orphaned) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        let mut command = super::linux::tie_to_parent(command, orphaned);
        #[cfg(not(target_os = "linux"))]
        let (mut command, _) = (command, orphaned);
        let leads_group = !has_terminal();
        if leads_group {
            command.process_group(0);
        }
        let mut process = command.spawn()?;
        let (sender, ended) = watch::channel(false);
        let pid = Pid::from_child(&process);
        let waiter = thread::Builder::new()
            .name("child".to_owned())
            .spawn(move || {
                wait_for(pid);
                let _ = sender.send(true);
            });
        if let Err(error) = waiter {
            let _ = process.kill();
            let _ = process.wait();
            return Err(error);
        }
        Ok(Self {
            process,
            pid,
            leads_group,
            ended,
        })
    }

    /// Waits until the command itself has ended. Dropping the future loses nothing.
    pub(crate) async fn ended(&mut self) {
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Passes on what the keyboard sent before the command was there. Call it right after [`spawn`](Self::spawn): a command
    /// that gets such a signal twice has not handled the first one yet.
    pub(crate) fn pass_on_earlier(&self, signals: &Signals) {
        if self.leads_group {
            // It gets all signals from this program.
            return;
        }
        for (signal, has_come) in &signals.keyboard {
            if has_come.swap(false, Ordering::Relaxed) {
                self.signal_alone(*signal);
            }
        }
    }

    /// Passes a signal on, if the command did not get it itself.
    pub(crate) fn pass_on(&self, received: Received) {
        match received {
            // The keyboard sends these to the terminal's whole foreground group, which includes the command.
            Received::Ends(SIGINT | SIGQUIT) if !self.leads_group => {}
            // Only the command knows what these mean; they would end its children by default.
            Received::Ends(SIGUSR1) => self.signal_alone(Signal::USR1),
            Received::Ends(SIGUSR2) => self.signal_alone(Signal::USR2),
            Received::Ends(signal) => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    self.signal(signal);
                }
            }
            Received::Stop => {
                self.signal(Signal::TSTP);
                stop();
            }
            Received::Continue => self.signal(Signal::CONT),
        }
    }

    /// Asks the command to end.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
        // A stopped process handles no other signal.
        self.signal(Signal::CONT);
    }

    /// Kills the command and the rest of its process group. The command may have ended before: its pid is not reused
    /// until it is [finished](Self::finish).
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if !self.leads_group {
            return self.signal_alone(signal);
        }
        // The only possible error is that no process is left.
        let _ = kill_process_group(self.pid, signal);
    }

    fn signal_alone(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// How the command ended. Call it after [`ended`](Self::ended).
    pub(crate) fn finish(mut self) -> io::Result<Ending> {
        let status = self.process.wait()?;
        Ok(match status.signal() {
            Some(signal) => Ending::Signal(signal),
            None => Ending::Code(status.code().unwrap_or(crate::exit::FAILED.into())),
        })
    }
}

/// Blocks until the process has ended, and leaves it to be reaped.
fn wait_for(pid: Pid) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
}

/// Ends this program by `signal`, with the signal's default action. Returns if that fails.
pub(crate) fn die_by(signal: i32) {
    // The command has dumped its core, if enabled; this program's core is not needed.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    let _ = emulate_default_handler(signal);
    // It doesn't know the default of real-time signals and a few others, which this program never handles.
    let _ = raise(signal);
}

/// Stops this program until it gets SIGCONT.
pub(crate) fn stop() {
    let _ = kill_process(getpid(), Signal::STOP);
}
