//! Two processes take turns on one file lock.
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! The program starts itself twice, as `alice` and as `bob`. Both read a file, work for a while, and write it back with
//! one more line. Without the lock, lines would be lost.

use std::{env, error::Error, fs, path::Path, process::Command, time::Duration};

use portalock::fs::FsBackend;
use portalock::{FencingToken, Lock, clock::wall_clock_micros};
use tokio::time::sleep;

const TURNS: usize = 3;
const WORK: Duration = Duration::from_millis(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    match env::args().collect::<Vec<_>>().as_slice() {
        [_, name, directory, start] => worker(name, Path::new(directory), start.parse()?).await,
        _ => contest(),
    }
}

/// The code of both processes. The lock needs three lines: create it, acquire it, release it.
async fn worker(me: &str, directory: &Path, start: u64) -> Result<(), Box<dyn Error>> {
    let say = |what: String| {
        let micros = wall_clock_micros().saturating_sub(start);
        let (seconds, millis) = (micros / 1_000_000, micros / 1000 % 1000);
        println!("{seconds:3}.{millis:03} s  {me:<5} {what}");
    };

    let lock = Lock::new(FsBackend::open(directory.join("locks"))?, "ledger")?.with_label(me);
    for _ in 0..TURNS {
        let guard = match lock.try_acquire().await {
            Ok(guard) => guard,
            Err(error) if error.is_contention() => {
                say(match error.holder() {
                    Some(holder) => format!("waits for {holder}"),
                    // The lock was just acquired, and its holder is not written yet.
                    None => "waits".to_owned(),
                });
                lock.acquire().await?
            }
            Err(error) => return Err(error.into()),
        };
        let token = guard.token().ok_or("file locks have tokens")?;
        say(format!("holds the lock, token {token}"));
        append_slowly(&directory.join("ledger.txt"), me, token).await?;
        say("releases it".to_owned());
        guard.release().await?;

        // A pause, so that the other process gets its turn.
        sleep(WORK / 3).await;
    }
    Ok(())
}

/// Reads the whole file, works, and writes it back with one more line. Two processes at once would lose a line.
async fn append_slowly(file: &Path, me: &str, token: FencingToken) -> Result<(), Box<dyn Error>> {
    let before = fs::read_to_string(file).unwrap_or_default();
    let from = wall_clock_micros();
    sleep(WORK).await;
    let until = wall_clock_micros();
    fs::write(file, format!("{before}{me} {token} {from} {until}\n"))?;
    Ok(())
}

/// Starts both, waits for both, and checks the file.
fn contest() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let start = wall_clock_micros().to_string();
    let workers = ["alice", "bob"].map(|name| {
        Command::new(env::current_exe()?)
            .arg(name)
            .arg(directory.path())
            .arg(&start)
            .spawn()
    });
    for worker in workers {
        let status = worker?.wait()?;
        if !status.success() {
            return Err(format!("a worker failed: {status}").into());
        }
    }
    let ledger = fs::read_to_string(directory.path().join("ledger.txt"))?;
    println!("\n{}", check(&ledger)?);
    Ok(())
}

/// Proves that no two holds overlapped: no line is missing, each hold began after the one before it had ended, and the
/// fencing tokens grow in the same order.
fn check(ledger: &str) -> Result<String, Box<dyn Error>> {
    let (mut turns, mut last_token, mut free_since) = (0, 0, 0);
    for line in ledger.lines() {
        let [_, token, from, until] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("half a line: {line}").into());
        };
        let (token, from): (u64, u64) = (token.parse()?, from.parse()?);
        if token <= last_token || from < free_since {
            return Err(format!("two holds overlapped:\n{ledger}").into());
        }
        (turns, last_token, free_since) = (turns + 1, token, until.parse()?);
    }
    let due = 2 * TURNS;
    if turns != due {
        return Err(format!("{turns} of {due} lines are there: two holds overlapped").into());
    }
    Ok(format!(
        "{turns} of {due} turns are in the ledger, in the order of their tokens: no two holds overlapped."
    ))
}
