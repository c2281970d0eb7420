//! The holders and waiters of every name: weights below a capacity, granted in order.
//!
//! Exclusive locks, shared locks and permits use one mechanism. The weight of an exclusive lock is the whole capacity,
//! that of a shared lock is 1, and that of permits is their number. The head of the queue is granted when its weight
//! fits. No request overtakes it, so readers don't starve a writer, and small requests don't starve a large one.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry as Slot},
    time::Duration,
};

use foldhash::fast::RandomState;

use crate::{
    Attempt, BackendError, BackendErrorKind, Claim, ClaimKind, Contention, FencingToken, Grant,
    Holder, HolderSender, HolderWatch, Inspection, Lease, LockName, Loss, Mode, OwnerId, Patience,
    Permits, Released, Request, WakeSender, Wakeups, clock::wall_clock, holder_watch, wakeups,
};

/// A demand that has a weight.
pub(super) trait Weighed: Copy + Into<ClaimKind> {
    fn weight(self) -> Weight;
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    count: u32,
    capacity: u32,
}

impl Weighed for Mode {
    fn weight(self) -> Weight {
        match self {
            Mode::Exclusive => Weight {
                count: u32::MAX,
                capacity: u32::MAX,
            },
            Mode::Shared => Weight {
                count: 1,
                capacity: u32::MAX,
            },
        }
    }
}

impl Weighed for Permits {
    fn weight(self) -> Weight {
        Weight {
            count: self.count(),
            capacity: self.capacity(),
        }
    }
}

/// All names of one kind. A name without holders and waiters is removed.
#[derive(Default)]
pub(super) struct Table {
    names: HashMap<LockName, Box<Entry>, RandomState>,
    /// Empty entries, whose allocations the next names reuse.
    #[allow(
        clippy::vec_box,
        reason = "an entry goes from here to a name and back at each acquisition of a free lock"
    )]
    spare: Vec<Box<Entry>>,
    watchers: HashMap<LockName, Vec<HolderSender>, RandomState>,
    /// One token for all names: an unused name is forgotten, and its tokens must still grow later.
    last_token: Option<FencingToken>,
    news: Vec<News>,
    /// What the watches have to be told, in order.
    changes: VecDeque<Change>,
    /// Whether somebody is telling it.
    is_told: bool,
}

/// A message. It is told when the table is not locked, because a wake-up may drop a guard or a waiter, which use the table.
pub(super) enum News {
    Granted(WakeSender, Grant),
    Lost(Lease),
    /// The line of a waiter that was released: if it still listens, dropping this wakes it.
    Left(WakeSender),
}

/// A message to a watch, told as [`News`] is.
pub(super) struct Change(HolderSender, Option<Claim>);

impl Change {
    pub(super) fn tell(self) {
        self.0.tell(self.1);
    }
}

impl News {
    pub(super) fn tell(self) {
        match self {
            // If nobody listens, there are two cases: the waiter has not subscribed yet, and `listen` will find the
            // grant; or it has stopped, and the engine is about to release it.
            Self::Granted(line, grant) => drop(line.grant(grant)),
            Self::Lost(lease) => lease.tell(),
            Self::Left(line) => drop(line),
        }
    }
}

/// In one process no wake-up is lost, so a waiter rarely needs to check for itself. A hundred thousand waiters that
/// check four times a second would keep a core busy.
const RECHECK_AFTER: Duration = Duration::from_secs(60);

/// How many empty entries are kept, and the largest number of holders or waiters for which one was allocated.
const SPARE: usize = 16;

#[derive(Default)]
struct Entry {
    held: HashMap<OwnerId, Held, RandomState>,
    used: u64,
    /// The capacities in the requests of the current holders, and how many holders have each: the smallest one is the
    /// limit. The maximum capacity, which every lock has, never limits and is not counted.
    capacities: BTreeMap<u32, usize>,
    queue: BTreeMap<u64, Waiter>,
    places: HashMap<OwnerId, u64, RandomState>,
    next_place: u64,
}

struct Held {
    weight: Weight,
    claim: Claim,
    token: FencingToken,
    lease: Lease,
}

struct Waiter {
    owner: OwnerId,
    weight: Weight,
    claim: Claim,
    line: Option<WakeSender>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// What the last call has to tell.
    pub(super) fn news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// The next message to a watch, unless somebody is telling one. Whoever gets it tells it, and then those that
    /// [`change_after_one`](Self::change_after_one) returns.
    pub(super) fn next_change(&mut self) -> Option<Change> {
        if self.is_told {
            return None;
        }
        let next = self.changes.pop_front();
        self.is_told = next.is_some();
        next
    }

    /// The next message, for whoever has told one.
    pub(super) fn change_after_one(&mut self) -> Option<Change> {
        self.is_told = false;
        self.next_change()
    }

