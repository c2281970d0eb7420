//! A session's signs of life, the look whether what it holds is still there, and how it is taken up again.

use std::{sync::Arc, time::Duration};

use portalock_core::{BackendError, BackendErrorKind, Loss, OwnerId, Renewal, clock::Instant};
use redis::{RedisError, Value, aio::MultiplexedConnection};

use crate::{
    claims::HeldClaim,
    error::{failed, unexpected},
    keys::Named,
    link::Link,
    scripts::{REFRESH, RELEASE, RESUME},
    session::Session,
    wire::{Resumed, Stamp},
};

const REFRESHING: &str = "refresh the session with Redis";
const RELEASING: &str = "release in the stead of a release that failed";
const RESUMING: &str = "take up the session with Redis again";
/// How many held claims one refresh looks after; with more, each has its turn.
const SEEN_AT_ONCE: usize = 500;
/// But each comes so often, however many there are: a lock's state lasts for half an hour from its last look, and a session for up to
/// twenty minutes from its last refresh.
const SEEN_WITHIN: Duration = Duration::from_secs(600);
/// The most that replicas are waited for.
const REPLICAS_WITHIN: Duration = Duration::from_secs(1);

/// How long the client relies on what the server keeps for `lifetime`: less, for two clocks that don't run alike.
pub(crate) fn certain(lifetime: Duration) -> Duration {
    lifetime.mul_f64(0.95)
}

/// How many of so many claims a refresh looks after that comes in this interval.
fn seen_at_once(claims: usize, interval: Duration) -> usize {
    let refreshes = SEEN_WITHIN.as_millis() / interval.as_millis().max(1);
    let refreshes = usize::try_from(refreshes).unwrap_or(usize::MAX).max(1);
    claims.div_ceil(refreshes).max(SEEN_AT_ONCE)
}

/// The server no longer knows the session.
pub(crate) fn forgotten() -> Loss {
    Loss::SessionEnded("the server no longer knows it".into())
}

impl Session {
    /// The held claims whose turn it is to be looked after.
    pub(crate) fn held(&self, turn: &mut usize) -> Vec<HeldClaim> {
        let mut held = self.claims().held_by(self.id());
        let at_once = seen_at_once(held.len(), self.lifetime() / 3);
        if held.len() > at_once {
            held.sort_unstable_by_key(|(owner, _)| *owner);
            *turn = (*turn + at_once) % held.len();
            held.rotate_left(*turn);
            held.truncate(at_once);
        }
        held
    }

    /// One renewal: over the present connection, or over a new one if that has ended or didn't answer the last time.
    pub(crate) async fn renew(
        self: Arc<Self>,
        held: Vec<HeldClaim>,
    ) -> Result<Renewal, BackendError> {
        let link = self.link().clone();
        let Some(link) = link.filter(|link| self.is_connected_form() || !link.is_doubtful()) else {
            return self.resume().await;
        };
        link.doubt(true);
        let renewal = self.refresh(&mut link.connection(), &held).await?;
        link.doubt(false);
        self.pay(&link);
        Ok(renewal)
    }

    /// Releases what is due, beside the renewals: whoever asked for it may have given it up, and the session lives on.
    fn pay(self: &Arc<Self>, link: &Link) {
        let due = self.claims().due(self.id());
        if due.is_empty() {
            return;
        }
        let (session, link) = (self.clone(), link.clone());
        tokio::spawn(async move {
            for (owner, named) in due {
                let released = session.release(&mut link.connection(), owner, &named).await;
                if let Err(error) = released {
                    tracing::debug!(%error, "what is to be released is so after the next refresh");
                }
                if link.is_doubtful() {
                    return;
                }
            }
        });
    }

    async fn release(
        &self,
        connection: &mut MultiplexedConnection,
        owner: OwnerId,
        named: &Named,
    ) -> Result<(), BackendError> {
        let releasing = self.claims().releasing(owner);
        if self
            .claims()
            .may_arrive(owner, self.id(), self.stamp().number)
        {
            self.raise(connection).await?;
        }
        let keys = self.keys().of(named);
        RELEASE
            .run(
                connection,
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&self.keys().sessions(), &owner.to_string()],
            )
            .await
            .map_err(|error| failed(RELEASING, error))?;
        releasing.done();
        Ok(())
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

/// Waits until enough replicas have what was written so far, where the settings ask for it.
///
/// `WAIT` counts from this connection's own last write, so there is one first: a grant by message was written on
/// another's.
pub(crate) async fn confirm(
    connection: &mut MultiplexedConnection,
    session: &Session,
) -> Result<(), BackendError> {
    const WHAT: &str = "confirm a grant at the replicas";
    let replicas = session.settings().wait_replicas();
    let within = REPLICAS_WITHIN.min(session.lifetime() / 4);
    let _: Value = redis::cmd("PEXPIRE")
        .arg(session.key())
        .arg(session.lifetime_text())
        .query_async(connection)
        .await
        .map_err(|error| failed(WHAT, error))?;
    let confirmed: u32 = redis::cmd("WAIT")
        .arg(replicas)
        .arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX))
        .query_async(connection)
        .await
        .map_err(|error| failed(WHAT, error))?;
    if confirmed < replicas {
        return Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("can't {WHAT}: {confirmed} of {replicas} answered in time"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_claim_is_looked_after_before_its_state_could_go() {
        for (claims, interval) in [(100_000, 20), (3_000, 400), (1_000_000, 1), (600, 400)] {
            let interval = Duration::from_secs(interval);
            let at_once = seen_at_once(claims, interval);
            let turns = u32::try_from(claims.div_ceil(at_once)).unwrap();
            assert!(interval * turns <= SEEN_WITHIN, "{claims} in {interval:?}");
        }
        assert_eq!(seen_at_once(10, Duration::from_secs(1)), SEEN_AT_ONCE);
    }
}
