//! `--keep`: the command runs repeatedly, on one host at a time.

use std::{fs, os::unix::net::UnixDatagram};

use rustix::process::{Signal, kill_process};

use crate::program::{Home, PATIENCE, Running, wait_until_gone};

const KEEP: &str = "--keep --pause 1ms deploy";

#[test]
fn the_command_runs_again_when_it_ends_however_it_ends() {
    let home = Home::new();
    // The third run does not end.
    let runs = home.path("runs");
    let script = format!(
        "echo $$; echo >>{0}; [ $(wc -l <{0}) -lt 3 ] || exec sleep 1000; exit 3",
        runs.display()
    );
    let mut keeper = Running::start(home.with_script(KEEP, &script));
    let first = keeper.pid_line();
    assert_ne!(keeper.pid_line(), first);
    keeper.pid_line();
    keeper.signal(Signal::TERM);
    let finished = keeper.finish();
    finished.by(Signal::TERM);
    assert!(
        finished.stderr.contains("the command ended with code 3"),
        "{finished:?}"
    );
    assert!(home.is_free("deploy"));
}

#[test]
fn each_run_has_a_larger_token() {
    let home = Home::new();
    let mut keeper = Running::start(home.with_script(KEEP, "echo $PORTALOCK_TOKEN"));
    let tokens: Vec<u64> = (0..3).map(|_| keeper.line().parse().unwrap()).collect();
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
}

#[test]
fn a_standby_takes_over_from_a_killed_keeper_and_never_runs_beside_it() {
    let home = Home::new();
    let script = "echo $$; exec sleep 1000";
    let mut first = Running::start(home.with_script(KEEP, script));
    let command = first.pid_line();
    let mut standby = Running::start(home.with_script(KEEP, script));
    first.signal(Signal::KILL);
    // On Linux the command ends with `with_lock`.
    let successor = standby.pid_line();
    wait_until_gone(command);
    assert!(!home.is_free("deploy"));
    standby.signal(Signal::TERM);
    standby.finish().by(Signal::TERM);
    wait_until_gone(successor);
}

#[test]
fn a_lost_lock_is_campaigned_for_again() {
    let home = Home::new();
    let mut keeper = Running::start(home.with_script(KEEP, "echo $$; exec sleep 1000"));
    let first = keeper.pid_line();
    fs::remove_file(home.lock_file()).unwrap();
    assert_ne!(keeper.pid_line(), first);
    wait_until_gone(first);
    assert!(!home.is_free("deploy"));
}

#[test]
fn a_request_to_end_reaches_the_command_and_ends_the_keeper() {
    let home = Home::new();
    let script = "trap 'echo asked; exit 7' TERM; echo $$; while :; do sleep 0.01; done";
    let mut keeper = Running::start(home.with_script(KEEP, script));
    keeper.pid_line();
    keeper.signal(Signal::TERM);
    let finished = keeper.finish();
    finished.code(7).wrote("asked\n");
    assert!(!finished.stderr.contains("with_lock"), "{finished:?}");
}

#[test]
fn the_commands_own_signals_do_not_end_the_keeper() {
    let home = Home::new();
    let script = "trap 'exit 0' USR1; echo $$; while :; do sleep 0.01; done";
    let mut keeper = Running::start(home.with_script(KEEP, script));
    let first = keeper.pid_line();
    keeper.signal(Signal::USR1);
    assert_ne!(keeper.pid_line(), first);
}

#[test]
fn a_signal_ends_the_pause() {
    let home = Home::new();
    let socket = home.path("notify");
    let manager = manager(&socket);
    let mut command = home.with_lock("--keep --pause 1h deploy -- true");
    command.env("NOTIFY_SOCKET", &socket);
    let keeper = Running::start(command);
    while next(&manager) != "STATUS=pausing for 1h" {}
    keeper.signal(Signal::TERM);
    keeper.finish().by(Signal::TERM);
}

#[test]
fn what_can_not_be_run_is_not_tried_again() {
    let home = Home::new();
    home.run(&format!("{KEEP} -- /nonexistent/program"))
        .code(127);
    home.run(&format!("{KEEP} -- {}", home.path("").display()))
        .code(126);
}

#[test]
fn the_service_manager_is_told_and_the_command_is_not_asked_to() {
    let home = Home::new();
    let socket = home.path("notify");
    let manager = manager(&socket);
    let mut command = home.with_script(KEEP, "echo ${NOTIFY_SOCKET-none}; exec sleep 1000");
    command.env("NOTIFY_SOCKET", &socket);
    let mut keeper = Running::start(command);
    assert_eq!(next(&manager), "READY=1");
    assert_eq!(next(&manager), "STATUS=waiting for deploy");
    let status = next(&manager);
    assert!(
        status.starts_with("STATUS=holding deploy with token "),
        "{status}"
    );
    assert_eq!(keeper.line(), "none");
    keeper.signal(Signal::TERM);
    assert_eq!(next(&manager), "STOPPING=1");
    keeper.finish().by(Signal::TERM);
}

fn manager(socket: &std::path::Path) -> UnixDatagram {
    let manager = UnixDatagram::bind(socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    manager
}

fn next(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}

/// In its own pid namespace, which needs a privilege.
fn as_first_process(home: &Home, words: &str, script: &str) -> Option<Running> {
    let unshare = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"];
    let may = std::process::Command::new(unshare[0])
        .args(&unshare[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success());
    if !may {
        eprintln!("not tested: this user may not make a process namespace");
        return None;
    }
    let mut command = home.through(&unshare, words);
    command.args(["--", "sh", "-c", script]);
    Some(Running::start(command))
}

#[test]
fn as_the_first_process_it_reaps_and_ends_as_the_command_did() {
    let home = Home::new();
    // The orphan's directory in /proc shows that it was reaped: a zombie still has one.
    let script = "orphan=$(sh -c 'sleep 0 >/dev/null & echo $!'); \
                  while [ -e /proc/$orphan ]; do sleep 0.01; done; echo reaped; exit 5";
    if let Some(running) = as_first_process(&home, "deploy", script) {
        running.finish().code(5).wrote("reaped\n");
    }
}

#[test]
fn as_the_first_process_it_passes_signals_on() {
    let home = Home::new();
    let script = "trap 'exit 7' TERM; echo $$; while :; do sleep 0.01; done";
    let Some(mut running) = as_first_process(&home, "--keep deploy", script) else {
        return;
    };
    running.line();
    let children = format!("/proc/{0}/task/{0}/children", running.pid.as_raw_nonzero());
    let first = fs::read_to_string(children).unwrap();
    let first = rustix::process::Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    kill_process(first, Signal::TERM).unwrap();
    running.finish().code(7);
}
