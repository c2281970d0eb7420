//! A held lock: waiting, not waiting, giving up; several names; shared locks.

use std::time::{Duration, Instant};

use crate::program::{Home, Running, wait_until};

#[test]
fn a_second_one_waits_for_the_first() {
    let home = Home::new();
    let log = home.path("log");
    let first = home.hold("deploy");
    let mut command = home.with_lock("deploy -- tee -a");
    command.arg(&log);
    let second = Running::start(command);
    // It waits while the first one holds the lock, so it has not created its file.
    assert!(!home.is_free("deploy"));
    assert!(!log.exists());
    first.finish().code(0);
    second.finish().code(0).silent();
    assert!(log.exists());
}

#[test]
fn many_take_turns() {
    let home = Home::new();
    let log = home.path("log");
    let script = format!("echo + >>{0}; echo - >>{0}", log.display());
    let all: Vec<_> = (0..10)
        .map(|_| Running::start(home.with_script("deploy", &script)))
        .collect();
    for one in all {
        one.finish().code(0).silent();
    }
    assert_eq!(std::fs::read_to_string(log).unwrap(), "+\n-\n".repeat(10));
}

#[test]
fn a_timeout_is_124_and_names_the_holder() {
    let home = Home::new();
    let holder = home.hold("--label tuesday's deploy");
    let start = Instant::now();
    let refused = home.run("--timeout 300ms deploy -- echo ran");
    assert!(start.elapsed() >= Duration::from_millis(300));
    let pid = format!("held by pid {} on ", holder.pid.as_raw_nonzero());
    refused
        .code(124)
        .wrote("")
        .said("deploy was not granted within")
        .said(&pid)
        .said("tuesday's");
    home.run("--timeout 0s deploy -- echo ran")
        .code(124)
        .wrote("")
        .said(&pid);
    holder.finish().code(0);
    home.run("--timeout 0s deploy -- echo ran")
        .code(0)
        .wrote("ran\n");
}

#[test]
fn non_blocking_is_124_at_once() {
    let home = Home::new();
    let holder = home.hold("deploy");
    home.run("--non-blocking deploy -- echo ran")
        .code(124)
        .wrote("")
        .said("deploy is already locked, held by pid");
    holder.finish().code(0);
    home.run("--non-blocking deploy -- echo ran")
        .code(0)
        .wrote("ran\n");
}

#[test]
fn the_conflict_exit_code_can_be_chosen_and_the_line_left_out() {
    let home = Home::new();
    let _holder = home.hold("deploy");
    home.run("-n -E 0 deploy -- false")
        .code(0)
        .said("already locked");
    home.run("-n -q --conflict-exit-code 77 deploy -- true")
        .code(77)
        .silent();
    home.run("-t 10ms -qE 200 deploy -- true")
        .code(200)
        .silent();
}

#[test]
fn shared_locks_stand_beside_each_other_and_not_beside_an_exclusive_one() {
    let home = Home::new();
    let reader = home.hold("--shared data");
    let other_reader = home.hold("-s data");
    home.run("-n data -- true")
        .code(124)
        .said("data is already locked");
    reader.finish().code(0);
    home.run("-n data -- true")
        .code(124)
        .said("data is already locked");
    other_reader.finish().code(0);
    let writer = home.hold("data");
    home.run("-n --shared data -- true")
        .code(124)
        .said("data is already locked");
    writer.finish().code(0);
}

#[test]
fn several_names_are_held_together_or_not_at_all() {
    let home = Home::new();
    let holder = home.hold("b");
    home.run("-n a --also b --also c -- true")
        .code(124)
        .said("b is already locked");
    home.run("-t 100ms c -a b -a a -- true")
        .code(124)
        .said("b was not granted");
    assert!(home.is_free("a") && home.is_free("c"));
    holder.finish().code(0);
    let all = home.hold("a --also b --also c");
    for name in ["a", "b", "c"] {
        assert!(!home.is_free(name));
    }
    all.finish().code(0);
    for name in ["a", "b", "c"] {
        assert!(home.is_free(name));
    }
}

#[test]
fn names_in_opposite_orders_do_not_wait_for_each_other_for_ever() {
    let home = Home::new();
    let all: Vec<_> = (0..12)
        .map(|number| {
            let words = if number % 2 == 0 {
                "a --also b -- true"
            } else {
                "b --also a -- true"
            };
            Running::start(home.with_lock(words))
        })
        .collect();
    for one in all {
        one.finish().code(0);
    }
}

#[test]
fn other_names_and_other_directories_do_not_meet() {
    let home = Home::new();
    let _holder = home.hold("deploy");
    home.run("-n Deploy -- true").code(0);
    home.run("-n deploy/ -- true").code(0);
    home.run("-n ../deploy -- true").code(0);
    let elsewhere = format!("-n fs:{} deploy -- true", home.path("x").display());
    home.run(&elsewhere).code(0);
    wait_until(|| !home.is_free("deploy"));
}
