//! An exhaustive check of the protocol: every order in which clients, their connections and the server can act. At any
//! moment, connections of sessions and of calls break, processes crash, servers restart with and without their data,
//! sessions expire, waits end, and messages are lost or late.
//!
//! The model follows the scripts line by line where it matters: which sessions are alive, which claims fit, and which
//! waiter is next. Instead of a clock, it has three rules. The server forgets a session only after the lease of its
//! client has ended. A server without its data lets a session begin only after all leases have ended. And a replica
//! that was promoted, with or without the last write, receives no command that can grant, until each lease has ended or
//! its session was resumed there.

#![allow(
    clippy::panic,
    clippy::struct_excessive_bools,
    clippy::unwrap_used,
    reason = "a test's helpers are part of the test"
)]

mod client;
mod explore;
mod operator;
mod promises;
mod server;
mod world;

use explore::{Outcome, explore};
use world::{Flaw, Form, Rules};

/// Three exclusive locks.
const EXCLUSIVE: [u8; 3] = [2, 2, 2];
/// A writer and two readers, or a large request and two small ones: the server sees no difference.
const MIXED: [u8; 3] = [2, 1, 1];
/// Two exclusive locks only, with more than one fault.
const TWO: [u8; 3] = [2, 2, 0];

/// How much may happen in one run. Each setting that is raised gives about ten times as many states to explore.
const FAULTS: Rules = Rules {
    form: Form::Default,
    weights: EXCLUSIVE,
    flaw: Flaw::None,
    faults: 1,
    ticks: 0,
    gives_up: false,
    begins: true,
    cuts: true,
    promotes: false,
    neighbours: 1,
    breaks: false,
    brief: false,
};
/// A replica replaces the server.
const PROMOTION: Rules = Rules {
    gives_up: true,
    promotes: true,
    ..FAULTS
};
const SECOND_THOUGHTS: Rules = Rules {
    faults: 0,
    ticks: 1,
    gives_up: true,
    ..FAULTS
};
/// A fault, and callers that stop waiting.
const FAULTS_AND_CANCELLATION: Rules = Rules {
    gives_up: true,
    ..FAULTS
};
/// Two owners in one session, and one in another.
const NEIGHBOURS: Rules = Rules {
    begins: false,
    neighbours: 2,
    ..FAULTS
};
/// Three owners in one session, of which any may give up.
const THREE_NEIGHBOURS: Rules = Rules {
    neighbours: 3,
    ..SECOND_THOUGHTS
};
/// Two owners in one session and one in another, and a replica that replaces the server.
const NEIGHBOURS_AND_PROMOTION: Rules = Rules {
    cuts: false,
    promotes: true,
    ..NEIGHBOURS
};
/// An operator breaks a lock while a fault happens, such as a promotion that loses the mark.
const BREAK: Rules = Rules {
    promotes: true,
    breaks: true,
    ..FAULTS
};
/// Two faults in one run.
const FAULT_UPON_FAULT: Rules = Rules {
    faults: 2,
    begins: false,
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

/// Checks all promises within `scope`.
fn checked(scope: Rules, form: Form, weights: [u8; 3]) {
    holds(Rules {
        form,
        weights,
        ..scope
    });
}

/// Checks that a flaw is found within `scope`.
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
fn faults_and_cancellation() {
    checked(FAULTS_AND_CANCELLATION, Form::Default, TWO);
}

#[test]
fn faults_and_cancellation_without_notice() {
    checked(FAULTS_AND_CANCELLATION, Form::WithoutNotice, TWO);
}

#[test]
fn a_promotion() {
    checked(PROMOTION, Form::Default, TWO);
}

#[test]
fn fault_upon_fault() {
    checked(FAULT_UPON_FAULT, Form::Default, TWO);
}

#[test]
fn fault_upon_fault_without_notice() {
    checked(FAULT_UPON_FAULT, Form::WithoutNotice, TWO);
}

#[test]
fn neighbours_that_give_up() {
    checked(THREE_NEIGHBOURS, Form::Default, EXCLUSIVE);
    let scope = Rules {
        neighbours: 2,
        ..SECOND_THOUGHTS
    };
    checked(scope, Form::Default, EXCLUSIVE);
}

#[test]
fn neighbours_with_faults_and_cancellation() {
    let scope = Rules {
        neighbours: 2,
        ..FAULTS_AND_CANCELLATION
    };
    checked(scope, Form::Default, TWO);
    checked(scope, Form::WithoutNotice, TWO);
}

#[test]
fn a_lock_that_is_broken() {
    checked(BREAK, Form::Default, TWO);
    let scope = Rules {
        neighbours: 2,
        ..BREAK
    };
    checked(scope, Form::Default, TWO);
}

#[test]
fn waits_that_are_given_up_and_waiters_that_look() {
    checked(SECOND_THOUGHTS, Form::Default, MIXED);
    let scope = Rules {
        brief: true,
        ..SECOND_THOUGHTS
    };
    checked(scope, Form::Default, MIXED);
    checked(scope, Form::Default, EXCLUSIVE);
}

/// Checks that need minutes and gigabytes.
mod deep {
    use super::*;

    #[test]
    #[ignore = "takes minutes"]
    fn three_exclusive_locks() {
        checked(FAULTS, Form::Default, EXCLUSIVE);
        checked(FAULTS, Form::WithoutNotice, EXCLUSIVE);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn a_large_request_and_two_small_ones() {
        checked(FAULTS, Form::Default, MIXED);
        checked(FAULTS, Form::WithoutNotice, MIXED);
    }

    #[test]
    #[ignore = "takes as long as the default form, which differs more"]
    fn a_promotion_without_notice() {
        checked(PROMOTION, Form::WithoutNotice, TWO);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn neighbours_and_a_promotion() {
        checked(NEIGHBOURS_AND_PROMOTION, Form::Default, EXCLUSIVE);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn neighbours_beside_another_session() {
        checked(NEIGHBOURS, Form::Default, EXCLUSIVE);
        checked(NEIGHBOURS, Form::WithoutNotice, EXCLUSIVE);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn brief_checks_and_a_fault() {
        for weights in [EXCLUSIVE, MIXED] {
            let scope = Rules {
                brief: true,
                ..NEIGHBOURS
            };
            checked(scope, Form::Default, weights);
            checked(scope, Form::WithoutNotice, weights);
        }
    }

    #[test]
    #[ignore = "takes minutes"]
    fn two_faults_and_cancellation() {
        let scope = Rules {
            gives_up: true,
            begins: true,
            ..FAULT_UPON_FAULT
        };
        checked(scope, Form::Default, TWO);
        checked(scope, Form::WithoutNotice, TWO);
    }
}

#[test]
fn a_grant_beside_a_live_holder_is_found() {
    let flaw = Flaw::GrantsBesideHolders;
    flawed(FAULTS, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_release_that_serves_nobody_is_found() {
    let flaw = Flaw::ServesNobody;
    flawed(FAULTS, Form::Default, TWO, flaw, "forgotten");
}

#[test]
fn a_cancelled_head_that_serves_nobody_is_found() {
    let flaw = Flaw::CancelServesNobody;
    flawed(SECOND_THOUGHTS, Form::Default, MIXED, flaw, "forgotten");
}

#[test]
fn a_grant_to_a_dead_session_is_found() {
    let flaw = Flaw::GrantsToTheDead;
    flawed(FAULTS, Form::Default, EXCLUSIVE, flaw, "forgotten");
}

#[test]
fn a_check_left_to_a_dead_waiter_is_found() {
    let flaw = Flaw::LeavesItToTheDead;
    let scope = Rules {
        brief: true,
        ..NEIGHBOURS
    };
    flawed(scope, Form::Default, EXCLUSIVE, flaw, "forgotten");
}

#[test]
fn an_attempt_of_a_dead_session_is_found() {
    let flaw = Flaw::HearsTheDead;
    flawed(FAULTS, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_token_that_repeats_is_found() {
    let flaw = Flaw::RepeatsTokens;
    flawed(FAULTS, Form::Default, TWO, flaw, "token");
}

#[test]
fn a_session_forgotten_before_its_lease_is_found() {
    let flaw = Flaw::ForgetsTooEarly;
    flawed(FAULTS, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_lock_freed_with_its_connection_is_found() {
    let flaw = Flaw::FreesWithTheConnection;
    flawed(FAULTS, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_shape_that_no_longer_holds_is_found() {
    let flaw = Flaw::KeepsAStaleShape;
    flawed(FAULTS, Form::Default, MIXED, flaw, "hold together");
}

#[test]
fn an_old_connection_that_acts_is_found() {
    let flaw = Flaw::IgnoresStamps;
    flawed(
        FAULTS_AND_CANCELLATION,
        Form::Default,
        TWO,
        flaw,
        "left behind",
    );
}

#[test]
fn a_withdrawal_of_what_may_still_arrive_is_found() {
    let flaw = Flaw::WithdrawsWhatMayArrive;
    flawed(
        FAULTS_AND_CANCELLATION,
        Form::Default,
        TWO,
        flaw,
        "left behind",
    );
}

#[test]
fn a_session_resumed_after_the_server_gave_it_away_is_found() {
    let flaw = Flaw::ResumesTheForgotten;
    flawed(FAULTS, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_grant_that_nobody_looks_for_is_found() {
    let flaw = Flaw::ForgetsToLook;
    flawed(FAULTS, Form::Default, TWO, flaw, "does not know it");
}

#[test]
fn a_late_look_whose_grant_is_told_to_nobody_is_found() {
    let flaw = Flaw::TellsOnlyTheOthers;
    flawed(
        FAULT_UPON_FAULT,
        Form::Default,
        TWO,
        flaw,
        "does not know it",
    );
}

#[test]
fn a_server_without_its_data_that_lets_newcomers_in_is_found() {
    let flaw = Flaw::NoWaitAfterARestart;
    flawed(FAULTS, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_promoted_replica_that_grants_at_once_is_found() {
    let flaw = Flaw::NoWaitAfterAPromotion;
    flawed(PROMOTION, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_token_of_a_waiter_that_is_given_again_is_found() {
    let flaw = Flaw::ForgetsTokensOfWaiters;
    flawed(NEIGHBOURS, Form::Default, EXCLUSIVE, flaw, "token");
}

#[test]
fn a_take_over_from_one_who_gave_up_is_found() {
    let flaw = Flaw::FollowsWhoGivesUp;
    flawed(
        THREE_NEIGHBOURS,
        Form::Default,
        EXCLUSIVE,
        flaw,
        "hold together",
    );
}

#[test]
fn a_release_that_frees_the_holder_ahead_is_found() {
    let flaw = Flaw::FreesTheHolderAhead;
    flawed(
        THREE_NEIGHBOURS,
        Form::Default,
        EXCLUSIVE,
        flaw,
        "hold together",
    );
}

#[test]
fn a_take_over_across_others_is_found() {
    let flaw = Flaw::FollowsAcrossOthers;
    flawed(NEIGHBOURS, Form::Default, EXCLUSIVE, flaw, "hold together");
}

#[test]
fn a_turn_that_outlives_its_server_is_found() {
    let flaw = Flaw::KeepsTurns;
    flawed(
        NEIGHBOURS_AND_PROMOTION,
        Form::Default,
        EXCLUSIVE,
        flaw,
        "does not know it",
    );
}

#[test]
fn a_check_that_sees_no_turns_is_found() {
    let flaw = Flaw::SeesNoTurns;
    flawed(
        NEIGHBOURS,
        Form::Default,
        EXCLUSIVE,
        flaw,
        "does not know it",
    );
}

#[test]
fn a_mark_that_a_refresh_ignores_is_found() {
    let flaw = Flaw::IgnoresMarks;
    let scope = Rules { faults: 0, ..BREAK };
    flawed(scope, Form::Default, TWO, flaw, "hold together");
}

#[test]
fn a_hold_that_is_ended_by_the_time_of_a_lost_mark_is_found() {
    let flaw = Flaw::CountsFromTheFirstMark;
    flawed(BREAK, Form::Default, TWO, flaw, "hold together");
}
