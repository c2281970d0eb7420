//! The clients of a backend: one for a server, or one for each tag of a cluster.

use std::sync::{Arc, OnceLock};

use portalock_core::{BackendError, LockName};
use tokio::sync::OnceCell;

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
    agreed: OnceCell<()>,
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

impl Tagged {
    fn new(address: &ClusterAddress, settings: &Arc<RedisSettings>) -> Self {
        let clients = (0..settings.cluster_tags()).map(|_| OnceLock::new());
        Self {
            settings: settings.clone(),
            cluster: Arc::new(Cluster::new(address, settings.clone())),
            clients: clients.collect(),
            agreed: OnceCell::new(),
        }
    }

    async fn agree(&self) -> Result<(), BackendError> {
        if self.agreed.initialized() {
            return Ok(());
        }
        let route = || self.route(Tag::of_all(self.settings.prefix()));
        // Boxed: the future is large, and each call would reserve space for it.
        let agreeing = Box::pin(self.agreed.get_or_try_init(|| agree(route())));
        agreeing.await.copied()
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
