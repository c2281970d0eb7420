//! The answers to attempts and releases.

use std::{borrow::Cow, error::Error, time::Duration};

use portalock_core::{FencingToken, Holder};
use serde::Deserialize;
use tokio_postgres::types::{FromSql, Type};

use crate::{
    queue::{millis, token},
    record::decode,
};

/// The answer to an attempt.
#[derive(Debug, PartialEq)]
pub(crate) enum Standing {
    Granted(FencingToken),
    /// A place in the queue is kept. After this time, the owners ahead of it may be dead.
    Queued {
        holder: Option<Holder>,
        look_in: Option<Duration>,
    },
    /// Nothing is kept.
    Refused {
        holder: Option<Holder>,
    },
    /// The session is dead at the server.
    Ended,
    /// Nothing was done: the session's epoch is this one.
    Stale(i64),
}

/// The answer to a release.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) freed: bool,
    /// The session's new epoch, if it has changed.
    pub(crate) epoch: Option<i64>,
}

/// The object that the function `acquire` returns.
#[derive(Deserialize)]
struct Answer<'a> {
    outcome: &'a str,
    token: Option<i64>,
    #[serde(borrow)]
    who: Option<Cow<'a, str>>,
    since: Option<i64>,
    look_in: Option<i64>,
}

impl<'a> FromSql<'a> for Standing {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let answer: Answer<'a> = serde_json::from_slice(raw)?;
        let number = || answer.token.ok_or("a number is missing");
        let holder = || decode(answer.who.as_deref()?, answer.since?);
        Ok(match answer.outcome {
            "granted" => Self::Granted(token(number()?)),
            "queued" => Self::Queued {
                holder: holder(),
                look_in: answer.look_in.map(millis),
            },
            "refused" => Self::Refused { holder: holder() },
            "stale" => Self::Stale(number()?),
            "ended" => Self::Ended,
            _ => return Err("an outcome that this version does not know".into()),
        })
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TEXT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_that_is_known() {
        let standing = |raw: &str| Standing::from_sql(&Type::TEXT, raw.as_bytes());
        let seven = FencingToken::new(7);
        let granted = standing(r#"{"outcome":"granted","token":7}"#).unwrap();
        assert_eq!(granted, Standing::Granted(seven));
        let stale = standing(r#"{"outcome":"stale","token":7,"who":null}"#).unwrap();
        assert_eq!(stale, Standing::Stale(7));
        let ended = standing(r#"{"outcome":"ended"}"#).unwrap();
        assert_eq!(ended, Standing::Ended);
        let queued =
            r#"{"outcome":"queued","who":"{\"host\":\"h\",\"pid\":1}","since":5,"look_in":6}"#;
        let queued = standing(queued).unwrap();
        let expected = Standing::Queued {
            holder: decode(r#"{"host":"h","pid":1}"#, 5),
            look_in: Some(Duration::from_millis(6)),
        };
        assert_eq!(queued, expected);
        let refused = standing(r#"{"outcome":"refused","who":"somebody","since":5}"#).unwrap();
        assert_eq!(refused, Standing::Refused { holder: None });
        for other in [
            r#"{"outcome":"granted","token":null}"#,
            r#"{"outcome":"stale"}"#,
            r#"{"outcome":"passed_on","token":7}"#,
            r#"{"token":7}"#,
            "granted",
        ] {
            assert!(standing(other).is_err(), "{other}");
        }
    }
}
