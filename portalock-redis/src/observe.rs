//! Watches the exclusive holder of a name, for observers of elections.
//!
//! Each script that grants, or that frees without granting, also publishes this change on the channel of the lock's
//! observers, in the same atomic step, if the state has their flag: see `grant.lua`. An observer has a connection of its
//! own, on the session thread. It subscribes, and then inspects the lock once, which sets the flag: earlier changes are in
//! the result of the inspection, and later changes arrive in order. When the connection ends, the watch ends, and the
//! observer starts a new one.
//!
//! A crashed process runs no script, and a lost network link sends no message. So from time to time the observer
//! inspects the lock over the same connection. This checks the holder and the connection, and sets the flag again if
//! somebody has deleted it, with the state. A grant from between is in the result of this inspection.

use std::{sync::Arc, time::Duration};

use portalock_core::{
    BackendError, BackendErrorKind, Claim, ClaimKind, FencingToken, HolderSender, HolderWatch,
    Inspection, LockName, OwnerId, holder_watch, session,
};
use redis::{PushInfo, aio::MultiplexedConnection};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    client::Server,
    connect::{connect, is_end, is_message, message, subscribe},
    error::{failed, unexpected},
    keys::{Kind, Place},
    queue::{claimed, inspection},
    route::Route,
    scripts::INSPECT,
};

const OBSERVING: &str = "watch who holds a lock in Redis";

/// A message on the connection.
enum Heard {
    Change(String),
    End,
}

/// A subscribed connection.
struct Line {
    route: Arc<Route>,
    /// The number of the location that the connection leads to.
    location: u64,
    connection: MultiplexedConnection,
    heard: UnboundedReceiver<Heard>,
    state: String,
    /// The channel of its changes.
    changes: String,
}

/// The change that was sent to the observer last.
struct Told {
    sender: HolderSender,
    holder: Option<(Option<OwnerId>, FencingToken)>,
    /// Only grants with a larger token than this are sent.
    highest: Option<FencingToken>,
}

/// Watches the holder of `name`, from now on.
pub(crate) async fn observe(server: &Server, name: &LockName) -> Result<HolderWatch, BackendError> {
    let state = server.keys.state(&Kind::Lock.named(name));
    let database = server.settings.address().database();
    let changes = server.keys.changes(name, database);
    let route = server.route.clone();
    let every = server.settings.session_ttl() / 3;
    let opening = async move {
        let mut line = Line::open(route, state, changes).await?;
        let seen = line.look().await?;
        Ok::<_, BackendError>((line, seen))
    };
    let (mut line, seen) = session::run(opening).await??;
    let (sender, watch) = holder_watch();
    let mut told = Told::new(sender, &seen);
    let following = session::spawn(async move {
        if let Err(error) = line.follow(&mut told, every).await {
            tracing::debug!(%error, "a watch over a lock's holders ended");
        }
    })?;
    Ok(watch.with_subscription(following))
}

impl Line {
    async fn open(route: Arc<Route>, state: String, changes: String) -> Result<Self, BackendError> {
        let (tell, heard) = unbounded_channel();
        let push = move |push: PushInfo| {
            let what = match &push.kind {
                kind if is_message(kind) => {
                    message(&push).map(|text| Heard::Change(text.to_owned()))
                }
                kind if is_end(kind) => Some(Heard::End),
                _ => None,
            };
            // If the watch has ended, nobody receives the message.
            what.map_or(Ok(()), |what| tell.send(what).map_err(drop))
        };
        let location = route.find().await?;
        let mut connection = connect(&route, &location, push).await?;
        subscribe(&route, &mut connection, &changes)
            .await
            .map_err(|error| failed(OBSERVING, error))?;
        Ok(Self {
            route,
            location: location.number,
            connection,
            heard,
            state,
            changes,
        })
    }

    async fn look(&mut self) -> Result<Inspection, BackendError> {
        let Self {
            route,
            connection,
            state,
            changes,
            ..
        } = self;
        let answer = INSPECT
            .run_in(route.tag(), connection, &[state], &[changes])
            .await
            .map_err(|error| failed(OBSERVING, error));
        let seen = answer
            .and_then(|answer| inspection(Kind::Lock, answer).ok_or_else(|| unexpected(OBSERVING)));
        match seen {
            // It may come of an answer to another command: see `Line::ensure_open` of a session.
            Err(_) if self.has_ended() => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {OBSERVING}: its subscription ended meanwhile"),
            )),
            seen => seen,
        }
    }

    /// Reads the messages that have come.
    fn has_ended(&mut self) -> bool {
        let mut heard = std::iter::from_fn(|| self.heard.try_recv().ok());
        heard.any(|heard| matches!(heard, Heard::End))
    }

    /// Sends every change, until the connection ends.
    async fn follow(&mut self, told: &mut Told, every: Duration) -> Result<(), BackendError> {
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = self.heard.recv() => match heard {
                    Some(Heard::Change(change)) => told.hear(&change),
                    Some(Heard::End) | None => return Ok(()),
                },
                // Messages don't put it off: a former primary sends them too.
                _ = tick.tick() => {
                    self.route.look_if_due().await;
                    if self.location != self.route.number() {
                        // The primary has changed.
                        return Ok(());
                    }
                    let before = told.holder;
                    let seen = self.look().await?;
                    // The messages that came before the answer.
                    while let Ok(heard) = self.heard.try_recv() {
                        match heard {
                            Heard::Change(change) => told.hear(&change),
                            Heard::End => return Ok(()),
                        }
                    }
                    told.look(before, &seen);
                }
            }
        }
    }
}

