//! A pair on Postgres, and the two statements below it. Commits don't wait for the disk.

use criterion::Criterion;
use portalock_core::Lock;
use portalock_postgres::{
    PostgresBackend, PostgresSettings, migrate,
    tokio_postgres::{self, NoTls},
};
use portalock_testkit::servers::PostgresServer;

/// A lock that is free, acquired and released.
#[expect(
    clippy::expect_used,
    reason = "criterion's functions have no way to fail"
)]
pub(crate) fn postgres(criterion: &mut Criterion) {
    let server = PostgresServer::start().expect("postgres is installed");
    let runtime = crate::runtime();
    let url = server.url();
    let (bare, lock) = runtime.block_on(async {
        let settings = PostgresSettings::from_url(&url).expect("a good URL");
        migrate(&settings).await.expect("the server answers");
        let (bare, connection) = tokio_postgres::connect(&url, NoTls)
            .await
            .expect("the server answers");
        tokio::spawn(connection);
        bare.batch_execute("CREATE TABLE bare (number int); INSERT INTO bare VALUES (0)")
            .await
            .expect("a table");
        let backend = PostgresBackend::connect(&url).await;
        let lock = Lock::new(backend.expect("the server answers"), "nightly");
        (bare, lock.expect("a good name"))
    });
    let update = runtime
        .block_on(bare.prepare("UPDATE bare SET number = number + 1"))
        .expect("a statement");
    let mut group = criterion.benchmark_group("postgres");
    group.bench_function("two updates", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            bare.execute(&update, &[]).await?;
            bare.execute(&update, &[]).await
        });
    });
    group.bench_function("portalock", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(|| async { lock.acquire().await?.release().await });
    });
    group.finish();
}
