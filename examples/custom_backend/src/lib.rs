//! A complete lock backend in one file: rows in an SQLite database, for the processes of one host.
//!
//! A lock is a row with an owner, a fencing token and an expiry time. A [`Keeper`] renews the row while its holder
//! lives, so a holder keeps its lock however long it works. The next attempt removes an expired row. Each step is one
//! `BEGIN IMMEDIATE` transaction, and SQLite allows one writer at a time. The engine does the rest.
//!
//! **Which clock?** Rows expire by the wall clock, because all processes of a host can read it, and it continues after
//! a reboot. A holder counts on the monotonic clock, from before its row is written, and uses a tenth less, so it knows
//! of a loss first. If the wall clock is set forward by more than that tenth, or the machine sleeps, another process
//! may be granted the lock before the holder knows; then the token protects the resource. If the clock is set back, a
//! crashed holder's row lasts longer.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind as Kind, Capabilities, Claim, Contention, CrashRelease,
    FencingToken, Grant, Inspect, Inspection, Keeper, Lease, LockBackend, LockName, LockRequest,
    Loss, LossNotice, LostSignal, Mode, OwnerId, Released, Renewal, Scope, Tokens, clock::Instant,
};
use rusqlite::{Connection, Error, ErrorCode, OptionalExtension, Row, types::Type};
use rusqlite::{Transaction, TransactionBehavior};
use tokio::sync::Mutex;

/// A release deletes the row in `locks`; `tokens` keeps the last token of each name, so that tokens keep growing.
const SCHEMA: &str = "
    PRAGMA synchronous = normal;
    CREATE TABLE IF NOT EXISTS tokens (name TEXT PRIMARY KEY, last INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS locks (owner TEXT PRIMARY KEY, name TEXT NOT NULL, shared INTEGER NOT NULL,
        claim TEXT NOT NULL, token INTEGER NOT NULL, until REAL NOT NULL);
    CREATE INDEX IF NOT EXISTS locks_by_name ON locks (name);";
const EXPIRE: &str = "DELETE FROM locks WHERE name = ?1 AND until <= unixepoch('subsec')";
const RENEW: &str =
    "UPDATE locks SET until = unixepoch('subsec') + ?2 WHERE owner = ?1 RETURNING token";
const OTHERS: &str = "SELECT claim FROM locks WHERE name = ?1 AND NOT (shared AND ?2)";
const TOKEN: &str = "INSERT INTO tokens VALUES (?1, CAST(unixepoch('subsec') * 1e6 AS INTEGER))
    ON CONFLICT (name) DO UPDATE SET last = max(last + 1, excluded.last)";
const GRANT: &str = "INSERT INTO locks SELECT ?2, name, ?3, ?4, last, unixepoch('subsec') + ?5
    FROM tokens WHERE name = ?1 RETURNING token";
const RELEASE: &str = "DELETE FROM locks WHERE owner = ?1";
const INSPECT: &str = "SELECT claim FROM locks WHERE name = ?1 AND until > unixepoch('subsec')";

/// Locks as rows of an SQLite database. Don't delete its file while it is in use.
#[derive(Debug)]
pub struct SqliteBackend {
    database: Arc<Mutex<Connection>>,
    lease_time: Duration,
    /// The keepers of this object's locks.
    held: Mutex<HashMap<OwnerId, (Lease, Keeper)>>,
}

impl SqliteBackend {
    /// Opens the locks in the database `file`, which is created if it doesn't exist. A crashed holder's lock passes on
    /// after `lease_time`.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the lease is shorter than 100 ms or longer than a day, or the file can't be used.
    pub fn open(file: impl AsRef<Path>, lease_time: Duration) -> Result<Self, BackendError> {
        if !(Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&lease_time) {
            let message = "`lease_time` is out of range: give it 100 ms to 24 hours";
            return Err(BackendError::new(Kind::Misconfigured, message));
        }
        let connect = || {
            let connection = Connection::open(file)?;
            // Less than the time between renewals, so that a renewal that found a busy database is retried.
            connection.busy_timeout(lease_time / 5)?;
            // Fails if another process does the same, and then it is done anyway.
            let _ = connection.pragma_update(None, "journal_mode", "wal");
            connection.execute_batch(SCHEMA).map(|()| connection)
        };
        Ok(Self {
            database: Arc::new(Mutex::new(connect().map_err(failure)?)),
            lease_time,
            held: Mutex::default(),
        })
    }

    /// Renews the owner's row until it is released, or this object is dropped.
    async fn keep(&self, owner: OwnerId, sent: Instant) -> Result<LostSignal, BackendError> {
        let (time, certain) = (self.lease_time, self.lease_time * 9 / 10);
        let deadline = sent + certain;
        let mut held = self.held.lock().await;
        let kept = held.get(&owner).filter(|(lease, _)| lease.extend(deadline));
        if let Some((lease, _)) = kept {
            return Ok(lease.signal());
        }
        let lease = Lease::until(deadline);
        let (database, signal) = (self.database.clone(), lease.signal());
        let keeper = Keeper::spawn(lease.clone(), time / 3, move || {
            transact(database.clone(), move |db| {
                let row = (owner.to_string(), time.as_secs_f64());
                Ok(match db.query_row(RENEW, row, granted).optional()? {
                    Some(_) => Renewal::Renewed(certain),
                    None => Renewal::Gone(Loss::Removed("its row was deleted".into())),
                })
            })
        })?;
        held.insert(owner, (lease, keeper));
        Ok(signal)
    }
}

#[async_trait]
impl LockBackend for SqliteBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Host)
            .with_shared(true)
            .with_tokens(Tokens::Durable)
            .with_crash_release(CrashRelease::Within(self.lease_time))
            .with_loss(LossNotice::BeforeSuccessor)
            .with_inspect(Inspect::Holders)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        let (sent, wanted, time) = (Instant::now(), request.clone(), self.lease_time);
        let attempt = transact(self.database.clone(), move |db| attempt(db, &wanted, time));
        let mut attempt = attempt.await?;
        if let Attempt::Granted(grant) = &mut attempt {
            grant.lost = self.keep(request.owner, sent).await?;
        }
        Ok(attempt)
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        // Removed first, so that a row that can't be deleted is not renewed either.
        self.held.lock().await.remove(&request.owner);
        let (owner, database) = (request.owner.to_string(), self.database.clone());
        match transact(database, move |db| db.execute(RELEASE, [owner])).await? {
            0 => Ok(Released::NotHeld),
            _ => Ok(Released::Freed),
        }
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let name = name.to_string();
        let look =
            move |db: &Transaction<'_>| db.prepare(INSPECT)?.query_map([name], claim)?.collect();
        let holders = transact(self.database.clone(), look).await?;
        Ok(Inspection::new(holders, Vec::new()))
    }
}

