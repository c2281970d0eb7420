//! On a terminal: the status line, and the keyboard.

#![cfg(target_os = "linux")]

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixDatagram,
    process::Stdio,
    sync::mpsc::{Receiver, channel},
    thread,
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use crate::program::{Home, PATIENCE, wait_until};

/// A terminal, whose output can be read and whose keys can be pressed.
struct Terminal {
    keys: File,
    screen: Receiver<String>,
    seen: String,
    device: std::path::PathBuf,
}

impl Terminal {
    fn new() -> Self {
        let us = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&us).unwrap();
        unlockpt(&us).unwrap();
        let device = ptsname(&us, Vec::new()).unwrap().into_string().unwrap();
        let mut output = File::from(us.try_clone().unwrap());
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It ends with an error when nobody has the other end open.
            while let Ok(count) = output.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                if count == 0 || sender.send(text).is_err() {
                    break;
                }
            }
        });
        Self {
            keys: File::from(us),
            screen,
            seen: String::new(),
            device: device.into(),
        }
    }

    fn end(&self) -> Stdio {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let end = rustix::fs::open(&self.device, flags, Mode::empty()).unwrap();
        Stdio::from(end)
    }

    /// Waits until this text was written.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.screen.recv_timeout(PATIENCE) {
                Ok(more) => self.seen.push_str(&more),
                Err(error) => panic!("no {text:?} ({error}): {:?}", self.seen),
            }
        }
    }
}

#[test]
fn while_it_waits_one_line_says_for_whom_and_how_long() {
    let home = Home::new();
    let mut terminal = Terminal::new();
    let holder = home.hold("--label nightly deploy");
    let mut waiter = home
        .with_lock("deploy -- echo granted")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(terminal.end())
        .spawn()
        .unwrap();
    let pid = holder.pid.as_raw_nonzero();
    terminal.shows("waiting for deploy (0s), held by pid ");
    terminal.shows(&format!("held by pid {pid} on "));
    terminal.shows("(nightly) for ");
    // Written in place, not on the next line.
    terminal.shows("\r\u{1b}[K\u{1b}[?7lwith_lock: waiting for deploy (1s)");
    assert!(!terminal.seen.contains('\n'), "{:?}", terminal.seen);
    holder.finish().code(0);
    assert!(waiter.wait().unwrap().success());
    // Removed at the end.
    terminal.shows("\u{1b}[?7h\r\u{1b}[K");
}

