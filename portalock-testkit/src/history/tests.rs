//! Histories with known results.

use std::time::Duration;

use portalock_core::{
    Capabilities, CrashRelease, Fairness, FencingToken, LockName, LossNotice, Mode, Permits, Scope,
    Tokens,
};

use super::{Happened, History, Recorder, Violation};

struct Story(History);

impl Story {
    fn new() -> Self {
        Self(History::default())
    }

    fn then(mut self, acquisition: u64, what: Happened) -> Self {
        let last = self
            .0
            .events
            .last()
            .map_or(Duration::ZERO, |event| event.at);
        let at = last + Duration::from_millis(1);
        self.0.push(at, acquisition, what);
        self
    }

    fn later(mut self, seconds: u64, acquisition: u64, what: Happened) -> Self {
        let last = self
            .0
            .events
            .last()
            .map_or(Duration::ZERO, |event| event.at);
        self.0
            .push(last + Duration::from_secs(seconds), acquisition, what);
        self
    }

    fn asks(self, acquisition: u64, mode: Mode) -> Self {
        let what = Happened::Asked {
            client: usize::try_from(acquisition).unwrap(),
            name: LockName::new("job").unwrap(),
            mode,
        };
        self.then(acquisition, what)
    }

    fn asks_permits(self, acquisition: u64, count: u32, capacity: u32) -> Self {
        let what = Happened::AskedPermits {
            client: usize::try_from(acquisition).unwrap(),
            name: LockName::new("job").unwrap(),
            permits: Permits::new(count, capacity).unwrap(),
        };
        self.then(acquisition, what)
    }

    fn granted(self, acquisition: u64, token: u64) -> Self {
        let token = Some(FencingToken::new(token));
        self.then(acquisition, Happened::Granted { token })
    }

    fn released(self, acquisition: u64) -> Self {
        self.then(acquisition, Happened::Releasing)
            .then(acquisition, Happened::Released)
    }

    fn violations(&self) -> Vec<Violation> {
        self.0.check(
            &Capabilities::new(Scope::Network)
                .with_shared(true)
                .with_tokens(Tokens::Growing)
                .with_fairness(Fairness::FirstCome)
                .with_crash_release(CrashRelease::Within(Duration::from_secs(1)))
                .with_loss(LossNotice::BeforeSuccessor),
        )
    }
}

use Mode::{Exclusive, Shared};

#[test]
fn taking_turns_is_fine() {
    let story = Story::new()
        .asks(1, Exclusive)
        .asks(2, Exclusive)
        .granted(1, 10)
        .then(2, Happened::Queued)
        .released(1)
        .granted(2, 11)
        .released(2);
    assert_eq!(story.violations(), []);
}

#[test]
fn readers_together_are_fine_in_any_order_of_their_tokens() {
    let story = Story::new()
        .asks(1, Shared)
        .asks(2, Shared)
        .granted(1, 11)
        .granted(2, 10)
        .released(1)
        .released(2);
    assert_eq!(story.violations(), []);
}

#[test]
fn an_overlap_is_found() {
    for (one, other) in [
        (Exclusive, Exclusive),
        (Shared, Exclusive),
        (Exclusive, Shared),
    ] {
        let story = Story::new()
            .asks(1, one)
            .asks(2, other)
            .granted(1, 10)
            .granted(2, 11);
        assert!(
            matches!(
                story.violations()[..],
                [Violation::Overlap {
                    earlier: 1,
                    later: 2,
                    ..
                }]
            ),
            "{:?}",
            story.violations()
        );
    }
}

#[test]
fn a_successor_after_a_known_loss_or_a_crash_is_fine() {
    for end in [Happened::Lost, Happened::Crashed] {
        let story = Story::new()
            .asks(1, Exclusive)
            .asks(2, Exclusive)
            .granted(1, 10)
            .then(1, end)
            .granted(2, 11);
        assert_eq!(story.violations(), []);
    }
}

