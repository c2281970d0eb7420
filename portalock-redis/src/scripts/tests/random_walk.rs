//! Random requests of all shapes, with sessions that die in between. After each script, the keys in Redis are checked.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{
    CONNECTED, KEPT, QUEUE, STATE, WAITERS, ask, attempt_once, connection, open, open_as,
    release_to,
};
use portalock_testkit::servers::RedisServer;
use redis::aio::MultiplexedConnection;

const STEPS: usize = 1_500;
const SHAPES: [[&str; 2]; 9] = [
    ["3", "3"],
    ["3", "3"],
    ["3", "3"],
    ["4", "4"],
    ["1", "3"],
    ["1", "3"],
    ["1", "3"],
    ["2", "3"],
    ["1", "2"],
];

/// A claim, as it is stored.
#[derive(Debug, Clone, PartialEq)]
struct Stored {
    session: String,
    weight: u32,
    capacity: u32,
    token: Option<u64>,
}

#[derive(Debug, Default)]
struct Snapshot {
    token: u64,
    shape: Option<String>,
    holders: BTreeMap<String, Stored>,
    /// The waiters, in order.
    queue: Vec<(String, Stored)>,
}

fn stored(claim: &str) -> Stored {
    let parts: Vec<&str> = claim.split('|').collect();
    Stored {
        session: parts[0].to_owned(),
        weight: parts[1].parse().unwrap(),
        capacity: parts[2].parse().unwrap(),
        token: parts[3].parse().ok(),
    }
}

impl Snapshot {
    async fn take(client: &mut MultiplexedConnection) -> Self {
        let mut state: BTreeMap<String, String> = ask(client, &["HGETALL", STATE]).await;
        let order: Vec<String> = ask(client, &["ZRANGE", QUEUE, "0", "-1"]).await;
        let waiters: BTreeMap<String, String> = ask(client, &["HGETALL", WAITERS]).await;
        assert_eq!(
            order.len(),
            waiters.len(),
            "a place without a claim, or the other way round"
        );
        let waits = state.remove("waits").is_some();
        assert!(waits || order.is_empty(), "the flag is missing");
        let last = state.remove("token").unwrap_or_else(|| "0".to_owned());
        let (token, shape) = match last.split_once('|') {
            Some((token, shape)) => (token, Some(shape.to_owned())),
            None => (&*last, None),
        };
        Self {
            token: token.parse().unwrap(),
            shape,
            holders: state
                .into_iter()
                .map(|(owner, claim)| (owner, stored(&claim)))
                .collect(),
            queue: order
                .into_iter()
                .map(|owner| {
                    let claim = stored(&waiters[&owner]);
                    (owner, claim)
                })
                .collect(),
        }
    }

    fn fits(&self, one: &Stored) -> bool {
        let used: u32 = self.holders.values().map(|claim| claim.weight).sum();
        let limit = self.holders.values().map(|claim| claim.capacity).min();
        used + one.weight <= one.capacity.min(limit.unwrap_or(one.capacity))
    }

    /// Every claim with a token: the holders, and the waiters in order.
    fn tokens(&self) -> BTreeMap<&String, u64> {
        let waiting = self.queue.iter().map(|(owner, claim)| (owner, claim));
        let all = self.holders.iter().chain(waiting);
        all.filter_map(|(owner, claim)| Some((owner, claim.token?)))
            .collect()
    }

    /// The owner right ahead of a waiter: another waiter, or a holder.
    fn ahead_of(&self, owner: &str) -> Option<(&String, &Stored)> {
        let place = self.queue.iter().position(|(waiter, _)| waiter == owner)?;
        match place {
            0 => self.holders.iter().next(),
            place => self
                .queue
                .get(place - 1)
                .map(|(owner, claim)| (owner, claim)),
        }
    }

