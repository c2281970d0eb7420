//! The clients of a backend: one for a server, or one for each tag of a cluster.

use std::sync::{Arc, OnceLock};

use portalock_core::{BackendError, LockName, session::SingleFlight};

use crate::{
    address::{Address, ClusterAddress},
    client::{Client, Server},
    cluster::{Cluster, Tag, agree, number_of},
    config::RedisSettings,
    route::Route,
};

/// The clients of a backend. Each serves a part of all names, with a session of its own.
#[derive(Debug)]
pub(crate) enum Clients {
    /// A single server: one client serves all names.
    One(Client),
    /// A cluster: each tag has a client for its names.
    Tagged(Tagged),
}

/// The clients in a cluster.
#[derive(Debug)]
pub(crate) struct Tagged {
    settings: Arc<RedisSettings>,
    cluster: Arc<Cluster>,
    /// The clients by tag number. A client is created when a name of its tag is first used.
    clients: Box<[OnceLock<Client>]>,
    /// Set when the number of tags is known to be the same for all clients.
    agreed: Arc<OnceLock<()>>,
    agreeing: SingleFlight<()>,
    /// The process that created this.
    process: u32,
}

impl Clients {
    /// Creates the clients. Nothing is sent yet.
    pub(crate) fn new(settings: &Arc<RedisSettings>) -> Self {
        let route = match settings.address() {
            Address::Fixed(server) => Route::to_server(server, settings),
            Address::Sentinels(address) => Route::by_sentinels(address, settings),
            Address::Cluster(address) => return Self::Tagged(Tagged::new(address, settings)),
        };
        Self::One(new(route))
    }

    /// Checks that the backend can be used: on a server it opens a session, in a cluster it waits for one answer.
    pub(crate) async fn connect(&self) -> Result<(), BackendError> {
        match self {
            Self::One(client) => client.session().await.map(drop),
            Self::Tagged(tagged) => tagged.agree().await,
        }
    }

    /// Returns the client of this name.
    pub(crate) async fn of(&self, name: &LockName) -> Result<&Client, BackendError> {
        match self {
            Self::One(client) => Ok(client),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                Ok(tagged.client(number_of(name, tagged.settings.cluster_tags())))
            }
        }
    }

    /// Returns the client of this name if it has been used. Otherwise there was no request yet.
    pub(crate) fn used_for(&self, name: &LockName) -> Option<&Client> {
        match self {
            Self::One(client) => Some(client),
            Self::Tagged(tagged) => {
                let number = number_of(name, tagged.settings.cluster_tags());
                tagged.clients[usize::from(number)].get()
            }
        }
    }

    /// Returns all clients, which together serve all names.
    pub(crate) async fn all(&self) -> Result<Vec<&Client>, BackendError> {
        match self {
            Self::One(client) => Ok(vec![client]),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                let numbers = 0..tagged.settings.cluster_tags();
                Ok(numbers.map(|number| tagged.client(number)).collect())
            }
        }
    }

    /// Returns the clients that have been used so far.
    pub(crate) async fn in_use(&self) -> Result<Vec<&Client>, BackendError> {
        match self {
            Self::One(client) => Ok(vec![client]),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                Ok(tagged.in_use())
            }
        }
    }

    /// Closes every session.
    pub(crate) async fn close(&self) -> Result<(), BackendError> {
        let clients = match self {
            Self::One(client) => vec![client],
            Self::Tagged(tagged) => tagged.in_use(),
        };
        // All of them end at once: a node that doesn't answer keeps none of the others waiting.
        let closing: Vec<_> = clients.into_iter().map(Client::close).collect();
        let mut closed = Ok(());
        for closing in closing {
            closed = closed.and(closing.await);
        }
        closed
    }
}

impl Drop for Tagged {
    fn drop(&mut self) {
        if self.is_inherited() {
            // To drop a connection wakes its task, which may wait for a lock that a thread of the parent had during the fork.
            std::mem::forget(self.cluster.clone());
        }
    }
}

