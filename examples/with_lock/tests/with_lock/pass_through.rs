//! What is passed through: arguments, environment, input, output, exit codes.

#[cfg(target_os = "linux")]
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;

use crate::program::{Home, Running};

#[test]
fn the_arguments_arrive_as_they_are() {
    let home = Home::new();
    let mut command = home.with_lock("deploy -- printf %s\\n");
    command.args(["a  b", "$HOME", "*", "", "--", "-t", "'\"\\"]);
    Running::start(command)
        .finish()
        .code(0)
        .wrote("a  b\n$HOME\n*\n\n--\n-t\n'\"\\\n")
        .silent();
}

#[test]
fn the_exit_code_is_the_commands() {
    let home = Home::new();
    for code in [0, 1, 7, 255] {
        home.run_script("deploy", &format!("exit {code}"))
            .code(code)
            .silent();
    }
}

#[test]
fn a_command_that_is_not_found_is_127_and_one_that_cannot_run_126() {
    let home = Home::new();
    home.run("deploy -- no-such-command")
        .code(127)
        .said("not found");
    home.run("deploy -- /etc/passwd")
        .code(126)
        .said("can't run /etc/passwd");
    home.run("--on-lost ignore deploy -- no-such-command")
        .code(127)
        .said("not found");
    assert!(home.is_free("deploy"));
}

#[test]
fn a_command_that_dies_by_a_signal_takes_with_lock_along() {
    let home = Home::new();
    for signal in [
        Signal::TERM,
        Signal::INT,
        Signal::SEGV,
        Signal::KILL,
        Signal::USR1,
        Signal::PIPE,
    ] {
        let script = format!("kill -{} $$", signal.as_raw());
        home.run_script("deploy", &script).by(signal).silent();
        assert!(home.is_free("deploy"));
    }
}

/// Signals that the library for signals doesn't know.
#[cfg(target_os = "linux")]
#[test]
fn a_command_that_dies_by_a_rare_signal_takes_with_lock_along() {
    const SIGSTKFLT: i32 = 16;
    const SIGIO: i32 = 29;
    const FIRST_REAL_TIME: i32 = 34;
    let home = Home::new();
    for signal in [SIGSTKFLT, SIGIO, FIRST_REAL_TIME] {
        let finished = home.run_script("deploy", &format!("kill -{signal} $$"));
        assert_eq!(
            finished.silent().status.signal(),
            Some(signal),
            "{finished:?}"
        );
    }
}

#[test]
fn input_goes_through() {
    let home = Home::new();
    home.hold("deploy").finish().code(0).silent();
}

#[test]
fn the_command_is_told_the_name_and_a_token_that_grows() {
    let home = Home::new();
    let script = r#"printf '%s %s\n' "$PORTALOCK_NAME" "$PORTALOCK_TOKEN""#;
    let mut last = 0;
    for _ in 0..3 {
        let told = home.run_script("nightly", script);
        let (name, token) = told.code(0).stdout.trim().split_once(' ').unwrap();
        assert_eq!(name, "nightly");
        let token: u64 = token.parse().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
    }
}

#[test]
fn several_names_are_told_one_a_line_with_their_tokens_in_the_same_order() {
    let home = Home::new();
    let script = r#"printf '%s\n' "$PORTALOCK_NAME"; printf '%s\n' "$PORTALOCK_TOKEN" | grep -c ."#;
    home.run_script("zoe --also adam -a bob --also adam", script)
        .code(0)
        .wrote("adam\nbob\nzoe\n3\n");
}

#[test]
fn the_token_of_another_lock_is_not_passed_on() {
    let home = Home::new();
    let script = r#"printf '%s\n' "${PORTALOCK_NAME-none}" "${PORTALOCK_TOKEN-none}""#;
    let mut command = home.with_script("--permits 1/3 workers", script);
    command
        .env("PORTALOCK_TOKEN", "17")
        .env("PORTALOCK_NAME", "outer");
    // Permits on files have no token.
    Running::start(command)
        .finish()
        .code(0)
        .wrote("workers\nnone\n");
}

#[cfg(target_os = "linux")]
#[test]
fn the_command_inherits_no_open_file() {
    let home = Home::new();
    let mut alone = std::process::Command::new("ls");
    alone.arg("/proc/self/fd");
    let expected = Running::start(alone).finish();
    home.run("deploy -- ls /proc/self/fd")
        .code(0)
        .wrote(&expected.stdout);
}

#[test]
fn what_the_command_leaves_behind_does_not_hold_the_lock() {
    let home = Home::new();
    let mut running = Running::start(home.with_script("deploy", "sleep 1000 & echo $!; exit 3"));
    let daemon = running.pid_line();
    assert_eq!(running.status().code(), Some(3));
    assert!(home.is_free("deploy"));
    rustix::process::kill_process(daemon, Signal::KILL).unwrap();
}
