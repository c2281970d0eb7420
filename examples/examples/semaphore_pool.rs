//! Six processes share three permits.
//!
//! ```sh
//! cargo run --example semaphore_pool
//! ```
//!
//! The program starts itself six times. Each process prints two posters, and there are only three presses.
//! `SlotSemaphore` is a semaphore on any lock backend: here the three permits are three lock files, and the permit of a
//! crashed process is free at once.

use std::{
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    process::Command,
    time::Duration,
};

use portalock::fs::FsBackend;
use portalock::{Policy, Pool, SlotSemaphore};
use tokio::time::sleep;

const PROCESSES: usize = 6;
const POSTERS: usize = 2;
const PRESSES: u32 = 3;
const WORK: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    match env::args().collect::<Vec<_>>().as_slice() {
        [_, number, directory] => worker(number, Path::new(directory)).await,
        _ => print_all(),
    }
}

/// One process. A permit is held from `acquire` until it is released or dropped.
async fn worker(number: &str, directory: &Path) -> Result<(), Box<dyn Error>> {
    let permits = SlotSemaphore::new(FsBackend::open(directory.join("locks"))?);
    let presses = Pool::new(permits, "presses", PRESSES)?.with_policy(Policy::forever());
    for poster in 1..=POSTERS {
        let press = presses.acquire(1).await?;
        let busy = print_poster(number, &directory.join("busy")).await?;
        println!("process {number} printed poster {poster}, {busy} of {PRESSES} presses were busy");
        let mut tally = OpenOptions::new()
            .append(true)
            .create(true)
            .open(directory.join("tally.txt"))?;
        // One write for the whole line: up to three processes write at once.
        tally.write_all(format!("{busy}\n").as_bytes())?;
        press.release().await?;
    }
    Ok(())
}

/// Works, and counts the processes that work at the same time: each has a file in `busy` meanwhile.
async fn print_poster(number: &str, busy: &Path) -> Result<usize, Box<dyn Error>> {
    fs::create_dir_all(busy)?;
    File::create(busy.join(number))?;
    // The last process that started counts all files.
    let count = fs::read_dir(busy)?.count();
    sleep(WORK).await;
    fs::remove_file(busy.join(number))?;
    Ok(count)
}

/// Starts all, waits for all, and checks how many worked at once.
fn print_all() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let workers: Vec<_> = (1..=PROCESSES)
        .map(|number| {
            Command::new(env::current_exe()?)
                .arg(number.to_string())
                .arg(directory.path())
                .spawn()
        })
        .collect();
    for worker in workers {
        let status = worker?.wait()?;
        if !status.success() {
            return Err(format!("a process failed: {status}").into());
        }
    }
    let tally = fs::read_to_string(directory.path().join("tally.txt"))?;
    let busy: Vec<u32> = tally.lines().map(str::parse).collect::<Result<_, _>>()?;
    let most = busy.iter().max().ok_or("nothing was printed")?;
    if *most > PRESSES {
        return Err(format!("{most} presses were busy, and there are {PRESSES}").into());
    }
    println!(
        "\n{} posters, and never more than {most} presses busy.",
        busy.len()
    );
    Ok(())
}
