//! Every state that can be reached, breadth first.

use std::collections::HashSet;

use crate::{
    client::{Client, Phase},
    world::{Command, Flaw, Form, Line, Message, Rules, SESSIONS, Session, World},
};

pub(crate) enum Outcome {
    Holds { states: usize },
    Broken { what: String, path: Vec<String> },
}

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "they are printed")]
enum Step {
    Start,
    TheServerReads(Command, Session),
    AClientHears(Message, Session),
    Client(usize, &'static str),
    TheServerForgets(Session),
}

pub(crate) fn explore(rules: Rules) -> Outcome {
    // Each state, and the step that led to it: from which, by what.
    let mut order = vec![(World::new(), 0, Step::Start)];
    let mut known = HashSet::from([World::new()]);
    let mut at = 0;
    let mut found = Vec::new();
    while at < order.len() {
        let world = order[at].0;
        let wrong = if world.server.token_fell {
            Some("a token was granted twice or fell".to_owned())
        } else {
            world.violation(rules)
        };
        if let Some(what) = wrong {
            let mut path = Vec::new();
            while at != 0 {
                path.push(format!("{:?}", order[at].2));
                at = order[at].1;
            }
            path.reverse();
            return Outcome::Broken { what, path };
        }
        steps(&world, rules, &mut found);
        for (step, next) in found.drain(..) {
            if known.insert(next) {
                order.push((next, at, step));
            }
        }
        at += 1;
    }
    Outcome::Holds {
        states: order.len(),
    }
}

fn steps(world: &World, rules: Rules, steps: &mut Vec<(Step, World)>) {
    for session in 0..SESSIONS {
        deliveries(world, rules, session, steps);
    }
    for number in 0..world.clients.len() {
        choices(world, rules, number, steps);
        faults(world, rules, number, steps);
    }
    expiries(world, rules, steps);
}

/// The server reads a command, or a client a message.
fn deliveries(world: &World, rules: Rules, session: Session, steps: &mut Vec<(Step, World)>) {
    let at = usize::from(session);
    let mut next = *world;
    if let Some(command) = next.up[at].pop() {
        let mut told = Vec::new();
        match command {
            Command::Acquire(owner) => next.server.acquire(owner, session, rules, &mut told),
            Command::Release(owner) => next.server.release(owner, session, rules, &mut told),
            Command::End => next.server.subscribed[at] = false,
        }
        for (session, message) in told {
            // Nothing reaches a connection that is gone at either end.
            let open = next.server.subscribed[usize::from(session)];
            let client = next.client_of(session);
            if open && client.phase != Phase::Crashed && client.session == session && client.lease {
                next.down[usize::from(session)].push(message);
            }
        }
        steps.push((Step::TheServerReads(command, session), next));
    }
    let mut next = *world;
    if let Some(message) = next.down[at].pop() {
        let client = &mut next.clients[usize::from(session / 2)];
        let had_lease = client.lease;
        let command = client.hear(session, message);
        let ended = had_lease && !client.lease;
        if ended {
            next.down[at] = Line::default();
            if message != Message::Closed {
                next.up[at].push(Command::End);
            }
        }
        next.send(at, command);
        steps.push((Step::AClientHears(message, session), next));
    }
}

/// What a client may do of itself.
fn choices(world: &World, rules: Rules, number: usize, steps: &mut Vec<(Step, World)>) {
    let client = &world.clients[number];
    let mut choose = |what: &'static str, act: fn(&mut Client) -> Option<Command>| {
        let mut next = *world;
        next.act(number, act);
        steps.push((Step::Client(number, what), next));
    };
    if client.lease {
        match client.phase {
            Phase::Idle => choose("asks", |client| Some(client.ask())),
            Phase::Held(_) => choose("releases", |client| Some(client.withdraw())),
            Phase::Queued if client.ticks < rules.ticks => choose("looks", |client| {
                client.ticks += 1;
                Some(client.ask())
            }),
            _ => {}
        }
        let waits = match client.phase {
            Phase::Asking { given_up, .. } => !given_up,
            phase => phase == Phase::Queued,
        };
        if rules.gives_up && waits {
            choose("gives up", Client::give_up);
        }
    } else if client.phase != Phase::Crashed && client.session.is_multiple_of(2) {
        let mut next = *world;
        let former = client.session;
        next.server.open(former + 1, former);
        next.act(number, |client| {
            client.session += 1;
            client.lease = true;
            client.take_up()
        });
        steps.push((Step::Client(number, "opens a new session"), next));
    }
}

/// What may befall a client.
fn faults(world: &World, rules: Rules, number: usize, steps: &mut Vec<(Step, World)>) {
    let client = &world.clients[number];
    let at = usize::from(client.session);
    if world.faults == rules.faults
        || !client.lease
        || matches!(
            client.phase,
            Phase::Crashed | Phase::Done | Phase::Lost | Phase::Idle
        )
    {
        return;
    }
    let mut befall = |what: &'static str, act: &dyn Fn(&mut World)| {
        let mut next = *world;
        next.faults += 1;
        act(&mut next);
        steps.push((Step::Client(number, what), next));
    };
    if world.server.subscribed[at] {
        for loses in [false, true] {
            let what = if loses {
                "is disconnected by the server, what was on its way to it is lost"
            } else {
                "is disconnected by the server"
            };
            befall(what, &|next| {
                next.server.subscribed[at] = false;
                next.up[at] = Line::default();
                if loses {
                    next.down[at] = Line::default();
                }
                next.down[at].push(Message::Closed);
            });
        }
    }
    befall("crashes", &|next| {
        next.clients[number].phase = Phase::Crashed;
        next.clients[number].lease = false;
        next.down[at] = Line::default();
        next.up[at].push(Command::End);
    });
    befall("is cut off until its lease ends", &|next| {
        next.clients[number].lease_ends();
        next.down[at] = Line::default();
        // What it had sent may still arrive one day.
        next.up[at].push(Command::End);
    });
}

/// The server forgets a session that has shown no sign of life: never before its client's lease has ended.
fn expiries(world: &World, rules: Rules, steps: &mut Vec<(Step, World)>) {
    for session in 0..SESSIONS {
        let at = usize::from(session);
        let client = world.client_of(session);
        let over = client.session != session || !client.lease;
        let too_early = rules.flaw == Flaw::ForgetsTooEarly
            && rules.form == Form::Strict
            && !world.server.subscribed[at];
        if world.server.keys[at] && (over || too_early) {
            let mut next = *world;
            next.server.keys[at] = false;
            steps.push((Step::TheServerForgets(session), next));
        }
    }
}
