//! After a crash of its holder, a lock in SQLite passes on when its lease is over.
//!
//! ```sh
//! cargo run --example custom_backend
//! ```
//!
//! The program starts itself as a second process, which takes a lock and is killed while it works. The first process
//! waits until the row expires, because nobody renews it.

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use portalock_core::{FencingToken, Lock, clock::Instant};
use portalock_example_custom_backend::SqliteBackend;

const LEASE: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    match env::args().nth(1) {
        Some(file) => hold_for_ever(Path::new(&file)).await,
        None => outlive_a_crash().await,
    }
}

/// The second process: acquires the lock, prints that, and never releases it.
async fn hold_for_ever(file: &Path) -> Result<(), Box<dyn Error>> {
    let guard = Lock::new(SqliteBackend::open(file, LEASE)?, "report")?
        .with_label("the unlucky one")
        .acquire()
        .await?;
    println!("{}", guard.token().ok_or("every grant has a token")?);
    Err(guard.lost().await.into())
}

async fn outlive_a_crash() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("locks.db");
    let mut holder = Command::new(env::current_exe()?)
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()?;
    let said = holder.stdout.take().ok_or("its output is piped")?;
    let token = BufReader::new(said).lines().next().ok_or("it failed")??;
    let token: FencingToken = FencingToken::new(token.parse()?);
    println!("another process holds the lock, token {token}");

    let lock = Lock::new(SqliteBackend::open(&file, LEASE)?, "report")?;
    // It works for longer than a lease and keeps the lock, because its keeper renews the row.
    tokio::time::sleep(LEASE * 3 / 2).await;
    let Err(refused) = lock.try_acquire().await else {
        return Err("a living holder lost its lock".into());
    };
    println!("after one and a half leases: {refused}");

    holder.kill()?;
    holder.wait()?;
    println!("it is killed");
    let killed = Instant::now();
    let guard = lock.acquire().await?;
    let next = guard.token().ok_or("every grant has a token")?;
    if next <= token {
        return Err(format!("token {next} does not exceed {token}").into());
    }
    println!(
        "{:.1} s later the lock is ours, with a larger token: {next}",
        killed.elapsed().as_secs_f32()
    );
    guard.release().await?;
    Ok(())
}
