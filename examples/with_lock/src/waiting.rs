//! The wait: it ends with the grant, the deadline or a signal, and is shown on a terminal.

use std::{
    convert::Infallible,
    future::Future,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use portalock::AnyBackend;
use portalock::{
    Holder, LockError,
    clock::{self, Instant},
};

use crate::{
    hold::{Hold, Wanted},
    report::{in_seconds, printable},
    sys::{self, Received, Signals},
};

/// A shorter wait is not shown.
const FIRST_LINE: Duration = Duration::from_millis(300);
const NEXT_LINE: Duration = Duration::from_secs(1);
/// How long reading the holder may take; after that the line is shown without a holder.
const LOOK: Duration = Duration::from_millis(500);

/// The signal that ended a wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signalled(pub(crate) i32);

/// Acquires, unless a signal comes first. Dropping the attempt then leaves nothing behind.
pub(crate) async fn acquire(
    wanted: &Wanted,
    backend: &AnyBackend,
    signals: &mut Signals,
) -> Result<Result<Hold, LockError>, Signalled> {
    let mut line = StatusLine::new();
    let acquire_and_tell = async {
        tokio::select! {
            biased;
            answer = wanted.acquire() => answer,
            never = tell(wanted, backend, &mut line) => match never {},
        }
    };
    unless_signalled(signals, acquire_and_tell).await
}

/// The future's output, unless a signal to end comes first.
pub(crate) async fn unless_signalled<T>(
    signals: &mut Signals,
    future: impl Future<Output = T>,
) -> Result<T, Signalled> {
    tokio::select! {
        biased;
        signal = end_asked_for(signals) => Err(Signalled(signal)),
        output = future => Ok(output),
    }
}

async fn end_asked_for(signals: &mut Signals) -> i32 {
    loop {
        match signals.next().await {
            Received::Ends(signal) => return signal,
            Received::Stop => sys::stop(),
            Received::Continue => {}
        }
    }
}

async fn tell(wanted: &Wanted, backend: &AnyBackend, line: &mut StatusLine) -> Infallible {
    if !line.is_seen {
        return std::future::pending().await;
    }
    let start = Instant::now();
    tokio::time::sleep(FIRST_LINE).await;
    loop {
        let obstacle = within(LOOK, obstacle(wanted, backend)).await.flatten();
        line.show(&describe(wanted, obstacle.as_ref(), start.elapsed()));
        tokio::time::sleep(NEXT_LINE).await;
    }
}

async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, future).await.ok()
}

/// Another holder of one of the names. This program may already hold some of the names, and ignores those.
async fn obstacle(wanted: &Wanted, backend: &AnyBackend) -> Option<Holder> {
    let ourselves = Holder::this_process(None);
    let is_other = |holder: &Holder| (holder.pid, &holder.host) != (ourselves.pid, &ourselves.host);
    for name in wanted.names() {
        let seen = match wanted {
            Wanted::Locks(_) => backend.locks.inspect(&name).await,
            Wanted::Permits(..) => backend.inspect_permits(&name).await,
        };
        let holders = seen.ok()?.holders.into_iter().map(|claim| claim.holder);
        if let Some(other) = holders.into_iter().find(is_other) {
            return Some(other);
        }
    }
    None
}

fn describe(wanted: &Wanted, holder: Option<&Holder>, so_far: Duration) -> String {
    let names: Vec<_> = wanted.names().iter().map(ToString::to_string).collect();
    let (names, so_far) = (names.join(", "), in_seconds(so_far));
    let Some(holder) = holder else {
        return format!("waiting for {names} ({so_far})");
    };
    let held = clock::wall_clock()
        .duration_since(holder.since)
        .unwrap_or_default();
    let label = holder.label.as_deref().unwrap_or("no label");
    format!(
        "waiting for {names} ({so_far}), held by pid {} on {} ({label}) for {}",
        holder.pid,
        holder.host,
        in_seconds(held)
    )
}

/// The status line, which is updated in place and removed at the end. Without a terminal on stderr nothing is shown.
struct StatusLine {
    is_seen: bool,
    is_shown: bool,
}

impl StatusLine {
    fn new() -> Self {
        Self {
            is_seen: io::stderr().is_terminal(),
            is_shown: false,
        }
    }

    fn show(&mut self, text: &str) {
        self.is_shown = true;
        // Line wrap is off, so that it stays one line on a narrow terminal.
        let text = format!("\r\x1b[K\x1b[?7lwith_lock: {}\x1b[?7h", printable(text));
        write_out(&text);
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if self.is_shown {
            write_out("\r\x1b[K");
        }
    }
}

fn write_out(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}
