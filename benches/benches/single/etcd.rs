//! A pair on etcd, and the two requests below it.

use criterion::Criterion;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use portalock_core::Lock;
use portalock_etcd::EtcdBackend;
use portalock_testkit::servers::EtcdServer;

/// A lock that is free, acquired and released.
pub(crate) fn etcd(criterion: &mut Criterion) {
    #[expect(
        clippy::expect_used,
        reason = "criterion's functions have no way to fail"
    )]
    let server = EtcdServer::start().expect("etcd is installed");
    let runtime = crate::runtime();
    let endpoint = server.endpoints().concat();
    #[expect(
        clippy::expect_used,
        reason = "criterion's functions have no way to fail"
    )]
    let (bare, lock) = runtime.block_on(async {
        let bare = Client::connect([&endpoint], None).await;
        let backend = EtcdBackend::connect(&endpoint).await;
        let lock = Lock::new(backend.expect("the server answers"), "nightly");
        (
            bare.expect("the server answers"),
            lock.expect("a good name"),
        )
    });
    let mut group = criterion.benchmark_group("etcd");
    group.bench_function("a transaction and a deletion", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let transaction = Txn::new()
                .when([Compare::create_revision("bare", CompareOp::Equal, 0)])
                .and_then([TxnOp::put("bare", "value", None)]);
            bare.kv_client().txn(transaction).await?;
            bare.kv_client().delete("bare", None).await
        });
    });
    group.bench_function("portalock", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(|| async { lock.acquire().await?.release().await });
    });
    group.finish();
}
