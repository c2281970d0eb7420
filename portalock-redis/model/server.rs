//! The server, with the scripts.

use crate::world::{Answer, CAPACITY, Flaw, Form, News, Owner, Rules, SESSIONS, Session};

/// Grants by message, and the session of each.
pub(crate) type Told = Vec<(Session, News)>;

/// A list with at most one entry for each of the three clients, as a plain value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct List<T>([Option<T>; 3]);

impl<T: Copy> List<T> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.0.iter().flatten().copied()
    }

    pub(crate) fn first(&self) -> Option<T> {
        self.0[0]
    }

    fn push(&mut self, item: T) {
        let free = self.0.iter_mut().find(|place| place.is_none());
        *free.unwrap() = Some(item);
    }

    fn retain(&mut self, keeps: impl Fn(T) -> bool) {
        let mut kept = Self([None; 3]);
        self.iter()
            .filter(|item| keeps(*item))
            .for_each(|item| kept.push(item));
        *self = kept;
    }

    fn find_mut(&mut self, is_it: impl Fn(T) -> bool) -> Option<&mut T> {
        self.0.iter_mut().flatten().find(|item| is_it(**item))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    /// The owner, session and token of each holder.
    pub(crate) holders: List<(Owner, Session, u8)>,
    /// The waiters, with the token of each, or 0.
    pub(crate) queue: List<(Owner, Session, u8)>,
    pub(crate) last: u8,
    /// The weight of every holder, if the last token has a shape.
    alike: Option<u8>,
    /// The largest token that was ever granted; and whether a later token was not larger.
    pub(crate) top: u8,
    pub(crate) token_fell: bool,
    pub(crate) keys: [bool; SESSIONS as usize],
    /// The values of the session keys.
    pub(crate) stamps: [u8; SESSIONS as usize],
    pub(crate) subscribed: [bool; SESSIONS as usize],
    /// The hold of the first client is marked as broken.
    pub(crate) mark: bool,
}

impl Server {
    pub(crate) fn new() -> Self {
        let first = [true, false, true, false, true, false];
        Self {
            holders: List([None; 3]),
            queue: List([None; 3]),
            last: 0,
            alike: None,
            top: 0,
            token_fell: false,
            keys: first,
            stamps: [1; SESSIONS as usize],
            subscribed: first,
            mark: false,
        }
    }

    /// `lives` and `look`
    pub(crate) fn lives(&self, session: Session, rules: Rules) -> bool {
        let at = usize::from(session);
        let kept = rules.form == Form::Default && rules.flaw != Flaw::FreesWithTheConnection;
        self.keys[at] && (kept || self.subscribed[at])
    }

    /// `open.lua`, after the subscription.
    pub(crate) fn open(&mut self, session: Session, former: Session) {
        self.forget(former);
        self.keys[usize::from(session)] = true;
        self.subscribed[usize::from(session)] = true;
    }

    pub(crate) fn forget(&mut self, session: Session) {
        let at = usize::from(session);
        (self.keys[at], self.subscribed[at], self.stamps[at]) = (false, false, 1);
    }

    /// `raise.lua`: the session's next stamp, if the session is alive.
    pub(crate) fn raise(&mut self, session: Session) -> Option<u8> {
        let at = usize::from(session);
        if !self.keys[at] {
            return None;
        }
        self.stamps[at] += 1;
        Some(self.stamps[at])
    }

    /// Becomes the next primary: its tokens continue after those of the former primary, by the clock.
    pub(crate) fn after(self, former: &Self) -> Self {
        Self {
            last: former.top,
            top: former.top,
            token_fell: former.token_fell,
            ..self
        }
    }

    /// Loses all data. Tokens are the clock or more, so they keep growing.
    pub(crate) fn lose_all(&mut self) {
        let top = self.top;
        *self = Self {
            last: top,
            top,
            token_fell: self.token_fell,
            keys: [false; SESSIONS as usize],
            subscribed: [false; SESSIONS as usize],
            ..Self::new()
        };
    }

    /// `fits`, with dead holders still in the state.
    pub(crate) fn fits_untouched(&self, owner: Owner, rules: Rules) -> bool {
        let used: u8 = self
            .holders
            .iter()
            .map(|(holder, ..)| rules.weight(holder))
            .sum();
        used + rules.weight(owner) <= CAPACITY
    }

    /// `fits`; if false, `prune` and `fits` again.
    fn fits(&mut self, owner: Owner, rules: Rules) -> bool {
        if rules.flaw == Flaw::GrantsBesideHolders || self.fits_untouched(owner, rules) {
            return true;
        }
        self.prune(rules);
        self.fits_untouched(owner, rules)
    }

