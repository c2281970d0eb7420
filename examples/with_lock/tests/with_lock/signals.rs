//! Signals to `with_lock` reach its command; before the command runs, they end the wait.

use rustix::process::Signal;

use crate::program::{Home, Running, wait_until, wait_until_gone};

#[cfg(target_os = "linux")]
const TRAPS: &str =
    "trap 'echo hup' HUP; trap 'echo term' TERM; trap 'echo usr1' USR1; trap 'echo usr2' USR2
    trap 'echo int' INT; trap 'echo quit; exit 5' QUIT; echo ready; while :; do sleep 0.01; done";

/// A command without a terminal, with its own process group.
#[cfg(target_os = "linux")]
fn detached(home: &Home, script: &str) -> Running {
    let mut command = home.through(&["setsid"], "deploy -- sh -c");
    command.arg(script);
    Running::start(command)
}

#[cfg(target_os = "linux")]
#[test]
fn signals_are_passed_on_and_with_lock_stays_with_its_command() {
    let home = Home::new();
    let mut running = detached(&home, TRAPS);
    assert_eq!(running.line(), "ready");
    for (signal, answer) in [
        (Signal::HUP, "hup"),
        (Signal::TERM, "term"),
        (Signal::USR1, "usr1"),
        (Signal::USR2, "usr2"),
        (Signal::INT, "int"),
    ] {
        running.signal(signal);
        assert_eq!(running.line(), answer);
    }
    assert!(!home.is_free("deploy"));
    running.signal(Signal::QUIT);
    running.finish().code(5).wrote("quit\n");
}

#[test]
fn sigterm_ends_a_command_that_does_not_care_and_with_lock_by_the_same() {
    let home = Home::new();
    let mut running = Running::start(home.with_script("deploy", "echo $$; exec sleep 1000"));
    let command = running.pid_line();
    running.signal(Signal::TERM);
    running.finish().by(Signal::TERM).silent();
    wait_until_gone(command);
    assert!(home.is_free("deploy"));
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_terminal_what_the_command_started_is_signalled_too() {
    let home = Home::new();
    let mut running = detached(&home, "sh -c 'echo $$; exec sleep 1000'; echo never");
    let grandchild = running.pid_line();
    running.signal(Signal::TERM);
    running.finish().by(Signal::TERM).wrote("");
    wait_until_gone(grandchild);
}

#[test]
fn a_wait_ends_by_the_signal_and_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let home = Home::new();
        let holder = home.hold("b");
        // It holds `a` while it waits for `b`, so the test can see that it waits.
        let waiter = Running::start(home.with_lock("a --also b -- echo ran"));
        wait_until(|| !home.is_free("a"));
        waiter.signal(signal);
        waiter.finish().by(signal).wrote("").silent();
        assert!(home.is_free("a"));
        holder.finish().code(0);
        assert!(home.is_free("b"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_ignored_from_the_start_stays_ignored() {
    let home = Home::new();
    // Like `nohup`. The command prints a line, and ends on request.
    let ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"];
    let mut command = home.through(&ignoring, "deploy -- sh -c");
    command.arg("echo ready; read line; kill -HUP $$; echo alive");
    let mut running = Running::start(command);
    assert_eq!(running.line(), "ready");
    running.signal(Signal::HUP);
    running.finish().code(0).wrote("alive\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_caller_that_ignores_its_children_gets_the_exit_code_too() {
    let home = Home::new();
    let ignoring = ["env", "--ignore-signal=CHLD"];
    let mut command = home.through(&ignoring, "deploy -- sh -c");
    command.arg("exit 7");
    Running::start(command).finish().code(7).silent();
    assert!(home.is_free("deploy"));
}

#[cfg(target_os = "linux")]
#[test]
fn stopping_and_going_on_are_passed_on() {
    let home = Home::new();
    let mut running = detached(&home, "echo $$; exec sleep 1000");
    let command = running.pid_line();
    let state = |pid: rustix::process::Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let stat = stat.unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    running.signal(Signal::TSTP);
    wait_until(|| state(command) == 'T' && state(running.pid) == 'T');
    running.signal(Signal::CONT);
    wait_until(|| state(command) == 'S' && state(running.pid) == 'S');
    running.signal(Signal::TERM);
    running.finish().by(Signal::TERM);
}
