//! `kill -9` of either side.

#[cfg(target_os = "linux")]
use rustix::process::test_kill_process;
use rustix::process::{Signal, kill_process};

use crate::program::{Home, Running};
#[cfg(target_os = "linux")]
use crate::program::{wait_until, wait_until_gone};

#[test]
fn a_killed_command_frees_the_lock_and_with_lock_dies_as_it_did() {
    let home = Home::new();
    let mut running = Running::start(home.with_script("deploy", "echo $$; exec sleep 1000"));
    let command = running.pid_line();
    assert!(!home.is_free("deploy"));
    kill_process(command, Signal::KILL).unwrap();
    running.finish().by(Signal::KILL).silent();
    assert!(home.is_free("deploy"));
}

#[test]
fn a_killed_with_lock_frees_the_lock() {
    let home = Home::new();
    let holder = home.hold("deploy");
    let waiter = Running::start(home.with_lock("deploy -- echo next"));
    holder.signal(Signal::KILL);
    waiter.finish().code(0).wrote("next\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_with_lock_does_not_leave_its_command_running() {
    for (on_lost, script) in [
        ("term", "echo $$; exec sleep 1000"),
        ("kill", "trap '' TERM; echo $$; sleep 1000; sleep 1000"),
    ] {
        let home = Home::new();
        let words = format!("--on-lost {on_lost} deploy");
        let mut running = Running::start(home.with_script(&words, script));
        let command = running.pid_line();
        running.signal(Signal::KILL);
        wait_until_gone(command);
        wait_until(|| home.is_free("deploy"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_with_lock_leaves_its_command_alone_if_a_loss_is_to_be_ignored() {
    let home = Home::new();
    let words = "--on-lost ignore deploy";
    let mut running = Running::start(home.with_script(words, "echo $$; exec sleep 1000"));
    let command = running.pid_line();
    running.signal(Signal::KILL);
    running.status();
    wait_until(|| home.is_free("deploy"));
    test_kill_process(command).unwrap();
    kill_process(command, Signal::KILL).unwrap();
}
