//! What held locks cost while nothing happens to them, and what becomes of a killed holder's.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portalock_benches::{
    Failure,
    contest::median,
    report::{Target, row, table},
};
use portalock_core::Lock;
use portalock_redis::RedisBackend;
use redis::aio::MultiplexedConnection;

use super::{
    bare,
    taker::{Kind, Taker},
};
use crate::{
    Effort,
    flavours::{Flavour, flavours},
    locks::{Exclusive, Observed},
};

/// The first word to this program when it is the other process.
pub(crate) const CHILD: &str = "redis-child";

const HELD: u32 = 10_000;
const KIBIBYTE: f64 = 1024.0;

pub(super) fn run(url: &str, effort: Effort) -> Result<(), Failure> {
    crashes(url, effort)?;
    held(url, effort)
}

/// The median and the slowest are shown to what is promised: the time until a session ends, or a key's time to live.
fn crashes(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: from the SIGKILL of the holder's process to the waiter's lock");
    let [_, multi_thread] = flavours()?;
    for (kind, rounds) in [(Kind::Portalock, 20), (Kind::WithoutNotice, 100)] {
        let took: Result<Vec<_>, _> = (0..effort.of(rounds))
            .map(|round| crash(url, kind, round, &multi_thread))
            .collect();
        let promised = kind.time_to_live();
        let median_of = format!("{kind}, median, to {} ms", promised.as_millis());
        crash_rows(kind, &median_of, took?, Target::AtMost(1.0));
    }
    // They only wait for a time to live to end, so they can do that at the same time.
    let took = thread::scope(|scope| {
        let started: Vec<_> = Kind::PEERS
            .iter()
            .flat_map(|kind| (0..effort.of(3)).map(move |round| (*kind, round)))
            .map(|(kind, round)| {
                let flavour = &multi_thread;
                scope.spawn(move || Ok::<_, Failure>((kind, crash(url, kind, round, flavour)?)))
            })
            .collect();
        let ended = started.into_iter().map(|thread| {
            let panicked = |_| Err("a thread panicked".into());
            thread.join().unwrap_or_else(panicked)
        });
        ended.collect::<Result<Vec<_>, _>>()
    })?;
    for kind in Kind::PEERS {
        let of_kind = took.iter().filter(|(of, _)| *of == kind);
        let promised = kind.time_to_live().as_millis();
        let median_of = format!("{kind}, time to live {promised} ms, median");
        crash_rows(
            kind,
            &median_of,
            of_kind.map(|(_, took)| *took).collect(),
            Target::None,
        );
    }
    Ok(())
}

fn crash_rows(kind: Kind, median_of: &str, took: Vec<f64>, target: Target) {
    let slowest = took.iter().copied().fold(0.0, f64::max);
    for (what, seconds, target) in [
        (median_of, median(took), target),
        (&*format!("{kind}, slowest"), slowest, Target::None),
    ] {
        let measured = format!("{:.0} ms", seconds * 1e3);
        row(
            what,
            measured,
            seconds / kind.time_to_live().as_secs_f64(),
            target,
        );
    }
}

/// How many seconds it takes.
fn crash(url: &str, kind: Kind, round: u32, flavour: &Flavour) -> Result<f64, Failure> {
    let name = format!("crashed-{round}");
    let mut holder = Other::start(&["hold", &kind.to_string(), url, &name])?;
    holder.line()?;
    let url = url.to_owned();
    flavour.run(async move {
        let taker = kind.lock(&url, &name).await?;
        let waiter = tokio::spawn({
            let taker = taker.clone();
            async move { Ok::<_, Failure>((taker.take().await?, Instant::now())) }
        });
        taker.waited_for().await?;
        // At any moment between two looks of a waiter of ours.
        let phase = fastrand::u64(..200_000);
        tokio::time::sleep(Duration::from_micros(phase)).await;
        let killed = Instant::now();
        holder.0.kill()?;
        let (held, at) = waiter.await??;
        Taker::give(held).await?;
        Ok(at.duration_since(killed).as_secs_f64())
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
    match words.as_slice() {
        ["hold", kind, url, name] => {
            let kind: Kind = kind.parse()?;
            let _held = multi_thread
                .runtime
                .block_on(async { kind.lock(url, name).await?.take().await })?;
            println!("held");
            wait_for_the_end()?;
        }
        ["hold-many", url, count] => {
            let backend = multi_thread.runtime.block_on(RedisBackend::connect(url))?;
            let count = count.parse()?;
            let hold = async |name: String| {
                let lock = Lock::new(backend.clone(), name)?;
                Ok::<_, Failure>(lock.acquire().await?)
            };
            let mut guards = Vec::with_capacity(count);
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
            wait_for_the_end()?;
        }
        _ => return Err(format!("{words:?} is nothing to do").into()),
    }
    Ok(())
}

fn wait_for_the_end() -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
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
