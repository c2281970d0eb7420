//! The queue of a name at the server, in Rust types: attempts, releases and inspections. Each is one script.

use std::{pin::pin, sync::Arc, time::Duration};

use portalock_core::{
    BackendError, BackendErrorKind, Claim, FencingToken, Holder, Inspection, LockName, OwnerId,
    session::{Answered, in_its_runtime},
};
use redis::Value;

use crate::{
    client::Server,
    connection::{Call, Wire},
    error::{failed, unexpected},
    keys::{Kind, Place, Wanted},
    neighbours::Ahead,
    record::{decode, text},
    scripts::{ACQUIRE, INSPECT, RAISE, RELEASE},
    session::SessionKey,
};

const ACQUIRING: &str = "acquire through Redis";
const RELEASING: &str = "release through Redis";
const INSPECTING: &str = "look at a lock in Redis";
const LISTING: &str = "list the locks in Redis";

/// How often a listing is repeated because its slot has moved meanwhile.
const SCANS: usize = 3;

/// A request, as the scripts need it.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) session: &'a SessionKey,
    pub(crate) place: &'a Place,
    pub(crate) wanted: &'a Wanted,
    pub(crate) queues: bool,
    pub(crate) who: Arc<str>,
}

/// The answer to an attempt.
#[derive(Debug)]
pub(crate) enum Standing {
    Granted(FencingToken),
    /// The request has a place in the queue, and `behind` waiters are behind it.
    Queued {
        behind: u32,
        holder: Option<Holder>,
        /// Who is right ahead, if the request has a token while it waits.
        ahead: Option<Ahead>,
    },
    /// The lock is contended, and the server keeps nothing of the request.
    Refused {
        holder: Option<Holder>,
    },
    /// The session has ended at the server.
    Ended,
    /// Nothing was done: the session now has this stamp.
    Stale(Arc<str>),
}

impl Server {
    /// Makes one attempt with this stamp. Before each repetition it calls `goes_on`. Returns the connection of the answer too.
    pub(crate) async fn acquire(
        &self,
        entry: &Entry<'_>,
        stamp: &str,
        goes_on: impl Fn() -> Result<(), BackendError> + Send + Sync,
    ) -> Result<Answered<(Standing, Arc<Wire>)>, BackendError> {
        let Entry {
            session,
            place,
            wanted,
            queues,
            who,
        } = entry;
        let state = self.keys.state(&place.wanted);
        let keys = [&*state, &*session.key];
        let head = session.head_of(wanted);
        let patience = if *queues { "queues" } else { "once" };
        let arguments = [&*place.name, stamp, &head, who, patience, "shares"];
        // An argument takes the server longer than some commands, so the most frequent attempt has the fewest.
        let count = match (wanted.shares(), queues) {
            (true, _) => 6,
            (false, true) => 4,
            (false, false) => 5,
        };
        let arguments = &arguments[..count];
        let call = Call::Script(&ACQUIRE, &keys, arguments);
        let Answered { value, repeated } = self.connections.send(ACQUIRING, call, goes_on).await?;
        let (answer, wire) = value;
        let standing = standing(&answer).ok_or_else(|| unexpected(ACQUIRING))?;
        Ok(Answered {
            value: (standing, wire),
            repeated,
        })
    }

    /// Releases a place. Returns whether it held the lock. `next` is the neighbour that holds from now on. `waits` says
    /// whether this place is known to wait. Otherwise it held if it waits at the server with a token.
    pub(crate) async fn release(
        &self,
        place: &Place,
        next: Option<&Place>,
        waits: bool,
    ) -> Result<Answered<bool>, BackendError> {
        let state = self.keys.state(&place.wanted);
        let arguments = [&*place.name, next.map_or("", |next| &*next.name)];
        let arguments = &arguments[..=usize::from(next.is_some())];
        let call = Call::Script(&RELEASE, &[&state], arguments);
        let answer = self.send(RELEASING, call).await?;
        let value = match text(&answer.value) {
            Some("1") => true,
            Some("waited") => !waits,
            Some("0") => false,
            _ => return Err(unexpected(RELEASING)),
        };
        Ok(Answered {
            value,
            repeated: answer.repeated,
        })
    }

    /// Gives a session its next stamp, before a release. `None` if the session has ended at the server.
    pub(crate) async fn raise(
        &self,
        session: &SessionKey,
    ) -> Result<Option<Arc<str>>, BackendError> {
        let call = Call::Script(&RAISE, &[&session.key], &[&session.lifetime]);
        let answer = self.send(RELEASING, call).await?;
        match text(&answer.value) {
            Some("") => Ok(None),
            Some(stamp) => Ok(Some(stamp.into())),
            None => Err(unexpected(RELEASING)),
        }
    }

    /// Returns the holders and the waiters.
    pub(crate) async fn inspect(
        &self,
        kind: Kind,
        name: &LockName,
    ) -> Result<Inspection, BackendError> {
        let state = self.keys.state(&kind.named(name));
        let call = Call::Script(&INSPECT, &[&state], &[]);
        let answer = self.send(INSPECTING, call).await?;
        inspection(kind, answer.value).ok_or_else(|| unexpected(INSPECTING))
    }

