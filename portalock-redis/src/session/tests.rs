//! What the client library makes of a subscription that ends, which is why [`Line::ensure_open`] exists. And which messages
//! count.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers are part of the test"
)]

use portalock_core::LockName;
use portalock_testkit::servers::RedisClusterOptions;
use redis::{PushInfo, Value};

use super::*;
use crate::{
    address::Address,
    cluster::{Cluster, Tag},
    connect::is_end,
    observe::observe,
    replicas::confirm,
};

mod messages;
mod raises;
mod times;

async fn ask(connection: &mut MultiplexedConnection, command: &str) -> Value {
    let words: Vec<_> = command.split(' ').collect();
    let mut sent = redis::cmd(words[0]);
    sent.arg(&words[1..]);
    sent.query_async(connection).await.unwrap()
}

#[tokio::test]
async fn an_answer_after_the_end_of_a_subscription_is_not_trusted() {
    let options = RedisClusterOptions::new().replicas(0);
    let cluster = tokio::task::spawn_blocking(move || options.start().unwrap());
    let cluster = cluster.await.unwrap();
    let settings = Arc::new(RedisSettings::new(&cluster.url()).unwrap());
    let Address::Cluster(address) = settings.address() else {
        panic!("it names a cluster");
    };
    let nodes = Arc::new(Cluster::new(address, settings.clone()));
    let tag = Tag::new("portalock", 0);
    let (slot, channel) = (tag.slot(), format!("{}/session/0", tag.prefix()));
    let observed = Server::new(Route::to_slot(&nodes, tag.clone(), &settings));
    let route = Arc::new(Route::to_slot(&nodes, tag, &settings));
    let location = route.find().await.unwrap();
    let is_open = Arc::new(AtomicBool::new(true));
    let heard = is_open.clone();
    let push = move |push: PushInfo| -> Result<(), ()> {
        if is_end(&push.kind) {
            heard.store(false, Ordering::Release);
        }
        Ok(())
    };
    let mut connection = connect(&route, &location, push).await.unwrap();
    subscribe(&route, &mut connection, &channel).await.unwrap();
    let mut admin = connect(&route, &location, |_| Ok::<(), ()>(()))
        .await
        .unwrap();
    let line = Line {
        connection: connection.clone(),
        source: Source {
            is_open,
            location: location.number,
        },
        route,
    };
    line.ensure_open(RENEWING).unwrap();

    // The slot goes and comes back while a command is under way.
    ask(&mut admin, "CLIENT PAUSE 60000 WRITE").await;
    let mut busy = connection.clone();
    let refresh = format!("PEXPIRE {channel} 1");
    let refresh = tokio::spawn(async move { ask(&mut busy, &refresh).await });
    let name = LockName::new("a").unwrap();
    let observing = tokio::spawn(async move { observe(&observed, &name).await });
    while !matches!(&ask(&mut admin, "INFO clients").await,
        Value::VerbatimString { text, .. } if text.contains("blocked_clients:2"))
    {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for command in ["MULTI", "CLUSTER DELSLOTS", "CLUSTER ADDSLOTS", "EXEC"] {
        let words = match command.strip_prefix("CLUSTER") {
            Some(_) => format!("{command} {slot}"),
            None => command.to_owned(),
        };
        ask(&mut admin, &words).await;
    }
    // The message is taken for the answer, and the answer for that to the next command.
    assert!(matches!(refresh.await.unwrap(), Value::Push { .. }));
    let error = observing.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
    let (shifted, _) = tokio::join!(
        ask(&mut connection, "PING"),
        ask(&mut admin, "CLIENT UNPAUSE")
    );
    assert_eq!(shifted, Value::Int(0));
    let error = line.ensure_open(RENEWING).unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
}
