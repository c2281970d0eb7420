//! Single operations, each in a group with its floor, by criterion: for seeing whether a change made one slower.

mod etcd;
mod files;
mod postgres;
mod redis;

use criterion::{Criterion, criterion_group, criterion_main};
use portalock_core::{Lock, MemoryBackend};
use tokio::runtime::{Builder, Runtime};

pub(crate) fn runtime() -> Runtime {
    #[expect(
        clippy::expect_used,
        reason = "criterion's functions have no way to fail"
    )]
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts")
}

fn memory(criterion: &mut Criterion) {
    #[expect(
        clippy::expect_used,
        reason = "criterion's functions have no way to fail"
    )]
    let lock = Lock::new(MemoryBackend::new(), "nightly").expect("a good name");
    let mut group = criterion.benchmark_group("memory");
    group.bench_function("portalock", |bencher| {
        bencher
            .to_async(runtime())
            .iter(|| async { lock.acquire().await.map(drop) });
    });
    group.finish();
}

criterion_group!(
    all,
    memory,
    files::files,
    redis::redis,
    etcd::etcd,
    postgres::postgres
);
criterion_main!(all);