/// Runs `steps` as one transaction, on a thread that may block.
async fn transact<T: Send + 'static>(
    database: Arc<Mutex<Connection>>,
    steps: impl FnOnce(&Transaction<'_>) -> Result<T, Error> + Send + 'static,
) -> Result<T, BackendError> {
    let work = tokio::task::spawn_blocking(move || {
        let mut connection = database.blocking_lock();
        let db = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let answer = steps(&db)?;
        db.commit().map(|()| answer)
    });
    let stopped = BackendError::new(Kind::Unavailable, "the runtime stopped before the answer");
    let answer = work.await.map_err(|error| stopped.with_source(error))?;
    answer.map_err(failure)
}

fn attempt(db: &Transaction<'_>, request: &LockRequest, time: Duration) -> Result<Attempt, Error> {
    let (name, owner) = (request.name.as_str(), request.owner.to_string());
    let (shared, time) = (request.demand == Mode::Shared, time.as_secs_f64());
    db.execute(EXPIRE, [name])?;
    // Already granted, by an attempt whose answer was lost.
    if let Some(mine) = db.query_row(RENEW, (&owner, time), granted).optional()? {
        return Ok(mine);
    }
    if let Some(other) = db.query_row(OTHERS, (name, shared), claim).optional()? {
        let contention = Contention::new().with_holder(Some(other.holder));
        return Ok(Attempt::Contended(contention));
    }
    let claim = Claim::new(request.holder.clone().since_now(), request.demand.into());
    let claim = serde_json::to_string(&claim);
    let claim = claim.map_err(|error| Error::ToSqlConversionFailure(error.into()))?;
    db.execute(TOKEN, [name])?;
    db.query_row(GRANT, (name, owner, shared, claim, time), granted)
}

fn granted(row: &Row<'_>) -> Result<Attempt, Error> {
    let token = FencingToken::new(row.get::<_, i64>(0)?.cast_unsigned());
    Ok(Attempt::Granted(Grant::new().with_token(token)))
}

fn claim(row: &Row<'_>) -> Result<Claim, Error> {
    let claim = serde_json::from_str(&row.get::<_, String>(0)?);
    claim.map_err(|error| Error::FromSqlConversionFailure(0, Type::Text, error.into()))
}

fn failure(error: Error) -> BackendError {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy) => Kind::Unavailable,
        Some(ErrorCode::CannotOpen) => Kind::NotFound,
        Some(ErrorCode::DiskFull) => Kind::OutOfSpace,
        Some(ErrorCode::ReadOnly) => Kind::ReadOnly,
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Kind::Corrupt,
        _ => Kind::Other,
    };
    BackendError::new(kind, "the lock database failed").with_source(error)
}
