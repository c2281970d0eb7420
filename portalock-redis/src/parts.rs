//! Which part of a client looks after which names.

use std::sync::{Arc, OnceLock};

use portalock_core::{BackendError, LockName};
use tokio::sync::OnceCell;

use crate::{
    address::{Address, ClusterAddress},
    cluster::{Cluster, Tag, agree, number_of},
    config::RedisSettings,
    part::Part,
    route::Route,
};

/// All parts of a client.
#[derive(Debug)]
pub(crate) enum Parts {
    /// A server of its own has all names.
    One(Part),
    /// In a cluster each tag has some.
    Tagged(Tagged),
}

/// The parts in a cluster.
#[derive(Debug)]
pub(crate) struct Tagged {
    settings: Arc<RedisSettings>,
    cluster: Arc<Cluster>,
    /// By the tags' numbers. Each is made when a name of it is used.
    parts: Box<[OnceLock<Part>]>,
    /// Whether the number of tags is known to be that of all clients.
    agreed: OnceCell<()>,
}

impl Parts {
    /// Nothing is sent yet.
    pub(crate) fn new(settings: &Arc<RedisSettings>) -> Self {
        let route = match settings.address() {
            Address::Fixed(server) => Route::to_server(server, settings),
            Address::Sentinels(address) => Route::by_sentinels(address, settings),
            Address::Cluster(address) => return Self::Tagged(Tagged::new(address, settings)),
        };
        Self::One(Part::new(route))
    }

    /// Makes sure that it can be used: by a session on a server, by an answer in a cluster.
    pub(crate) async fn connect(&self) -> Result<(), BackendError> {
        match self {
            Self::One(part) => part.session().await.map(drop),
            Self::Tagged(tagged) => tagged.agree().await,
        }
    }

    /// The part that has this name.
    pub(crate) async fn of(&self, name: &LockName) -> Result<&Part, BackendError> {
        match self {
            Self::One(part) => Ok(part),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                Ok(tagged.part(number_of(name, tagged.settings.cluster_tags())))
            }
        }
    }

    /// Those that together have all names.
    pub(crate) async fn all(&self) -> Result<Vec<&Part>, BackendError> {
        match self {
            Self::One(part) => Ok(vec![part]),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                let numbers = 0..tagged.settings.cluster_tags();
                Ok(numbers.map(|number| tagged.part(number)).collect())
            }
        }
    }

    /// Those that this client has used so far.
    pub(crate) async fn in_use(&self) -> Result<Vec<&Part>, BackendError> {
        match self {
            Self::One(part) => Ok(vec![part]),
            Self::Tagged(tagged) => {
                tagged.agree().await?;
                Ok(tagged.in_use())
            }
        }
    }

    /// Ends every session in good order.
    pub(crate) async fn close(&self) -> Result<(), BackendError> {
        let parts = match self {
            Self::One(part) => vec![part],
            Self::Tagged(tagged) => tagged.in_use(),
        };
        let mut closed = Ok(());
        for part in parts {
            // What fails at one node concerns none of the others.
            closed = closed.and(part.end_session().await);
        }
        closed
    }
}

impl Tagged {
    fn new(address: &ClusterAddress, settings: &Arc<RedisSettings>) -> Self {
        let parts = (0..settings.cluster_tags()).map(|_| OnceLock::new());
        Self {
            settings: settings.clone(),
            cluster: Arc::new(Cluster::new(address, settings.clone())),
            parts: parts.collect(),
            agreed: OnceCell::new(),
        }
    }

    async fn agree(&self) -> Result<(), BackendError> {
        let route = || self.route(Tag::of_all(self.settings.prefix()));
        let agreeing = self.agreed.get_or_try_init(|| agree(route()));
        agreeing.await.copied()
    }

    fn part(&self, number: u16) -> &Part {
        self.parts[usize::from(number)]
            .get_or_init(|| Part::new(self.route(Tag::new(self.settings.prefix(), number))))
    }

    fn in_use(&self) -> Vec<&Part> {
        self.parts.iter().filter_map(OnceLock::get).collect()
    }

    fn route(&self, tag: Tag) -> Route {
        Route::to_slot(&self.cluster, tag, &self.settings)
    }
}
