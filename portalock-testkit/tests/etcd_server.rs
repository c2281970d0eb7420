//! The etcd fixture itself: a server that is started serves, one that is dropped is gone.
#![cfg(all(unix, feature = "servers"))]

use std::net::TcpStream;

use portalock_testkit::servers::{EtcdOptions, EtcdServer};

fn accepts(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn a_member_serves_until_it_is_dropped() {
    let etcd = EtcdServer::start().unwrap();
    let port = etcd.port(0);
    assert!(accepts(port));
    etcd.kill(0);
    assert!(!accepts(port));
    etcd.restart(&[0]).unwrap();
    assert!(accepts(port));
    etcd.stall(0).unwrap();
    etcd.resume(0).unwrap();
    etcd.kill(0);
    etcd.wipe(0).unwrap();
    etcd.restart(&[0]).unwrap();
    drop(etcd);
    assert!(!accepts(port));
}

#[test]
fn a_cluster_starts_and_members_come_back() {
    let etcd = EtcdOptions::new().members(3).start().unwrap();
    assert_eq!(etcd.endpoints().len(), 3);
    etcd.kill(1);
    assert!(!accepts(etcd.port(1)));
    etcd.kill(2);
    etcd.restart(&[1, 2]).unwrap();
    assert!(accepts(etcd.port(1)));
}

#[test]
fn a_member_that_does_not_come_up_shows_its_log() {
    let error = EtcdOptions::new()
        .argument("--election-timeout=1")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("election"), "{error}");
}
