//! A part of all names, in which a client has one session: all of them on a server of its own, those of one tag in a cluster.

use std::{fmt, sync::Arc};

use portalock_core::{BackendError, BackendErrorKind, LockName, Loss, session::Sessions};

use crate::{
    claims::Claims,
    config::RedisSettings,
    connection::{Answered, Call, Calls},
    error::failed,
    keys::{Keys, Kind, NameKeys, Named},
    route::Route,
    scripts::RELEASE,
    session::Session,
};

/// One session when it is needed, and the requests in it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Part(pub(crate) Arc<Inner>);

/// What clones share.
pub(crate) struct Inner {
    pub(crate) settings: Arc<RedisSettings>,
    pub(crate) route: Arc<Route>,
    pub(crate) keys: Keys,
    /// What the key of every session begins with.
    pub(crate) prefix: String,
    pub(crate) claims: Arc<Claims>,
    pub(crate) sessions: Sessions<Session>,
    pub(crate) calls: Calls,
}

impl Part {
    /// Nothing is sent yet.
    pub(crate) fn new(route: Route) -> Self {
        let keys = Keys::new(route.prefix().clone());
        let route = Arc::new(route);
        Self(Arc::new(Inner {
            prefix: keys.sessions(),
            keys,
            calls: Calls::new(route.clone()),
            settings: route.settings().clone(),
            route,
            claims: Arc::default(),
            sessions: Sessions::new(),
        }))
    }

    pub(crate) fn settings(&self) -> &RedisSettings {
        &self.0.settings
    }

    /// The way to the server.
    pub(crate) fn route(&self) -> &Arc<Route> {
        &self.0.route
    }

    /// Asks the server to answer.
    pub(crate) async fn ping(&self) -> Result<(), BackendError> {
        self.0
            .send("ping Redis", Call::Plain(&redis::cmd("PING")))
            .await
            .map(drop)
    }

    /// The live session, begun if there is none.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, BackendError> {
        match self.0.sessions.live() {
            Some(session) => Ok(session),
            // In a box of its own: it is large, and each call would carry room for it.
            None => Box::pin(self.begin_session()).await,
        }
    }

    async fn begin_session(&self) -> Result<Arc<Session>, BackendError> {
        // The session would begin all the same, on its own thread, and the call fail after it.
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BackendError::new(
                BackendErrorKind::Misconfigured,
                "Redis needs a tokio runtime: call from within one, or use the blocking facade",
            ));
        }
        let (route, keys, claims) = (
            self.0.route.clone(),
            self.0.keys.clone(),
            self.0.claims.clone(),
        );
        self.0
            .sessions
            .get(move |former| Session::start(route, keys, claims, former))
            .await
    }

    /// What the key of every session begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The keys of a lock.
    pub(crate) fn lock_keys(&self, name: &LockName) -> NameKeys {
        self.0.keys.of(&Named {
            kind: Kind::Lock,
            name: name.clone(),
        })
    }

    /// The locks that somebody holds or waits for.
    pub(crate) async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        const WHAT: &str = "list the locks in Redis";
        let mut names = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(self.0.keys.lock_pattern())
                .arg("COUNT")
                .arg(1000);
            let answered = self.0.send(WHAT, Call::Plain(&scan)).await?;
            let (next, found): (String, Vec<String>) = redis::from_redis_value(answered.value)
                .map_err(|error| failed(WHAT, error.into()))?;
            // A state outlives its last grant for a while: only a look tells.
            for name in found.iter().filter_map(|key| self.0.keys.lock_name(key)) {
                let found = self.look(Kind::Lock, &name).await?;
                if found.held || !found.waiters.is_empty() {
                    names.push(name);
                }
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        names.sort_unstable();
        // A scan may come by the same key twice.
        names.dedup();
        Ok(names)
    }

    /// Ends the session in good order: its guards are lost first, then the server frees what they held.
    pub(crate) async fn end_session(&self) -> Result<(), BackendError> {
        const WHAT: &str = "close the session with Redis";
        let inner = &*self.0;
        let Some(session) = inner.sessions.take() else {
            return Ok(());
        };
        let left = inner.claims.of_session(session.id());
        if session.loss().is_some() {
            return Ok(());
        }
        session.end(Loss::SessionEnded("this program closed it".into()));
        for (owner, named) in left {
            let keys = inner.keys.of(&named);
            let call = Call::Script(
                &RELEASE,
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&inner.prefix, &owner.to_string()],
            );
            inner.send(WHAT, call).await?;
        }
        let mut delete = redis::cmd("DEL");
        inner
            .send(WHAT, Call::Plain(delete.arg(session.key())))
            .await
            .map(drop)
    }
}

impl Inner {
    pub(crate) async fn send(
        &self,
        what: &'static str,
        call: Call<'_>,
    ) -> Result<Answered, BackendError> {
        self.calls.send(what, call, || Ok(())).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.take() {
            session.end(Loss::SessionEnded("its backend was dropped".into()));
        }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("route", &self.0.route)
            .finish_non_exhaustive()
    }
}