impl Tagged {
    fn new(address: &ClusterAddress, settings: &Arc<RedisSettings>) -> Self {
        let clients = (0..settings.cluster_tags()).map(|_| OnceLock::new());
        Self {
            settings: settings.clone(),
            cluster: Arc::new(Cluster::new(address, settings.clone())),
            clients: clients.collect(),
            agreed: Arc::default(),
            agreeing: SingleFlight::new(),
            process: std::process::id(),
        }
    }

    /// Returns when the clients may be used. A forked child may not use them: it would start sessions for the tags that its parent has not
    /// used, and a thread of the parent may have asked the nodes during the fork.
    async fn agree(&self) -> Result<(), BackendError> {
        if self.is_inherited() {
            return Err(BackendError::forked());
        }
        let ready = || self.agreed.get().copied();
        if ready().is_some() {
            return Ok(());
        }
        let compare = || {
            let agreed = self.agreed.clone();
            let route = self.route(Tag::of_all(self.settings.prefix()));
            async move {
                agree(route).await?;
                let _ = agreed.set(());
                Ok(())
            }
        };
        self.agreeing.run(ready, compare).await
    }

    fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

    fn client(&self, number: u16) -> &Client {
        self.clients[usize::from(number)]
            .get_or_init(|| new(self.route(Tag::new(self.settings.prefix(), number))))
    }

    fn in_use(&self) -> Vec<&Client> {
        self.clients.iter().filter_map(OnceLock::get).collect()
    }

    fn route(&self, tag: Tag) -> Route {
        Route::to_slot(&self.cluster, tag, &self.settings)
    }
}

fn new(route: Route) -> Client {
    Client::new(Arc::new(Server::new(route)))
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use futures_util::{future::join_all, poll};
    use portalock_core::BackendErrorKind;
    use tokio::{runtime::Runtime, time::timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn runtime() -> Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    }

    /// The clients of a cluster where nobody listens.
    fn clients() -> Clients {
        let settings = RedisSettings::new("redis+cluster://127.0.0.1:1").unwrap();
        let settings = settings.with_response_timeout(PATIENCE).unwrap();
        Clients::new(&Arc::new(settings))
    }

    /// As two calls of one task, or of two runtimes.
    #[test]
    fn a_first_call_that_nobody_polls_or_whose_runtime_has_ended_keeps_no_other_waiting() {
        let (clients, name) = (clients(), LockName::new("job").unwrap());
        let (own, other) = (runtime(), runtime());
        let mut first = pin!(clients.of(&name));
        assert!(own.block_on(async { poll!(&mut first).is_pending() }));
        let second = other.block_on(async { timeout(PATIENCE * 60, clients.of(&name)).await });
        let told = second.expect("it waits for the first");
        assert_eq!(told.unwrap_err().kind(), BackendErrorKind::Unavailable);
        drop(own);
        let told = other.block_on(first).unwrap_err();
        assert_eq!(told.kind(), BackendErrorKind::Unavailable);
    }

    #[test]
    fn calls_to_a_cluster_that_is_away_fail_together() {
        let (clients, name) = (clients(), LockName::new("job").unwrap());
        let calls = (0..120).map(|_| clients.of(&name));
        let failed = runtime().block_on(async { timeout(PATIENCE * 60, join_all(calls)).await });
        let failed = failed.expect("one after the other, they take twice as long");
        assert!(failed.iter().all(Result::is_err));
    }

    /// Its parent may be asking the nodes meanwhile.
    #[test]
    fn a_forked_childs_copy_is_refused() {
        let Clients::Tagged(mut tagged) = clients() else {
            panic!("it is a cluster");
        };
        tagged.process += 1;
        let (clients, name) = (Clients::Tagged(tagged), LockName::new("job").unwrap());
        let told = |refused: Result<(), BackendError>| {
            assert_eq!(refused.unwrap_err().kind(), BackendErrorKind::Misconfigured);
        };
        runtime().block_on(async {
            told(clients.of(&name).await.map(drop));
            told(clients.all().await.map(drop));
            told(clients.in_use().await.map(drop));
            told(clients.connect().await);
        });
    }
}
