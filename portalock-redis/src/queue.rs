//! What is asked of the server for one owner: an attempt, a release, and a look.

use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Contention, Inspection, LockName, OwnerId, Released,
    Wakeups, wakeups,
};

use crate::{
    connection::{Answered, Call},
    error::{session_ended, unexpected},
    keys::{Kind, Named},
    look::{confirm, forgotten},
    part::{Inner, Part},
    record::{Answer, Stamp, Wanted, inspection, recheck, text},
    scripts::{ACQUIRE, INSPECT, RELEASE, RESUME},
    session::Session,
};

const ACQUIRING: &str = "acquire through Redis";
const RELEASING: &str = "release through Redis";
const INSPECTING: &str = "look at a lock in Redis";

/// How often an attempt is sent with a stamp that another call has made void meanwhile.
const STALE_ATTEMPTS: usize = 10;

impl Part {
    pub(crate) async fn attempt(&self, wanted: &Wanted<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let claims = &self.0.claims;
        let answer = self.ask(&session, wanted).await;
        // A grant may have come by message while the answer was under way, before the waiter listens.
        if let Some(grant) = claims.take_unheard(wanted.owner) {
            return Ok(Attempt::Granted(grant));
        }
        match answer {
            Ok(Answer::Granted(token)) => {
                if self.0.settings.wait_replicas() > 0 {
                    let mut connection = self.0.calls.wire().await?.connection;
                    confirm(&mut connection, &session).await?;
                }
                Ok(Attempt::Granted(claims.hold(
                    wanted.owner,
                    token,
                    &session.lost(),
                )))
            }
            Ok(Answer::Contended { behind, holder }) => {
                let contention = Contention::new().with_holder(holder);
                let Some(behind) = behind else {
                    claims.forget(wanted.owner);
                    return Ok(Attempt::Contended(contention));
                };
                let recheck = recheck(behind, self.0.settings.tick_interval());
                Ok(Attempt::Contended(
                    contention.with_queued(true).with_recheck_after(recheck),
                ))
            }
            Ok(Answer::Ended) => {
                session.end(forgotten());
                Err(session_ended(session.loss()))
            }
            Ok(Answer::Stale(_)) => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {ACQUIRING}: the session's connections were made anew all the time"),
            )),
            Err(error) => {
                // Its claims may have been cleared before this one was added.
                if session.loss().is_some() {
                    claims.forget(wanted.owner);
                }
                Err(error)
            }
        }
    }

    /// One attempt, sent again with the session's present stamp if it was refused for an older one.
    async fn ask(&self, session: &Session, wanted: &Wanted<'_>) -> Result<Answer, BackendError> {
        let claims = &self.0.claims;
        let mut answer = None;
        for _ in 0..STALE_ATTEMPTS {
            let stamp = session.stamp();
            let before = claims.expect(wanted.owner, session.id(), &wanted.named, stamp.number);
            let answered = self.ask_with(session, &stamp, wanted).await?;
            if !answered.repeated {
                claims.answered(wanted.owner, before);
            }
            let read = Answer::of(&answered.value).ok_or_else(|| unexpected(ACQUIRING))?;
            let Answer::Stale(later) = &read else {
                return Ok(read);
            };
            session.has_stamp(later.clone());
            answer = Some(read);
        }
        answer.ok_or_else(|| unexpected(ACQUIRING))
    }

    async fn ask_with(
        &self,
        session: &Session,
        stamp: &Stamp,
        wanted: &Wanted<'_>,
    ) -> Result<Answered, BackendError> {
        let Inner {
            keys,
            prefix,
            settings,
            calls,
            ..
        } = &*self.0;
        let keys = keys.of(&wanted.named);
        let call = Call::Script(
            &ACQUIRE,
            &[&keys.state, &keys.queue, &keys.waiters, session.key()],
            &[
                prefix,
                session.id(),
                &wanted.owner.to_string(),
                &wanted.weight.to_string(),
                &wanted.capacity.to_string(),
                if wanted.queues { "1" } else { "0" },
                &wanted.who(settings.label()),
                stamp.text(),
            ],
        );
        let goes_on = || match session.loss() {
            None => Ok(()),
            loss => Err(session_ended(loss)),
        };
        calls.send(ACQUIRING, call, goes_on).await
    }

    pub(crate) async fn withdraw(
        &self,
        kind: Kind,
        name: &LockName,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let inner = &*self.0;
        let Some(session) = inner.sessions.latest() else {
            // The server can't know of anything that this object has asked for.
            return Ok(Released::NotHeld);
        };
        let releasing = inner.claims.releasing(owner);
        inner.make_void(&session, owner).await?;
        let keys = inner.keys.of(&Named {
            kind,
            name: name.clone(),
        });
        let call = Call::Script(
            &RELEASE,
            &[&keys.state, &keys.queue, &keys.waiters],
            &[&inner.prefix, &owner.to_string()],
        );
        let answered = inner.send(RELEASING, call).await?;
        releasing.done();
        match text(&answered.value) {
            Some("1") => Ok(Released::Freed),
            // The first of the two may have freed it.
            Some("0") if answered.repeated && session.loss().is_none() => Ok(Released::Freed),
            Some("0") => Ok(Released::NotHeld),
            _ => Err(unexpected(RELEASING)),
        }
    }

    /// The line on which a grant comes to a waiter.
    pub(crate) fn listen(&self, owner: OwnerId) -> Wakeups {
        self.0.claims.listen(owner).unwrap_or_else(|| {
            // Its session has ended since the attempt, and the place in the queue with it.
            let (sender, line) = wakeups();
            sender.fail(session_ended(None));
            line
        })
    }

    pub(crate) async fn look(
        &self,
        kind: Kind,
        name: &LockName,
    ) -> Result<Inspection, BackendError> {
        let keys = self.0.keys.of(&Named {
            kind,
            name: name.clone(),
        });
        let call = Call::Script(
            &INSPECT,
            &[&keys.state, &keys.queue, &keys.waiters],
            &[&self.0.prefix],
        );
        let answered = self.ask_plainly(INSPECTING, call).await?;
        redis::from_redis_value(answered.value)
            .ok()
            .and_then(|answer: Vec<String>| inspection(kind, &answer))
            .ok_or_else(|| unexpected(INSPECTING))
    }

    /// Sends what needs no claim of this client's, in its session.
    pub(crate) async fn ask_plainly(
        &self,
        what: &'static str,
        call: Call<'_>,
    ) -> Result<Answered, BackendError> {
        self.session().await?;
        self.0.send(what, call).await
    }
}

impl Inner {
    /// Sees to it that no request of `owner` takes effect from now on, though some may still be under way.
    async fn make_void(&self, session: &Session, owner: OwnerId) -> Result<(), BackendError> {
        let present = session.stamp().number;
        if session.loss().is_some() || !self.claims.may_arrive(owner, session.id(), present) {
            return Ok(());
        }
        let stamp = session.next_stamp();
        let call = Call::Script(&RESUME, &[session.key()], &session.raising(&stamp));
        let answered = self.send(RELEASING, call).await?;
        if !session.raised(stamp.clone(), &answered.value)? {
            session.end(forgotten());
        }
        Ok(())
    }
}
