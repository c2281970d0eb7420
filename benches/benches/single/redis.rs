//! A pair on Redis, and the two commands below it.

use criterion::Criterion;
use portalock_core::Lock;
use portalock_redis::RedisBackend;
use portalock_testkit::servers::RedisServer;

/// A lock that is free, acquired and released.
pub(crate) fn redis(criterion: &mut Criterion) {
    #[expect(
        clippy::expect_used,
        reason = "criterion's functions have no way to fail"
    )]
    let server = RedisServer::start().expect("redis-server is installed");
    let runtime = crate::runtime();
    let url = format!("{}?protocol=resp3", server.url());
    #[expect(
        clippy::expect_used,
        reason = "criterion's functions have no way to fail"
    )]
    let (bare, lock) = runtime.block_on(async {
        let client = redis::Client::open(url).expect("a good URL");
        let bare = client.get_multiplexed_async_connection().await;
        let backend = RedisBackend::connect(&server.url()).await;
        let lock = Lock::new(backend.expect("the server answers"), "nightly");
        (
            bare.expect("the server answers"),
            lock.expect("a good name"),
        )
    });
    let mut group = criterion.benchmark_group("redis");
    let noop = redis::Script::new("return 1");
    group.bench_function("two no-op scripts", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let mut bare = bare.clone();
            let one: redis::RedisResult<()> = noop.invoke_async(&mut bare).await;
            let other: redis::RedisResult<()> = noop.invoke_async(&mut bare).await;
            one.and(other)
        });
    });
    group.bench_function("portalock", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(|| async { lock.acquire().await?.release().await });
    });
    group.finish();
}
