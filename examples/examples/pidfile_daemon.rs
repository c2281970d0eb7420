//! A daemon that runs only once: its pid file has its process id, and a crash leaves nothing to clean up.
//!
//! ```sh
//! cargo run --example pidfile_daemon
//! ```
//!
//! Without an argument the program starts itself as a daemon, several times, and kills one. With the path of a pid file it
//! is that daemon, and serves until its standard input ends. No async runtime is needed.

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{self, Child, ChildStdout, Command, ExitCode, Stdio},
};

use portalock::fs::{PidFileLock, PidFileOutcome};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    match env::args_os().nth(1) {
        Some(path) => daemon(Path::new(&path)),
        None => demonstrate().map(|()| ExitCode::SUCCESS),
    }
}

/// The daemon. It keeps the guard while it serves.
fn daemon(path: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let me = process::id();
    let guard = match PidFileLock::new(path)?.blocking_acquire_or_holder()? {
        PidFileOutcome::Acquired(guard) => guard,
        PidFileOutcome::HeldBy(other) => {
            println!(
                "daemon {me}: not started, pid {} is {}",
                other.pid, other.state
            );
            return Ok(ExitCode::FAILURE);
        }
    };
    println!("daemon {me}: serving");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    guard.release()?;
    println!("daemon {me}: stopped");
    Ok(ExitCode::SUCCESS)
}

fn demonstrate() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("daemon.pid");
    let on_file = PidFileLock::new(&path)?;

    let mut first = Daemon::start(&path)?;
    let mut second = Daemon::start(&path)?;
    expect(!second.child.wait()?.success(), "two daemons ran at once")?;

    first.child.kill()?;
    first.child.wait()?;
    let stale = on_file.read_holder().ok_or("no pid file is left")?;
    println!(
        "killed; its pid file still says {}, which is {}",
        stale.pid, stale.state
    );
    expect(stale.pid == first.child.id(), "the pid file is another's")?;

    let mut third = Daemon::start(&path)?;
    let pid = on_file.read_pid().ok_or("no pid file was written")?;
    println!("the pid file says {pid}");
    expect(
        pid == third.child.id(),
        "the stale pid file was not taken over",
    )?;

    // Its standard input ends, so it stops.
    drop(third.child.stdin.take());
    third.relay()?;
    expect(third.child.wait()?.success(), "the daemon failed")?;
    expect(!path.exists(), "the pid file is still there")?;
    println!("the pid file is gone");
    Ok(())
}

/// A started daemon, and its output.
struct Daemon {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Daemon {
    /// Starts one, and waits for its first line.
    fn start(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(env::current_exe()?)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let says = BufReader::new(child.stdout.take().ok_or("its output is piped")?);
        let mut daemon = Self { child, says };
        daemon.relay()?;
        Ok(daemon)
    }

    /// Prints a line of its output.
    fn relay(&mut self) -> Result<(), Box<dyn Error>> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        print!("{line}");
        Ok(())
    }
}

fn expect(truth: bool, otherwise: &str) -> Result<(), Box<dyn Error>> {
    if truth { Ok(()) } else { Err(otherwise.into()) }
}
