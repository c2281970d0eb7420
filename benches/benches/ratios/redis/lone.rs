//! A task that is alone on its runtime: what polls it decides what a round trip costs.

use std::time::Duration;

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, times},
};
use portalock_core::Lock;
use portalock_redis::RedisBackend;
use tokio::runtime::{Builder, Runtime};

use super::{bare, noop_pairs};
use crate::{Effort, flavours::multi_thread, locks::pair};

/// A way to drive one future to its end.
#[derive(Clone, Copy)]
enum Drive {
    BlockOn,
    Spawned,
}

impl Drive {
    fn run(
        self,
        runtime: &Runtime,
        work: impl Future<Output = Result<Duration, Failure>> + Send + 'static,
    ) -> Result<Duration, Failure> {
        match self {
            Self::BlockOn => runtime.block_on(work),
            Self::Spawned => runtime.block_on(async { tokio::spawn(work).await? }),
        }
    }
}

pub(super) fn run(url: &str, effort: Effort) -> Result<(), Failure> {
    portalock_benches::report::table("Redis: a lone task, by what polls it");
    let times_each = effort.of(1_000);
    let current = Builder::new_current_thread().enable_all().build()?;
    let [one, two] = [multi_thread(1)?, multi_thread(2)?];
    let mut contestants = Vec::new();
    for (runtime, drive, what) in [
        (&current, Drive::BlockOn, "current-thread, `block_on`"),
        (&current, Drive::Spawned, "current-thread, spawned"),
        (&one, Drive::Spawned, "1 worker, spawned"),
        (&one, Drive::BlockOn, "1 worker, `block_on`"),
        (&two, Drive::Spawned, "2 workers, spawned"),
        (&two, Drive::BlockOn, "2 workers, `block_on`"),
    ] {
        let (bare, lock) = runtime.block_on(async {
            let lock = Lock::new(RedisBackend::connect(url).await?, what)?;
            Ok::<_, Failure>((bare::connection(url).await?, lock))
        })?;
        contestants.push(Contestant::new(
            format!("floor: two no-op `EVALSHA`, {what}"),
            move || drive.run(runtime, noop_pairs(bare.clone(), times_each)),
        ));
        contestants.push(Contestant::new(format!("portalock, {what}"), move || {
            drive.run(runtime, pair(lock.clone(), times_each))
        }));
    }
    let outcomes = contest(effort.rounds(), contestants)?;
    times(&outcomes, Target::None);
    Ok(())
}
