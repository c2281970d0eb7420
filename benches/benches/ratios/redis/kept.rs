//! What held locks cost while nothing happens to them, and what becomes of a killed holder's.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use portalock_benches::{
    Failure,
    contest::median,
    report::{Target, row, table},
};
use portalock_core::{Lock, Policy};
use portalock_redis::{RedisBackend, RedisSettings};
use redis::aio::MultiplexedConnection;

use super::bare;
use crate::{
    Effort,
    flavours::{Flavour, flavours},
};

/// The first word to this program when it is the other process.
pub(crate) const CHILD: &str = "redis-child";

const HELD: u32 = 10_000;
const KIBIBYTE: f64 = 1024.0;

pub(super) fn run(url: &str, effort: Effort) -> Result<(), Failure> {
    crashes(url, effort)?;
    held(url, effort)
}

/// How the holder asks for its session to end, and within what time its lock should pass on.
const ENDINGS: [(&str, &str, u32, Duration); 2] = [
    (
        "default settings",
        "hold",
        20,
        // A session's time, and one look of the last waiter.
        Duration::from_millis(4200),
    ),
    (
        "release_without_notice",
        "hold-without-notice",
        100,
        Duration::from_millis(150),
    ),
];

fn crashes(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: from the SIGKILL of the holder's process to the waiter's lock");
    let [_, multi_thread] = flavours()?;
    for (settings, hold, rounds, wanted) in ENDINGS {
        let mut took = Vec::new();
        for _ in 0..effort.of(rounds) {
            took.push(crash(url, hold, &multi_thread)?.as_secs_f64());
        }
        let slowest = took.iter().copied().fold(0.0, f64::max);
        let median_of = format!(
            "portalock, {settings}, median, to {} ms",
            wanted.as_millis()
        );
        for (what, seconds, target) in [
            (median_of, median(took), Target::AtMost(1.0)),
            (
                format!("portalock, {settings}, slowest"),
                slowest,
                Target::None,
            ),
        ] {
            let measured = format!("{:.0} ms", seconds * 1e3);
            row(&what, measured, seconds / wanted.as_secs_f64(), target);
        }
    }
    Ok(())
}

fn crash(url: &str, hold: &str, flavour: &Flavour) -> Result<Duration, Failure> {
    let mut holder = Other::start(&[hold, url])?;
    holder.line()?;
    let url = url.to_owned();
    flavour.run(async move {
        let lock = Lock::new(RedisBackend::connect(&url).await?, "crashed")?;
        let waiter = tokio::spawn({
            let lock = lock.clone().with_policy(Policy::forever());
            async move { Ok::<_, Failure>((lock.acquire().await?, Instant::now())) }
        });
        while lock.inspect().await?.waiters.is_empty() {
            tokio::task::yield_now().await;
        }
        // At any moment between two of its looks.
        let phase = fastrand::u64(..200_000);
        tokio::time::sleep(Duration::from_micros(phase)).await;
        let killed = Instant::now();
        holder.0.kill()?;
        let (guard, at) = waiter.await??;
        guard.release().await?;
        Ok(at.duration_since(killed))
    })
}

fn held(url: &str, effort: Effort) -> Result<(), Failure> {
    let count = effort.of(HELD);
    table(&format!(
        "Redis: {count} held locks in one session, each, to 1 KiB"
    ));
    let [_, multi_thread] = flavours()?;
    let mut bare = multi_thread.runtime.block_on(bare::connection(url))?;
    let before = multi_thread.runtime.block_on(used_memory(&mut bare))?;
    let mut holder = Other::start(&["hold-many", url, &count.to_string()])?;
    let client: u32 = holder.line()?.trim().parse()?;
    let server = multi_thread.runtime.block_on(used_memory(&mut bare))? - before;
    for (what, bytes) in [
        ("at the server", server),
        ("at the client", f64::from(client)),
    ] {
        let each = bytes / f64::from(count);
        let measured = format!("{each:.0} bytes");
        row(what, measured, each / KIBIBYTE, Target::AtMost(1.0));
    }
    Ok(())
}

async fn used_memory(bare: &mut MultiplexedConnection) -> Result<f64, Failure> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(bare).await?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .ok_or("the server doesn't say how much memory it uses")?;
    Ok(line.parse()?)
}

/// This program once more, ended with this one.
struct Other(Child);

impl Other {
    fn start(words: &[&str]) -> Result<Self, Failure> {
        let child = Command::new(std::env::current_exe()?)
            .arg(CHILD)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    fn line(&mut self) -> Result<String, Failure> {
        let output = self.0.stdout.as_mut().ok_or("its output is taken")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The other process: holds what it is told to until its input ends.
pub(crate) fn child(words: &[String]) -> Result<(), Failure> {
    let [_, multi_thread] = flavours()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let backend = |url: &str| multi_thread.runtime.block_on(RedisBackend::connect(url));
    let mut guards = Vec::new();
    match words.as_slice() {
        [hold @ ("hold" | "hold-without-notice"), url] => {
            let settings = RedisSettings::new(url)?.with_release_without_notice(*hold != "hold");
            let connected = RedisBackend::with_settings(settings);
            let lock = Lock::new(multi_thread.runtime.block_on(connected)?, "crashed")?;
            guards.push(multi_thread.runtime.block_on(lock.acquire())?);
            println!("held");
        }
        ["hold-many", url, count] => {
            let (backend, count) = (backend(url)?, count.parse()?);
            let hold = async |name: String| {
                let lock = Lock::new(backend.clone(), name)?;
                Ok::<_, Failure>(lock.acquire().await?)
            };
            guards.reserve(count);
            // The first one makes what all share.
            multi_thread.runtime.block_on(async {
                hold("first".into())
                    .await?
                    .release()
                    .await
                    .map_err(Failure::from)
            })?;
            let before = resident()?;
            for number in 0..count {
                guards.push(
                    multi_thread
                        .runtime
                        .block_on(hold(format!("held-{number}")))?,
                );
            }
            println!("{}", resident()?.saturating_sub(before));
        }
        _ => return Err(format!("{words:?} is nothing to do").into()),
    }
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// How much of this process lies in memory, in bytes.
fn resident() -> Result<u32, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("the system doesn't say how much memory this process uses")?;
    let kibibytes: u32 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}
