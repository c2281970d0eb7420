//! The queue of a name at the server, in our types: attempts, releases and looks, each one script.

use std::time::Duration;

use portalock_core::{
    BackendError, BackendErrorKind, Claim, FencingToken, Holder, Inspection, LockName, OwnerId,
    session::Answered,
};
use redis::Value;

use crate::{
    client::Server,
    connection::Call,
    error::{failed, unexpected},
    keys::{Kind, Wanted},
    place::Place,
    record::{decode, text},
    scripts::{ACQUIRE, INSPECT, RAISE, RELEASE, Script},
    session::SessionKey,
};

const ACQUIRING: &str = "acquire through Redis";
const RELEASING: &str = "release through Redis";
const INSPECTING: &str = "look at a lock in Redis";
const LISTING: &str = "list the locks in Redis";

/// How often a list is made anew because its slot has moved meanwhile.
const SCANS: usize = 3;

/// A request in the scripts' terms.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) session: &'a SessionKey,
    pub(crate) place: &'a Place,
    pub(crate) wanted: &'a Wanted,
    pub(crate) queues: bool,
    pub(crate) who: String,
}

/// What an attempt was answered.
#[derive(Debug)]
pub(crate) enum Standing {
    Granted(FencingToken),
    /// A place in the queue is kept, and so many wait behind it.
    Queued {
        behind: u32,
        holder: Option<Holder>,
    },
    /// Nothing is kept.
    Refused {
        holder: Option<Holder>,
    },
    /// The session is over at the server.
    Ended,
    /// Nothing was done: the session's stamp is this one.
    Stale(std::sync::Arc<str>),
}

impl Server {
    /// One attempt, with this stamp. `goes_on` is asked before it is sent once more.
    pub(crate) async fn acquire(
        &self,
        entry: &Entry<'_>,
        stamp: &str,
        goes_on: impl Fn() -> Result<(), BackendError> + Send + Sync,
    ) -> Result<Answered<Standing>, BackendError> {
        let Entry {
            session,
            place,
            wanted,
            queues,
            who,
        } = entry;
        let keys = self.keys.of(&place.named);
        let call = Call::Script(
            &ACQUIRE,
            &[&keys.state, &keys.queue, &keys.waiters, &session.key],
            &[
                self.keys.sessions(),
                &session.id,
                &place.name,
                &wanted.weight.to_string(),
                &wanted.capacity.to_string(),
                if *queues { "1" } else { "0" },
                who,
                stamp,
            ],
        );
        let answer = self.connections.send(ACQUIRING, call, goes_on).await?;
        Ok(Answered {
            value: standing(&answer.value).ok_or_else(|| unexpected(ACQUIRING))?,
            repeated: answer.repeated,
        })
    }

    /// Frees what a place has: whether it held.
    pub(crate) async fn release(&self, place: &Place) -> Result<Answered<bool>, BackendError> {
        let keys = self.keys.of(&place.named);
        self.free(
            RELEASING,
            &RELEASE,
            [&keys.state, &keys.queue, &keys.waiters],
            &place.name,
        )
        .await
    }

    /// The same, by one of the scripts that do.
    pub(crate) async fn free(
        &self,
        what: &'static str,
        script: &'static Script,
        keys: [&str; 3],
        whose: &str,
    ) -> Result<Answered<bool>, BackendError> {
        let arguments = [self.keys.sessions(), whose];
        let answer = self
            .send(what, Call::Script(script, &keys, &arguments))
            .await?;
        let value = match text(&answer.value) {
            Some("1") => true,
            Some("0") => false,
            _ => return Err(unexpected(what)),
        };
        Ok(Answered {
            value,
            repeated: answer.repeated,
        })
    }

