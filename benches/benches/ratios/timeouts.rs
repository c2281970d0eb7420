//! Ten thousand calls that wait for one lock and all time out: when they return, and what they leave.

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    report::{Target, row, table},
};
use portalock_core::{Lock, LockError, MemoryBackend, Policy};
use tokio::runtime::Runtime;

use crate::{
    Effort,
    flavours::{Flavour, flavours},
};

const CALLS: u32 = 10_000;
/// Long enough for the last of them to be asked before the first gives up.
const PATIENCE: Duration = Duration::from_secs(3);
const LATE_BY: Duration = Duration::from_millis(50);

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    table("Timeouts: calls that wait for one held lock return so long after their deadline");
    for Flavour {
        name: kind,
        runtime,
    } in flavours()?
    {
        let calls = effort.of(CALLS);
        let mut late = time_out(&runtime, calls)?;
        late.sort_unstable();
        for (which, late) in [("middle", late.get(late.len() / 2)), ("last", late.last())] {
            let late = late.copied().unwrap_or_default();
            row(
                &format!("{kind}, {calls} calls, the {which} one (its floor: 50 ms)"),
                format!("{:.2} ms", late.as_secs_f64() * 1e3),
                late.as_secs_f64() / LATE_BY.as_secs_f64(),
                Target::AtMost(1.0),
            );
        }
    }
    Ok(())
}

fn time_out(runtime: &Runtime, calls: u32) -> Result<Vec<Duration>, Failure> {
    let backend = MemoryBackend::new();
    let late = runtime.block_on(async {
        let held = Lock::new(backend.clone(), "nightly")?.acquire().await?;
        let mut waits = Vec::new();
        for _ in 0..calls {
            let policy = Policy::new().with_timeout(PATIENCE);
            let lock = Lock::new(backend.clone(), "nightly")?.with_policy(policy);
            waits.push(tokio::spawn(async move {
                let deadline = Instant::now() + PATIENCE;
                let answer = lock.acquire().await;
                (Instant::now().saturating_duration_since(deadline), answer)
            }));
        }
        let mut late = Vec::new();
        for wait in waits {
            match wait.await? {
                (by, Err(LockError::Timeout { .. })) => late.push(by),
                (_, Err(other)) => return Err(other.into()),
                (_, Ok(_)) => return Err("a held lock was granted".into()),
            }
        }
        held.release().await?;
        Ok::<_, Failure>(late)
    })?;
    match backend.names_in_use() {
        0 => Ok(late),
        left => Err(format!("{left} names are still in use").into()),
    }
}
