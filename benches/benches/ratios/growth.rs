//! How cost grows with names, waiters and holders, over three decades.

use std::{path::Path, time::Duration};

use portalock_benches::{Failure, contest::median, plot, report::micros};
use portalock_core::{BackendError, Lock, LockBackend, Policy};

use crate::{
    Effort,
    flavours::{Flavour, flavours},
    locks::{contend, free, hold, pair},
};

const DECADES: [u32; 7] = [1, 3, 10, 30, 100, 300, 1000];
/// A slow service is measured once at each point.
const ROUNDS: usize = 3;

/// Measures and plots it, in a backend that `connect` makes.
pub(crate) fn run<B: LockBackend + Clone>(
    service: &str,
    effort: Effort,
    times: u32,
    connect: impl AsyncFn() -> Result<B, BackendError>,
) -> Result<(), Failure> {
    let flavours = flavours()?;
    println!("\n### {service}: how cost grows\n");
    println!(
        "| | runtime | {} |",
        DECADES.map(|n| n.to_string()).join(" | ")
    );
    println!("|---|---|{}", "---:|".repeat(DECADES.len()));
    let plots = Path::new(crate::PLOTS);
    for (axis, what) in [
        (Axis::Names, "other names held: one pair"),
        (Axis::Waiters, "waiting tasks on one lock: one handoff"),
        (Axis::Holders, "others share the lock: one more shared pair"),
    ] {
        let mut series = Vec::new();
        for flavour in &flavours {
            let backend = flavour.runtime.block_on(connect())?;
            let mut points = Vec::new();
            for count in DECADES {
                let mut took = Vec::new();
                for _ in 0..if times < 100 { 1 } else { ROUNDS } {
                    // A server with one core to itself may be asked for too much: then that is what the plot ends with.
                    match axis.measure(flavour, &backend, count, effort.of(times)) {
                        Ok(time) => took.push(time.as_secs_f64()),
                        Err(error) => eprintln!("{what}, {count}: {error}"),
                    }
                }
                if took.is_empty() {
                    break;
                }
                points.push((f64::from(count), median(took) * 1e6));
            }
            let cells: Vec<_> = points
                .iter()
                .map(|point| micros(Duration::from_secs_f64(point.1 / 1e6)))
                .collect();
            println!("| {what} | {} | {} |", flavour.name, cells.join(" | "));
            series.push((flavour.name.to_owned(), points));
        }
        if effort == Effort::Full {
            std::fs::create_dir_all(plots)?;
            let path = plots.join(format!("{}-{}.svg", service.to_lowercase(), axis.name()));
            plot::write(
                &path,
                &format!("{service}: {what}"),
                axis.name(),
                "µs",
                &series,
            )?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Axis {
    Names,
    Waiters,
    Holders,
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Waiters => "waiters",
            Self::Holders => "holders",
        }
    }

    fn measure<B: LockBackend + Clone>(
        self,
        flavour: &Flavour,
        backend: &B,
        count: u32,
        times: u32,
    ) -> Result<Duration, Failure> {
        let backend = backend.clone();
        match self {
            Self::Names => flavour.run(async move {
                let held = hold(&backend, count, |number| format!("name-{number}"), false).await?;
                let took = pair(Lock::new(backend, format!("one more, {count}"))?, times).await;
                free(held).await?;
                took
            }),
            Self::Waiters => {
                // One holds, the others wait.
                let lock = Lock::new(backend, format!("waited for, {count}"))?
                    .with_policy(Policy::forever());
                let locks = vec![lock; count as usize + 1];
                let handoffs = times.max(count * 2);
                Ok(flavour.run(contend(locks, handoffs))?.0)
            }
            Self::Holders => flavour.run(async move {
                let held = hold(&backend, count, |_| format!("shared, {count}"), true).await?;
                let lock = Lock::new(backend, format!("shared, {count}"))?;
                let started = std::time::Instant::now();
                for _ in 0..times.min(100) {
                    lock.acquire_shared().await?.release().await?;
                }
                let took = started.elapsed() / times.min(100);
                free(held).await?;
                Ok(took)
            }),
        }
    }
}
