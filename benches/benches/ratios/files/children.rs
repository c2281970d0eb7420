//! Processes that contend for a lock: this very program, started with an argument that nobody types.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write, stdin, stdout},
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use portalock_benches::Failure;
use rustix::{
    process::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

use super::{
    idle,
    taker::{Kind, Taker, ours},
};

const ARGUMENT: &str = "--files-child";
/// Where those who take turns write down whose it was.
const LEDGER: &str = "ledger";

/// Does what a parent wants, if this process is a child. False if it isn't.
pub(crate) fn run_as_child() -> Result<bool, Failure> {
    let words: Vec<String> = env::args().skip(1).collect();
    let Some((argument, words)) = words.split_first() else {
        return Ok(false);
    };
    if argument != ARGUMENT {
        return Ok(false);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["wait", kind, directory] => wait(&Taker::new(kind.parse()?, directory.as_ref())?)?,
        ["turns", kind, directory, me, millis] => take_turns(
            &Taker::new(kind.parse()?, directory.as_ref())?,
            directory.as_ref(),
            me.parse()?,
            Duration::from_millis(millis.parse()?),
        )?,
        ["idle", kind, directory, millis] => {
            idle::wait(kind.parse()?, directory.as_ref(), millis.parse()?)?;
        }
        ["hold", directory, count] => hold(directory.as_ref(), count.parse()?)?,
        _ => return Err(format!("no child does {words:?}").into()),
    }
    Ok(true)
}

/// A child, and both ends of what is said between us. Its end is that of what it is told.
pub(crate) struct Process {
    child: Child,
    tell: Option<ChildStdin>,
    hear: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(words: &[&str], directory: &Path, more: &[&str]) -> Result<Self, Failure> {
        let mut child = Command::new(env::current_exe()?)
            .arg(ARGUMENT)
            .args(words)
            .arg(directory)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let hear = child.stdout.take().ok_or("a child without an output")?;
        Ok(Self {
            tell: child.stdin.take(),
            hear: BufReader::new(hear),
            child,
        })
    }

    pub(crate) fn tell(&mut self) -> Result<(), Failure> {
        let pipe = self.tell.as_mut().ok_or("a child without an input")?;
        Ok(pipe.write_all(b"\n")?)
    }

    pub(crate) fn hear(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.hear.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tell = None;
        let _ = self.child.wait();
    }
}

fn told() -> Result<bool, Failure> {
    Ok(stdin().lock().read_line(&mut String::new())? > 0)
}

pub(crate) fn say(what: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}

/// The clock that all processes share, in nanoseconds.
pub(crate) fn now() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Takes the lock once each time it is told to, and says when it had it.
fn wait(taker: &Taker) -> Result<(), Failure> {
    while told()? {
        say(taker.take(|| Ok(now()))?)?;
    }
    Ok(())
}

fn take_turns(taker: &Taker, directory: &Path, me: u64, time: Duration) -> Result<(), Failure> {
    let ledger = Ledger::open(directory)?;
    say("ready")?;
    told()?;
    let started = Instant::now();
    let mut turns = 0_u64;
    while started.elapsed() < time {
        taker.take(|| ledger.note(me))?;
        turns += 1;
    }
    say(turns)
}

/// How often the lock passed from one to another. A turn after one's own is none.
struct Ledger(fs::File);

impl Ledger {
    fn open(directory: &Path) -> Result<Self, Failure> {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(LEDGER))?;
        Ok(Self(file))
    }

    fn read(&self) -> Result<(u64, u64), Failure> {
        let mut bytes = [0; 16];
        if self.0.read_at(&mut bytes, 0)? < bytes.len() {
            return Ok((u64::MAX, 0));
        }
        let (last, handoffs) = bytes.split_at(8);
        Ok((
            u64::from_le_bytes(last.try_into()?),
            u64::from_le_bytes(handoffs.try_into()?),
        ))
    }

    fn note(&self, me: u64) -> Result<(), Failure> {
        let (last, handoffs) = self.read()?;
        if last != me {
            let bytes = [me.to_le_bytes(), (handoffs + 1).to_le_bytes()].concat();
            self.0.write_all_at(&bytes, 0)?;
        }
        Ok(())
    }
}

/// What came of it when processes took turns.
pub(crate) struct Turns {
    /// How long one handoff took on average.
    pub(crate) handoff: Duration,
    /// The turns of each.
    pub(crate) each: Vec<u64>,
}

/// Lets so many processes take turns with one lock.
pub(crate) fn turns(kind: Kind, processes: u32, time: Duration) -> Result<Turns, Failure> {
    let directory = tempfile::tempdir()?;
    let (name, millis) = (kind.to_string(), time.as_millis().to_string());
    let mut children = (0..processes)
        .map(|me| {
            let more = [&*me.to_string(), &*millis];
            Process::start(&["turns", &name], directory.path(), &more)
        })
        .collect::<Result<Vec<_>, _>>()?;
    for child in &mut children {
        child.hear()?;
    }
    let started = Instant::now();
    for child in &mut children {
        child.tell()?;
    }
    let mut each = Vec::new();
    for child in &mut children {
        each.push(child.hear()?.parse()?);
    }
    let took = started.elapsed();
    let (_, handoffs) = Ledger::open(directory.path())?.read()?;
    Ok(Turns {
        handoff: took.div_f64(f64::from(u32::try_from(handoffs)?.max(1))),
        each,
    })
}

/// Holds so many locks, and says how many descriptors and how much memory (KiB) that took.
fn hold(directory: &Path, count: usize) -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let lock = ours(directory, "first")?;
    let runtime = super::taker::current_thread()?;
    runtime.block_on(async {
        // What a backend takes once is not a lock's.
        let _first = lock.acquire().await?;
        let locks = (0..count)
            .map(|name| portalock_core::Lock::new(lock.backend().clone(), name.to_string()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut guards = Vec::with_capacity(count);
        let (files, memory) = (open_files()?, memory()?);
        for lock in &locks {
            guards.push(lock.acquire().await?);
        }
        say(format!(
            "{} {}",
            open_files()? - files,
            self::memory()? - memory
        ))
    })
}

fn open_files() -> Result<usize, Failure> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// What of this process is in memory, in KiB.
fn memory() -> Result<usize, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().next());
    Ok(number.ok_or("the system does not tell")?.parse()?)
}
