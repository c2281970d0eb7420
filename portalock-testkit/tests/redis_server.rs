//! The real `redis-server`, started and mistreated.
#![cfg(all(unix, feature = "servers"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers are part of the test"
)]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use portalock_testkit::servers::{RedisOptions, RedisServer};

const ENOUGH: Duration = Duration::from_secs(20);

fn ask(server: &RedisServer, command: &str, wait: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect(server.addr())?;
    stream.set_read_timeout(Some(wait))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = [0; 256];
    let count = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[test]
fn it_answers_on_its_port_and_on_its_socket() {
    let server = RedisServer::start().unwrap();
    assert_eq!(ask(&server, "PING", ENOUGH).unwrap(), "+PONG\r\n");
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}

#[test]
fn a_restart_keeps_the_data_only_if_asked() {
    for (persistent, expected) in [(true, "$1\r\nv\r\n"), (false, "$-1\r\n")] {
        let mut server = RedisOptions::new().persistent(persistent).start().unwrap();
        let port = server.port();
        ask(&server, "SET k v", ENOUGH).unwrap();
        server.restart().unwrap();
        assert_eq!(server.port(), port);
        assert_eq!(ask(&server, "GET k", ENOUGH).unwrap(), expected);
        server.restart_empty().unwrap();
        assert_eq!(ask(&server, "GET k", ENOUGH).unwrap(), "$-1\r\n");
    }
}

#[test]
fn a_stalled_server_is_silent_until_it_resumes() {
    let server = RedisServer::start().unwrap();
    server.stall().unwrap();
    assert!(ask(&server, "PING", Duration::from_millis(100)).is_err());
    server.resume().unwrap();
    assert_eq!(ask(&server, "PING", ENOUGH).unwrap(), "+PONG\r\n");
}

#[test]
fn a_dropped_server_is_gone() {
    let server = RedisServer::start().unwrap();
    let (addr, socket) = (server.addr(), server.socket());
    server.stall().unwrap();
    drop(server);
    assert!(TcpStream::connect(addr).is_err());
    assert!(!socket.exists());
}

#[test]
fn a_server_that_can_not_start_says_why() {
    let error = RedisOptions::new()
        .setting("maxmemory", "much")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("maxmemory"), "{error}");
}

/// Tells its parent about a server, which it stalls, and waits to be killed.
#[test]
#[ignore = "another test starts it as a second process"]
fn the_owner_of_a_server() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let server = RedisServer::start().unwrap();
    server.stall().unwrap();
    let (addr, socket) = (server.addr(), server.socket());
    println!("\n{OWNER} {addr} {}", socket.parent().unwrap().display());
    std::thread::park();
}

const OWNER: &str = "PORTALOCK_TEST_OWNER";

#[test]
fn a_killed_test_leaves_neither_its_server_nor_its_directory() {
    use std::{
        io::{BufRead, BufReader},
        os::unix::process::CommandExt,
        path::Path,
        process::{Command, Stdio},
        time::Instant,
    };

    use rustix::process::{Pid, Signal, kill_process_group};

    // An interrupted test run signals the whole group, which the server and its helpers belong to.
    for signal in [Signal::KILL, Signal::TERM] {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args([
                "the_owner_of_a_server",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(OWNER, "1")
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        let told = lines.find_map(|line| Some(line.unwrap().strip_prefix(OWNER)?.to_owned()));
        let told = told.unwrap();
        let (addr, dir) = told.trim().split_once(' ').unwrap();
        assert!(Path::new(dir).exists());
        if signal == Signal::KILL {
            owner.kill().unwrap();
        } else {
            kill_process_group(Pid::from_child(&owner), signal).unwrap();
        }
        owner.wait().unwrap();
        let end = Instant::now() + 3 * ENOUGH;
        while Path::new(dir).exists() || TcpStream::connect(addr).is_ok() {
            assert!(Instant::now() < end, "{signal:?} left {told}");
            std::thread::yield_now();
        }
    }
}
