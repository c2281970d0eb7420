use std::{future::poll_fn, pin::pin, task::Poll};

use futures_util::poll;

use portalock_testkit::servers::RedisClusterOptions;

use super::*;
use crate::{
    address::Address,
    client::{Client, Server},
    connection::Call,
};

/// Longer than a good run takes.
const TIME: Duration = Duration::from_secs(60);

fn followed() -> Followed {
    let settings = RedisSettings::new("redis+sentinel://a,b,c/m").unwrap();
    let Address::Sentinels(address) = settings.address().clone() else {
        panic!("it names sentinels");
    };
    let sentinels = Sentinels::new(&address, Arc::new(settings));
    Followed::new(Witnesses::Sentinels(sentinels), address.server)
}

fn note(followed: &Followed, heard: Heard) -> Result<Location, BackendError> {
    followed.note(Instant::now(), heard)
}

fn heard(epoch: u64, host: &str, from_all: bool) -> Heard {
    let (host, port) = (host.to_owned(), 1);
    Heard::latest(vec![Told { epoch, host, port }], from_all).unwrap()
}

#[test]
fn a_location_has_another_number_once_it_is_another() {
    let followed = followed();
    for (epoch, host, number) in [
        (0, "a", 0),
        (0, "a", 0),
        (1, "b", 1),
        (2, "b", 1),
        (3, "a", 2),
    ] {
        let location = note(&followed, heard(epoch, host, false)).unwrap();
        assert_eq!(location.number, number, "{epoch}");
        assert_eq!(location.server.addr().to_string(), format!("{host}:1"));
    }
}

#[test]
fn who_has_not_heard_of_the_last_switch_leads_nobody_back() {
    let followed = followed();
    note(&followed, heard(2, "b", false)).unwrap();
    let error = note(&followed, heard(1, "a", false)).unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    assert_eq!(followed.number.load(Ordering::Relaxed), 0);
    // Sentinels that were set up again start to count from zero.
    let location = note(&followed, heard(0, "c", true)).unwrap();
    assert_eq!(location.number, 1);
}

/// For example the answers of all nodes of a cluster, which the client has asked for another session.
#[test]
fn answers_to_an_earlier_question_lead_nobody_back() {
    let followed = followed();
    let before = Instant::now();
    note(&followed, heard(1, "a", false)).unwrap();
    note(&followed, heard(2, "b", false)).unwrap();
    for (epoch, host, number) in [(1, "a", 1), (2, "a", 1), (3, "c", 2)] {
        let location = followed.note(before, heard(epoch, host, true)).unwrap();
        assert_eq!(location.number, number, "{epoch}");
    }
    let location = note(&followed, heard(1, "a", true)).unwrap();
    assert_eq!(location.number, 3);
}

/// Otherwise each of them would open a connection, or ask again when the one before has given up.
#[tokio::test]
async fn calls_share_a_check_which_counts_though_nobody_waits_for_it() {
    // It never answers.
    let sentinel = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis+sentinel://{}/m", sentinel.local_addr().unwrap());
    let settings = Arc::new(RedisSettings::new(&url).unwrap());
    let Address::Sentinels(address) = settings.address() else {
        panic!("it names sentinels");
    };
    let route = Route::by_sentinels(address, &settings);
    let Way::Followed(followed) = &route.way else {
        panic!("it is followed");
    };
    let before = Instant::now().checked_sub(settings.session_ttl());
    followed.looked.send_replace(before.unwrap());
    for _ in 0..50 {
        assert!(poll!(Box::pin(route.look_if_due())).is_pending());
    }
    let mut looked = followed.looked.subscribe();
    let ended = looked.wait_for(|begun| begun.elapsed() < settings.session_ttl());
    let _ = timeout(TIME, ended)
        .await
        .expect("it does not count")
        .unwrap();
    route.look_if_due().await;
    sentinel.set_nonblocking(true).unwrap();
    assert_eq!(sentinel.incoming().map_while(Result::ok).count(), 1);
}

/// Its key may be at a node that has become a replica meanwhile.
#[test]
fn to_leave_another_node_of_a_cluster_leaves_nothing() {
    let route = to_slot("redis+cluster://a");
    let beside = route.beside("b", 1);
    assert!(!route.leave(beside.number));
    assert!(route.leave(route.number()));
}

fn to_slot(url: &str) -> Route {
    let settings = RedisSettings::new(url).unwrap();
    // The next refresh would come later than the test waits, and the servers have just started.
    let settings = settings.with_session_ttl(TIME * 10).unwrap();
    let settings = Arc::new(settings.with_restart_wait(Duration::ZERO));
    let Address::Cluster(address) = settings.address() else {
        panic!("it names a cluster");
    };
    let nodes = Arc::new(Cluster::new(address, settings.clone()));
    Route::to_slot(&nodes, Tag::new("portalock", 0), &settings)
}

/// An answer from within the first half of the interval is used again.
#[test]
fn a_cluster_is_looked_at_twice_as_often() {
    let route = to_slot("redis+cluster://a");
    let interval = route.settings().look_interval();
    assert_eq!(route.look_interval(), interval / 2);
    let settings = Arc::new(RedisSettings::new("redis+sentinel://a,b,c/m").unwrap());
    let Address::Sentinels(address) = settings.address() else {
        panic!("it names sentinels");
    };
    let route = Route::by_sentinels(address, &settings);
    assert_eq!(route.look_interval(), interval);
}

#[tokio::test]
async fn answers_and_connections_of_a_former_primary_do_not_count() {
    let options = RedisClusterOptions::new().replicas(0).node_timeout(TIME);
    let cluster = tokio::task::spawn_blocking(move || options.start().unwrap());
    let cluster = cluster.await.unwrap();
    let client = Client::new(Arc::new(Server::new(to_slot(&cluster.url()))));
    let session = client.session().await.unwrap();
    let server = &session.service().server;
    let (Way::Followed(followed), Some(tag)) = (&server.route.way, server.route.tag()) else {
        panic!("it leads to a slot");
    };
    let node = cluster.node(cluster.owner(tag.slot()).unwrap());
    let ping = redis::cmd("PING");
    // It opens the connection.
    server.send("ping", Call::Plain(&ping)).await.unwrap();

    node.stall().unwrap();
    let mut asking = pin!(server.send("ping", Call::Plain(&ping)));
    let is_sent = poll_fn(|context| Poll::Ready(asking.as_mut().poll(context).is_pending()));
    assert!(is_sent.await);
    followed.number.fetch_add(1, Ordering::AcqRel);
    node.resume().unwrap();
    assert!(asking.await.unwrap().repeated);
    let replaced = async {
        while session.connection().is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TIME, replaced).await.unwrap();
}