    pub(super) fn names(&self) -> Vec<LockName> {
        let mut names: Vec<_> = self.names.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    pub(super) fn attempt<D: Weighed>(&mut self, request: &Request<D>) -> Attempt {
        let weight = request.demand.weight();
        let claim =
            || Claim::new(request.holder.clone(), request.demand.into()).with_owner(request.owner);
        let entry = self
            .names
            .entry(request.name.clone())
            .or_insert_with(|| self.spare.pop().unwrap_or_default());
        if let Some(held) = entry.held.get(&request.owner) {
            return Attempt::Granted(held.grant());
        }
        // A waiter is granted in its turn, by the release that makes room for it.
        if !entry.places.contains_key(&request.owner) {
            if entry.queue.is_empty() && entry.fits(weight) {
                let grant = entry.hold(request.owner, weight, claim(), &mut self.last_token);
                if !self.watchers.is_empty() {
                    self.tell(&request.name);
                }
                return Attempt::Granted(grant);
            }
            if request.patience == Patience::Once {
                return Attempt::Contended(Contention::new().with_holder(entry.someone()));
            }
            entry.enqueue(request.owner, weight, claim());
        }
        Attempt::Contended(
            Contention::new()
                .with_holder(entry.someone())
                .with_queued(true)
                .with_recheck_after(RECHECK_AFTER),
        )
    }

    pub(super) fn release(&mut self, name: &LockName, owner: OwnerId) -> Released {
        let Slot::Occupied(mut slot) = self.names.entry(name.clone()) else {
            return Released::NotHeld;
        };
        let entry = slot.get_mut();
        let released = match entry.let_go(owner) {
            Some(_) => Released::Freed,
            None => Released::NotHeld,
        };
        let left = entry.leave_queue(owner).and_then(|waiter| waiter.line);
        self.news.extend(left.map(News::Left));
        entry.serve(&mut self.last_token, &mut self.news);
        if entry.is_unused() {
            let entry = slot.remove();
            self.keep(entry);
        }
        if released == Released::Freed && !self.watchers.is_empty() {
            self.tell(name);
        }
        released
    }

    /// The token with which `owner` holds the name.
    pub(super) fn held_with(&self, name: &LockName, owner: OwnerId) -> Option<FencingToken> {
        Some(self.names.get(name)?.held.get(&owner)?.token)
    }

    pub(super) fn lose(&mut self, name: &LockName, loss: &Loss) -> usize {
        let owners = self
            .names
            .get(name)
            .map_or_else(Vec::new, |entry| entry.held.keys().copied().collect());
        self.lose_some(name, &owners, loss)
    }

    /// Takes the name away from those of `owners` that hold it, and returns their number.
    pub(super) fn lose_some(&mut self, name: &LockName, owners: &[OwnerId], loss: &Loss) -> usize {
        let Slot::Occupied(mut slot) = self.names.entry(name.clone()) else {
            return 0;
        };
        let entry = slot.get_mut();
        let mut count = 0;
        for owner in owners {
            if let Some(held) = entry.let_go(*owner) {
                // Before the next one is granted.
                if held.lease.record(loss.clone()) {
                    self.news.push(News::Lost(held.lease));
                }
                count += 1;
            }
        }
        entry.serve(&mut self.last_token, &mut self.news);
        if entry.is_unused() {
            let entry = slot.remove();
            self.keep(entry);
        }
        if count > 0 && !self.watchers.is_empty() {
            self.tell(name);
        }
        count
    }

    /// Adds a watch, which first gets the current state and then each change.
    pub(super) fn watch(&mut self, name: &LockName) -> HolderWatch {
        let (sender, watch) = holder_watch();
        sender.tell(self.exclusive_holder(name));
        // Dropped watches are removed here, and when there is a change to send.
        self.watchers.retain(|_, senders| {
            senders.retain(|sender| !sender.is_closed());
            !senders.is_empty()
        });
        self.watchers.entry(name.clone()).or_default().push(sender);
        watch
    }

    /// Sends the current holder to the watches of `name`. A hand-over to a waiter is one change.
    fn tell(&mut self, name: &LockName) {
        let now = self.exclusive_holder(name);
        let Slot::Occupied(mut watchers) = self.watchers.entry(name.clone()) else {
            return;
        };
        watchers.get_mut().retain(|sender| !sender.is_closed());
        let told = watchers.get().iter().cloned();
        let changes = told.map(|sender| Change(sender, now.clone()));
        self.changes.extend(changes);
        if watchers.get().is_empty() {
            watchers.remove();
        }
    }

    fn exclusive_holder(&self, name: &LockName) -> Option<Claim> {
        let held = self.names.get(name)?.held.values().next()?;
        (held.claim.kind == ClaimKind::Exclusive).then(|| held.claim.clone())
    }

    fn keep(&mut self, emptied: Box<Entry>) {
        let room = emptied.held.capacity().max(emptied.places.capacity());
        if self.spare.len() < SPARE && room <= SPARE {
            self.spare.push(emptied);
        }
    }

    /// Subscribes a waiter. If it was granted since its attempt, the channel has the grant. If that grant was taken away since, the channel
    /// says so, and the waiter tries again.
    pub(super) fn listen(&mut self, name: &LockName, owner: OwnerId) -> Wakeups {
        let (sender, wakeups) = wakeups();
        let entry = self.names.get_mut(name);
        if let Some(held) = entry.as_ref().and_then(|entry| entry.held.get(&owner)) {
            sender.grant(held.grant());
        } else if let Some(waiter) = entry.and_then(|entry| entry.waiter(owner)) {
            self.news
                .extend(waiter.line.replace(sender).map(News::Left));
        } else {
            let gone = "the place in the queue was taken away";
            sender.fail(BackendError::new(BackendErrorKind::SessionEnded, gone));
        }
        wakeups
    }

    pub(super) fn inspect(&self, name: &LockName) -> Inspection {
        let Some(entry) = self.names.get(name) else {
            return Inspection::default().with_last_token(self.last_token);
        };
        let holders = entry.held.values().map(|held| held.claim.clone()).collect();
        let waiters = entry
            .queue
            .values()
            .map(|waiter| waiter.claim.clone())
            .collect();
        Inspection::new(holders, waiters).with_last_token(self.last_token)
    }
}

impl Entry {
    fn is_unused(&self) -> bool {
        self.held.is_empty() && self.queue.is_empty()
    }