    /// Gives a session its next stamp, for a release. `None` if it has ended at the server.
    pub(crate) async fn raise(
        &self,
        session: &SessionKey,
    ) -> Result<Option<std::sync::Arc<str>>, BackendError> {
        let call = Call::Script(&RAISE, &[&session.key], &[&session.lifetime]);
        let answer = self.send(RELEASING, call).await?;
        match text(&answer.value) {
            Some("") => Ok(None),
            Some(stamp) => Ok(Some(stamp.into())),
            None => Err(unexpected(RELEASING)),
        }
    }

    /// Who holds and who waits.
    pub(crate) async fn inspect(
        &self,
        kind: Kind,
        name: &LockName,
    ) -> Result<Inspection, BackendError> {
        let keys = self.keys.of(&kind.named(name));
        let call = Call::Script(
            &INSPECT,
            &[&keys.state, &keys.queue, &keys.waiters],
            &[self.keys.sessions()],
        );
        let answer = self.send(INSPECTING, call).await?;
        inspection(kind, answer.value).ok_or_else(|| unexpected(INSPECTING))
    }

    /// The locks that are held or waited for.
    pub(crate) async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let Some(tag) = self.route.tag() else {
            return self.scan().await;
        };
        for _ in 0..SCANS {
            let location = self.route.number();
            let names = self.scan().await?;
            // A slot that moves takes its keys away from a scan: then this is refused, or asked of another node than before.
            let mut exists = redis::cmd("EXISTS");
            let exists = exists.arg(tag.never_set());
            self.send(LISTING, Call::Plain(exists)).await?;
            if location == self.route.number() {
                return Ok(names);
            }
        }
        Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("can't {LISTING}: their slot moved at every try"),
        ))
    }

    async fn scan(&self) -> Result<Vec<LockName>, BackendError> {
        let mut names = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(self.keys.lock_pattern())
                .arg("COUNT")
                .arg(1000);
            let answer = self.send(LISTING, Call::Plain(&scan)).await?;
            let (next, found): (String, Vec<String>) = redis::from_redis_value(answer.value)
                .map_err(|error| failed(LISTING, error.into()))?;
            // A state outlives its last grant for a while: only a look tells.
            for name in found.iter().filter_map(|key| self.keys.lock_name(key)) {
                let found = self.inspect(Kind::Lock, &name).await?;
                if found.held || !found.waiters.is_empty() {
                    names.push(name);
                }
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        names.sort_unstable();
        // A scan may come by the same key twice.
        names.dedup();
        Ok(names)
    }

    pub(crate) async fn send(
        &self,
        what: &'static str,
        call: Call<'_>,
    ) -> Result<Answered<Value>, BackendError> {
        self.connections.send(what, call, || Ok(())).await
    }
}

fn standing(answer: &Value) -> Option<Standing> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let (what, parts) = parts.split_first()?;
    match (text(what)?, parts) {
        ("granted", [number]) => Some(Standing::Granted(token(text(number)?)?)),
        ("contended", [behind, claim]) => {
            let holder = text(claim).and_then(holder);
            Some(match text(behind)?.parse() {
                Ok(behind) => Standing::Queued { behind, holder },
                Err(_) => Standing::Refused { holder },
            })
        }
        ("ended", []) => Some(Standing::Ended),
        ("stale", [stamp]) => Some(Standing::Stale(text(stamp)?.into())),
        _ => None,
    }
}

fn token(number: &str) -> Option<FencingToken> {
    number.parse().ok().map(FencingToken::new)
}

/// The token in the claim of one who holds.
pub(crate) fn token_of(claim: &str) -> Option<FencingToken> {
    claim.split('|').nth(3).and_then(token)
}

/// Whose claim this is, as `prelude.lua` packs it.
fn holder(claim: &str) -> Option<Holder> {
    let mut parts = claim.splitn(6, '|').skip(4);
    let since = parts.next()?;
    decode(parts.next()?, since)
}

