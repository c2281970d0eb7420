//! A session's signs of life, the look whether what it holds is still there, and how it is taken up again.

use std::{sync::Arc, time::Duration};

use portalock_core::{BackendError, BackendErrorKind, Loss, OwnerId, Renewal, clock::Instant};
use redis::{RedisError, Value, aio::MultiplexedConnection};

use crate::{
    claims::HeldClaim,
    config::RedisSettings,
    error::{failed, unexpected},
    keys::Named,
    link::Link,
    scripts::{REFRESH, RELEASE, RESUME},
    session::Session,
    wire::{Resumed, Stamp},
};

const REFRESHING: &str = "refresh the session with Redis";
const CONFIRMING: &str = "confirm a write to Redis at its replicas";
const RESUMING: &str = "take up the session with Redis again";
/// How many held claims one refresh looks after; with more, each has its turn.
const SEEN_AT_ONCE: usize = 500;
/// The most that replicas are waited for.
const REPLICAS_WITHIN: Duration = Duration::from_secs(1);

/// How long the client relies on what the server keeps for `lifetime`: less, for two clocks that don't run alike.
pub(crate) fn certain(lifetime: Duration) -> Duration {
    lifetime.mul_f64(0.95)
}

/// The server no longer knows the session.
pub(crate) fn forgotten() -> Loss {
    Loss::SessionEnded("the server no longer knows it".into())
}

impl Session {
    /// The held claims whose turn it is to be looked after.
    pub(crate) fn held(&self, turn: &mut usize) -> Vec<HeldClaim> {
        let mut held = self.claims().held_by(self.id());
        if held.len() > SEEN_AT_ONCE {
            held.sort_unstable_by_key(|(owner, _)| *owner);
            *turn = (*turn + SEEN_AT_ONCE) % held.len();
            held.rotate_left(*turn);
            held.truncate(SEEN_AT_ONCE);
        }
        held
    }

    /// One renewal: over the present connection, or over a new one if that has ended or didn't answer the last time.
    pub(crate) async fn renew(
        self: Arc<Self>,
        held: Vec<HeldClaim>,
    ) -> Result<Renewal, BackendError> {
        let link = self.link().clone();
        let Some(link) = link.filter(|link| self.is_connected_form() || !self.gives_up(link))
        else {
            return self.resume().await;
        };
        link.doubt(true);
        let renewal = self.refresh(&mut link.connection(), &held).await?;
        link.doubt(false);
        if let Renewal::Renewed(_) = renewal {
            replicated(&mut link.connection(), self.settings()).await?;
        }
        Ok(renewal)
    }

    /// Whether the link has to be replaced: it is broken, or leads to where the primary was.
    fn gives_up(&self, link: &Link) -> bool {
        link.is_doubtful() || link.place() != self.route().number()
    }

