//! Postgres: what a lock costs beside single-row statements, a poller and the server's own locks. The server syncs each commit to
//! the disk unless a table says otherwise.

mod bare;
mod kept;

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, rates, table, times},
};
use portalock_core::{Lock, Policy};
use portalock_postgres::{PostgresBackend, PostgresSettings, migrate};
use portalock_testkit::servers::{PostgresOptions, PostgresServer};

use crate::{
    Effort,
    flavours::{flavours, multi_thread},
    locks::{contend, pair, passed},
};
use bare::{Bare, Contended};

const CLIENTS: u32 = 64;

/// One client, one that passes a lock to another, many that want the same, and what waits and is held.
pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    let durable = server(true)?;
    pairs(
        "synced commits",
        &durable.url(),
        Target::AtMost(1.3),
        effort,
    )?;
    passing(&durable.url(), effort)?;
    let quick = server(false)?;
    pairs(
        "commits that don't wait for the disk",
        &quick.url(),
        Target::None,
        effort,
    )?;
    contended("synced commits", &durable.url(), effort)?;
    contended("commits that don't wait for the disk", &quick.url(), effort)?;
    kept::run(effort)
}

fn server(durable: bool) -> Result<PostgresServer, Failure> {
    let options = PostgresOptions::new().setting("max_connections", "400");
    let server = if durable { options.durable() } else { options }.start()?;
    let settings = PostgresSettings::from_url(&server.url())?;
    multi_thread(1)?.block_on(migrate(&settings))?;
    Ok(server)
}

fn pairs(commits: &str, url: &str, target: Target, effort: Effort) -> Result<(), Failure> {
    table(&format!(
        "Postgres, {commits}: acquire and release, nobody else wants it"
    ));
    let times_each = effort.of(100);
    for flavour in flavours()? {
        let (bare, lock) = flavour.runtime.block_on(async {
            let backend = PostgresBackend::connect(url).await?;
            Ok::<_, Failure>((Bare::connect(url).await?, Lock::new(backend, "nightly")?))
        })?;
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::new(
                    format!("floor: two updates of a row, {}", flavour.name),
                    || flavour.run(bare.clone().two_statements(times_each)),
                ),
                Contestant::new(format!("portalock, {}", flavour.name), || {
                    flavour.run(pair(lock.clone(), times_each))
                }),
            ],
        )?;
        times(&outcomes, target);
    }
    Ok(())
}

fn passing(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Postgres: from a release to the waiter's lock, another connection's");
    let times_each = effort.of(50);
    for flavour in flavours()? {
        let (bare, locks) = flavour.runtime.block_on(async {
            let one = Lock::new(PostgresBackend::connect(url).await?, "passed")?;
            let other = Lock::new(PostgresBackend::connect(url).await?, "passed")?;
            Ok::<_, Failure>((Bare::connect(url).await?, [one, other]))
        })?;
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::new(
                    format!("floor: an update of a row, {}", flavour.name),
                    || flavour.run(bare.clone().statement(times_each)),
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

fn contended(commits: &str, url: &str, effort: Effort) -> Result<(), Failure> {
    let [_, flavour] = flavours()?;
    let (bare, locks) = flavour.runtime.block_on(async {
        let mut locks = Vec::new();
        for _ in 0..CLIENTS {
            let backend = PostgresBackend::connect(url).await?;
            locks.push(Lock::new(backend, "contended")?.with_policy(Policy::forever()));
        }
        Ok::<_, Failure>((Bare::many(url, CLIENTS).await?, locks))
    })?;
    for (floor, what, target) in [
        (
            "a poller at 50 ms",
            Some(Contended::Polled),
            Target::AtLeast(5.0),
        ),
        (
            "pg_advisory_lock",
            Some(Contended::Advisory),
            Target::AtLeast(1.0),
        ),
        (
            "pg_advisory_lock, an update of a row under it",
            Some(Contended::Written),
            Target::None,
        ),
        (
            "an update of a row that notifies the next client",
            None,
            Target::None,
        ),
    ] {
        table(&format!(
            "Postgres, {commits}: {CLIENTS} clients on one lock, to {floor}"
        ));
        let handoffs = effort.of(640).max(CLIENTS);
        let names = [format!("floor: {floor}"), "portalock".to_owned()];
        let outcomes = contest(
            effort.rounds().min(3),
            vec![
                Contestant::new(&names[0], || match what {
                    Some(what) => flavour.run(bare::contend(bare.clone(), what, handoffs)),
                    None => flavour.run(bare::pass_on(bare.clone(), handoffs)),
                }),
                Contestant::new(&names[1], || {
                    let (time, _) = flavour.run(contend(locks.clone(), handoffs))?;
                    Ok(time)
                }),
            ],
        )?;
        rates(&outcomes, target);
    }
    Ok(())
}