impl Told {
    fn new(sender: HolderSender, seen: &Inspection) -> Self {
        let mut told = Self {
            sender,
            holder: None,
            highest: seen.last_token,
        };
        let holder = exclusive(seen).cloned();
        told.holder = holder.as_ref().and_then(known);
        told.sender.tell(holder);
        told
    }

    /// Handles a message: `+` and a grant, or `-` and the place that has released.
    fn hear(&mut self, change: &str) {
        if let Some(place) = change.strip_prefix('-') {
            let owner = Place::owner(place);
            if self.holder.is_some_and(|(holder, _)| holder == owner) {
                self.nobody();
            }
            return;
        }
        let Some(claim) = change.strip_prefix('+').and_then(claimed) else {
            return;
        };
        // This grant is from before the first inspection, and may have ended.
        if claim.token <= self.highest {
            return;
        }
        self.highest = claim.token;
        if claim.kind == ClaimKind::Exclusive {
            self.holder = known(&claim);
            self.sender.tell(Some(claim));
        } else if self.holder.is_some() {
            self.nobody();
        }
    }

    /// Handles an inspection, after all messages that came before its answer. If it shows no exclusive holder, and the
    /// holder is still the same as `before` the inspection, the holder has gone without a message. If it shows a later
    /// grant, this grant was made without a message, because the flag was missing.
    fn look(&mut self, before: Option<(Option<OwnerId>, FencingToken)>, seen: &Inspection) {
        match exclusive(seen) {
            Some(claim) if claim.token > self.highest => {
                self.highest = claim.token;
                self.holder = known(claim);
                self.sender.tell(Some(claim.clone()));
            }
            None if before.is_some() && self.holder == before => self.nobody(),
            _ => {}
        }
    }

    fn nobody(&mut self) {
        self.holder = None;
        self.sender.tell(None);
    }
}

fn exclusive(seen: &Inspection) -> Option<&Claim> {
    let mut holders = seen.holders.iter();
    holders.find(|claim| claim.kind == ClaimKind::Exclusive)
}

fn known(claim: &Claim) -> Option<(Option<OwnerId>, FencingToken)> {
    Some((claim.owner, claim.token?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use portalock_core::Holder;

    fn grant(owner: OwnerId, weight: u32, token: u64) -> String {
        format!(
            "+{owner}.1|0a|{weight}|{}|{token}|1500|{{\"host\":\"h\",\"pid\":5}}",
            u32::MAX
        )
    }

    /// The tokens of the changes since the last call.
    fn told_by(watch: &mut HolderWatch) -> Vec<Option<u64>> {
        let next = || watch.next().now_or_never()?;
        let all = std::iter::from_fn(next);
        all.map(|change| change.map(|claim| claim.token.unwrap().get()))
            .collect()
    }

    #[test]
    fn changes_are_told_in_order_and_none_that_is_over() {
        let (sender, mut watch) = holder_watch();
        let (one, two) = (OwnerId::mint(), OwnerId::mint());
        let holder = Claim::new(Holder::this_process(None), ClaimKind::Exclusive)
            .with_owner(one)
            .with_token(FencingToken::new(7));
        let seen =
            Inspection::new(vec![holder], vec![]).with_last_token(Some(FencingToken::new(7)));
        let mut told = Told::new(sender, &seen);
        assert_eq!(told_by(&mut watch), [Some(7)]);
        // These are from before the inspection.
        told.hear(&grant(two, u32::MAX, 6));
        told.hear(&format!("-{two}.1"));
        assert!(told_by(&mut watch).is_empty());
        told.hear(&grant(two, u32::MAX, 8));
        told.hear(&format!("-{one}.1"));
        told.hear(&format!("-{two}.1"));
        told.hear(&grant(one, 1, 9));
        told.hear(&grant(one, u32::MAX, 10));
        told.hear(&grant(two, 1, 11));
        assert_eq!(told_by(&mut watch), [Some(8), None, Some(10), None]);
    }

    #[test]
    fn a_look_ends_the_term_that_it_was_about() {
        let (sender, mut watch) = holder_watch();
        let mut told = Told::new(sender, &Inspection::default());
        assert_eq!(told_by(&mut watch), [None]);
        told.hear(&grant(OwnerId::mint(), u32::MAX, 7));
        let before = told.holder;
        told.hear(&grant(OwnerId::mint(), u32::MAX, 8));
        told.look(before, &Inspection::default());
        for _ in 0..2 {
            told.look(told.holder, &Inspection::default());
        }
        assert_eq!(told_by(&mut watch), [Some(7), Some(8), None]);
        // Grants without a message, and one that was told already.
        for token in [9, 9, 8] {
            let holder = Claim::new(Holder::this_process(None), ClaimKind::Exclusive)
                .with_owner(OwnerId::mint())
                .with_token(FencingToken::new(token));
            told.look(told.holder, &Inspection::new(vec![holder], vec![]));
        }
        assert_eq!(told_by(&mut watch), [Some(9)]);
    }
}