/// A hold of a lock, as `grant.lua` publishes it: its place, and its claim.
pub(crate) fn claimed(text: &str) -> Option<Claim> {
    let mut parts = text.splitn(7, '|');
    let (place, _session) = (parts.next()?, parts.next()?);
    let (weight, _capacity) = (parts.next()?, parts.next()?);
    let (number, since, who) = (parts.next()?, parts.next()?, parts.next()?);
    let kind = Kind::Lock.claim(weight.parse().ok()?);
    let claim = Claim::new(decode(who, since)?, kind)
        .with_owner(Place::owner(place)?)
        .with_token(token(number)?);
    Some(claim)
}

/// Reads what `inspect.lua` answers.
pub(crate) fn inspection(kind: Kind, answer: Value) -> Option<Inspection> {
    let answer: Vec<String> = redis::from_redis_value(answer).ok()?;
    let (last, rest) = answer.split_first()?;
    let (count, claims) = rest.split_first()?;
    let count: usize = count.parse().ok()?;
    let (claims, []) = claims.as_chunks::<5>() else {
        return None;
    };
    let mut claims = claims.iter().map(|[place, weight, number, since, who]| {
        let kind = kind.claim(weight.parse().ok()?);
        let owner: OwnerId = Place::owner(place)?;
        let mut claim = Claim::new(decode(who, since)?, kind).with_owner(owner);
        // One who waits has none.
        claim.token = token(number);
        Some(claim)
    });
    let holders = claims.by_ref().take(count).collect::<Option<Vec<_>>>()?;
    let waiters = claims.collect::<Option<Vec<_>>>()?;
    let last: u64 = last.parse().ok()?;
    Some(
        Inspection::new(holders, waiters)
            .with_last_token((last > 0).then(|| FencingToken::new(last))),
    )
}

/// When a waiter looks again whether those before it live. A crash runs no script, so somebody has to: the last in the queue
/// often, the others rarely, each in case that all behind it have died too.
///
/// The last, because it knows that it is: it has just come. The next one would have to be told with every handoff, and in a
/// busy queue that is a message more for each. A waiter that is no longer the last learns it when it looks.
pub(crate) fn recheck(behind: u32, tick: Duration) -> Duration {
    tick * behind.saturating_mul(5).clamp(1, SLOWEST_TICK)
}

/// How many ticks the next one in a long queue leaves out.
pub(crate) const SLOWEST_TICK: u32 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn array(parts: &[&str]) -> Value {
        let bulk = |part: &&str| Value::BulkString(part.as_bytes().to_vec());
        Value::Array(parts.iter().map(bulk).collect())
    }

    #[test]
    fn a_holder_is_found_in_its_claim() {
        let claim = r#"0a|1|1|7|1500|{"host":"h","pid":5,"label":"a|b"}"#;
        let read = holder(claim).unwrap();
        assert_eq!((read.pid, read.label.as_deref()), (5, Some("a|b")));
        assert!(holder("something else").is_none());
        assert_eq!(token_of(claim), Some(FencingToken::new(7)));
        assert_eq!(token_of("0a|1|1||1500|{}"), None);
    }

    #[test]
    fn the_more_there_are_behind_the_rarer() {
        let tick = Duration::from_millis(200);
        assert_eq!(recheck(0, tick), tick);
        assert_eq!(recheck(1, tick), tick * 5);
        assert_eq!(recheck(3, tick), tick * 15);
        assert_eq!(recheck(1_000_000_000, tick), tick * 30);
    }

    #[test]
    fn an_answer_that_is_none_of_ours_is_refused() {
        assert!(matches!(
            standing(&array(&["granted", "7"])),
            Some(Standing::Granted(token)) if token.get() == 7
        ));
        for parts in [
            &["granted", "x"] as &[&str],
            &["granted"],
            &["ended", "1"],
            &[],
        ] {
            assert!(standing(&array(parts)).is_none(), "{parts:?}");
        }
        assert!(standing(&Value::Okay).is_none());
        assert!(inspection(Kind::Lock, array(&["1", "1", "5"])).is_none());
        assert!(inspection(Kind::Lock, array(&["7", "0"])).is_some());
    }
}
