//! What the scripts are asked and what they answer, as our types. Locks and semaphores are one mechanism: weights under a
//! capacity.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use portalock_core::{
    Claim, ClaimKind, FencingToken, Holder, Inspection, LockRequest, Mode, OwnerId, Patience,
    PermitRequest, Request,
};
use redis::Value;
use serde::{Deserialize, Serialize};

use crate::keys::{Kind, Named};

/// The weight of an exclusive lock, and the capacity of every lock: so many can share one.
const WHOLE: u32 = u32::MAX;

/// A request in the scripts' terms.
pub(crate) struct Wanted<'r> {
    pub(crate) named: Named,
    pub(crate) owner: OwnerId,
    pub(crate) weight: u32,
    pub(crate) capacity: u32,
    pub(crate) queues: bool,
    holder: &'r Holder,
}

impl<'r> Wanted<'r> {
    pub(crate) fn lock(request: &'r LockRequest) -> Self {
        let weight = match request.demand {
            Mode::Exclusive => WHOLE,
            Mode::Shared => 1,
        };
        Self::new(request, Kind::Lock, weight, WHOLE)
    }

    pub(crate) fn permits(request: &'r PermitRequest) -> Self {
        let (weight, capacity) = (request.demand.count(), request.demand.capacity());
        Self::new(request, Kind::Semaphore, weight, capacity)
    }

    fn new<D>(request: &'r Request<D>, kind: Kind, weight: u32, capacity: u32) -> Self {
        Self {
            named: Named {
                kind,
                name: request.name.clone(),
            },
            owner: request.owner,
            weight,
            capacity,
            queues: request.patience == Patience::Queue,
            holder: &request.holder,
        }
    }

    /// Who asks, as it is stored. `label` stands in for a missing one.
    pub(crate) fn who(&self, label: Option<&str>) -> String {
        Who::of(self.holder, label).to_text()
    }
}

/// A holder as it lies in Redis. Since when, the script knows: by the one clock that all clients share.
#[derive(Serialize, Deserialize)]
struct Who<'a> {
    host: &'a str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
}

#[derive(Deserialize)]
struct StoredWho {
    host: Arc<str>,
    pid: u32,
    label: Option<Arc<str>>,
}

impl<'a> Who<'a> {
    fn of(holder: &'a Holder, label: Option<&'a str>) -> Self {
        Self {
            host: &holder.host,
            pid: holder.pid,
            label: holder.label.as_deref().or(label),
        }
    }

    fn to_text(&self) -> String {
        // It is for people: a request doesn't fail for want of it.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Reads a holder; `None` if what was stored is not ours.
pub(crate) fn holder(since: &str, who: &str) -> Option<Holder> {
    let stored: StoredWho = serde_json::from_str(who).ok()?;
    Some(Holder::new(
        stored.host,
        stored.pid,
        stored.label,
        time(since)?,
    ))
}

/// Whose claim this is, as `prelude.lua` packs it.
fn holder_in(claim: &str) -> Option<Holder> {
    let mut parts = claim.splitn(6, '|').skip(4);
    holder(parts.next()?, parts.next()?)
}

fn time(millis: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis.parse().ok()?))
}

/// What an attempt was answered.
pub(crate) enum Answer {
    Granted(FencingToken),
    Contended {
        /// How many wait behind, if it has a place in the queue.
        behind: Option<u32>,
        holder: Option<Holder>,
    },
    /// The session is over at the server.
    Ended,
    /// The session has another stamp by now than the attempt was sent with.
    Stale(Stamp),
}

/// What a session's key holds: its form, and the number of its latest connection. See `raise.lua`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) number: u64,
    text: Arc<str>,
}

