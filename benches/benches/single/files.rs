//! Files, beside the system calls that any file lock makes.

use std::path::Path;

use criterion::Criterion;
use portalock_core::{Lock, blocking};
use portalock_fs::FsBackend;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::runtime;

#[expect(
    clippy::expect_used,
    reason = "criterion's functions have no way to fail"
)]
pub(crate) fn files(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let backend = FsBackend::open(directory.path()).expect("a directory for locks");
    let lock = Lock::new(backend, "nightly").expect("a good name");
    let blocking: blocking::Lock<_> = lock.clone().into();
    let path = directory.path().join("flock");

    let mut group = criterion.benchmark_group("files");
    group.bench_function("floor", |bencher| bencher.iter(|| pair(&path)));
    group.bench_function("portalock, blocking", |bencher| {
        bencher.iter(|| blocking.acquire().map(drop));
    });
    group.bench_function("portalock, async", |bencher| {
        bencher
            .to_async(runtime())
            .iter(|| async { lock.acquire().await.map(drop) });
    });
    group.finish();
}

fn pair(path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::RUSR | Mode::WUSR)?;
    flock(&file, FlockOperation::LockExclusive)?;
    flock(&file, FlockOperation::Unlock)
}
