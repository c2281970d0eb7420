//! How soon a waiter has what another released.

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, table, times},
};
use redis::{Value, aio::MultiplexedConnection};

use super::{bare, taker::Kind};
use crate::{Effort, flavours::flavours, locks::passed};

pub(super) fn run(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: from a release to the waiter's lock, another connection's");
    for flavour in &flavours()? {
        let bare = flavour.runtime.block_on(bare::connection(url))?;
        let mut contestants = vec![Contestant::new(
            format!("floor: one round trip (`PING`), {}", flavour.name),
            move || flavour.run(pings(bare.clone(), effort.of(300))),
        )];
        for kind in [Kind::Portalock].into_iter().chain(Kind::POLLERS) {
            let times_each = effort.of(if kind == Kind::Portalock { 300 } else { 10 });
            let locks = flavour.runtime.block_on(async {
                Ok::<_, Failure>([
                    kind.lock(url, "passed").await?,
                    kind.lock(url, "passed").await?,
                ])
            })?;
            contestants.push(Contestant::new(
                format!("{kind}, {}", flavour.name),
                move || flavour.run(passed(locks.clone(), times_each)),
            ));
        }
        times(
            &contest(effort.rounds().min(7), contestants)?,
            Target::AtMost(3.0),
        );
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