    /// Returns the locks that have holders or waiters, in any order, and some of them maybe twice.
    pub(crate) async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let Some(tag) = self.route.tag() else {
            return self.scan().await;
        };
        for _ in 0..SCANS {
            let location = self.route.number();
            let names = self.scan().await?;
            // A scan misses the keys that have moved with the slot. In that case this command is refused, or it goes to
            // another node than before.
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
                .arg(1000)
                // Other programs may have keys of other types below this prefix.
                .arg("TYPE")
                .arg("hash");
            let answer = self.send(LISTING, Call::Plain(&scan)).await?;
            let (next, found): (String, Vec<Vec<u8>>) = redis::from_redis_value(answer.value)
                .map_err(|error| failed(LISTING, error.into()))?;
            // A state stays for a while after its last grant, so only an inspection shows whether there are holders.
            let keys = found.iter().filter_map(|key| std::str::from_utf8(key).ok());
            for name in keys.filter_map(|key| self.keys.lock_name(key)) {
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
        Ok(names)
    }

    pub(crate) async fn send(
        &self,
        what: &'static str,
        call: Call<'_>,
    ) -> Result<Answered<Value>, BackendError> {
        let sending = pin!(self.connections.send(what, call, || Ok(())));
        let Answered { value, repeated } = in_its_runtime(sending).await?;
        Ok(Answered {
            value: value.0,
            repeated,
        })
    }
}

fn standing(answer: &Value) -> Option<Standing> {
    let Value::Array(parts) = answer else {
        return token(text(answer)?).map(Standing::Granted);
    };
    let (what, parts) = parts.split_first()?;
    match (text(what)?, parts) {
        ("contended", [behind, claim, rest @ ..]) => {
            let holder = text(claim).and_then(holder);
            let ahead = match rest {
                [] => None,
                [place, number] => Some(Ahead {
                    place: text(place)?.to_owned(),
                    token: token(text(number)?)?,
                }),
                _ => return None,
            };
            Some(match text(behind)?.parse() {
                Ok(behind) => Standing::Queued {
                    behind,
                    holder,
                    ahead,
                },
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

/// The token in the claim of a holder.
pub(crate) fn token_of(claim: &str) -> Option<FencingToken> {
    claim.split('|').nth(3).and_then(token)
}

/// The holder of a claim that `prelude.lua` has packed.
fn holder(claim: &str) -> Option<Holder> {
    let mut parts = claim.splitn(6, '|').skip(4);
    let since = parts.next()?;
    decode(parts.next()?, since)
}

/// Reads a grant of a lock, as `grant.lua` publishes it: the place and the claim.
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

/// Reads the answer of `inspect.lua`.
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
        // A waiter has no token.
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

/// When a waiter checks again whether the owners ahead of it are alive. A crashed process runs no script, so waiters
/// must check: the last waiter often, the others rarely, in case all waiters behind them have died too.
///
/// The last waiter checks often, because it knows that it is the last: it has just arrived. The first waiter would need
/// one more message with every handoff, which is expensive in a busy queue. A waiter that is no longer the last learns
/// this with its next check. From then on its checks read the holders only if no other check has just done so: see
/// `acquire_behind.lua`.
pub(crate) fn recheck(behind: u32, tick: Duration) -> Duration {
    tick * behind.saturating_mul(5).clamp(1, SLOWEST_TICK)
}

/// The number of ticks between two checks of the first waiter in a long queue.
pub(crate) const SLOWEST_TICK: u32 = 30;

/// For how long many holders are not read again by the checks of waiters, except the last one's: see `acquire_behind.lua`.
pub(crate) const UNREAD: Duration = Duration::from_millis(200);

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
    fn the_script_and_the_declared_bound_have_one_time() {
        let script = include_str!("scripts/acquire_behind.lua");
        assert!(script.contains(&format!("age < {} ", UNREAD.as_micros())));
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
        let word = |word: &str| Value::BulkString(word.into());
        assert!(matches!(
            standing(&word("7")),
            Some(Standing::Granted(token)) if token.get() == 7
        ));
        assert!(matches!(
            standing(&array(&["ended"])),
            Some(Standing::Ended)
        ));
        assert!(standing(&word("x")).is_none());
        for parts in [&["granted"] as &[&str], &["ended", "1"], &[]] {
            assert!(standing(&array(parts)).is_none(), "{parts:?}");
        }
        assert!(standing(&Value::Okay).is_none());
        assert!(inspection(Kind::Lock, array(&["1", "1", "5"])).is_none());
        assert!(inspection(Kind::Lock, array(&["7", "0"])).is_some());
    }

    #[test]
    fn a_lock_that_was_never_granted_has_no_last_token() {
        let last = |number| {
            let found = inspection(Kind::Lock, array(&[number, "0"])).unwrap();
            found.last_token.map(FencingToken::get)
        };
        assert_eq!((last("0"), last("7")), (None, Some(7)));
    }
}
