//! The clients that a backend has: one for a server, or one for each tag of a cluster.

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

/// The clients of a backend. Each has some of all names, and a session for them.
#[derive(Debug)]
pub(crate) enum Clients {
    /// A server of its own has all names.
    One(Client),
    /// In a cluster each tag has some.
    Tagged(Tagged),
}

/// Those in a cluster.
#[derive(Debug)]
pub(crate) struct Tagged {
    settings: Arc<RedisSettings>,
    cluster: Arc<Cluster>,
    /// By the tags' numbers. Each is made when a name of it is used.
    clients: Box<[OnceLock<Client>]>,
    /// Whether the number of tags is known to be that of all clients.
    agreed: OnceCell<()>,
}

impl Clients {
    /// Nothing is sent yet.
    pub(crate) fn new(settings: &Arc<RedisSettings>) -> Self {
        let route = match settings.address() {
            Address::Fixed(server) => Route::to_server(server, settings),
            Address::Sentinels(address) => Route::by_sentinels(address, settings),
            Address::Cluster(address) => return Self::Tagged(Tagged::new(address, settings)),
        };
        Self::One(new(route))
    }

    /// Makes sure that it can be used: by a session on a server, by an answer in a cluster.
    pub(crate) async fn connect(&self) -> Result<(), BackendError> {
        match self {
            Self::One(client) => client.session().await.map(drop),
            Self::Tagged(tagged) => tagged.agree().await,
        }
    }

    /// The one that has this name.
    pub(crate) async fn of(&self, name: &LockName) -> Result<&Client, BackendError> {
        match self {
            Self::One(client) => Ok(client),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                Ok(tagged.client(number_of(name, tagged.settings.cluster_tags())))
            }
        }
    }

    /// The same, if it has been used: otherwise nothing can have been asked for.
    pub(crate) fn used_for(&self, name: &LockName) -> Option<&Client> {
        match self {
            Self::One(client) => Some(client),
            Self::Tagged(tagged) => {
                let number = number_of(name, tagged.settings.cluster_tags());
                tagged.clients[usize::from(number)].get()
            }
        }
    }

    /// Those that together have all names.
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

    /// Those that this client has used so far.
    pub(crate) async fn in_use(&self) -> Result<Vec<&Client>, BackendError> {
        match self {
            Self::One(client) => Ok(vec![client]),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                Ok(tagged.in_use())
            }
        }
    }

    /// Ends every session in good order.
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
        let route = || self.route(Tag::of_all(self.settings.prefix()));
        let agreeing = self.agreed.get_or_try_init(|| agree(route()));
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