#[test]
fn a_loss_that_is_known_too_late_is_an_overlap_unless_declared() {
    let story = Story::new()
        .asks(1, Exclusive)
        .asks(2, Exclusive)
        .granted(1, 10)
        .granted(2, 11)
        .then(1, Happened::Lost);
    assert_eq!(story.violations().len(), 1);
    let declared =
        Capabilities::new(Scope::Network).with_loss(LossNotice::Within(Duration::from_secs(1)));
    assert_eq!(story.0.check(&declared), []);
    let story = Story::new()
        .asks(1, Exclusive)
        .asks(2, Exclusive)
        .granted(1, 10)
        .granted(2, 11)
        .later(60, 1, Happened::Lost);
    assert_eq!(story.0.check(&declared).len(), 1);
}

#[test]
fn one_who_let_go_of_what_had_been_taken_away_is_fine_if_declared() {
    let told_late =
        Capabilities::new(Scope::Network).with_loss(LossNotice::Within(Duration::from_secs(1)));
    let overlap = || Story::new().asks(1, Exclusive).asks(2, Exclusive);
    let robbed = overlap()
        .granted(1, 10)
        .then(1, Happened::TakenAway)
        .granted(2, 11)
        .released(1);
    assert_eq!(robbed.0.check(&told_late), []);
    assert_eq!(robbed.violations().len(), 1);
    let not_robbed = overlap().granted(1, 10).granted(2, 11).released(1);
    assert_eq!(not_robbed.0.check(&told_late).len(), 1);
    let never_told = overlap()
        .granted(1, 10)
        .then(1, Happened::TakenAway)
        .granted(2, 11)
        .later(60, 1, Happened::Releasing);
    assert_eq!(never_told.0.check(&told_late).len(), 1);
}

/// A taking is recorded before it happens: a request in between may be granted and taken away at once.
#[test]
fn one_who_asks_while_the_lock_is_being_taken_away_is_noted_as_robbed() {
    let name = LockName::new("job").unwrap();
    let other = LockName::new("other").unwrap();
    let recorder = Recorder::new();
    let before = recorder.asked(0, name.clone(), Exclusive);
    recorder.taking_away(&name);
    let meanwhile = recorder.asked(1, name.clone(), Exclusive);
    recorder.asked(1, other, Exclusive);
    recorder.taken_away();
    recorder.asked(2, name, Exclusive);
    let history = recorder.history();
    let robbed: Vec<u64> = history
        .events()
        .iter()
        .filter(|event| event.what == Happened::TakenAway)
        .map(|event| event.acquisition)
        .collect();
    assert_eq!(robbed, [before, meanwhile]);
}

#[test]
fn tokens_that_repeat_or_fall_or_lack_are_found() {
    for token in [Some(10), Some(9), None] {
        let story = Story::new()
            .asks(1, Exclusive)
            .granted(1, 10)
            .released(1)
            .asks(2, Exclusive)
            .then(
                2,
                Happened::Granted {
                    token: token.map(FencingToken::new),
                },
            )
            .released(2);
        assert!(
            matches!(
                story.violations()[..],
                [Violation::Token { acquisition: 2, .. }]
            ),
            "{token:?}: {:?}",
            story.violations()
        );
    }
}

#[test]
fn a_reader_that_asked_after_another_was_granted_needs_a_larger_token() {
    let story = Story::new()
        .asks(1, Shared)
        .granted(1, 10)
        .asks(2, Shared)
        .granted(2, 9);
    assert_eq!(story.violations().len(), 1);
}

#[test]
fn one_who_overtakes_is_found() {
    let story = Story::new()
        .asks(1, Exclusive)
        .granted(1, 10)
        .asks(2, Exclusive)
        .then(2, Happened::Queued)
        .asks(3, Exclusive)
        .released(1)
        .granted(3, 11)
        .released(3)
        .granted(2, 12)
        .released(2);
    assert!(matches!(
        story.violations()[..],
        [Violation::Overtaken {
            earlier: 2,
            later: 3,
            ..
        }]
    ));
    let unordered = Capabilities::new(Scope::Network);
    assert_eq!(story.0.check(&unordered), []);
}