    async fn resume(self: &Arc<Self>) -> Result<Renewal, BackendError> {
        let begun = Instant::now();
        let link = Link::open(self).await?;
        let mut connection = link.connection();
        let sent = Instant::now();
        if !self.raise(&mut connection).await? {
            return Ok(Renewal::Gone(forgotten()));
        }
        for some in self.claims().held_by(self.id()).chunks(SEEN_AT_ONCE) {
            if let Renewal::Gone(loss) = self.refresh(&mut connection, some).await? {
                return Ok(Renewal::Gone(loss));
            }
        }
        replicated(&mut connection, self.settings()).await?;
        self.install(link.clone());
        self.claims().look_again(self.id());
        if link.has_ended() {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {RESUMING}: the new connection has ended as well"),
            ));
        }
        tracing::debug!(session = %self.id(), "the session with Redis goes on");
        // The keeper counts from when this call began.
        Ok(Renewal::Renewed(
            certain(self.lifetime()) + sent.duration_since(begun),
        ))
    }

    async fn raise(&self, connection: &mut MultiplexedConnection) -> Result<bool, BackendError> {
        let stamp = self.next_stamp();
        let answer = RESUME
            .run(connection, &[self.key()], &self.raising(&stamp))
            .await
            .map_err(|error| failed(RESUMING, error))?;
        self.raised(stamp, &answer)
    }

    /// The arguments of `resume.lua` for this stamp.
    pub(crate) fn raising<'s>(&'s self, stamp: &'s Stamp) -> [&'s str; 2] {
        [stamp.text(), self.lifetime_text()]
    }

    /// Takes note of what `resume.lua` answered: whether the server still knows the session.
    pub(crate) fn raised(&self, stamp: Stamp, answer: &Value) -> Result<bool, BackendError> {
        match Resumed::of(answer).ok_or_else(|| unexpected(RESUMING))? {
            Resumed::Alive => self.has_stamp(stamp),
            // What was to be made void is so already.
            Resumed::Stale(later) => self.has_stamp(later),
            Resumed::Ended => return Ok(false),
        }
        Ok(true)
    }

    /// Releases a claim at the server that nobody here knows of: its release was lost there.
    pub(crate) async fn disown(self: Arc<Self>, owner: OwnerId, named: Named) {
        let Some(link) = self.link().clone() else {
            return;
        };
        let keys = self.keys().of(&named);
        let released = RELEASE
            .run(
                &mut link.connection(),
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&self.keys().sessions(), &owner.to_string()],
            )
            .await;
        match released {
            Ok(_) => {
                tracing::debug!(%owner, "a claim whose release Redis had lost is released again");
            }
            // It is asked for again.
            Err(error) => tracing::debug!(%error, "a lost release was not repeated"),
        }
    }

    async fn refresh(
        &self,
        connection: &mut MultiplexedConnection,
        held: &[HeldClaim],
    ) -> Result<Renewal, BackendError> {
        let answer = self.ask(connection, held).await;
        let answer = answer.map_err(|error| failed(REFRESHING, error))?;
        match answer.split_first() {
            Some((state, removed)) if state == "alive" => {
                for owner in removed.iter().filter_map(|owner| owner.parse().ok()) {
                    self.claims().removed(owner);
                }
                Ok(Renewal::Renewed(certain(self.lifetime())))
            }
            Some((state, [])) if state == "ended" => Ok(Renewal::Gone(forgotten())),
            _ => Err(unexpected(REFRESHING)),
        }
    }

    async fn ask(
        &self,
        connection: &mut MultiplexedConnection,
        held: &[HeldClaim],
    ) -> Result<Vec<String>, RedisError> {
        if held.is_empty() {
            // The same in one plain command: most sessions only wait, or have nothing at all.
            let moved: bool = redis::cmd("PEXPIRE")
                .arg(self.key())
                .arg(self.lifetime_text())
                .query_async(connection)
                .await?;
            let state = if moved { "alive" } else { "ended" };
            return Ok(vec![state.to_owned()]);
        }
        let (states, owners): (Vec<String>, Vec<String>) = held
            .iter()
            .map(|(owner, named)| (self.keys().of(named).state, owner.to_string()))
            .unzip();
        let mut keys = vec![self.key()];
        keys.extend(states.iter().map(String::as_str));
        let mut arguments = vec![self.lifetime_text()];
        arguments.extend(owners.iter().map(String::as_str));
        let answer = REFRESH.run(connection, &keys, &arguments).await?;
        Ok(redis::from_redis_value(answer)?)
    }
}

/// Waits until enough replicas have a grant, where the settings ask for it.
///
/// `WAIT` counts from this connection's own last write, so there is one first: a grant by message was written on
/// another's.
pub(crate) async fn confirm(
    connection: &mut MultiplexedConnection,
    session: &Session,
) -> Result<(), BackendError> {
    let _: Value = redis::cmd("PEXPIRE")
        .arg(session.key())
        .arg(session.lifetime_text())
        .query_async(connection)
        .await
        .map_err(|error| failed(CONFIRMING, error))?;
    replicated(connection, session.settings()).await
}

/// Waits until enough replicas have what was written on this connection so far, where the settings ask for it.
pub(crate) async fn replicated(
    connection: &mut MultiplexedConnection,
    settings: &RedisSettings,
) -> Result<(), BackendError> {
    let replicas = settings.wait_replicas();
    if replicas == 0 {
        return Ok(());
    }
    let within = REPLICAS_WITHIN.min(settings.session_ttl() / 4);
    let confirmed: u32 = redis::cmd("WAIT")
        .arg(replicas)
        .arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX))
        .query_async(connection)
        .await
        .map_err(|error| failed(CONFIRMING, error))?;
    if confirmed < replicas {
        return Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("can't {CONFIRMING}: {confirmed} of {replicas} answered in time"),
        ));
    }
    Ok(())
}
