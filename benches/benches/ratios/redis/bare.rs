//! The floors: the commands alone, on the connection that the client library gives.

use portalock_benches::Failure;
use redis::{AsyncConnectionConfig, Client, Value, aio::MultiplexedConnection};

/// A connection that waits for an answer as long as it takes.
pub(crate) async fn connection(url: &str) -> Result<MultiplexedConnection, Failure> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(format!("{url}?protocol=resp3"))?;
    Ok(client
        .get_multiplexed_async_connection_with_config(&config)
        .await?)
}

/// A script that does nothing.
pub(crate) async fn noop(connection: &mut MultiplexedConnection) -> Result<String, Failure> {
    load(connection, "return 1").await
}

pub(crate) async fn evalsha(
    connection: &mut MultiplexedConnection,
    hash: &str,
) -> Result<(), Failure> {
    let _: Value = redis::cmd("EVALSHA")
        .arg(hash)
        .arg(0)
        .query_async(connection)
        .await?;
    Ok(())
}

pub(crate) async fn load(
    connection: &mut MultiplexedConnection,
    source: &str,
) -> Result<String, Failure> {
    Ok(redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(source)
        .query_async(connection)
        .await?)
}
