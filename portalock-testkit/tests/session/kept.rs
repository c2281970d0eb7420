//! The session of a client of the simulated service.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    BackendError, Loss, OwnerId,
    clock::Instant,
    session::{
        Answered, Asked, Entered, KeptSession, Leaving, Looked, NamedPlace, Renewal, Service,
        Stand, spawn,
    },
};

use crate::{
    records::{Claim, LEASE, News},
    world::{Connection, Line, REQUEST_TIMEOUT},
};

/// What an owner wants.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) name: Arc<str>,
    pub(crate) shared: bool,
    pub(crate) queues: bool,
}

type Place = NamedPlace<Wanted>;
type Session = KeptSession<Simulation>;

#[derive(Debug)]
pub(crate) struct Simulation {
    line: Arc<Line>,
    id: u64,
}

fn forgotten() -> Loss {
    Loss::SessionEnded("the service does not know it".into())
}

fn ended(loss: Loss) -> Answered<Entered> {
    Answered {
        value: Entered::Ended(loss),
        repeated: false,
    }
}

#[async_trait]
impl Service for Simulation {
    type Shared = Arc<Line>;
    type Wish = Wanted;
    type Place = Place;
    type Connection = Arc<Connection>;
    const NAME: &'static str = "simulation";

    fn new(line: &Arc<Line>) -> Self {
        Self {
            line: line.clone(),
            id: line.world.new_session(),
        }
    }

    fn place(&self, owner: OwnerId, wanted: &Wanted) -> Place {
        NamedPlace::new(owner, wanted.clone())
    }

    fn lease_time(&self) -> Duration {
        LEASE
    }

    fn request_timeout(&self) -> Duration {
        REQUEST_TIMEOUT
    }

    async fn connect(session: &Arc<Session>) -> Result<Arc<Connection>, BackendError> {
        let Self { line, id } = session.service();
        line.request(|_| ()).await?;
        let (connection, mut heard) = line.world.connect(*id);
        let (world, session) = (line.world.clone(), Arc::downgrade(session));
        let open = Arc::downgrade(&connection);
        let listener = async move {
            while let Some(news) = heard.recv().await {
                if !world.is_calm() && world.one_of(3) == 0 {
                    world.pause(4).await;
                }
                let is_open = open.upgrade().is_some_and(|it| it.is_open());
                let Some(session) = session.upgrade().filter(|_| is_open) else {
                    return;
                };
                match news {
                    News::Granted(place, owner, token) => {
                        session
                            .places()
                            .granted(owner, token, |at| at.name == place);
                    }
                    News::RenewNow => session.renew_now(),
                }
            }
        };
        spawn(listener)?.detach();
        Ok(connection)
    }

    fn is_open(connection: &Arc<Connection>) -> bool {
        connection.is_open()
    }

    fn looks_anyway(&self) -> bool {
        true
    }

    async fn begin(
        session: &Arc<Session>,
        _: &Arc<Connection>,
        former: Option<&Arc<Session>>,
    ) -> Result<Instant, BackendError> {
        let sent = Instant::now();
        let Self { line, id } = session.service();
        let (id, former) = (*id, former.map(|former| former.service().id));
        line.request(move |records| records.begin(id, former))
            .await?;
        Ok(sent + LEASE)
    }

    async fn renew(session: &Arc<Session>, _: &Arc<Connection>) -> Result<Renewal, BackendError> {
        let Self { line, id } = session.service();
        let id = *id;
        let Some(marks) = line.request(move |records| records.renew(id)).await? else {
            return Ok(Renewal::Gone(forgotten()));
        };
        let mut heeded = Vec::new();
        for (place, by) in marks {
            let loss = Loss::broken_by(Some(by));
            let owner = Place::owner(&place);
            let is_ours = owner.is_some_and(|owner| {
                let places = session.places();
                places.broken(owner, &loss, |at| at.name == place)
            });
            if is_ours {
                session.look_within(Duration::ZERO);
            } else {
                heeded.push(place);
            }
        }
        if !heeded.is_empty() {
            let _next_time = line.request(move |records| records.heed(&heeded)).await;
        }
        Ok(Renewal::Renewed(LEASE))
    }

    async fn look(
        session: &Arc<Session>,
        _: &Arc<Connection>,
        asked: &[Asked<Place>],
    ) -> Result<Looked, BackendError> {
        let Self { line, id } = session.service();
        let id = *id;
        let here = line.request(move |records| records.claims_of(id)).await?;
        let stand = |asked: &Asked<Place>| {
            let mut here = here.iter();
            match here.find(|(_, claim)| claim.place == asked.at.name) {
                None => Stand::Gone,
                Some((_, claim)) => match claim.token {
                    Some(token) if claim.held => Stand::Held(token),
                    Some(token) => Stand::Follows(token),
                    None => Stand::Waits,
                },
            }
        };
        let stands = asked.iter().map(stand).collect();
        for (name, claim) in here {
            let wanted = Wanted {
                name,
                shared: claim.shared,
                queues: true,
            };
            let name = claim.place;
            let places = session.places();
            places.found_unknown(claim.owner, NamedPlace { name, wanted });
        }
        let waits = asked.iter().any(|asked| !asked.held);
        Ok(Looked::new(stands, waits.then_some(LEASE)))
    }

    async fn enter(
        session: &Arc<Session>,
        place: &Place,
        wanted: &Wanted,
    ) -> Result<Answered<Entered>, BackendError> {
        let Self { line, id } = session.service();
        let id = *id;
        let Some(owner) = Place::owner(&place.name) else {
            return Ok(ended(forgotten()));
        };
        let (name, queues) = (wanted.name.clone(), wanted.queues);
        let claim = Claim {
            place: place.name.clone(),
            owner,
            session: id,
            shared: wanted.shared,
            token: None,
            held: false,
        };
        let reconnects = session.places().reconnects();
        let entering = line.request(move |records| {
            records
                .lives(id)
                .then(|| records.enter(&name, claim, queues))
        });
        let Some(entered) = entering.await? else {
            return Ok(ended(forgotten()));
        };
        let value = match entered {
            None => Entered::Refused(None),
            Some((claim, ahead)) => enter_at(session, owner, &claim, ahead.as_ref(), reconnects),
        };
        Ok(Answered {
            value,
            repeated: false,
        })
    }

    async fn leave(
        session: &Arc<Session>,
        leaving: &Leaving<Place>,
    ) -> Result<Answered<bool>, BackendError> {
        let Leaving { at, unsure, .. } = leaving;
        let (name, place, unsure) = (at.wanted.name.clone(), at.name.clone(), *unsure);
        let line = &session.service().line;
        let leaves = line.request(move |records| records.leave(&name, &place, unsure));
        Ok(Answered {
            value: leaves.await?,
            repeated: false,
        })
    }

    async fn end(session: &Arc<Session>, _: &Arc<Connection>) -> Result<(), BackendError> {
        let Self { line, id } = session.service();
        let id = *id;
        line.request(move |records| records.end(id)).await
    }
}

fn enter_at(
    session: &Session,
    owner: OwnerId,
    claim: &Claim,
    ahead: Option<&Claim>,
    reconnects: u64,
) -> Entered {
    let places = session.places();
    match (claim.token, ahead) {
        (Some(token), _) if claim.held => return Entered::Granted(token),
        (Some(token), Some(ahead)) => places.follow(
            owner,
            token,
            ahead.owner,
            |at| at.name == ahead.place || at.name == claim.place,
            reconnects,
        ),
        _ => places.follow_nobody(owner),
    }
    Entered::Queued {
        holder: None,
        look_in: Some(LEASE),
    }
}
