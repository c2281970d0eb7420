//! A real Redis cluster, moved about.
#![cfg(all(unix, feature = "servers"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers are part of the test"
)]

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use portalock_testkit::servers::{RedisCluster, RedisServer};

fn ask(server: &RedisServer, command: &str) -> String {
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(format!("{command}\r\n").as_bytes())
        .unwrap();
    let mut answer = [0; 256];
    let count = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[test]
fn a_slot_moves_with_its_keys_and_is_served_after_a_failure() {
    let mut cluster = RedisCluster::start().unwrap();
    let slot = cluster.slot_of("{a b}").unwrap();
    let from = cluster.owner(slot).unwrap();
    let to = (from + 1) % 3;
    assert_eq!(ask(cluster.node(from), "SET \"{a b}\" v"), "+OK\r\n");

    let moving = cluster.begin_move(slot, to).unwrap();
    assert_eq!(cluster.keys_left(moving).unwrap(), ["{a b}"]);
    cluster.move_key(moving, "{a b}").unwrap();
    assert!(ask(cluster.node(from), "GET \"{a b}\"").starts_with("-ASK"));
    cluster.finish_move(moving).unwrap();
    assert_eq!(cluster.owner(slot), Some(to));
    assert_eq!(ask(cluster.node(to), "GET \"{a b}\""), "$1\r\nv\r\n");
    assert!(ask(cluster.node(from), "GET \"{a b}\"").starts_with("-MOVED"));

    let promoted = cluster.fail_over(slot).unwrap();
    assert_ne!(promoted, to);
    cluster.until_whole().unwrap();
    cluster.node_mut(promoted).stop();
    assert_eq!(cluster.until_moved_from(slot, promoted).unwrap(), to);
}
