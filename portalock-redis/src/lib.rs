//! Locks and semaphores on Redis for [portalock](portalock_core): granted atomically, queued fairly, and not lost with a
//! connection.
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
//! A [`RedisBackend`] has one *session*: a key that it refreshes, and a connection that is subscribed to a channel of its own. All
//! of its locks share it. It lives on the library's own thread; calls go over a connection of the caller's runtime. Whoever
//! asks for a lock runs one script on the server, in one round trip, which looks whether the holders' sessions live and grants, or
//! keeps a place in the queue. Whoever releases runs another, which hands the lock to the next in line by a message to its
//! channel: no polling, no herd.
//!
//! A crash runs no script. So the last in line looks every [`tick_interval`](RedisSettings::with_tick_interval) whether
//! the holder's session lives, and those behind it ever more rarely: 64 idle waiters cost the server some thirteen commands a
//! second.
//!
//! Exclusive locks, shared locks and semaphores are one mechanism: weights under a capacity, first come first served.
//!
//! # When a connection ends
//!
//! Nothing is lost. The session is taken up again on a new connection, at once and then with growing pauses, for as long as its lease
//! lasts: [`session_ttl`](RedisSettings::with_session_ttl), 4 s by default, from its last refresh. Holders keep their locks,
//! tokens and lost signals, waiters their places, and calls that were under way are sent again. What may still come out of
//! the old connection takes no effect. The same holds for a server that restarts with its data, and for a replica that is
//! promoted in its place. Such a server grants nothing new for a [while](RedisSettings::with_restart_wait), since it may lack the
//! last grants of before.
//!
//! If it can't come back in time, or the server no longer knows it, everything held in the session is lost: every guard's
//! [`lost`](portalock_core::Guard::lost) fires, before another can be granted the lock. Waiting calls take a place in a new session
//! by themselves. A crashed process's lock passes on in the same time.
//!
//! Who can't wait for that chooses [`release_without_notice`](RedisSettings::with_release_without_notice), and gives up both: locks
//! then go with their connection, and another may have one before its former holder knows.
//!
//! # Behind sentinels
//!
//! `redis+sentinel://[user:password@]a,b,c/master-name` connects to the primary that these sentinels name, and follows it when it moves,
//! at the latest a second after one of them knows. With [`wait_replicas`](RedisSettings::with_wait_replicas) of at least half of
//! the replicas, a holder is told before another is granted its lock whatever the switch was. Without, one that sees neither the
//! sentinels nor the switch can go on beside another: `docs/guarantees.md` has each case.
//!
//! # In a cluster
//!
//! `redis+cluster://[user:password@]a,b,c` connects to the cluster of these nodes; one that answers is enough. By its hash each name
//! belongs to one of 16 [tags](RedisSettings::with_cluster_tags), and all keys and channels of a tag lie in one slot: there
//! the node that serves the slot does what a single server does. A client has a session for each tag that it uses, begun when a name of
//! it is first used: up to 16 sessions and as many connections for the calls of each runtime. It follows each slot
//! wherever it goes, as it follows a primary behind sentinels, and the same holds when a node fails:
//! [`wait_replicas`](RedisSettings::with_wait_replicas) counts the replicas of one primary.
//!
//! While a slot moves, its locks stay held, and nothing is granted or released in it: calls wait and try again, for up to half of the
//! session's time each, and then fail as [`Unavailable`](portalock_core::BackendErrorKind::Unavailable). A [`LockSet`] takes names of any slots.
//! With [`release_without_notice`](RedisSettings::with_release_without_notice) a move ends the session, as a reset does.
//!
//! [`LockSet`]: portalock_core::LockSet
//!
//! # Semaphores
//!
//! [`RedisBackend`] is a [`Semaphore`](portalock_core::Semaphore) too, for [`Pool`](portalock_core::Pool). Redis keeps no
//! limit of its own: each request brings its idea of the capacity, so there is nothing to create, and a limit is changed
//! by asking with another. Where requests with different capacities meet, the smallest counts: permits are granted when
//! they fit, with those of all holders, under the request's own capacity and under that of every present holder. A
//! lowered limit takes nothing from those who hold; a raised one takes effect when the last holder that asked with less
//! has gone. Nobody overtakes the first in line, whatever it asked with.
//!
//! # What it costs
//!
//! Acquiring and releasing a free lock is a round trip each, and so is one more that shares a lock: those who hold are counted,
//! not read, as long as all of them asked for the same. Where they differ, as the permits of a semaphore can, where somebody
//! waits, or where no more fit, the holders of that name are read as a whole, 3 ms for each thousand. Other names cost
//! nothing. A session that holds locks looks with every refresh whether they are still there, 500 of them at a time, or as many as
//! it takes to see each within ten minutes.
//! Each costs half a kilobyte at the server and less than one at the client.
//!
//! An [observer](portalock_core::Observer) of an election has a connection of its own. Each grant costs a `PUBLISH`, and each release that hands
//! the lock to nobody, whether anybody observes or not.
//!
//! # What it needs
//!
//! - Redis 6.2 or later, or Valkey: a single server, with replicas if you like, and sentinels. Or a cluster of Redis 7.0 or later, or
//!   of Valkey, by a `redis+cluster://` URL. With the feature `tls`, `rediss://`, `rediss+sentinel://` and `rediss+cluster://`.
//! - A `maxmemory-policy` that evicts none of our keys: `noeviction`, or memory enough. All keys have a time to live, so
//!   the `volatile-*` policies evict them too.
//! - A user with this ACL, for the default prefix: `~portalock/* &portalock/* +eval +evalsha +subscribe +unsubscribe
//!   +publish +pubsub|numsub +ping +info +scan +wait +time +get +mget +exists +set +del +pexpire +pexpireat +pttl +hget +hmget +hset
//!   +hsetnx +hdel +hgetall +hlen +zadd +zrem +zrange +zrevrank +select`. What is missing is a
//!   [`PermissionDenied`](portalock_core::BackendErrorKind::PermissionDenied) when the session opens. Whoever has it may also
//!   break locks. Of sentinels `+sentinel|master +sentinel|get-master-addr-by-name`.
//! - In a cluster `~{portalock}/* ~{portalock-*}/* &{portalock-*}/*` instead of the first two, `+ssubscribe +sunsubscribe +spublish
//!   +pubsub|shardnumsub` instead of their namesakes, and `+cluster|nodes +asking`; at every node, as a cluster does not pass on users.
//!
//! # What lies in Redis
//!
//! | key | what | how long |
//! |---|---|---|
//! | `portalock/lock/NAME` | a hash: the last token, and one field for each holder | an hour or two after its last use |
//! | `portalock/lock-queue/NAME`, `portalock/lock-waiters/NAME` | the queue, while somebody waits | an hour or two after its last use |
//! | `portalock/semaphore...` | the same for semaphores | |
//! | `portalock/session/ID/broken` | marks of locks that [an operator breaks](portalock_core::Lock::break_holder), until their holder has heeded them | an hour or two |
//! | `portalock/primary` | since when this server is the primary | a month after the last connection |
//! | `portalock/session/ID` | a session; its channel has the same name | [`session_ttl`](RedisSettings::with_session_ttl) after its last sign of life |
//!
//! In a cluster `{portalock-N}` stands for `portalock`, N being the number of the tag; and `{portalock}/tags` says how many there are, for
//! good.
//!
//! Of a finished lock only the last token is left, for at least an hour after the server's clock has passed it: a token is that
//! clock in microseconds or more, so from then on the clock alone makes larger ones, also if it had been set back in
//! between. Who holds or waits for longer than an hour keeps the keys alive.
//!
//! # Features
//!
//! - `tls`: `rediss://`, `rediss+sentinel://` and `rediss+cluster://` URLs, by rustls; with the system's certificates or [your own](RedisSettings::with_authority).
//!
//! What holds until which fault is in `docs/guarantees.md`, and the invariants of the scripts stand in `src/scripts.rs`.

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
