//! Locks and semaphores on Redis for [portalock](portalock_core). Grants are atomic, the queue is fair, and a broken
//! connection loses no lock.
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
//! # How it works
//!
//! A [`RedisBackend`] has one *session*: a key that it refreshes, and a connection that is subscribed to the session's
//! channel. All locks of the backend share the session. It runs on a thread of the library; calls use a connection of
//! the caller's runtime. To acquire a lock, a client runs one script on the server, in one round trip. The script
//! checks whether the sessions of the holders are alive, and then grants the lock or adds a place to the queue. A
//! release runs another script, which grants the lock to the next waiter and sends a message to its channel. So there
//! is no polling, and only one waiter wakes up.
//!
//! A crashed process runs no script. So the last waiter checks every
//! [`tick_interval`](RedisSettings::with_tick_interval) whether the holder's session is alive. The waiters ahead of it
//! check less and less often: 64 idle waiters cost the server about thirteen commands a second.
//!
//! Exclusive locks, shared locks and semaphores use one mechanism: weights under a capacity, in first-come,
//! first-served order.
//!
//! # When a connection ends
//!
//! No lock is lost. The client resumes the session on a new connection, at once and then with growing pauses, as long
//! as the session's lease lasts: [`session_ttl`](RedisSettings::with_session_ttl), 4 s by default, from the last
//! refresh. Holders keep their locks, tokens and lost signals. Waiters keep their places. Calls in flight are sent
//! again. Commands that still arrive from the old connection have no effect. The same is true for a server that
//! restarts with its data, and for a replica that is promoted. Such a server grants no new locks for a
//! [while](RedisSettings::with_restart_wait), because it may lack the last grants.
//!
//! If the session can't be resumed in time, or the server no longer knows it, all its locks are lost: each guard's
//! [`lost`](portalock_core::Guard::lost) fires before the lock can be granted to another owner. Waiting calls
//! automatically take a place in a new session. The lock of a crashed process becomes free in the same time.
//!
//! If that is too slow, use [`release_without_notice`](RedisSettings::with_release_without_notice). It gives up both
//! guarantees: locks end with their connection, and a lock may be granted to another owner before its former holder
//! knows.
//!
//! # Behind sentinels
//!
//! `redis+sentinel://[user:password@]a,b,c/master-name` connects to the primary that these sentinels name. When the
//! primary changes, the client follows within a second after one of the sentinels knows. If
//! [`wait_replicas`](RedisSettings::with_wait_replicas) is at least half of the replicas, a holder is always told
//! before its lock is granted to another owner, whatever the switch was. Otherwise a holder that sees neither the
//! sentinels nor the switch may still rely on a lock that another owner has. `docs/guarantees.md` lists each case.
//!
//! # In a cluster
//!
//! `redis+cluster://[user:password@]a,b,c` connects to the cluster of these nodes; one node that answers is enough. The
//! hash of a name selects one of 16 [tags](RedisSettings::with_cluster_tags). All keys and channels of a tag are in one
//! slot, and the node that serves the slot works like a single server. A client has one session for each tag that it
//! uses. The session starts when the client first uses a name of the tag. So a client has up to 16 sessions, and each
//! runtime has up to 16 connections for calls. The client follows each slot to another node, as it follows a primary
//! behind sentinels. The same guarantees hold when a node fails: [`wait_replicas`](RedisSettings::with_wait_replicas)
//! counts the replicas of one primary.
//!
//! While a slot moves, its locks stay held, and nothing in it is granted or released. Each call retries for up to half
//! of the session's time, and then fails as [`Unavailable`](portalock_core::BackendErrorKind::Unavailable). A
//! [`LockSet`] can have names of any slots. With [`release_without_notice`](RedisSettings::with_release_without_notice)
//! a move ends the session, as a reset does.
//!
//! [`LockSet`]: portalock_core::LockSet
//!
//! # Semaphores
//!
//! [`RedisBackend`] is also a [`Semaphore`](portalock_core::Semaphore), for [`Pool`](portalock_core::Pool). Redis
//! stores no limit: each request carries its own capacity. So there is nothing to create, and a request with another
//! capacity changes the limit. If requests with different capacities meet, the smallest capacity counts: permits are
//! granted when they fit, together with the permits of all holders, under the capacity of the request and of every
//! current holder. A lowered limit takes no permits from holders. A raised limit takes effect when the last holder with
//! a smaller capacity has released. The first waiter is never overtaken, whatever its capacity is.
//!
//! # What it costs
//!
//! Acquiring a free lock costs one round trip, and so does releasing it. One more shared hold costs the same: as long
//! as all holders asked for the same, the script counts the holders and does not read them. The script reads all
//! holders of the name, 3 ms for each thousand, in three cases: the holders differ, as the permits of a semaphore can;
//! there are waiters; or the request does not fit. Other names cost nothing. With every refresh, a session that holds
//! locks checks whether they still exist: 500 at a time, or as many as are needed to check each lock within ten
//! minutes. Each lock costs half a kilobyte at the server and less than one kilobyte at the client.
//!
//! An [observer](portalock_core::Observer) of an election has a connection of its own. Each grant costs one `PUBLISH`,
//! with or without observers. Each release that grants the lock to no waiter costs one too.
//!
//! # What it needs
//!
//! - Redis 6.2 or later, or Valkey: a single server, optionally with replicas and sentinels. Or a cluster of Redis 7.0
//!   or later, or of Valkey, with a `redis+cluster://` URL. With the feature `tls`: also `rediss://`,
//!   `rediss+sentinel://` and `rediss+cluster://`.
//! - A `maxmemory-policy` that doesn't evict these keys: `noeviction`, or enough memory. All keys have a time to live,
//!   so the `volatile-*` policies evict them too.
//! - A user with this ACL, for the default prefix: `~portalock/* &portalock/* +eval +evalsha +subscribe +unsubscribe
//!   +publish +pubsub|numsub +ping +info +scan +wait +time +get +mget +exists +set +del +pexpire +pexpireat +pttl +hget
//!   +hmget +hset +hsetnx +hdel +hgetall +hlen +zadd +zrem +zrange +zrevrank +select`. If a permission is missing,
//!   opening the session fails as [`PermissionDenied`](portalock_core::BackendErrorKind::PermissionDenied). A user with
//!   this ACL can also break locks. At sentinels: `+sentinel|master +sentinel|get-master-addr-by-name`.
//! - In a cluster: `~{portalock}/* ~{portalock-*}/* &{portalock-*}/*` instead of the first two, and `+ssubscribe
//!   +sunsubscribe +spublish +pubsub|shardnumsub` instead of the commands without the `s` or `shard`, and
//!   `+cluster|nodes +asking`. Create the user at every node, because a cluster does not copy users.
//!
//! # Keys in Redis
//!
//! | key | content | lifetime |
//! |---|---|---|
//! | `portalock/lock/NAME` | a hash: the last token, and one field for each holder | an hour or two after its last use |
//! | `portalock/lock-queue/NAME`, `portalock/lock-waiters/NAME` | the queue, while there are waiters | an hour or two after its last use |
//! | `portalock/semaphore...` | the same for semaphores | |
//! | `portalock/session/ID/broken` | marks of locks that [an operator breaks](portalock_core::Lock::break_holder), until their holder has handled them | an hour or two |
//! | `portalock/primary` | since when this server is the primary | a month after the last connection |
//! | `portalock/session/ID` | a session; its channel has the same name | [`session_ttl`](RedisSettings::with_session_ttl) after its last refresh |
//!
//! In a cluster the prefix is `{portalock-N}` instead of `portalock`, where N is the number of the tag. The key
//! `{portalock}/tags` holds the number of tags, and never expires.
//!
//! After a lock has ended, only its last token stays, for at least an hour after the server's clock has passed the
//! token. A token is that clock in microseconds, or more. So afterwards the clock alone gives larger tokens, even if
//! the clock was set back in between. A holder or waiter that stays for longer than an hour keeps the keys alive.
//!
//! # Features
//!
//! - `tls`: `rediss://`, `rediss+sentinel://` and `rediss+cluster://` URLs, with rustls; with the system's certificates
//!   or [your own](RedisSettings::with_authority).
//!
//! `docs/guarantees.md` lists what is guaranteed, and which faults break it. `src/scripts.rs` lists the invariants of
//! the scripts.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod backend;
mod breaking;
mod client;
mod clients;
mod cluster;
mod config;
mod connect;
mod connection;
mod error;
mod keys;
mod look;
mod observe;
mod place;
mod primary;
mod queue;
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
