//! An operator, who breaks the lock of the first client.

use crate::{
    explore::{Step, serve},
    world::{Command, Flaw, Operator, Rules, World},
};

/// The steps of the operator: `break.lua` and `evict.lua`.
pub(crate) fn steps(world: &World, rules: Rules, steps: &mut Vec<(Step, World)>) {
    let client = &world.clients[0];
    let mut holders = world.server.holders.iter();
    let held_in = holders.find(|claim| claim.0 == client.number);
    let mut step = |what: &'static str, act: &dyn Fn(&mut World)| {
        let mut next = *world;
        act(&mut next);
        steps.push((Step::TheOperator(what), next));
    };
    let Operator::Waits { refreshed } = world.operator else {
        let lives = held_in.is_some_and(|(_, session, _)| world.server.lives(session, rules));
        if world.operator == Operator::Idle && lives && !world.waits {
            step("marks the hold", &|next| {
                next.server.mark = true;
                next.operator = Operator::Waits { refreshed: false };
            });
        }
        return;
    };
    let session = usize::from(client.session);
    if client.lease && world.server.subscribed[session] && !client.phase.is_over() && !refreshed {
        step("waits while the client refreshes its session", &|next| {
            refresh(next, rules, 0);
        });
    }
    // Its other commands wait like those of all callers.
    if world.waits {
        return;
    }
    if held_in.is_none() {
        step("finds the lock released", &|next| {
            next.operator = Operator::Done;
        });
        return;
    }
    let counts_on = rules.flaw == Flaw::CountsFromTheFirstMark;
    if !world.server.mark {
        step("marks the hold again", &|next| {
            next.server.mark = true;
            let refreshed = refreshed && counts_on;
            next.operator = Operator::Waits { refreshed };
        });
    } else if refreshed || !client.lease {
        step("ends the hold by force", &|next| {
            next.operator = Operator::Done;
            serve(next, Command::Release(None), 0, rules);
        });
    }
}

/// A refresh reads the marks before it extends the lease.
pub(crate) fn refresh(next: &mut World, rules: Rules, number: usize) {
    let Operator::Waits { refreshed } = &mut next.operator else {
        return;
    };
    if number != 0 {
        return;
    }
    *refreshed = true;
    if next.server.mark && rules.flaw != Flaw::IgnoresMarks {
        next.act(number, |client| client.is_told(rules));
    }
}
