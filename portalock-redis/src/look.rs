//! A session's signs of life, the look whether what it holds is still there, and how it is taken up again.

use std::{sync::Arc, time::Duration};

use portalock_core::{BackendError, BackendErrorKind, Loss, OwnerId, Renewal, clock::Instant};
use redis::{RedisError, Value, aio::MultiplexedConnection};

use crate::{
    breaking::Mark,
    claims::HeldClaim,
    cluster::{ask_for_key, not_found},
    config::RedisSettings,
    error::{failed, is_moving, unexpected},
    keys::Named,
    link::Link,
    primary::may_grant,
    record::{Resumed, Stamp},
    scripts::{REFRESH, RELEASE, RESUME},
    session::Session,
};

const REFRESHING: &str = "refresh the session with Redis";
const RELEASING: &str = "release in the stead of a release that failed";
const CONFIRMING: &str = "confirm a write to Redis at its replicas";
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
        self.free(connection, &owner.to_string(), named).await?;
        releasing.done();
        Ok(())
    }

    /// Frees over the session's own connection, as soon as the server may grant what is freed to whoever is next.
    pub(crate) async fn free(
        &self,
        connection: &mut MultiplexedConnection,
        owner: &str,
        named: &Named,
    ) -> Result<(), BackendError> {
        may_grant(connection, self.route()).await?;
        let keys = self.keys().of(named);
        RELEASE
            .run_in(
                self.route().tag(),
                connection,
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&self.keys().sessions(), owner],
            )
            .await
            .map(drop)
            .map_err(|error| failed(RELEASING, error))
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
        let held = self.claims().held_by(self.id());
        // At least once: for locks that were broken meanwhile, also if nobody is known to hold one.
        let mut rest = held.as_slice();
        loop {
            let (some, more) = rest.split_at(rest.len().min(SEEN_AT_ONCE));
            if let Renewal::Gone(loss) = self.refresh(&mut connection, some).await? {
                return Ok(Renewal::Gone(loss));
            }
            if more.is_empty() {
                break;
            }
            rest = more;
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
        let (keys, arguments) = ([self.key()], self.raising(&stamp));
        let answer = RESUME
            .run_in(self.route().tag(), connection, &keys, &arguments)
            .await;
        match answer {
            Err(error) if is_moving(&error) => {
                let command = RESUME.in_slot(&keys, &arguments);
                let found = ask_for_key(self.route(), connection, RESUMING, &command).await?;
                if !self.raised(stamp.clone(), &found.value)? {
                    return Err(not_found(RESUMING));
                }
                Ok(true)
            }
            answer => {
                let answer = answer.map_err(|error| failed(RESUMING, error))?;
                self.raised(stamp, &answer)
            }
        }
    }

    /// A sign of life while the session's slot moves to another node. Answers the marks on what it holds.
    async fn go_on_moving(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Vec<Mark>, BackendError> {
        let mut command = redis::cmd("PEXPIRE");
        command.arg(self.key()).arg(self.lifetime_text());
        let found = ask_for_key(self.route(), connection, REFRESHING, &command).await?;
        if found.value != Value::Int(1) {
            return Err(not_found(REFRESHING));
        }
        if let Some(mut elsewhere) = found.elsewhere {
            replicated(&mut elsewhere, self.settings()).await?;
        }
        // Read afterwards, as in `look.lua`: no mark is missed that was there when the time was moved on.
        let mut command = redis::cmd("HGETALL");
        command.arg(self.marks_key());
        let found = ask_for_key(self.route(), connection, REFRESHING, &command).await?;
        redis::from_redis_value(found.value).map_err(|error| failed(REFRESHING, error.into()))
    }

    /// The arguments of `raise.lua` for this stamp.
    pub(crate) fn raising<'s>(&'s self, stamp: &'s Stamp) -> [&'s str; 2] {
        [stamp.text(), self.lifetime_text()]
    }

    /// Takes note of what `raise.lua` answered: whether the server still knows the session.
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
        let mut connection = link.connection();
        let text = owner.to_string();
        match self.free(&mut connection, &text, &named).await {
            Ok(()) => {
                tracing::debug!(%owner, "a claim whose release Redis had lost is released again");
            }
            // It is asked for again.
            Err(error) => tracing::debug!(%error, "a lost release was not repeated"),
        }
    }

    async fn refresh(
        self: &Arc<Self>,
        connection: &mut MultiplexedConnection,
        held: &[HeldClaim],
    ) -> Result<Renewal, BackendError> {
        let answer = match self.ask(connection, held).await {
            // What it holds is looked after once its slot has arrived.
            Err(error) if is_moving(&error) => {
                let marks = self.go_on_moving(connection).await?;
                ("alive".to_owned(), marks, Vec::new())
            }
            answer => answer.map_err(|error| failed(REFRESHING, error))?,
        };
        let (state, marks, removed) = answer;
        match state.as_str() {
            "alive" => {
                // A lock that was broken is also removed, once it is given back: the guard hears of the cause.
                self.heed(connection, marks);
                for owner in removed.iter().filter_map(|owner| owner.parse().ok()) {
                    self.claims().removed(owner);
                }
                Ok(Renewal::Renewed(certain(self.lifetime())))
            }
            "ended" => Ok(Renewal::Gone(forgotten())),
            _ => Err(unexpected(REFRESHING)),
        }
    }

    async fn ask(
        &self,
        connection: &mut MultiplexedConnection,
        held: &[HeldClaim],
    ) -> Result<(String, Vec<Mark>, Vec<String>), RedisError> {
        let marks = self.marks_key();
        if held.is_empty() {
            // The same in two plain commands: most sessions only wait, or have nothing at all.
            let (moved, marks): (bool, Vec<Mark>) = redis::pipe()
                .cmd("PEXPIRE")
                .arg(self.key())
                .arg(self.lifetime_text())
                .cmd("HGETALL")
                .arg(marks)
                .query_async(connection)
                .await?;
            let state = if moved { "alive" } else { "ended" };
            return Ok((state.to_owned(), marks, Vec::new()));
        }
        let (states, owners): (Vec<String>, Vec<String>) = held
            .iter()
            .map(|(owner, named)| (self.keys().of(named).state, owner.to_string()))
            .unzip();
        let mut keys = vec![self.key(), &marks];
        keys.extend(states.iter().map(String::as_str));
        let mut arguments = vec![self.lifetime_text()];
        arguments.extend(owners.iter().map(String::as_str));
        let answer = REFRESH
            .run_in(self.route().tag(), connection, &keys, &arguments)
            .await?;
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
