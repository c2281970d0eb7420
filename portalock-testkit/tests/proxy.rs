//! The fault proxy, seen from both of its ends.
#![cfg(feature = "proxy")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers are part of the test"
)]

use std::time::{Duration, Instant};

use portalock_testkit::proxy::{Direction, FaultProxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Long enough to say that nothing comes.
const QUIET: Duration = Duration::from_millis(100);
/// Never reached when all is well.
const ENOUGH: Duration = Duration::from_secs(20);

async fn connected() -> (FaultProxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap()).unwrap();
    let client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (server, _) = timeout(ENOUGH, listener.accept()).await.unwrap().unwrap();
    (proxy, client, server)
}

async fn receive(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    timeout(ENOUGH, stream.read_exact(&mut bytes))
        .await
        .expect("bytes should have arrived")
        .unwrap();
    bytes
}

async fn is_quiet(stream: &mut TcpStream) -> bool {
    timeout(QUIET, stream.read_u8()).await.is_err()
}

#[tokio::test]
async fn bytes_pass_both_ways() {
    let (proxy, mut client, mut server) = connected().await;
    client.write_all(b"ask").await.unwrap();
    assert_eq!(receive(&mut server, 3).await, b"ask");
    server.write_all(b"answer").await.unwrap();
    assert_eq!(receive(&mut client, 6).await, b"answer");
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn a_black_hole_holds_one_direction_and_heals() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.black_hole(Direction::ToClient);
    client.write_all(b"ask").await.unwrap();
    assert_eq!(receive(&mut server, 3).await, b"ask");
    server.write_all(b"late").await.unwrap();
    assert!(is_quiet(&mut client).await);
    proxy.heal();
    assert_eq!(receive(&mut client, 4).await, b"late");
}

#[tokio::test]
async fn a_black_hole_swallows_the_end_of_a_connection() {
    let (proxy, client, mut server) = connected().await;
    proxy.black_hole(Direction::Both);
    drop(client);
    assert!(is_quiet(&mut server).await, "the end came through");
    proxy.heal();
    let mut rest = Vec::new();
    let end = timeout(ENOUGH, server.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the end should have been delivered");
}

#[tokio::test]
async fn a_delay_is_kept_and_does_not_add_up() {
    let (proxy, mut client, mut server) = connected().await;
    let delay = Duration::from_millis(50);
    proxy.delay(Direction::ToServer, delay);
    let start = Instant::now();
    for byte in b"0123456789" {
        client.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(receive(&mut server, 10).await, b"0123456789");
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn dropped_bytes_never_come() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.drop_bytes(Direction::ToServer);
    client.write_all(b"lost").await.unwrap();
    assert!(is_quiet(&mut server).await);
    proxy.heal();
    client.write_all(b"kept").await.unwrap();
    assert_eq!(receive(&mut server, 4).await, b"kept");
}

#[tokio::test]
async fn a_cut_ends_open_connections_and_lets_new_ones_in() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap()).unwrap();
    let mut before = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    // It is through: a connection that is still being made would escape the cut.
    server.write_all(b"x").await.unwrap();
    receive(&mut before, 1).await;

    proxy.cut();
    let end = timeout(ENOUGH, before.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    let end = timeout(ENOUGH, server.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));

    let mut after = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server, _) = timeout(ENOUGH, listener.accept()).await.unwrap().unwrap();
    after.write_all(b"again").await.unwrap();
    assert_eq!(receive(&mut server, 5).await, b"again");
}

#[tokio::test]
async fn a_refusal_ends_new_connections_only() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.refuse(true);
    let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
    let end = timeout(ENOUGH, refused.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    client.write_all(b"still").await.unwrap();
    assert_eq!(receive(&mut server, 5).await, b"still");
}

#[tokio::test]
async fn what_was_sent_on_a_stranded_connection_arrives_late() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap()).unwrap();
    let connect = async || {
        let client = TcpStream::connect(proxy.addr()).await.unwrap();
        let (server, _) = timeout(ENOUGH, listener.accept()).await.unwrap().unwrap();
        (client, server)
    };
    let (mut client, mut server) = connect().await;
    let (mut idle, mut idle_server) = connect().await;
    proxy.strand();
    client.write_all(b"early").await.unwrap();
    // It is closed for the client, and not for the server.
    let end = timeout(ENOUGH, client.read_u8()).await.unwrap();
    assert!(end.is_err(), "{end:?}");
    assert!(is_quiet(&mut server).await);
    let (mut client, mut next_server) = connect().await;
    client.write_all(b"later").await.unwrap();
    assert_eq!(receive(&mut next_server, 5).await, b"later");

    let answer = async {
        assert_eq!(receive(&mut server, 5).await, b"early");
        server.write_all(b"answer").await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    };
    let ((), ()) = tokio::join!(proxy.deliver(), answer);
    // A connection on which nothing was sent meanwhile stays open.
    idle.write_all(b"ask").await.unwrap();
    assert_eq!(receive(&mut idle_server, 3).await, b"ask");
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn nobody_waits_for_a_stranded_connection_that_was_cut() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.strand();
    client.write_all(b"early").await.unwrap();
    let end = timeout(ENOUGH, client.read_u8()).await.unwrap();
    assert!(end.is_err(), "{end:?}");
    proxy.cut();
    let end = timeout(ENOUGH, server.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    timeout(ENOUGH, proxy.deliver()).await.unwrap();
}
