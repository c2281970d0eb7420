//! Explores every reachable state, breadth first.

use std::collections::HashSet;

use crate::{
    client::{Client, Phase},
    operator,
    world::{Answer, Command, Flaw, Form, Line, Lines, News, Rules, SESSIONS, Session, World},
};

pub(crate) enum Outcome {
    Holds { states: usize },
    Broken { what: String, path: Vec<String> },
}

/// One step of the model.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "they are printed")]
pub(crate) enum Step {
    Start,
    TheServerReads(Command, usize),
    TheServerReadsLate(Command, usize),
    AClientHears(Answer, usize),
    AClientIsTold(News, usize),
    Client(usize, &'static str),
    TheServerForgets(Session),
    TheServerRestarts(&'static str),
    AReplicaIsPromoted(&'static str),
    TheOperator(&'static str),
}

pub(crate) fn explore(rules: Rules) -> Outcome {
    // Each state, the index of the state before it, and the step between them.
    let mut order = vec![(World::new(rules), 0, Step::Start)];
    let mut known = HashSet::from([World::new(rules)]);
    let mut at = 0;
    let mut found = Vec::new();
    while at < order.len() {
        let world = order[at].0;
        if let Some(what) = world.violation(rules) {
            let mut path = Vec::new();
            while at != 0 {
                path.push(format!("{:?}", order[at].2));
                at = order[at].1;
            }
            path.reverse();
            return Outcome::Broken { what, path };
        }
        steps(&world, rules, &mut found);
        for (step, mut next) in found.drain(..) {
            // The replica stays one write behind: it now gets the previous write.
            if next.replica.is_some() && next.server != world.server {
                next.replica = Some(world.server);
            }
            next.note_holds(&world, rules);
            next.forget_what_no_longer_counts(rules);
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
    for number in 0..world.clients.len() {
        deliveries(world, rules, number, steps);
        choices(world, rules, number, steps);
        sessions(world, rules, number, steps);
        if rules.cuts && world.faults < rules.faults {
            faults(world, rules, number, steps);
        }
    }
    if world.faults < rules.faults {
        if rules.cuts {
            restarts(world, rules, steps);
        }
        promotions(world, rules, steps);
    }
    expiries(world, rules, steps);
    operator::steps(world, rules, steps);
}

/// The server reads a command, or a client receives an answer or a message.
fn deliveries(world: &World, rules: Rules, number: usize, steps: &mut Vec<(Step, World)>) {
    let mut next = *world;
    if !world.waits
        && let Some(command) = next.lines[number].up.pop()
    {
        let answer = serve(&mut next, command, number, rules);
        next.lines[number].down.push(answer);
        steps.push((Step::TheServerReads(command, number), next));
    }
    let mut next = *world;
    if let Some(command) = next.lines[number].late.pop() {
        // No connection is left for the answer.
        serve(&mut next, command, number, rules);
        steps.push((Step::TheServerReadsLate(command, number), next));
    }
    let mut next = *world;
    if let Some(answer) = next.lines[number].down.pop() {
        hear(&mut next, answer, number, rules);
        steps.push((Step::AClientHears(answer, number), next));
    }
    let mut next = *world;
    if let Some(news) = next.lines[number].news.pop() {
        hear_news(&mut next, news, number, rules);
        steps.push((Step::AClientIsTold(news, number), next));
    }
}

pub(crate) fn serve(world: &mut World, command: Command, number: usize, rules: Rules) -> Answer {
    let mut told = Vec::new();
    let owner = world.clients[number].number;
    let answer = match command {
        Command::Acquire(session, stamp) => {
            world
                .server
                .acquire(owner, (session, stamp), rules, &mut told)
        }
        Command::Raise(session) => Answer::Raised(session, world.server.raise(session)),
        Command::Release(to) => world.server.release((owner, to), rules, &mut told),
    };
    for (session, news) in told {
        // No message arrives over a connection that is gone at either end.
        let client = world.client_of(session);
        let hears = client.session == session && client.lease;
        if world.server.subscribed[usize::from(session)] && hears {
            world.news(session).push(news);
        }
    }
    answer
}

fn hear(world: &mut World, answer: Answer, number: usize, rules: Rules) {
    if let Answer::Contended(session, turn) = answer
        && world.clients[number].is_current(session, rules)
    {
        world.follow(number, turn, rules);
    }
    let withdraws = world.clients[number].withdraws_after(answer);
    if withdraws && let Answer::Granted(_, token) = answer {
        world.clients[number].is_granted(token);
    }
    world.act(number, |client| client.hear(answer));
    world.share(number, rules);
    if withdraws {
        world.withdraw(number, rules);
    }
}

fn hear_news(world: &mut World, news: News, number: usize, rules: Rules) {
    if let News::Grant(owner, _, others) = news {
        world.clients[usize::from(owner)].hear_news(news, rules);
        let mut ahead = owner;
        for (next, token) in others.into_iter().flatten() {
            world.follow(usize::from(next), Some((ahead, token)), rules);
            ahead = next;
        }
    } else {
        world.clients[number].hear_news(news, rules);
        world.share(number, rules);
    }
}

/// Steps that a client takes on its own.
fn choices(world: &World, rules: Rules, number: usize, steps: &mut Vec<(Step, World)>) {
    let client = &world.clients[number];
    if !client.lease || rules.weights[number] == 0 {
        return;
    }
    let mut choose = |what: &'static str, act: &dyn Fn(&mut Client) -> Option<Command>| {
        let mut next = *world;
        next.act(number, act);
        steps.push((Step::Client(number, what), next));
    };
    match client.phase {
        Phase::Idle => choose("asks", &|client| Some(client.ask())),
        Phase::Queued if client.ticks < rules.ticks => choose("looks", &|client| {
            client.ticks += 1;
            Some(client.ask())
        }),
        _ => {}
    }
    if let Phase::Held(_) = client.phase {
        let mut next = *world;
        next.withdraw(number, rules);
        steps.push((Step::Client(number, "releases"), next));
    }
    if rules.gives_up && client.waits() {
        let mut next = *world;
        if next.clients[number].gives_up() {
            next.withdraw(number, rules);
        }
        steps.push((Step::Client(number, "gives up"), next));
    }
}

/// Steps in which sessions end, continue, and begin.
fn sessions(world: &World, rules: Rules, number: usize, steps: &mut Vec<(Step, World)>) {
    let client = &world.clients[number];
    let session = client.session;
    let is_over = is_over(world, session, rules) && rules.flaw != Flaw::ResumesTheForgotten;
    if is_over || rules.weights[number] == 0 || !rules.is_first(number) {
        return;
    }
    let connected = world.server.subscribed[usize::from(session)];
    let mut step = |what: &'static str, act: &dyn Fn(&mut World)| {
        let mut next = *world;
        act(&mut next);
        steps.push((Step::Client(number, what), next));
    };
    if client.lease && !connected {
        step("comes to the end of its lease", &|next| {
            lease_ends(next, session, rules);
        });
        if rules.form == Form::Default {
            step("resumes its session", &|next| resume(next, rules, session));
        }
    }
    // A server that has lost its data waits until every client can know of its losses.
    let settled = |client: &Client| !client.lease || world.server.keys[usize::from(client.session)];
    let may_begin = rules.flaw == Flaw::NoWaitAfterARestart || world.clients.iter().all(settled);
    if rules.begins && !client.lease && session.is_multiple_of(2) && may_begin {
        step("begins a new session", &|next| {
            next.server.open(session + 1, session);
            next.lines[number].news = Line::default();
            for member in rules.members(session) {
                next.act(member, |client| client.begin(rules));
            }
        });
    }
    let was_held = matches!(client.phase, Phase::Lost);
    if rules.flaw == Flaw::ResumesTheForgotten && !client.lease && was_held {
        step("resumes what is over", &|next| {
            next.server.open(session, session ^ 1);
            next.clients[number].lease = true;
            let mut holders = next.server.holders.iter();
            let mine = holders.find(|claim| usize::from(claim.0) == number);
            next.clients[number].phase = Phase::Held(mine.map_or(0, |claim| claim.2));
        });
    }
}

/// A renewal over a new connection, from start to end: the client checks its places before it extends the lease.
fn resume(next: &mut World, rules: Rules, session: Session) {
    if !next.server.keys[usize::from(session)] {
        return lease_ends(next, session, rules);
    }
    // Messages of the old connection no longer arrive.
    *next.news(session) = Line::default();
    next.server.subscribed[usize::from(session)] = true;
    operator::refresh(next, rules, usize::from(session / 2));
    for member in rules.members(session) {
        let client = &next.clients[member];
        let (owner, held) = (client.number, client.held());
        let granted = next.server.holders.iter().find(|claim| claim.0 == owner);
        let waits = next.server.queue.iter().find(|place| place.0 == owner);
        let waits = waits.filter(|place| Some(place.2) == held && rules.flaw != Flaw::SeesNoTurns);
        let token = granted.map(|claim| claim.2).or(waits.map(|place| place.2));
        next.act(member, |client| client.resumed(token, rules));
    }
}

/// Whether no owner in this session does anything any more.
fn is_over(world: &World, session: Session, rules: Rules) -> bool {
    let mut members = rules.members(session);
    members.all(|member| world.clients[member].phase.is_over())
}

fn lease_ends(next: &mut World, session: Session, rules: Rules) {
    *next.news(session) = Line::default();
    for member in rules.members(session) {
        next.clients[member].lease_ends();
    }
}

/// Faults of a client.
fn faults(world: &World, rules: Rules, number: usize, steps: &mut Vec<(Step, World)>) {
    let client = &world.clients[number];
    let (its, session) = (client.session, usize::from(client.session));
    let is_idle = |client: &Client| client.phase.is_over() || client.phase == Phase::Idle;
    if !client.lease {
        return;
    }
    let mut members = rules.members(its).map(|member| &world.clients[member]);
    let session_works = rules.is_first(number) && !members.all(is_idle);
    let mut befall = |what: &'static str, act: &dyn Fn(&mut World)| {
        let mut next = *world;
        next.faults += 1;
        act(&mut next);
        steps.push((Step::Client(number, what), next));
    };
    if session_works && world.server.subscribed[session] {
        befall("is disconnected by the server, and hears of it", &|next| {
            next.server.subscribed[session] = false;
            if rules.form == Form::WithoutNotice {
                next.lines[number].news.push(News::Closed);
            }
        });
        befall("is disconnected by the server, unheard", &|next| {
            next.server.subscribed[session] = false;
            next.lines[number].news = Line::default();
        });
    }
    for loses in [false, true] {
        let what = if loses {
            "loses the connection of its calls, and what was on it"
        } else {
            "loses the connection of its calls, and what it sent comes late"
        };
        if !is_idle(client) {
            befall(what, &|next| {
                next.lines[number].break_calls(loses);
                next.act(number, Client::repeat);
            });
        }
        if !session_works {
            continue;
        }
        let what = if loses {
            "crashes with its machine"
        } else {
            "crashes"
        };
        befall(what, &|next| {
            for member in rules.members(its) {
                next.clients[member].phase = Phase::Crashed;
                next.clients[member].lease = false;
                next.lines[member].break_calls(loses);
            }
            next.lines[number].news = Line::default();
            next.server.subscribed[session] &= loses;
        });
    }
    if !session_works {
        return;
    }
    befall("is cut off until its lease ends", &|next| {
        lease_ends(next, its, rules);
        for member in rules.members(its) {
            next.lines[member].break_calls(false);
        }
        if rules.form == Form::WithoutNotice {
            next.server.subscribed[session] = false;
        }
    });
}

/// All connections end, and their contents are lost. The server keeps its data, or loses it.
fn restarts(world: &World, rules: Rules, steps: &mut Vec<(Step, World)>) {
    for (what, loses) in [("with its data", false), ("without its data", true)] {
        let mut next = *world;
        next.faults += 1;
        if loses {
            next.server.lose_all();
        }
        all_connections_end(&mut next, rules);
        steps.push((Step::TheServerRestarts(what), next));
    }
}

fn all_connections_end(next: &mut World, rules: Rules) {
    next.server.subscribed = [false; SESSIONS as usize];
    for number in 0..next.clients.len() {
        next.lines[number] = Lines::default();
        let hears = next.clients[number].lease && rules.is_first(number);
        if hears && rules.form == Form::WithoutNotice {
            next.lines[number].news.push(News::Closed);
        }
        if next.clients[number].phase != Phase::Crashed {
            next.act(number, Client::repeat);
        }
    }
}

/// A replica replaces the server, with all its data or without the last write.
fn promotions(world: &World, rules: Rules, steps: &mut Vec<(Step, World)>) {
    let Some(replica) = world.replica else {
        return;
    };
    for (what, promoted) in [
        ("that has all", world.server),
        ("that lacks the last write", replica),
    ] {
        let mut next = *world;
        next.faults += 1;
        // The replica's tokens are its clock or more.
        next.server = promoted.after(&world.server);
        next.was_promoted = true;
        next.waits = rules.flaw != Flaw::NoWaitAfterAPromotion;
        all_connections_end(&mut next, rules);
        steps.push((Step::AReplicaIsPromoted(what), next));
    }
}

/// The server forgets a session that was not refreshed: never before the lease of its client has ended.
fn expiries(world: &World, rules: Rules, steps: &mut Vec<(Step, World)>) {
    for session in 0..SESSIONS {
        let at = usize::from(session);
        let client = world.client_of(session);
        let over = client.session != session || !client.lease;
        let too_early = rules.flaw == Flaw::ForgetsTooEarly
            && rules.form == Form::Default
            && !world.server.subscribed[at];
        if world.server.keys[at] && (over || too_early) {
            let mut next = *world;
            next.server.forget(session);
            steps.push((Step::TheServerForgets(session), next));
        }
    }
}