#[test]
fn of_several_names_it_is_said_who_holds_the_one_that_is_missing() {
    let home = Home::new();
    let mut terminal = Terminal::new();
    let holder = home.hold("--label nightly b");
    let mut waiter = home
        .with_lock("a --also b -- true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(terminal.end())
        .spawn()
        .unwrap();
    terminal.shows("waiting for a, b (0s)");
    terminal.shows(&format!("held by pid {} on ", holder.pid.as_raw_nonzero()));
    holder.finish().code(0);
    assert!(waiter.wait().unwrap().success());
}

/// `with_lock` in the foreground of its own terminal, with `setsid --ctty`, like a login.
fn in_the_foreground(home: &Home, terminal: &Terminal, script: &str) -> std::process::Child {
    let mut command = home.through(&["setsid", "--ctty", "--wait"], "deploy -- sh -c");
    command
        .arg(script)
        .stdin(terminal.end())
        .stdout(terminal.end())
        .stderr(terminal.end())
        .spawn()
        .unwrap()
}

#[test]
fn the_keyboards_interrupt_reaches_the_command_once() {
    let home = Home::new();
    let mut terminal = Terminal::new();
    let script = "trap 'echo \"<int>\"' INT; trap 'echo \"<term>\"; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let mut running = in_the_foreground(&home, &terminal, script);
    terminal.shows("ready");
    terminal.keys.write_all(b"\x03").unwrap();
    terminal.shows("<int>");
    // This signal is passed on after all earlier ones.
    let holder = home.run("who --json deploy");
    let holder: serde_json::Value = serde_json::from_str(&holder.stdout).unwrap();
    let pid = holder["holders"][0]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    terminal.shows("<term>");
    assert_eq!(running.wait().unwrap().code(), Some(5));
    assert_eq!(
        terminal.seen.matches("<int>").count(),
        1,
        "{:?}",
        terminal.seen
    );
}

#[test]
fn an_interrupt_between_the_grant_and_the_start_reaches_the_command() {
    let home = Home::new();
    let mut terminal = Terminal::new();
    // `with_lock` tells a service manager what it does. If the manager doesn't read, it stands still until it does.
    let socket = home.path("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let crowd = UnixDatagram::unbound().unwrap();
    crowd.set_nonblocking(true).unwrap();
    while crowd.send_to(b"X=1", &socket).is_ok() {}
    // There is room for two messages: ready, and waiting. The third says that it holds.
    for _ in 0..2 {
        manager.recv(&mut [0; 16]).unwrap();
    }
    let mut command = home.through(
        &["setsid", "--ctty", "--wait"],
        "--keep deploy -- sleep 1000",
    );
    let mut running = command
        .env("NOTIFY_SOCKET", &socket)
        .stdin(terminal.end())
        .stdout(terminal.end())
        .stderr(terminal.end())
        .spawn()
        .unwrap();
    wait_until(|| !home.is_free("deploy"));
    terminal.keys.write_all(b"\x03").unwrap();
    terminal.shows("^C");
    thread::spawn(move || while manager.recv(&mut [0; 256]).is_ok() {});
    wait_until(|| running.try_wait().unwrap().is_some());
    assert!(home.is_free("deploy"));
}

#[test]
fn the_command_can_read_the_terminal() {
    let home = Home::new();
    let mut terminal = Terminal::new();
    let script = "echo ready; read answer </dev/tty; echo \"<$answer>\"";
    let mut running = in_the_foreground(&home, &terminal, script);
    terminal.shows("ready");
    terminal.keys.write_all(b"forty-two\n").unwrap();
    terminal.shows("<forty-two>");
    assert!(running.wait().unwrap().success());
}

#[test]
fn a_watched_list_is_drawn_again_on_the_same_screen() {
    let home = Home::new();
    let mut terminal = Terminal::new();
    let mut watch = home
        .with_lock("list --watch")
        .stdin(Stdio::null())
        .stdout(terminal.end())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let clear = "\u{1b}[H\u{1b}[2J";
    terminal.shows(&format!("{clear}NAME  STATE"));
    let holder = home.hold("--label nightly deploy");
    terminal.shows("deploy  holds  exclusive");
    terminal.seen.clear();
    holder.finish().code(0);
    terminal.shows(&format!("{clear}NAME  STATE"));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn a_break_asks_first_and_only_a_yes_breaks() {
    let home = Home::new();
    let holder = home.hold("--label nightly deploy");
    let answered = |answer: &[u8]| {
        let mut terminal = Terminal::new();
        let mut breaking = home
            .with_lock("break deploy")
            .stdin(terminal.end())
            .stdout(terminal.end())
            .stderr(terminal.end())
            .spawn()
            .unwrap();
        terminal.shows("deploy is held by pid ");
        terminal.shows("(nightly)");
        terminal.shows("break it? [y/N] ");
        terminal.keys.write_all(answer).unwrap();
        let code = breaking.wait().unwrap().code();
        (terminal, code)
    };
    for answer in [b"\n".as_slice(), b"n\n", b"yesterday\n"] {
        let (mut terminal, code) = answered(answer);
        assert_eq!(code, Some(125));
        terminal.shows("not confirmed: nothing was broken");
    }
    assert!(!home.is_free("deploy"));
    let (mut terminal, code) = answered(b"y\n");
    assert_eq!(code, Some(0));
    terminal.shows("broke deploy: ");
    holder
        .finish()
        .code(123)
        .said("the lock was broken by pid ");
}
