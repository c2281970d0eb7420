//! Many clients on one lock: how often it changes hands.

use std::{cell::Cell, time::Duration};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, rates, row, table},
};
use redis::Value;

use super::{
    bare,
    taker::{Kind, Taker, push},
};
use crate::{Effort, flavours::flavours, locks::contend_for};

const CLIENTS: usize = 64;
const LOCK: &str = "contended";

pub(super) fn run(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: 64 clients on one lock, a connection each");
    let time = Duration::from_millis(effort.of(1_000).max(100).into());
    for flavour in &flavours()? {
        flavour.runtime.block_on(first_token(url))?;
        let worst = Cell::new(1.0_f64);
        let mut contestants = Vec::new();
        for kind in [Kind::Token, Kind::Portalock]
            .into_iter()
            .chain(Kind::POLLERS)
        {
            let takers = flavour.runtime.block_on(clients(kind, url))?;
            let name = format!("{kind}, {}", flavour.name);
            let worst = &worst;
            contestants.push(Contestant::new(name, move || {
                let (handoff, most_to_fewest) = flavour.run(contend_for(takers.clone(), time))?;
                if kind == Kind::Portalock {
                    worst.set(worst.get().max(most_to_fewest));
                }
                Ok(handoff)
            }));
        }
        let one = flavour
            .runtime
            .block_on(Kind::Portalock.connect(url))?
            .lock(LOCK)?;
        let name = format!("portalock, all 64 in one session, {}", flavour.name);
        contestants.push(Contestant::new(name, move || {
            Ok(flavour
                .run(contend_for(vec![one.clone(); CLIENTS], time))?
                .0)
        }));
        rates(
            &contest(effort.rounds().min(5), contestants)?,
            Target::AtLeast(0.5),
        );
        let worst = worst.get();
        let what = format!("portalock: most to fewest acquisitions, {}", flavour.name);
        row(&what, format!("{worst:.3}"), worst, Target::AtMost(1.1));
    }
    Ok(())
}

async fn clients(kind: Kind, url: &str) -> Result<Vec<Taker>, Failure> {
    let mut takers = Vec::new();
    for _ in 0..CLIENTS {
        takers.push(kind.lock(url, LOCK).await?);
    }
    Ok(takers)
}

/// There before anybody waits for it.
async fn first_token(url: &str) -> Result<(), Failure> {
    let mut connection = bare::connection(url).await?;
    let _: Value = redis::cmd("DEL")
        .arg(LOCK)
        .query_async(&mut connection)
        .await?;
    push(&mut connection, LOCK).await
}
