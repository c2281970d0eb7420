//! How soon a waiter has what another released, in round trips.

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, table, times},
};
use portalock_core::Lock;
use portalock_redis::RedisBackend;
use redis::{Value, aio::MultiplexedConnection};

use super::bare;
use crate::{Effort, flavours::flavours, locks::passed};

pub(super) fn run(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: from a release to the waiter's lock, another connection's");
    let times_each = effort.of(300);
    for flavour in flavours()? {
        let (bare, locks) = flavour.runtime.block_on(async {
            let backends = [
                RedisBackend::connect(url).await?,
                RedisBackend::connect(url).await?,
            ];
            let [one, other] = backends.map(|backend| Lock::new(backend, "passed"));
            Ok::<_, Failure>((bare::connection(url).await?, [one?, other?]))
        })?;
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::new(
                    format!("floor: one round trip (`PING`), {}", flavour.name),
                    || flavour.run(pings(bare.clone(), times_each)),
                ),
                Contestant::new(format!("portalock, {}", flavour.name), || {
                    flavour.run(passed(locks.clone(), times_each))
                }),
            ],
        )?;
        times(&outcomes, Target::AtMost(3.0));
    }
    Ok(())
}

async fn pings(mut bare: MultiplexedConnection, times: u32) -> Result<Duration, Failure> {
    let started = Instant::now();
    for _ in 0..times {
        let _: Value = redis::cmd("PING").query_async(&mut bare).await?;
    }
    Ok(started.elapsed() / times)
}
