//! The floors: the requests alone, on the connection that the client library gives.

use std::time::{Duration, Instant};

use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, GetOptions, LockOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp,
};
use portalock_benches::{Failure, contest::median};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::locks::{Exclusive, Observed};

/// A lease that outlasts every benchmark.
const LEASE_SECONDS: i64 = 3600;

/// What a transaction that takes a place has beside its put, each with all before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    /// Nothing but the condition that the key isn't there.
    Put,
    /// A condition on the session's key.
    Session,
    /// A count of the queue.
    Count,
    /// What is read if a condition doesn't hold.
    Otherwise,
    /// And its deletion is conditional on its value.
    Release,
}

/// A connection with a lease.
#[derive(Clone)]
pub(crate) struct Bare {
    client: Client,
    lease: i64,
}

impl Bare {
    pub(crate) async fn connect(endpoint: &str) -> Result<Self, Failure> {
        let client = Client::connect([endpoint], None).await?;
        let lease = client.lease_client().grant(LEASE_SECONDS, None).await?.id();
        Ok(Self { client, lease })
    }

    /// Makes the server forget everything that is no longer so.
    pub(crate) async fn compact(&self) -> Result<(), Failure> {
        let put = self.client.kv_client().put("bare/now", "", None).await?;
        let now = put
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        let options = CompactionOptions::new().with_physical();
        self.client.kv_client().compact(now, Some(options)).await?;
        Ok(())
    }

    /// How long a transaction takes that puts a key if there is none; the deletion is not counted.
    pub(crate) async fn transactions(self, times: u32) -> Result<Duration, Failure> {
        let key = "bare/transaction";
        let mut took = Duration::ZERO;
        for _ in 0..times {
            let options = PutOptions::new().with_lease(self.lease);
            let transaction = Txn::new()
                .when([Compare::create_revision(key, CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key, "value", Some(options))]);
            let started = Instant::now();
            self.client.kv_client().txn(transaction).await?;
            took += started.elapsed();
            self.client.kv_client().delete(key, None).await?;
        }
        Ok(took / times)
    }

    /// How long a transaction of this shape takes; the deletion is not counted.
    pub(crate) async fn shaped(self, shape: Shape, times: u32) -> Result<Duration, Failure> {
        let (queue, key) = ("bare/queue/", "bare/queue/exclusive/0@lease");
        let session = "bare/session";
        let put = self.client.kv_client().put(session, "", None).await?;
        let known = put
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        let value =
            "{\"host\":\"localhost\",\"pid\":12345,\"since\":{\"secs\":1,\"nanos\":1},\"usage\":1}";
        let mut took = Duration::ZERO;
        for _ in 0..times {
            let options = PutOptions::new().with_lease(self.lease);
            let mut conditions = vec![Compare::create_revision(key, CompareOp::Equal, 0)];
            let mut then = vec![TxnOp::put(key, value, Some(options))];
            let mut otherwise = vec![];
            if shape >= Shape::Session {
                conditions.push(Compare::mod_revision(session, CompareOp::Equal, known));
            }
            if shape >= Shape::Count {
                let count = GetOptions::new().with_prefix().with_count_only();
                then.push(TxnOp::get(queue, Some(count)));
            }
            if shape >= Shape::Otherwise {
                let first = GetOptions::new().with_prefix().with_limit(1);
                let first = first.with_sort(SortTarget::Create, SortOrder::Ascend);
                let session = TxnOp::get(session, Some(GetOptions::new().with_keys_only()));
                otherwise = vec![
                    TxnOp::get(key, None),
                    session,
                    TxnOp::get(queue, Some(first)),
                ];
            }
            let transaction = Txn::new()
                .when(conditions)
                .and_then(then)
                .or_else(otherwise);
            let started = Instant::now();
            self.client.kv_client().txn(transaction).await?;
            took += started.elapsed();
            if shape >= Shape::Release {
                let release = Txn::new()
                    .when([Compare::value(key, CompareOp::Equal, value)])
                    .and_then([TxnOp::delete(key, None)]);
                self.client.kv_client().txn(release).await?;
            } else {
                self.client.kv_client().delete(key, None).await?;
            }
        }
        Ok(took / times)
    }

    /// The median time from before a put until the `watcher` is told.
    pub(crate) async fn seen_by(self, watcher: Self, times: u32) -> Result<Duration, Failure> {
        let key = "bare/watched";
        let mut stream = watcher.client.watch_client().watch(key, None).await?;
        let mut took = Vec::new();
        for _ in 0..times {
            let started = Instant::now();
            let put = tokio::spawn({
                let client = self.client.clone();
                async move { client.kv_client().put(key, "value", None).await }
            });
            while stream
                .message()
                .await?
                .ok_or("the watch ended")?
                .events()
                .is_empty()
            {}
            took.push(started.elapsed().as_secs_f64());
            put.await??;
        }
        Ok(Duration::from_secs_f64(median(took)))
    }
}

/// The lock that the server itself has.
#[derive(Clone)]
pub(crate) struct LockRpc {
    bare: Bare,
    lease: Lease,
}

/// Whose lease keeps such a lock.
#[derive(Clone, Copy)]
pub(crate) enum Lease {
    /// One that the server grants for each call: what a call without options does.
    Calls,
    /// The client's, for all.
    Clients,
}

const LOCK: &str = "bare/lock";

impl LockRpc {
    pub(crate) async fn connect(endpoint: &str, lease: Lease) -> Result<Self, Failure> {
        let bare = Bare::connect(endpoint).await?;
        Ok(Self { bare, lease })
    }
}

impl Exclusive for LockRpc {
    type Held = (Client, Vec<u8>);

    async fn take(&self) -> Result<(Client, Vec<u8>), Failure> {
        let options = match self.lease {
            Lease::Calls => None,
            Lease::Clients => Some(LockOptions::new().with_lease(self.bare.lease)),
        };
        let client = self.bare.client.clone();
        let locked = client.lock_client().lock(LOCK, options).await?;
        Ok((client, locked.key().to_vec()))
    }

    async fn give((client, key): (Client, Vec<u8>)) -> Result<(), Failure> {
        client.lock_client().unlock(key).await?;
        Ok(())
    }
}

impl Observed for LockRpc {
    async fn waited_for(&self) -> Result<(), Failure> {
        let count = GetOptions::new().with_prefix().with_count_only();
        let mut kv = self.bare.client.kv_client();
        while kv.get(LOCK, Some(count.clone())).await?.count() < 2 {}
        Ok(())
    }
}

/// What the server has done so far: requests answered, and messages to those who watch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) requests: f64,
    pub(crate) messages: f64,
}

impl Load {
    pub(crate) async fn of(port: u16) -> Result<Self, Failure> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let sum = |metric: &str, only: &str| {
            text.lines()
                .filter(|line| line.starts_with(metric) && line.contains(only))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>()
        };
        Ok(Self {
            requests: sum("grpc_server_handled_total{", "grpc_type=\"unary\""),
            messages: sum("grpc_server_msg_sent_total{", "Watch"),
        })
    }
}
