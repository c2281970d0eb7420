//! Locks and semaphores on Redis for [portalock](portalock_core): granted atomically, first come, first served, and kept
//! when a connection is reset.
//!
//! ```
//! use portalock_core::Lock;
//! use portalock_redis::RedisBackend;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let server = portalock_testkit::servers::RedisServer::start()?;
//! # let url = server.url();
//! let redis = RedisBackend::connect(&url).await?; // "redis://user:password@db.example"
//! let lock = Lock::new(redis, "nightly-report")?;
//!
//! let guard = lock.acquire().await?;
//! // ... while it is held; send `guard.token()` along with every write ...
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! It needs a tokio runtime with I/O and time: `Builder::enable_all`, as `#[tokio::main]` has it. In a program without async use
//! [`blocking`](portalock_core::blocking), which needs no runtime.
//!
//! # How it works
//!
//! A [`RedisBackend`] has one *session*: a key that it refreshes, and a connection that is subscribed to the session's
//! channel. All its locks share the session, which runs on the library's own thread. Requests use a connection of the
//! caller's runtime. To acquire a lock, the client runs one script on the server, in one round trip. The script checks
//! whether the holders' sessions live, and then grants the lock or keeps a place in the queue. To release, the client runs
//! another script, which grants the lock to the next waiter and publishes a message to that waiter's channel. So nobody
//! polls, and only the next waiter wakes up. A waiter right behind an owner of its own session takes over when that owner
//! releases, without a round trip.
//!
//! A crashed client runs no script. So the last waiter in the queue checks every
//! [`tick_interval`](RedisSettings::with_tick_interval) whether the holder's session lives. The waiters ahead of it check
//! more rarely: 64 idle waiters cost the server about thirteen commands a second.
//!
//! Exclusive locks, shared locks and semaphores are one mechanism: weights under a capacity, first come, first served.
//!
//! # When a connection ends
//!
//! Nothing is lost. The session resumes on a new connection, at once and then with growing pauses between the attempts, for
//! as long as its lease lasts. That is [`session_ttl`](RedisSettings::with_session_ttl) (4 s by default) after its last
//! refresh. Holders keep their locks, tokens and lost signals, waiters keep their places, and requests in flight are sent
//! again. Late requests from the old connection have no effect. The same is true if the server restarts with its data, or if
//! a replica is promoted. A server that has started or was promoted may lack the last grants. So it grants nothing new for
//! [some time](RedisSettings::with_restart_wait).
//!
//! If the session can't resume in time, or if the server no longer knows it, all its locks are lost. The
//! [`lost`](portalock_core::Guard::lost) of every guard fires before another client can be granted the lock. Waiting calls
//! take a place in a new session by themselves. A crashed process's lock passes on within the same time.
//!
//! If that is too long for you, use [`release_without_notice`](RedisSettings::with_release_without_notice). It gives up both
//! promises: a session then ends with its connection, and another client may get the lock before the former holder knows.
//!
//! # Behind sentinels
//!
//! `redis+sentinel://[user:password@]a,b,c/master-name` connects to the primary that these sentinels name. The client
//! follows every switch, at most a second after one of the sentinels knows of it. With
//! [`wait_replicas`](RedisSettings::with_wait_replicas) of at least half of the replicas, a holder is told before another is
//! granted its lock, whatever the switch was, if no replica goes back to a former primary that still runs. Without it,
//! there can be two holders for some time, if the first one sees neither the sentinels nor the switch:
//! `docs/guarantees.md` has each case.
//!
//! # In a cluster
//!
//! `redis+cluster://[user:password@]a,b,c` connects to the cluster of these nodes; one that answers is enough. The hash of a
//! name selects one of 16 [tags](RedisSettings::with_cluster_tags), and all keys and channels of a tag are in one slot. The
//! node that serves the slot works like a single server. A client has one session for each tag that it uses, and starts it
//! with the first use: up to 16 sessions, and up to 16 connections for the requests of each runtime. The client follows a slot to another
//! node as it follows a primary behind sentinels. If a node fails, the same guarantees hold:
//! [`wait_replicas`](RedisSettings::with_wait_replicas) counts the replicas of one primary.
//!
//! While a slot moves, its locks stay held, and nothing is granted or released in it. Calls wait and retry for up to half of
//! the session's time, and then fail as [`Unavailable`](portalock_core::BackendErrorKind::Unavailable). A [`LockSet`] can
//! have names in any slots. With [`release_without_notice`](RedisSettings::with_release_without_notice) a move ends the
//! session, as a reset does.
//!
//! [`LockSet`]: portalock_core::LockSet
//!
//! # Semaphores
//!
//! [`RedisBackend`] is also a [`Semaphore`](portalock_core::Semaphore), for [`Pool`](portalock_core::Pool). Redis stores no
//! limit: each request brings its own capacity. So there is nothing to create, and you change a limit by requests with
//! another capacity. If requests with different capacities meet, the smallest one counts: permits are granted if they and
//! the permits of all holders fit under the capacity of the request and of every holder. A lowered limit takes nothing
//! from the holders. A raised limit takes effect when the last holder with a lower capacity has released. Nobody overtakes
//! the first waiter, whatever its capacity is.
//!
//! # What it costs
//!
//! An acquisition of a free lock is one round trip, and a release is another one. Requests of tasks that use one connection at
//! the same time share a script, up to 32 at once. One more holder of a shared lock costs the
//! same, because the script counts the holders instead of reading them, as long as all of them asked for the same. It reads
//! all holders of the name, 3 ms for each thousand, in four cases: their requests differ, as with permits of a semaphore;
//! somebody asks while others wait; no more holders fit; or it is the first grant in an hour, which removes those that
//! crashed. Other names cost nothing. With each refresh a session checks whether its locks still exist: 500 of them at a
//! time, or as many as it takes to check each within ten minutes. A held lock takes half a kilobyte at the server and less
//! than one at the client.
//!
//! An [observer](portalock_core::Observer) of an election has its own connection. While it observes, each grant costs a
//! `PUBLISH`, and so does each release without a waiter.
//!
//! # What it needs
//!
//! - Redis 6.2 or later, or Valkey: a single server, with or without replicas and sentinels. Or a cluster of Redis 7.0 or
//!   later, or of Valkey, with a `redis+cluster://` URL. With the feature `tls` also `rediss://`, `rediss+sentinel://` and
//!   `rediss+cluster://`.
//! - A `maxmemory-policy` that does not evict the keys of locks: `noeviction`, or enough memory. All keys have a time to
//!   live, so the `volatile-*` policies evict them too.
//! - A user with this ACL, for the default prefix: `~portalock/* &portalock/* +eval +evalsha +subscribe +unsubscribe
//!   +publish +pubsub|numsub +ping +info +scan +wait +time +get +mget +exists +set +del +pexpire +pexpireat +pttl +hget +hmget +hset
//!   +hsetnx +hdel +hgetall +hlen +zadd +zrem +zrange +zrevrank +select`. If the scripts lack one of them, the session fails to
//!   open with [`PermissionDenied`](portalock_core::BackendErrorKind::PermissionDenied). Every user with this ACL may also
//!   break locks. At sentinels: `+sentinel|master +sentinel|get-master-addr-by-name`.
//! - In a cluster: `~{portalock}/* ~{portalock-*}/* &{portalock-*}/*` instead of the first two, `+ssubscribe +sunsubscribe
//!   +spublish +pubsub|shardnumsub` instead of the commands without `s` and `shard`, and in addition `+cluster|nodes
//!   +asking`. Set the user at every node: a cluster does not replicate users.
//!
//! # Keys in Redis
//!
//! | key | content | how long |
//! |---|---|---|
//! | `portalock/lock/NAME` | a hash: the last token, one field for each holder, and flags for waiters and observers | an hour or two after its last use |
//! | `portalock/lock-queue/NAME`, `portalock/lock-waiters/NAME` | the queue, while there are waiters | an hour or two after its last use |
//! | `portalock/semaphore...` | the same for semaphores | |
//! | `portalock/session/ID/broken` | marks of locks that [an operator breaks](portalock_core::Lock::break_holder), until their holder has found them | an hour or two |
//! | `portalock/primary` | since when this server is the primary | a month after the last connection |
//! | `portalock/session/ID` | a session; its channel has the same name | [`session_ttl`](RedisSettings::with_session_ttl) after its last refresh |
//!
//! In a cluster the keys begin with `{portalock-N}` instead of `portalock`, where N is the number of the tag. The key
//! `{portalock}/tags` contains the number of tags, and has no time to live.
//!
//! A released lock leaves only its last token. A token is the server's clock in microseconds, or more. The last token stays
//! for at least an hour after the clock has passed it; from then on the clock alone makes larger tokens, even if the clock
//! was set back before. Holders and waiters of more than an hour keep the keys alive.
//!
//! # Features
//!
//! - `tls`: `rediss://`, `rediss+sentinel://` and `rediss+cluster://` URLs, by rustls, with the system's certificates or [your own](RedisSettings::with_authority).
//!
//! `docs/guarantees.md` lists which faults break which guarantee. `src/scripts.rs` has the invariants of the scripts.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod backend;
mod batch;
mod breaking;
mod calls;
mod client;
mod clients;
mod cluster;
mod config;
mod connect;
mod connection;
mod error;
mod keys;
mod look;
mod neighbours;
mod observe;
mod primary;
mod queue;
mod raises;
mod record;
mod replicas;
mod route;
mod scripts;
mod semaphore;
mod sentinel;
mod session;
mod witness;

pub use backend::RedisBackend;
pub use config::{InvalidRedisSettings, RedisSettings};