    fn prune(&mut self, rules: Rules) {
        let mut living = self.holders;
        living.retain(|(_, session, _)| self.lives(session, rules));
        self.holders = living;
    }

    /// `fits`, without dead holders.
    pub(crate) fn fits_the_living(mut self, owner: Owner, rules: Rules) -> bool {
        self.prune(rules);
        self.fits_untouched(owner, rules)
    }

    fn next_token(&mut self, rules: Rules) -> u8 {
        if rules.flaw != Flaw::RepeatsTokens {
            self.last += 1;
        }
        self.token_fell |= self.last <= self.top;
        self.top = self.top.max(self.last);
        self.last
    }

    /// `is_next`: the owner ahead of a new waiter, and the token that the waiter gets.
    fn behind(&mut self, owner: Owner, session: Session, rules: Rules) -> Option<(Owner, u8)> {
        let tail = self.queue.iter().last();
        let holder = self.holders.first();
        let (ahead, its, token) = match tail {
            Some(_) if rules.flaw == Flaw::FollowsAcrossOthers => holder?,
            Some(tail) => tail,
            None => holder?,
        };
        let exclusive = rules.weight(ahead) == CAPACITY && rules.weight(owner) == CAPACITY;
        if its != session || token == 0 || !exclusive {
            return None;
        }
        if rules.flaw == Flaw::ForgetsTokensOfWaiters {
            return Some((ahead, token + 1));
        }
        Some((ahead, self.next_token(rules)))
    }

    /// `line_up`
    fn line_up(&mut self, owner: Owner, session: Session, rules: Rules) {
        let token = self.behind(owner, session, rules).map_or(0, |turn| turn.1);
        self.queue.push((owner, session, token));
    }

    /// The owner ahead of a waiter with a token, and the token.
    fn turn(&self, owner: Owner, rules: Rules) -> Option<(Owner, u8)> {
        let mut ahead = self.holders.first().map(|claim| claim.0);
        if rules.flaw != Flaw::FollowsAcrossOthers {
            let before = self.queue.iter().take_while(|place| place.0 != owner);
            ahead = before.last().map(|place| place.0).or(ahead);
        }
        let token = self.queue.iter().find(|place| place.0 == owner)?.2;
        Some((ahead?, token)).filter(|turn| turn.1 != 0)
    }

    /// `give_tokens`
    fn give_tokens(&mut self, session: Session, rules: Rules) -> [Option<(Owner, u8)>; 2] {
        let mut given = [None; 2];
        let waiting = self.queue;
        for ((owner, its, own), given) in waiting.iter().zip(&mut given) {
            if its != session || rules.weight(owner) != CAPACITY || own != 0 {
                break;
            }
            let token = self.next_token(rules);
            if let Some(place) = self.queue.find_mut(|place| place.0 == owner) {
                place.2 = token;
            }
            *given = Some((owner, token));
        }
        given
    }

    fn grant(&mut self, (owner, session, own): (Owner, Session, u8), rules: Rules) -> u8 {
        let token = if own == 0 {
            self.next_token(rules)
        } else {
            own
        };
        self.last = self.last.max(token);
        self.holders.push((owner, session, token));
        let weight = rules.weight(owner);
        if rules.flaw != Flaw::KeepsAStaleShape || weight < CAPACITY {
            let same = |(holder, ..): (Owner, Session, u8)| rules.weight(holder) == weight;
            self.alike = self.holders.iter().all(same).then_some(weight);
        }
        token
    }

    /// Whether one more holder of the same shape fits, by the number of holders alone.
    fn fits_by_number(&self, owner: Owner, rules: Rules) -> bool {
        let weight = rules.weight(owner);
        let holders = self.holders.iter().map(|_| weight).sum::<u8>();
        weight < CAPACITY && self.alike == Some(weight) && holders + weight <= CAPACITY
    }

    fn serve(
        &mut self,
        asking: Option<Owner>,
        knows: Option<Owner>,
        rules: Rules,
        told: &mut Told,
    ) {
        while let Some((owner, session, own)) = self.queue.first() {
            if rules.flaw != Flaw::GrantsToTheDead && !self.lives(session, rules) {
                self.queue.retain(|place| place.0 != owner);
                continue;
            }
            if !self.fits(owner, rules) {
                return;
            }
            self.queue.retain(|place| place.0 != owner);
            let token = self.grant((owner, session, own), rules);
            let mut others = [None; 2];
            if rules.weight(owner) == CAPACITY {
                others = self.give_tokens(session, rules);
            }
            let is_told = knows != Some(owner) || others[0].is_some();
            if is_told && (rules.flaw != Flaw::TellsOnlyTheOthers || asking != Some(owner)) {
                told.push((session, News::Grant(owner, token, others)));
            }
            // It leaves no capacity, so the waiters behind it are not checked.
            if rules.weight(owner) == CAPACITY {
                return;
            }
        }
    }

