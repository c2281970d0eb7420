//! The lock is lost while the command runs, because somebody deletes the lock file. Linux reports this.

#![cfg(target_os = "linux")]

use std::fs;

use rustix::process::{Signal, kill_process};

use crate::program::{Home, Running, wait_until, wait_until_gone};

/// Starts a command that prints its pid, and takes its lock away.
fn lose(home: &Home, words: &str, script: &str) -> (Running, rustix::process::Pid) {
    let mut running = Running::start(home.with_script(words, script));
    let command = running.pid_line();
    fs::remove_file(home.lock_file()).unwrap();
    (running, command)
}

#[test]
fn the_command_gets_sigterm_and_may_clean_up() {
    let home = Home::new();
    let script = "trap 'echo cleaned; exit 0' TERM; echo $$; while :; do sleep 0.01; done";
    let (running, _) = lose(&home, "deploy", script);
    running.finish().code(123).wrote("cleaned\n");
}

#[test]
fn a_loss_is_told_with_its_reason() {
    let home = Home::new();
    let (running, _) = lose(&home, "deploy", "echo $$; exec sleep 1000");
    let finished = running.finish();
    assert!(
        finished.stderr.contains("the lock was lost: "),
        "{finished:?}"
    );
    assert!(finished.stderr.contains("SIGTERM"), "{finished:?}");
}

#[test]
fn a_command_that_does_not_hear_sigterm_is_killed_after_the_grace_time() {
    let home = Home::new();
    let script = "trap '' TERM; echo $$; while :; do sleep 0.01; done";
    let (running, command) = lose(&home, "--grace 200ms deploy", script);
    running.finish().code(123);
    wait_until_gone(command);
}

#[test]
fn a_stopped_command_is_no_exception() {
    let home = Home::new();
    let script = "trap 'echo cleaned; exit 0' TERM; echo $$; while :; do sleep 0.01; done";
    let mut running = Running::start(home.with_script("--grace 1h deploy", script));
    let command = running.pid_line();
    kill_process(command, Signal::STOP).unwrap();
    fs::remove_file(home.lock_file()).unwrap();
    running.finish().code(123).wrote("cleaned\n");
    wait_until_gone(command);
}

#[test]
fn on_lost_kill_does_not_ask() {
    let home = Home::new();
    let script = "trap 'echo asked' TERM; echo $$; while :; do sleep 0.01; done";
    let (running, _) = lose(&home, "--on-lost kill deploy", script);
    running.finish().code(123).wrote("");
}

#[test]
fn on_lost_ignore_lets_it_run_on() {
    let home = Home::new();
    let script = "echo $$; read line; echo still here; exit 7";
    let (running, _) = lose(&home, "--on-lost ignore deploy", script);
    // Another client can lock the new file, so the lock is really lost.
    assert!(home.is_free("deploy"));
    let finished = running.finish();
    finished.code(7).wrote("still here\n");
    assert!(
        finished.stderr.contains("runs on without it"),
        "{finished:?}"
    );
}

#[test]
fn without_a_terminal_all_that_the_command_started_ends_with_it() {
    let home = Home::new();
    let mut command = home.through(&["setsid"], "--grace 10s deploy -- sh -c");
    // The command itself ends at once, but its child ignores the signal.
    command.arg("sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.01; done' & wait");
    let (running, grandchild) = {
        let mut running = Running::start(command);
        let grandchild = running.pid_line();
        fs::remove_file(home.lock_file()).unwrap();
        (running, grandchild)
    };
    running.finish().code(123);
    wait_until_gone(grandchild);
}

#[test]
fn one_of_several_names_is_enough() {
    let home = Home::new();
    let mut running = Running::start(home.with_script("a --also b", "echo $$; exec sleep 1000"));
    running.line();
    let mut files: Vec<_> = fs::read_dir(home.locks())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    assert_eq!(files.len(), 2);
    fs::remove_file(&files[1]).unwrap();
    running.finish().code(123);
}

#[test]
fn a_loss_while_another_name_is_waited_for_ends_the_wait() {
    let home = Home::new();
    let holder = home.hold("b");
    let waiter = Running::start(home.with_lock("a --also b -- echo ran"));
    wait_until(|| !home.is_free("a"));
    home.run("break --yes a").code(0);
    waiter
        .finish()
        .code(123)
        .wrote("")
        .said("the command was not run");
    holder.finish().code(0);
}

#[test]
fn a_permit_is_lost_as_a_lock_is() {
    let home = Home::new();
    let (running, _) = lose(&home, "--permits 1/3 pool", "echo $$; exec sleep 1000");
    running.finish().code(123);
}
