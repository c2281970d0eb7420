//! Many clients on one lock: how often it changes hands, and what each time costs the server.

use std::{cell::Cell, time::Duration};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest, to},
    report::{Target, rates, row, table},
};
use portalock_core::{Lock, Policy};
use portalock_etcd::EtcdBackend;
use portalock_testkit::servers::EtcdServer;

use super::{
    bare::{Bare, Lease, Load, LockRpc},
    endpoint,
};
use crate::{
    Effort,
    flavours::{Flavour, flavours},
    locks::contend,
};

/// 700 handoffs in a second.
const WANTED: Duration = Duration::from_nanos(1_000_000_000 / 700);

pub(super) fn run(effort: Effort) -> Result<(), Failure> {
    table("etcd: clients on one lock, a connection each, to 700 handoffs/s");
    for waiters in [8_u32, 64] {
        for flavour in flavours()? {
            handoffs(waiters, &flavour, effort)?;
        }
    }
    table("etcd: load on the server by one handoff, to that of 4 clients");
    let [_, multi_thread] = flavours()?;
    let mut first = None;
    for waiters in [4, 8, 16, 32, 64] {
        let load = load(waiters, &multi_thread, effort)?;
        let four = *first.get_or_insert(load);
        for (what, one, to) in [
            ("requests", load.requests, four.requests),
            ("messages to watchers", load.messages, four.messages),
        ] {
            let measured = format!("{one:.2}");
            row(
                &format!("{waiters} clients: {what}"),
                measured,
                one / to,
                Target::AtMost(1.2),
            );
        }
    }
    Ok(())
}

fn handoffs(waiters: u32, flavour: &Flavour, effort: Effort) -> Result<(), Failure> {
    let ours = EtcdServer::start()?;
    // Of its own: its queue is none of ours.
    let theirs = EtcdServer::start()?;
    let locks = locks(&ours, waiters, flavour)?;
    let compactor = flavour
        .runtime
        .block_on(async { Bare::connect(&endpoint(&ours)?).await })?;
    let worst = Cell::new(1.0_f64);
    let named = |name: &str| format!("{name}: {waiters} clients, {}", flavour.name);
    let mut contestants = vec![Contestant::new(named("portalock"), || {
        flavour.runtime.block_on(compactor.compact())?;
        let (time, most_to_fewest) =
            flavour.run(contend(locks.clone(), effort.of(300).max(waiters)))?;
        worst.set(worst.get().max(most_to_fewest));
        Ok(time)
    })];
    for (name, lease) in [
        ("the server's lock RPC", Lease::Calls),
        ("the server's lock RPC, with a lease", Lease::Clients),
    ] {
        let locks = flavour.runtime.block_on(async {
            let mut locks = Vec::new();
            for _ in 0..waiters {
                locks.push(LockRpc::connect(&endpoint(&theirs)?, lease).await?);
            }
            Ok::<_, Failure>(locks)
        })?;
        contestants.push(Contestant::new(named(name), move || {
            Ok(flavour
                .run(contend(locks.clone(), effort.of(128).max(waiters)))?
                .0)
        }));
    }
    let outcomes = contest(effort.rounds().min(3), contestants)?;
    rates(&to(WANTED, outcomes), Target::AtLeast(1.0));
    let worst = worst.get();
    row(
        &named("most to fewest"),
        format!("{worst:.2}"),
        worst,
        Target::None,
    );
    Ok(())
}

fn locks(
    server: &EtcdServer,
    count: u32,
    flavour: &Flavour,
) -> Result<Vec<Lock<EtcdBackend>>, Failure> {
    flavour.runtime.block_on(async {
        let mut locks = Vec::new();
        for _ in 0..count {
            let backend = EtcdBackend::connect(&endpoint(server)?).await?;
            locks.push(Lock::new(backend, "contended")?.with_policy(Policy::forever()));
        }
        Ok(locks)
    })
}

fn load(waiters: u32, flavour: &Flavour, effort: Effort) -> Result<Load, Failure> {
    let server = EtcdServer::start()?;
    let locks = locks(&server, waiters, flavour)?;
    let port = server.port(0);
    let handoffs = effort.of(640).max(waiters * 10);
    let before = flavour.runtime.block_on(Load::of(port))?;
    flavour.run(contend(locks, handoffs))?;
    let after = flavour.runtime.block_on(Load::of(port))?;
    Ok(Load {
        requests: (after.requests - before.requests) / f64::from(handoffs),
        messages: (after.messages - before.messages) / f64::from(handoffs),
    })
}