    /// All owners ahead of a waiter with a token are of its session and exclusive, and have smaller tokens.
    fn check_tokens(&self) {
        for (owner, claim) in &self.queue {
            if let (Some(token), Some((_, ahead))) = (claim.token, self.ahead_of(owner)) {
                assert_eq!(ahead.session, claim.session, "{owner}");
                assert_eq!(ahead.weight, ahead.capacity, "{owner}");
                assert_eq!(claim.weight, claim.capacity, "{owner}");
                assert!(ahead.token.is_some_and(|ahead| ahead < token), "{owner}");
            }
        }
    }

    /// Checks the invariants of one state.
    fn check(&self, living: &HashSet<String>) {
        self.check_tokens();
        let used: u32 = self.holders.values().map(|claim| claim.weight).sum();
        if let Some(limit) = self.holders.values().map(|claim| claim.capacity).min() {
            assert!(used <= limit, "{used} of {limit}");
        }
        if let Some(shape) = &self.shape {
            for claim in self.holders.values() {
                assert_eq!(&format!("{}|{}", claim.weight, claim.capacity), shape);
            }
        }
        for (owner, _) in &self.queue {
            assert!(!self.holders.contains_key(owner), "{owner} holds and waits");
        }
        if let Some((owner, claim)) = self.queue.first()
            && living.contains(&claim.session)
        {
            assert!(!self.fits(claim), "{owner} is forgotten");
        }
    }

    /// Checks the invariants of one script's changes.
    fn check_since(&self, before: &Self, released: Option<&String>, living: &HashSet<String>) {
        let granted: BTreeSet<&String> = self
            .holders
            .keys()
            .filter(|owner| !before.holders.contains_key(*owner))
            .collect();
        let (had, has) = (before.tokens(), self.tokens());
        let given = has.iter().filter(|(owner, _)| !had.contains_key(*owner));
        let mut given: Vec<u64> = given.map(|(_, token)| *token).collect();
        given.sort_unstable();
        assert!(
            given.iter().all(|token| *token > before.token),
            "a token was given again"
        );
        assert_eq!(
            self.token,
            given.last().copied().unwrap_or(before.token),
            "tokens grow with those that are given, and only then"
        );
        for (owner, token) in had {
            assert!(
                has.get(owner).is_none_or(|now| *now == token),
                "{owner} has another token"
            );
        }
        let highest = before
            .holders
            .values()
            .filter_map(|claim| claim.token)
            .max();
        for owner in granted {
            assert!(self.holders[owner].token > highest, "{owner}");
            let place = before.queue.iter().position(|(waiter, _)| waiter == owner);
            for (earlier, claim) in &before.queue[..place.unwrap_or(before.queue.len())] {
                let waits = self.queue.iter().any(|(waiter, _)| waiter == earlier);
                assert!(
                    !waits || !living.contains(&claim.session),
                    "{owner} has overtaken {earlier}"
                );
            }
        }
        for (owner, claim) in &before.holders {
            let may_leave = released == Some(owner) || !living.contains(&claim.session);
            assert!(
                may_leave || self.holders.contains_key(owner),
                "{owner} was taken out"
            );
        }
    }
}

/// The stamp of a session, whose id is a number.
fn stamp(id: &str) -> &'static str {
    let number = u32::from_str_radix(id, 16).unwrap();
    if number.is_multiple_of(2) {
        KEPT
    } else {
        CONNECTED
    }
}