impl Stamp {
    /// `connected`: whether the session ends with its connection.
    pub(crate) fn new(connected: bool, number: u64) -> Self {
        let form = if connected { "connected" } else { "kept" };
        Self {
            number,
            text: format!("{form}|{number}").into(),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, number) = text.split_once('|')?;
        Some(Self {
            number: number.parse().ok()?,
            text: text.into(),
        })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// What `raise.lua` answers.
pub(crate) enum Resumed {
    Alive,
    Stale(Stamp),
    Ended,
}

impl Resumed {
    pub(crate) fn of(answer: &Value) -> Option<Self> {
        let Value::Array(parts) = answer else {
            return None;
        };
        let (what, parts) = parts.split_first()?;
        match (text(what)?, parts) {
            ("alive", []) => Some(Self::Alive),
            ("stale", [stamp]) => Some(Self::Stale(Stamp::parse(text(stamp)?)?)),
            ("ended", []) => Some(Self::Ended),
            _ => None,
        }
    }
}

impl Answer {
    pub(crate) fn of(answer: &Value) -> Option<Self> {
        let Value::Array(parts) = answer else {
            return None;
        };
        let (what, parts) = parts.split_first()?;
        match (text(what)?, parts) {
            ("granted", [token]) => {
                Some(Self::Granted(FencingToken::new(text(token)?.parse().ok()?)))
            }
            ("contended", [behind, claim]) => Some(Self::Contended {
                behind: text(behind)?.parse().ok(),
                holder: text(claim).and_then(holder_in),
            }),
            ("ended", []) => Some(Self::Ended),
            ("stale", [stamp]) => Some(Self::Stale(Stamp::parse(text(stamp)?)?)),
            _ => None,
        }
    }
}

/// What a script answers in one word.
pub(crate) fn text(answer: &Value) -> Option<&str> {
    match answer {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

fn kind_of(kind: Kind, weight: u32) -> ClaimKind {
    match kind {
        Kind::Semaphore => ClaimKind::Permits(weight),
        Kind::Lock if weight == WHOLE => ClaimKind::Exclusive,
        Kind::Lock => ClaimKind::Shared,
    }
}

/// A hold of a lock, as `grant.lua` publishes it: its owner, and its claim.
pub(crate) fn claimed(text: &str) -> Option<Claim> {
    let mut parts = text.splitn(7, '|');
    let (owner, _session) = (parts.next()?, parts.next()?);
    let (weight, _capacity) = (parts.next()?, parts.next()?);
    let (token, since, who) = (parts.next()?, parts.next()?, parts.next()?);
    let kind = kind_of(Kind::Lock, weight.parse().ok()?);
    let claim = Claim::new(holder(since, who)?, kind)
        .with_owner(owner.parse().ok()?)
        .with_token(FencingToken::new(token.parse().ok()?));
    Some(claim)
}

/// Reads what `inspect.lua` answers.
pub(crate) fn inspection(kind: Kind, answer: &[String]) -> Option<Inspection> {
    let (last, rest) = answer.split_first()?;
    let (count, claims) = rest.split_first()?;
    let count: usize = count.parse().ok()?;
    let (claims, []) = claims.as_chunks::<5>() else {
        return None;
    };
    let mut claims = claims.iter().map(|[owner, weight, token, since, who]| {
        let kind = kind_of(kind, weight.parse().ok()?);
        let mut claim = Claim::new(holder(since, who)?, kind).with_owner(owner.parse().ok()?);
        // One who waits has none.
        claim.token = token.parse().ok().map(FencingToken::new);
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
    use portalock_core::LockName;

    #[test]
    fn a_holder_survives_the_way_through_redis() {
        let request = LockRequest::new(
            LockName::new("a").unwrap(),
            Mode::Exclusive,
            Patience::Queue,
        )
        .with_label(Some("a|b\"c\n".into()));
        let read = holder("1500", &Wanted::lock(&request).who(None)).unwrap();
        assert_eq!(read.label.as_deref(), Some("a|b\"c\n"));
        assert_eq!(read.pid, std::process::id());
        assert_eq!(read.since, UNIX_EPOCH + Duration::from_millis(1500));
    }

    #[test]
    fn a_holder_is_found_in_its_claim() {
        let claim = r#"0a|1|1|7|1500|{"host":"h","pid":5,"label":"a|b"}"#;
        let read = holder_in(claim).unwrap();
        assert_eq!((read.pid, read.label.as_deref()), (5, Some("a|b")));
        assert!(holder_in("something else").is_none());
    }

    #[test]
    fn a_backends_label_stands_in_for_a_missing_one() {
        let request = LockRequest::new(LockName::new("a").unwrap(), Mode::Shared, Patience::Once);
        let who = Wanted::lock(&request).who(Some("nightly"));
        assert_eq!(holder("0", &who).unwrap().label.as_deref(), Some("nightly"));
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
        let texts = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let answer = |parts: &[&str]| {
            let bulk = |part: &&str| Value::BulkString(part.as_bytes().to_vec());
            Answer::of(&Value::Array(parts.iter().map(bulk).collect()))
        };
        assert!(matches!(
            answer(&["granted", "7"]),
            Some(Answer::Granted(token)) if token.get() == 7
        ));
        assert!(answer(&["granted", "x"]).is_none());
        assert!(answer(&["granted"]).is_none());
        assert!(answer(&["ended", "1"]).is_none());
        assert!(answer(&[]).is_none());
        assert!(Answer::of(&Value::Okay).is_none());
        assert!(inspection(Kind::Lock, &texts(&["1", "1", "5"])).is_none());
        assert!(inspection(Kind::Lock, &texts(&["7", "0"])).is_some());
    }
}
