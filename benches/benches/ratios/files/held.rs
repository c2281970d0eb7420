//! What a held lock takes: descriptors and memory, counted in a process of its own.

use portalock_benches::{
    Failure,
    report::{Target, row, table},
};

use super::children::Process;
use crate::Effort;

const MOST_BYTES: f64 = 1024.0;

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let count = effort.of(10_000);
    let mut child = Process::start(&["hold"], directory.path(), &[&count.to_string()])?;
    let answer = child.hear()?;
    let (files, kib) = answer.split_once(' ').ok_or("a child that held nothing")?;
    let per_lock = |total: &str| -> Result<f64, Failure> {
        Ok(f64::from(total.parse::<u32>()?) / f64::from(count))
    };
    let (files, bytes) = (per_lock(files)?, per_lock(kib)? * 1024.0);

    table(&format!("Files: what each of {count} held locks takes"));
    row("descriptors, to 1", files, files, Target::AtMost(1.0));
    let measured = format!("{bytes:.0} bytes");
    row(
        "memory, to 1 KiB",
        measured,
        bytes / MOST_BYTES,
        Target::AtMost(1.0),
    );
    Ok(())
}