    fn leave_queue(&mut self, owner: OwnerId) -> Option<Waiter> {
        if self.queue.is_empty() {
            return None;
        }
        let place = self.places.remove(&owner)?;
        self.queue.remove(&place)
    }

    fn waiter(&mut self, owner: OwnerId) -> Option<&mut Waiter> {
        self.queue.get_mut(self.places.get(&owner)?)
    }

    fn fits(&self, weight: Weight) -> bool {
        let smallest = self
            .capacities
            .keys()
            .next()
            .map_or(weight.capacity, |least| weight.capacity.min(*least));
        self.used + u64::from(weight.count) <= u64::from(smallest)
    }

    fn hold(
        &mut self,
        owner: OwnerId,
        weight: Weight,
        claim: Claim,
        last: &mut Option<FencingToken>,
    ) -> Grant {
        let now = wall_clock();
        let token = FencingToken::after_at(*last, now);
        *last = Some(token);
        self.used += u64::from(weight.count);
        if weight.capacity != u32::MAX {
            *self.capacities.entry(weight.capacity).or_default() += 1;
        }
        let claim = Claim::new(claim.holder.since(now), claim.kind)
            .with_owner(owner)
            .with_token(token);
        let held = Held {
            weight,
            claim,
            token,
            lease: Lease::unbounded(),
        };
        let grant = held.grant();
        self.held.insert(owner, held);
        grant
    }

    fn let_go(&mut self, owner: OwnerId) -> Option<Held> {
        let held = self.held.remove(&owner)?;
        self.used -= u64::from(held.weight.count);
        if let Some(count) = self.capacities.get_mut(&held.weight.capacity) {
            *count -= 1;
            if *count == 0 {
                self.capacities.remove(&held.weight.capacity);
            }
        }
        Some(held)
    }

    fn enqueue(&mut self, owner: OwnerId, weight: Weight, claim: Claim) {
        let place = self.next_place;
        self.next_place += 1;
        self.places.insert(owner, place);
        self.queue.insert(
            place,
            Waiter {
                owner,
                weight,
                claim,
                line: None,
            },
        );
    }

    /// Grants to the head of the queue, as long as it fits.
    fn serve(&mut self, last: &mut Option<FencingToken>, news: &mut Vec<News>) {
        while let Some(head) = self.queue.first_entry() {
            let weight = head.get().weight;
            if !self.fits(weight) {
                return;
            }
            let Some((_, waiter)) = self.queue.pop_first() else {
                return;
            };
            self.places.remove(&waiter.owner);
            let grant = self.hold(waiter.owner, weight, waiter.claim, last);
            if let Some(line) = waiter.line {
                news.push(News::Granted(line, grant));
            }
        }
    }

    fn someone(&self) -> Option<Holder> {
        self.held
            .values()
            .next()
            .map(|held| held.claim.holder.clone())
    }
}

impl Held {
    fn grant(&self) -> Grant {
        Grant::new()
            .with_token(self.token)
            .with_lost(self.lease.signal())
    }
}