#[test]
fn one_who_asked_first_and_was_placed_late_may_be_overtaken() {
    let story = Story::new()
        .asks(1, Exclusive)
        .granted(1, 10)
        .asks(2, Exclusive)
        .asks(3, Exclusive)
        .then(2, Happened::Queued)
        .released(1)
        .granted(3, 11)
        .released(3)
        .granted(2, 12)
        .released(2);
    assert_eq!(story.violations(), []);
}

#[test]
fn a_waiter_that_times_out_on_a_free_lock_is_found() {
    let base = || {
        Story::new()
            .asks(1, Exclusive)
            .granted(1, 10)
            .asks(2, Exclusive)
    };
    let forgotten = base().released(1).later(15, 2, Happened::TimedOut);
    assert!(matches!(
        forgotten.violations()[..],
        [Violation::Forgotten { acquisition: 2, .. }]
    ));
    let still_held = base().later(15, 2, Happened::TimedOut).released(1);
    assert_eq!(still_held.violations(), []);
    let just_released = base()
        .later(15, 1, Happened::Releasing)
        .then_now(1, Happened::Released)
        .then_now(2, Happened::TimedOut);
    assert_eq!(just_released.violations(), []);
}

#[test]
fn an_acquisition_without_an_end_is_found() {
    let story = Story::new().asks(1, Exclusive).then(1, Happened::Queued);
    assert!(matches!(
        story.violations()[..],
        [Violation::Unanswered { acquisition: 1, .. }]
    ));
}

impl Story {
    fn then_now(self, acquisition: u64, what: Happened) -> Self {
        self.later(0, acquisition, what)
    }
}

#[test]
fn permits_that_exist_are_fine_beside_a_lock_of_the_same_name() {
    let story = Story::new()
        .asks(1, Exclusive)
        .granted(1, 10)
        .asks_permits(2, 2, 3)
        .asks_permits(3, 1, 3)
        .granted(3, 6)
        .granted(2, 5)
        .asks_permits(4, 2, 3)
        .released(2)
        .granted(4, 7);
    assert_eq!(story.violations(), []);
}

#[test]
fn more_permits_than_there_are_is_found() {
    let late =
        Capabilities::new(Scope::Network).with_loss(LossNotice::Within(Duration::from_secs(1)));
    for (one, other, capacity) in [
        ((2, 3), (2, 3), 3),
        ((1, 1), (1, 3), 1),
        ((2, 3), (1, 2), 2),
    ] {
        let story = Story::new()
            .asks_permits(1, one.0, one.1)
            .asks_permits(2, other.0, other.1)
            .granted(1, 5)
            .granted(2, 6);
        assert!(
            matches!(
                story.violations()[..],
                [Violation::Crowded { acquisition: 2, held, capacity: smallest, .. }]
                    if held == u64::from(one.0 + other.0) && smallest == capacity
            ),
            "{:?}",
            story.violations()
        );
        assert_eq!(story.0.check(&late).len(), 1);
        let told = story.then(1, Happened::Lost);
        assert_eq!(told.violations().len(), 1);
        assert_eq!(told.0.check(&late), []);
    }
}

#[test]
fn a_small_request_for_permits_that_overtakes_is_found() {
    let story = Story::new()
        .asks_permits(1, 2, 3)
        .granted(1, 5)
        .asks_permits(2, 3, 3)
        .then(2, Happened::Queued)
        .asks_permits(3, 1, 3)
        .granted(3, 6)
        .released(1)
        .released(3)
        .granted(2, 7);
    assert!(matches!(
        story.violations()[..],
        [Violation::Overtaken {
            earlier: 2,
            later: 3,
            ..
        }]
    ));
}

#[test]
fn a_token_of_permits_grows_from_one_grant_to_the_next_request() {
    let story = Story::new()
        .asks_permits(1, 1, 3)
        .granted(1, 5)
        .asks_permits(2, 1, 3)
        .granted(2, 4);
    assert!(matches!(
        story.violations()[..],
        [Violation::Token { acquisition: 2, .. }]
    ));
}
