//! Two processes hand over a lock on Redis. The holder is killed, and the other process gets the lock within the
//! session's time.
//!
//! ```sh
//! cargo run -p portalock-examples-redis --example redis_handoff                             # starts a redis-server of its own
//! REDIS_URL=redis://localhost cargo run -p portalock-examples-redis --example redis_handoff
//! ```
//!
//! The program starts itself as `alice`, who acquires the lock and never releases it, and as `bob`, who waits for it.
//! Then alice is killed with SIGKILL: she runs no destructor and sends no release. Nobody refreshes her session, so it
//! ends, and the lock passes on.

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use portalock::redis::{RedisBackend, RedisSettings};
use portalock::{Lock, Policy};
use portalock_testkit::servers::RedisServer;

const LOCK: &str = "examples/handoff";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    match env::args().collect::<Vec<_>>().as_slice() {
        [_, name, url] => worker(name, url).await,
        _ => handoff(),
    }
}

/// The code of both processes.
async fn worker(me: &str, url: &str) -> Result<(), Box<dyn Error>> {
    // This server has just started for the example, so no earlier holder can exist.
    let settings = RedisSettings::new(url)?.with_restart_wait(Duration::ZERO);
    let redis = RedisBackend::with_settings(settings).await?;
    let lock = Lock::new(redis, LOCK)?.with_label(me);
    let guard = match lock.try_acquire().await {
        Ok(guard) => guard,
        Err(error) if error.is_contention() => {
            let holder = error.holder().ok_or("Redis knows who holds")?;
            println!("{me} waits for {holder}");
            lock.acquire_with(&Policy::forever()).await?
        }
        Err(error) => return Err(error.into()),
    };
    println!(
        "{me} holds the lock, token {}",
        guard.token().ok_or("Redis has tokens")?
    );
    if me == "alice" {
        // Works until she is killed.
        guard.run(std::future::pending::<()>()).await?;
    }
    guard.release().await?;
    println!("{me} released it");
    Ok(())
}

fn handoff() -> Result<(), Box<dyn Error>> {
    let (_server, url) = if let Ok(url) = env::var("REDIS_URL") {
        (None, url)
    } else {
        let server = RedisServer::start()?;
        let url = server.url();
        (Some(server), url)
    };
    let mut alice = Process::start("alice", &url)?;
    alice.says("alice holds the lock")?;
    let mut bob = Process::start("bob", &url)?;
    bob.says("bob waits for")?;

    alice.child.kill()?;
    alice.child.wait()?;
    let killed = Instant::now();
    println!("alice was killed");
    bob.says("bob holds the lock")?;
    let after = killed.elapsed();
    bob.says("bob released it")?;

    // A busy machine needs some more time.
    if after >= RedisSettings::DEFAULT_SESSION_TTL * 2 {
        return Err(format!("that took {after:?}").into());
    }
    println!(
        "\nThe lock passed on {} ms after the kill.",
        after.as_millis()
    );
    Ok(())
}

/// A worker, and its output.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(name: &str, url: &str) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(env::current_exe()?)
            .args([name, url])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("its output is piped")?;
        Ok(Self {
            child,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// Waits for the next line, prints it, and checks that it is the expected one.
    fn says(&mut self, what: &str) -> Result<(), Box<dyn Error>> {
        let line = self.lines.next().ok_or("a worker ended too early")??;
        println!("{line}");
        if line.starts_with(what) {
            Ok(())
        } else {
            Err(format!("instead of: {what}").into())
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
