//! The memory backend: what the engine itself costs.

use std::{collections::HashMap, hint::black_box, sync::Mutex};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, per_second, row, table},
};
use portalock_core::{Lock, MemoryBackend};
use tokio::runtime;

use crate::Effort;

const PAIRS_WANTED: f64 = 1e6;

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    table("Memory: acquire and drop, nobody else wants it");
    let pairs = effort.of(100_000);
    for (kind, runtime) in [
        (
            "current-thread",
            runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        ),
        (
            "multi-thread",
            runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?,
        ),
    ] {
        let lock = Lock::new(MemoryBackend::new(), "nightly")?;
        let held = Mutex::new(HashMap::new());
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::repeating(
                    "floor: insert into and remove from a locked map",
                    pairs,
                    || {
                        let name = String::from("nightly");
                        let mut map = held.lock().map_err(|_| "poisoned")?;
                        map.insert(black_box(name), 1);
                        map.remove("nightly");
                        Ok(())
                    },
                ),
                Contestant::new(format!("portalock, {kind}"), || {
                    let lock = lock.clone();
                    runtime.block_on(async move {
                        let started = std::time::Instant::now();
                        for _ in 0..pairs {
                            drop(lock.acquire().await?);
                        }
                        Ok(started.elapsed() / pairs)
                    })
                }),
            ],
        )?;
        for outcome in outcomes {
            let rate = 1.0 / outcome.time.as_secs_f64() / PAIRS_WANTED;
            row(
                &outcome.name,
                per_second(outcome.time),
                rate,
                Target::AtLeast(1.0),
            );
        }
    }
    Ok(())
}
