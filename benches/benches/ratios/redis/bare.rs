//! The floors: the commands alone, on the connection that the client library gives.

use std::time::{Duration, Instant};

use portalock_benches::Failure;
use redis::{AsyncConnectionConfig, Client, Cmd, Value, aio::MultiplexedConnection};

macro_rules! source {
    ($($file:literal)+) => {
        concat!($(include_str!(concat!("../../../../portalock-redis/src/scripts/", $file)), "\n",)+)
    };
}

const ACQUIRE: &str = source!("grant.lua" "acquire_usual.lua" "prelude.lua" "acquire.lua");
const RELEASE: &str = source!("grant.lua" "release_usual.lua" "prelude.lua" "release.lua");

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

async fn load(connection: &mut MultiplexedConnection, source: &str) -> Result<String, Failure> {
    Ok(redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(source)
        .query_async(connection)
        .await?)
}

/// A live session by hand, in which the library's own scripts can be called.
#[derive(Clone)]
pub(crate) struct Bare {
    connection: MultiplexedConnection,
    acquire: String,
    release: String,
}

const SESSIONS: &str = "portalock/session/";
const SESSION: &str = "00000000000000000000000000000000";

impl Bare {
    pub(crate) async fn open(url: &str) -> Result<Self, Failure> {
        let mut connection = connection(url).await?;
        let key = format!("{SESSIONS}{SESSION}");
        connection.subscribe(&key).await?;
        redis::cmd("SET")
            .arg(&key)
            .arg("live")
            .query_async::<()>(&mut connection)
            .await?;
        let acquire = load(&mut connection, ACQUIRE).await?;
        let release = load(&mut connection, RELEASE).await?;
        Ok(Self {
            connection,
            acquire,
            release,
        })
    }

    /// Acquires and releases the lock of `task`, `times` times: how long one pair took.
    pub(crate) fn pairs(
        &self,
        task: u32,
        times: u32,
    ) -> impl Future<Output = Result<Duration, Failure>> + Send + 'static {
        let Self {
            mut connection,
            acquire,
            release,
        } = self.clone();
        async move {
            let [state, queue, waiters] =
                ["", "-queue", "-waiters"].map(|part| format!("bare/lock{part}/task-{task}"));
            let mut owner = 0;
            let started = Instant::now();
            for _ in 0..times {
                owner += 1;
                let owner = format!("0123456789abcdef-{task:x}-{owner:x}");
                let mut command = script(&acquire, 4);
                command.arg(&state).arg(&queue).arg(&waiters);
                command.arg(format!("{SESSIONS}{SESSION}"));
                command.arg(SESSIONS).arg(SESSION).arg(&owner);
                command.arg("4294967295").arg("4294967295").arg("1");
                command.arg("{\"host\":\"localhost\",\"pid\":12345}");
                let answer: Vec<String> = command.query_async(&mut connection).await?;
                if answer.first().is_none_or(|answer| answer != "granted") {
                    return Err(format!("the bare script answered {answer:?}").into());
                }
                let mut command = script(&release, 3);
                command.arg(&state).arg(&queue).arg(&waiters);
                command.arg(SESSIONS).arg(&owner);
                let _: Value = command.query_async(&mut connection).await?;
            }
            Ok(started.elapsed() / times)
        }
    }
}

fn script(hash: &str, keys: usize) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(hash).arg(keys);
    command
}
