//! The protocol, checked exhaustively: every order in which three clients, their connections and the server can act, with
//! connections killed, processes crashed, sessions expired, waits cancelled and messages lost at any moment.
//!
//! The model follows the scripts line by line where it matters: who is live, who fits, who is served next. It has no
//! clock but one rule: the server forgets a session only after its client's lease has ended.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers are part of the test"
)]

mod client;
mod explore;
mod server;
mod world;

use explore::{Outcome, explore};
use world::{Flaw, Form, Rules};

/// Three exclusive locks.
const EXCLUSIVE: [u8; 3] = [2, 2, 2];
/// A writer and two readers, or a large request and two small ones: it is the same to the server.
const MIXED: [u8; 3] = [2, 1, 1];

/// How much may happen in one run. What is explored grows tenfold with each.
const FAULTS: Rules = Rules {
    form: Form::Default,
    weights: EXCLUSIVE,
    flaw: Flaw::None,
    faults: 1,
    ticks: 0,
    gives_up: false,
};
const SECOND_THOUGHTS: Rules = Rules {
    faults: 0,
    ticks: 1,
    gives_up: true,
    ..FAULTS
};

fn holds(rules: Rules) {
    match explore(rules) {
        Outcome::Holds { states } => println!("{rules:?}: {states} states"),
        Outcome::Broken { what, path } => {
            panic!("{rules:?}: {what}, after\n  {}", path.join("\n  "))
        }
    }
}

fn fails(rules: Rules, expected: &str) {
    match explore(rules) {
        Outcome::Holds { states } => panic!("{rules:?}: not found in {states} states"),
        Outcome::Broken { what, path } => {
            println!("{rules:?}: {what}, after\n  {}", path.join("\n  "));
            assert!(what.contains(expected), "{rules:?}: {what}");
        }
    }
}

/// Everything that should hold, as `scope` says. `PORTALOCK_MODEL=deep` explores faults and second thoughts together, for
/// minutes.
fn checked(mut scope: Rules, form: Form, weights: [u8; 3]) {
    scope.form = form;
    scope.weights = weights;
    if std::env::var("PORTALOCK_MODEL").is_ok_and(|depth| depth == "deep") {
        scope.faults = scope.faults.max(1);
        scope.gives_up = true;
    }
    holds(scope);
}

/// A flaw, which must be found within `scope`.
fn flawed(scope: Rules, form: Form, weights: [u8; 3], flaw: Flaw, expected: &str) {
    let rules = Rules {
        form,
        weights,
        flaw,
        ..scope
    };
    fails(rules, expected);
}

#[test]
fn exclusive_locks_freed_with_their_connection() {
    checked(FAULTS, Form::Default, EXCLUSIVE);
}

#[test]
fn exclusive_locks_in_the_strict_form() {
    checked(FAULTS, Form::Strict, EXCLUSIVE);
}

#[test]
fn weights_freed_with_their_connection() {
    checked(FAULTS, Form::Default, MIXED);
}

#[test]
fn weights_in_the_strict_form() {
    checked(FAULTS, Form::Strict, MIXED);
}

#[test]
fn waits_that_are_given_up_and_waiters_that_look() {
    checked(SECOND_THOUGHTS, Form::Default, MIXED);
}

#[test]
fn a_grant_beside_a_live_holder_is_found() {
    let flaw = Flaw::GrantsBesideHolders;
    flawed(FAULTS, Form::Default, EXCLUSIVE, flaw, "hold together");
}

#[test]
fn a_release_that_serves_nobody_is_found() {
    let flaw = Flaw::ServesNobody;
    flawed(FAULTS, Form::Default, EXCLUSIVE, flaw, "forgotten");
}

#[test]
fn a_cancelled_head_that_serves_nobody_is_found() {
    let flaw = Flaw::CancelServesNobody;
    flawed(SECOND_THOUGHTS, Form::Default, MIXED, flaw, "forgotten");
}

#[test]
fn a_grant_to_a_dead_session_is_found() {
    let flaw = Flaw::GrantsToTheDead;
    flawed(FAULTS, Form::Strict, EXCLUSIVE, flaw, "forgotten");
}

#[test]
fn an_attempt_of_a_dead_session_is_found() {
    let flaw = Flaw::HearsTheDead;
    let scope = Rules {
        faults: 1,
        ticks: 0,
        ..SECOND_THOUGHTS
    };
    flawed(scope, Form::Default, EXCLUSIVE, flaw, "left behind");
}

#[test]
fn a_token_that_repeats_is_found() {
    let flaw = Flaw::RepeatsTokens;
    flawed(FAULTS, Form::Default, EXCLUSIVE, flaw, "token");
}

#[test]
fn a_session_forgotten_before_its_lease_is_found() {
    let flaw = Flaw::ForgetsTooEarly;
    flawed(FAULTS, Form::Strict, EXCLUSIVE, flaw, "hold together");
}

#[test]
fn a_strict_lock_freed_with_its_connection_is_found() {
    let flaw = Flaw::StrictIsNot;
    flawed(FAULTS, Form::Strict, EXCLUSIVE, flaw, "hold together");
}

#[test]
fn a_shape_that_no_longer_holds_is_found() {
    let flaw = Flaw::KeepsAStaleShape;
    flawed(FAULTS, Form::Default, MIXED, flaw, "hold together");
}
