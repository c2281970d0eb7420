//! What a session looks after for its claims: that they are still there, that nobody waits behind the dead, and that what is owed
//! is given back.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use portalock_core::{FencingToken, OwnerId, clock::Instant};
use tokio::{sync::Notify, time::timeout};
use tokio_postgres::{Error, types::Type};

use crate::{
    connection::Connection,
    error::{failed, timed_out},
    places::Asked,
    queue::{millis, token},
    session::{Line, Session},
};

const LOOKING: &str = "look after the session's claims";

/// How many claims one look asks for; with more, each has its turn.
const SEEN_AT_ONCE: usize = 500;
/// Looks don't come closer than this.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// After how long a look that failed is repeated, or a release is taken over from whoever it failed for.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often a session removes what nobody needs any more. A short one does so once in so many starts.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
const CLEAN_ONE_START_IN: u32 = 50;

/// When to look after the claims next.
#[derive(Debug, Default)]
pub(crate) struct Look {
    at: Mutex<Option<Instant>>,
    sooner: Notify,
    /// A connection was made anew: every claim is to be asked for.
    pub(crate) resumed: Notify,
}

impl Session {
    /// Somebody in front of a waiter may be dead after this time.
    pub(crate) fn look_within(&self, time: Duration) {
        let mut at = self.lock_look();
        let sooner = Instant::now() + time.max(LOOK_AT_MOST_EVERY);
        if at.is_none_or(|at| sooner < at) {
            *at = Some(sooner);
            drop(at);
            self.look.sooner.notify_one();
        }
    }

    /// Looks after the session's claims, and at first after those of `former`, until this is dropped.
    pub(crate) async fn look_after(&self, former: Option<Arc<str>>) -> Infallible {
        tokio::select! {
            never = self.look_at_times() => never,
            never = self.resume() => never,
            never = self.collect() => never,
            never = self.clear_up(former) => never,
        }
    }

    /// Looks now and then, and when somebody in front of a waiter may have died.
    async fn look_at_times(&self) -> Infallible {
        let mut turn = 0;
        loop {
            self.wait_for_look().await;
            let mut asked = self.places.standing(&self.id);
            let due = self.places.due(&self.id);
            if asked.len() > SEEN_AT_ONCE {
                asked.sort_unstable_by_key(|asked| asked.owner);
                turn = (turn + SEEN_AT_ONCE) % asked.len();
                asked.rotate_left(turn);
                asked.truncate(SEEN_AT_ONCE);
            }
            self.pay(&due).await;
            if !asked.is_empty() || !self.observers.is_empty() {
                self.ask(&asked).await;
            }
        }
    }

    /// Asks for every claim after a connection was made anew: what was granted meanwhile has not been heard.
    async fn resume(&self) -> Infallible {
        loop {
            self.look.resumed.notified().await;
            for some in self.places.standing(&self.id).chunks(SEEN_AT_ONCE) {
                self.ask(some).await;
            }
            self.look_within(Duration::ZERO);
        }
    }

    /// Takes over releases that failed or were dropped half-way.
    async fn collect(&self) -> Infallible {
        loop {
            self.places.owed.notified().await;
            self.look_within(AGAIN_AFTER);
        }
    }

    /// Does this over the connection that listens, within the time that a request has.
    pub(crate) async fn over(&self, line: &Line, work: impl Future<Output = Result<(), Error>>) {
        let error = match timeout(self.settings.request_timeout, work).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => failed(LOOKING, error),
            Err(_) => {
                // Nothing more comes over it; and grants would not, either.
                self.drop_line(line);
                self.broken.notify_one();
                timed_out(LOOKING)
            }
        };
        tracing::debug!(%error, "could not look after the claims of a session");
        self.look_within(AGAIN_AFTER);
    }

    async fn wait_for_look(&self) {
        loop {
            let at = {
                let mut at = self.lock_look();
                *at.get_or_insert_with(|| Instant::now() + self.interval())
            };
            if timeout_at(at, self.look.sooner.notified()).await {
                *self.lock_look() = None;
                return;
            }
        }
    }

    /// Asks the server for these claims, and has it serve those that wait behind the dead.
    ///
    /// Without a connection nothing is asked: once there is one again, everything is.
    async fn ask(&self, asked: &[Asked]) {
        let Some(line) = self.open_line() else {
            return;
        };
        let owners: Vec<String> = asked.iter().map(|asked| asked.name.to_string()).collect();
        let work = async {
            let (claims, again_in) = look(&line.connection, &self.id, &owners).await?;
            self.places.found(asked, &claims, &self.lease.signal());
            if let Some(time) = again_in {
                self.look_within(time);
            }
            Ok(())
        };
        self.over(&line, work).await;
    }

    /// Releases what is due.
    async fn pay(&self, due: &[OwnerId]) {
        let Some(line) = self.open_line() else {
            return;
        };
        let work = async {
            for owner in due {
                let Some(releasing) = self.places.release_due(*owner) else {
                    continue;
                };
                let left = line.connection.leave(&releasing.leaving).await?;
                if let Some(epoch) = left.epoch {
                    self.epoch_is(epoch);
                }
                releasing.done();
            }
            Ok(())
        };
        self.over(&line, work).await;
    }

    /// Removes what nobody needs any more: of the former session at once, of others once in a while.
    async fn clear_up(&self, former: Option<Arc<str>>) -> Infallible {
        if let (Some(former), Some(line)) = (former, self.open_line()) {
            let work = async {
                while line.connection.bury(&former).await? {}
                Ok(())
            };
            self.over(&line, work).await;
        }
        if fastrand::u32(..CLEAN_ONE_START_IN) > 0 {
            tokio::time::sleep(CLEAN_EVERY).await;
        }
        loop {
            if let Some(line) = self.open_line() {
                let clean = line.connection.query("SELECT portalock.clean()", &[]);
                self.over(&line, async { clean.await.map(drop) }).await;
            }
            tokio::time::sleep(CLEAN_EVERY).await;
        }
    }

    fn lock_look(&self) -> MutexGuard<'_, Option<Instant>> {
        self.look.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True if the time has come, false if the notification came first.
async fn timeout_at(at: Instant, notified: impl Future<Output = ()>) -> bool {
    tokio::time::timeout_at(at, notified).await.is_err()
}

/// By the names of places.
type Claims = HashMap<String, Option<FencingToken>>;

async fn look(
    line: &Connection,
    session: &str,
    owners: &[String],
) -> Result<(Claims, Option<Duration>), Error> {
    let rows = line
        .query(
            "SELECT * FROM portalock.look($1, $2)",
            &[(&session, Type::TEXT), (&owners, Type::TEXT_ARRAY)],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok((Claims::new(), None));
    };
    let owners: Option<Vec<&str>> = row.try_get("owners")?;
    let tokens: Option<Vec<Option<i64>>> = row.try_get("tokens")?;
    let again_in: Option<i64> = row.try_get("again_in")?;
    let claims = owners
        .unwrap_or_default()
        .into_iter()
        .zip(tokens.unwrap_or_default())
        .map(|(owner, number)| (owner.to_owned(), number.map(token)))
        .collect();
    Ok((claims, again_in.map(millis)))
}
