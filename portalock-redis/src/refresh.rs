//! A session's signs of life, and the look whether what it holds is still there.

use std::{pin::Pin, sync::Arc, time::Duration};

use portalock_core::{BackendError, Loss, Renewal};
use redis::{RedisError, aio::MultiplexedConnection};

use crate::{
    claims::{Claims, HeldClaim},
    error::{failed, unexpected},
    keys::Keys,
    scripts::REFRESH,
};

const REFRESHING: &str = "refresh the session with Redis";
/// How many held claims one refresh looks after; with more, each has its turn.
const SEEN_AT_ONCE: usize = 500;

/// How long the client relies on what the server keeps for `lifetime`: less, for two clocks that don't run alike.
pub(crate) fn certain(lifetime: Duration) -> Duration {
    lifetime.mul_f64(0.95)
}

/// Signs of life.
pub(crate) struct Refresh {
    pub(crate) key: String,
    pub(crate) id: Arc<str>,
    pub(crate) lifetime: Duration,
    pub(crate) claims: Arc<Claims>,
    pub(crate) keys: Keys,
}

impl Refresh {
    /// Often enough for two to be lost.
    pub(crate) fn interval(lifetime: Duration) -> Duration {
        lifetime / 3
    }

    pub(crate) fn renewals(
        self,
        connection: MultiplexedConnection,
    ) -> impl FnMut() -> Pin<Box<dyn Future<Output = Result<Renewal, BackendError>> + Send>>
    + Send
    + 'static {
        let mut turn = 0;
        let this = Arc::new(self);
        move || {
            let mut held = this.claims.held_by(&this.id);
            if held.len() > SEEN_AT_ONCE {
                held.sort_unstable_by_key(|(owner, _)| *owner);
                turn = (turn + SEEN_AT_ONCE) % held.len();
                held.rotate_left(turn);
                held.truncate(SEEN_AT_ONCE);
            }
            let (this, connection) = (this.clone(), connection.clone());
            Box::pin(async move { this.renew(connection, held).await })
        }
    }

    async fn renew(
        &self,
        mut connection: MultiplexedConnection,
        held: Vec<HeldClaim>,
    ) -> Result<Renewal, BackendError> {
        let answer = self.ask(&mut connection, &held).await;
        let answer = answer.map_err(|error| failed(REFRESHING, error))?;
        match answer.split_first() {
            Some((state, removed)) if state == "alive" => {
                for owner in removed.iter().filter_map(|owner| owner.parse().ok()) {
                    self.claims.removed(owner);
                }
                Ok(Renewal::Renewed(certain(self.lifetime)))
            }
            Some((state, [])) if state == "ended" => Ok(Renewal::Gone(Loss::SessionEnded(
                "the server no longer knows it".into(),
            ))),
            _ => Err(unexpected(REFRESHING)),
        }
    }

    async fn ask(
        &self,
        connection: &mut MultiplexedConnection,
        held: &[HeldClaim],
    ) -> Result<Vec<String>, RedisError> {
        let lifetime = self.lifetime.as_millis().to_string();
        if held.is_empty() {
            // The same in one plain command: most sessions only wait, or have nothing at all.
            let moved: bool = redis::cmd("PEXPIRE")
                .arg(&self.key)
                .arg(&lifetime)
                .query_async(connection)
                .await?;
            let state = if moved { "alive" } else { "ended" };
            return Ok(vec![state.to_owned()]);
        }
        let (states, owners): (Vec<String>, Vec<String>) = held
            .iter()
            .map(|(owner, named)| (self.keys.of(named).state, owner.to_string()))
            .unzip();
        let mut keys = vec![self.key.as_str()];
        keys.extend(states.iter().map(String::as_str));
        let mut arguments = vec![lifetime.as_str()];
        arguments.extend(owners.iter().map(String::as_str));
        let answer = REFRESH.run(connection, &keys, &arguments).await?;
        Ok(redis::from_redis_value(answer)?)
    }
}