    /// `refusal` in `acquire_usual.lua`.
    fn refusal(&self, session: Session, stamp: u8, rules: Rules) -> Option<Answer> {
        let present = self.stamps[usize::from(session)];
        if rules.flaw == Flaw::HearsTheDead {
            None
        } else if !self.keys[usize::from(session)] {
            Some(Answer::Ended(session))
        } else if present != stamp && rules.flaw != Flaw::IgnoresStamps {
            Some(Answer::Stale(session, present))
        } else {
            (!self.lives(session, rules)).then_some(Answer::Ended(session))
        }
    }

    /// `acquire.lua` and the cases before it, with a place in the queue.
    pub(crate) fn acquire(
        &mut self,
        owner: Owner,
        (session, stamp): (Session, u8),
        rules: Rules,
        told: &mut Told,
    ) -> Answer {
        if let Some(refused) = self.refusal(session, stamp, rules) {
            return refused;
        }
        if let Some(claim) = self.holders.find_mut(|claim| claim.0 == owner) {
            claim.1 = session;
            let token = claim.2;
            return Answer::Granted(session, token);
        }
        // `acquire_usual.lua`: next to holders of the same shape, if there are no waiters.
        if self.queue.first().is_none() && self.fits_by_number(owner, rules) {
            let token = self.grant((owner, session, 0), rules);
            return Answer::Granted(session, token);
        }
        // Behind other waiters, which are not checked until this one's first check; or behind the one holder, which was
        // checked.
        let is_new = !self.queue.iter().any(|place| place.0 == owner);
        let is_behind = self.queue.first().is_some()
            || self.holders.iter().last().is_some_and(|(holder, its, _)| {
                rules.flaw != Flaw::GrantsBesideHolders
                    && rules.weight(holder) + rules.weight(owner) > CAPACITY
                    && self.lives(its, rules)
            });
        if is_new && self.holders.first().is_some() && is_behind {
            self.line_up(owner, session, rules);
            return Answer::Contended(session, self.turn(owner, rules));
        }
        // `acquire_behind.lua`, for a waiter that has a place.
        let own = self.queue.iter().find(|place| place.0 == owner);
        if let (Some((.., 0)), Some((tail, its, _))) = (own, self.queue.iter().last())
            && rules.brief
            && tail != owner
            && self.holders.first().is_some()
            && (self.lives(its, rules) || rules.flaw == Flaw::LeavesItToTheDead)
        {
            return Answer::Contended(session, None);
        }
        if let Some(place) = self.queue.find_mut(|place| place.0 == owner) {
            place.1 = session;
        }
        self.serve(Some(owner), None, rules, told);
        if let Some(claim) = self.holders.iter().find(|claim| claim.0 == owner) {
            return Answer::Granted(session, claim.2);
        }
        if self.queue.first().is_none() && self.fits(owner, rules) {
            let token = self.grant((owner, session, 0), rules);
            return Answer::Granted(session, token);
        }
        if self.queue.iter().any(|place| place.0 == owner) {
            while let Some((last, its, _)) = self.queue.iter().last()
                && last != owner
                && !self.lives(its, rules)
            {
                self.queue.retain(|place| place.0 != last);
            }
        } else {
            self.line_up(owner, session, rules);
        }
        Answer::Contended(session, self.turn(owner, rules))
    }

    /// `release.lua` and the cases before it: all have the same effect.
    pub(crate) fn release(
        &mut self,
        (owner, next): (Owner, Option<Owner>),
        rules: Rules,
        told: &mut Told,
    ) -> Answer {
        let mut held = self.holders.iter().any(|claim| claim.0 == owner);
        if rules.flaw == Flaw::FreesTheHolderAhead && self.turn(owner, rules).is_some() {
            self.holders = List([None; 3]);
            held = true;
        }
        let was_next = self.queue.first().is_some_and(|place| place.0 == owner);
        self.holders.retain(|claim| claim.0 != owner);
        self.queue.retain(|place| place.0 != owner);
        // One that wants all waits for the others. Whether they live, the next check finds out.
        let first = self.queue.first();
        let waits = first.is_some_and(|place| rules.weight(place.0) == CAPACITY);
        let passes_on = held && !(waits && self.holders.first().is_some());
        let serves = match rules.flaw {
            Flaw::ServesNobody => false,
            Flaw::CancelServesNobody => passes_on,
            _ => passes_on || was_next,
        };
        if serves {
            self.serve(None, next, rules, told);
        }
        Answer::Released
    }
}
