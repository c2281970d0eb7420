//! Three hosts, played by three processes: one writes, and when it is killed another does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    process: Child,
    address: String,
}

impl Host {
    fn start(directory: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_portalock-example-service"))
            .arg(format!("fs:{}", directory.join("locks").display()))
            .arg(directory.join("value"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").unwrap().to_owned();
        Self { process, address }
    }

    /// The status and the body.
    fn ask(&self, request: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes through whoever leads, as soon as somebody does: the host's number, and its token.
fn write(hosts: &[Host], value: &str) -> (usize, u64) {
    let start = Instant::now();
    loop {
        for (number, host) in hosts.iter().enumerate() {
            let (status, said) = host.ask("PUT /value", value);
            if status == 200 {
                let token = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
                return (number, token);
            }
            assert_eq!(status, 421, "{said}");
        }
        assert!(start.elapsed() < PATIENCE, "nobody leads");
    }
}

#[test]
fn the_leader_writes_all_read_and_a_killed_leader_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let mut hosts: Vec<_> = (0..3).map(|_| Host::start(directory.path())).collect();

    let (leader, first) = write(&hosts, "one");
    for (number, host) in hosts.iter().enumerate() {
        assert_eq!(host.ask("GET /value", ""), (200, "one".to_owned()));
        let led = format!("{} leads with token {first}\n", hosts[leader].address);
        assert_eq!(host.ask("GET /leader", ""), (200, led.clone()));
        if number != leader {
            assert_eq!(host.ask("PUT /value", "no"), (421, led));
        }
    }

    drop(hosts.remove(leader));
    let (successor, second) = write(&hosts, "two");
    assert!(second > first);
    let other = &hosts[1 - successor];
    assert_eq!(other.ask("GET /value", ""), (200, "two".to_owned()));

    let (_, metrics) = hosts[successor].ask("GET /metrics", "");
    assert!(
        metrics
            .contains("portalock_wait_seconds_count{backend=\"FsBackend\",outcome=\"granted\"} 1"),
        "{metrics}"
    );
}

/// The dashboard shows the metrics that there are, and no others.
#[test]
fn the_dashboard_asks_for_what_is_exported() {
    let text = include_str!("../dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let exported = [
        "portalock_wait_seconds",
        "portalock_hold_seconds",
        "portalock_waiters",
        "portalock_renewals_total",
    ];
    let mut shown = String::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            shown += target["expr"].as_str().unwrap();
        }
    }
    for metric in exported {
        assert!(shown.contains(metric), "{metric} is not shown");
    }
    for part in shown.split("portalock_").skip(1) {
        assert!(
            exported
                .iter()
                .any(|metric| format!("portalock_{part}").starts_with(metric)),
            "portalock_{part} is not exported"
        );
    }
}