/// The knowledge of a client.
struct Walk {
    client: MultiplexedConnection,
    random: fastrand::Rng,
    living: HashSet<String>,
    sessions: Vec<String>,
    /// All owners that have not been released, with session and shape.
    owners: Vec<(String, String, [&'static str; 2])>,
    minted: u32,
}

impl Walk {
    async fn begin_session(&mut self) {
        self.minted += 1;
        let id = format!("{:x}", self.minted);
        if self.minted.is_multiple_of(2) {
            open_as(&mut self.client, &id, KEPT).await;
        } else {
            open(&mut self.client, &id).await;
        }
        self.living.insert(id.clone());
        self.sessions.push(id);
    }

    async fn end_session(&mut self) {
        let id = self
            .sessions
            .swap_remove(self.random.usize(..self.sessions.len()));
        let key = format!("p/session/{id}");
        if stamp(&id) == CONNECTED && self.random.bool() {
            self.client.unsubscribe(&key).await.unwrap();
        } else {
            let _: () = ask(&mut self.client, &["DEL", &key]).await;
        }
        self.living.remove(&id);
        self.owners.retain(|(_, session, _)| *session != id);
    }

    async fn acquire(&mut self, owner: &str, session: &str, shape: [&str; 2], queues: bool) {
        let stamp = stamp(session);
        let answer = attempt_once(&mut self.client, session, owner, shape, stamp, queues).await;
        let now = Snapshot::take(&mut self.client).await;
        let holds = now.holders.contains_key(owner);
        let waits = now.queue.iter().any(|(waiter, _)| waiter == owner);
        match (&*answer[0], &*answer[1]) {
            ("granted", token) => assert!(holds && token.parse::<u64>().unwrap() <= now.token),
            ("contended", "-") => {
                assert!(!holds && !waits);
                self.owners.retain(|(other, ..)| other != owner);
            }
            ("contended", _) => {
                assert!(waits);
                let claim = now.queue.iter().find(|(waiter, _)| waiter == owner);
                let token = claim.and_then(|(_, claim)| claim.token);
                let ahead = now.ahead_of(owner).zip(token);
                let ahead = ahead.map(|((ahead, _), token)| (ahead.clone(), token));
                let told = answer.get(3).zip(answer.get(4));
                let told = told.map(|(ahead, token)| (ahead.clone(), token.parse().unwrap()));
                assert_eq!(told, ahead, "{answer:?}");
            }
            _ => panic!("{answer:?}"),
        }
    }

    async fn step(&mut self) -> Option<String> {
        match self.random.u32(..100) {
            0..3 => {
                self.end_session().await;
                self.begin_session().await;
            }
            3..45 => {
                self.minted += 1;
                let owner = format!("owner-{}", self.minted);
                // Often the same, so that waiters of one session are right behind each other.
                let session = self.random.usize(..2 * self.sessions.len());
                let session = self
                    .sessions
                    .get(session)
                    .unwrap_or(&self.sessions[0])
                    .clone();
                let shape = SHAPES[self.random.usize(..SHAPES.len())];
                let queues = self.random.u32(..4) > 0;
                self.owners.push((owner.clone(), session.clone(), shape));
                self.acquire(&owner, &session, shape, queues).await;
            }
            45..60 if !self.owners.is_empty() => {
                let at = self.random.usize(..self.owners.len());
                let (owner, session, shape) = self.owners[at].clone();
                self.acquire(&owner, &session, shape, true).await;
            }
            60.. if !self.owners.is_empty() => {
                let at = self.random.usize(..self.owners.len());
                let (owner, ..) = self.owners.swap_remove(at);
                let waiting: Vec<String> = ask(&mut self.client, &["HKEYS", WAITERS]).await;
                let next = self.random.choice(&waiting).map(String::as_str);
                release_to(&mut self.client, &owner, next).await;
                return Some(owner);
            }
            _ => {}
        }
        None
    }
}

#[tokio::test]
async fn what_lies_in_redis_keeps_the_invariants() {
    let server = RedisServer::start().unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut walk = Walk {
        client: connection(&server).await,
        random: fastrand::Rng::with_seed(seed),
        living: HashSet::new(),
        sessions: Vec::new(),
        owners: Vec::new(),
        minted: 0,
    };
    for _ in 0..4 {
        walk.begin_session().await;
    }
    let mut before = Snapshot::default();
    for _ in 0..STEPS {
        let released = walk.step().await;
        let now = Snapshot::take(&mut walk.client).await;
        now.check(&walk.living);
        now.check_since(&before, released.as_ref(), &walk.living);
        before = now;
    }
}
