//! The answers to attempts and releases.
//!
//! `SELECT f()` returns the columns of the function `f` as one value of the type `record`, which this module decodes. `SELECT * FROM f()`
//! would return them one by one, but the server would first keep the row in a store of its own. That is a tenth of its work
//! for a lock that nobody else wants.

use std::{error::Error, time::Duration};

use portalock_core::{FencingToken, Holder};
use tokio_postgres::types::{FromSql, Type, WrongType};

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
#[derive(Debug, PartialEq)]
pub(crate) struct Left {
    pub(crate) freed: bool,
    /// The session's new epoch, if it has changed.
    pub(crate) epoch: Option<i64>,
}

type Failure = Box<dyn Error + Sync + Send>;

impl<'a> FromSql<'a> for Standing {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        let mut columns = Columns::of(raw)?;
        let outcome: &str = columns.next()?;
        let number: Option<i64> = columns.next()?;
        let who: Option<&str> = columns.next()?;
        let since: Option<i64> = columns.next()?;
        let look_in: Option<i64> = columns.next()?;
        let number = || number.ok_or("a number is missing");
        let holder = who.zip(since).and_then(|(who, since)| decode(who, since));
        Ok(match outcome {
            "granted" => Self::Granted(token(number()?)),
            "queued" => Self::Queued {
                holder,
                look_in: look_in.map(millis),
            },
            "refused" => Self::Refused { holder },
            "stale" => Self::Stale(number()?),
            "ended" => Self::Ended,
            _ => return Err("an outcome that this version does not know".into()),
        })
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::RECORD
    }
}

impl<'a> FromSql<'a> for Left {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        let mut columns = Columns::of(raw)?;
        Ok(Self {
            freed: columns.next()?,
            epoch: columns.next()?,
        })
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::RECORD
    }
}

/// The columns of a record that are not yet read, in Postgres's binary form: for each the number of its type, its length, which is
/// negative for NULL, and its value.
struct Columns<'a>(&'a [u8]);

impl<'a> Columns<'a> {
    fn of(raw: &'a [u8]) -> Result<Self, Failure> {
        let mut columns = Self(raw);
        let _count = columns.number()?;
        Ok(columns)
    }

    fn next<T: FromSql<'a>>(&mut self) -> Result<T, Failure> {
        let of = Type::from_oid(self.number()?.cast_unsigned()).unwrap_or(Type::UNKNOWN);
        if !T::accepts(&of) {
            return Err(Box::new(WrongType::new::<T>(of)));
        }
        let Ok(length) = usize::try_from(self.number()?) else {
            return T::from_sql_null(&of);
        };
        let (value, rest) = self.0.split_at_checked(length).ok_or(CUT_OFF)?;
        self.0 = rest;
        T::from_sql(&of, value)
    }

    fn number(&mut self) -> Result<i32, Failure> {
        let (number, rest) = self.0.split_first_chunk().ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(i32::from_be_bytes(*number))
    }
}

const CUT_OFF: &str = "a record is cut off";

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as a server sends it.
    fn record(columns: &[(&Type, Option<&[u8]>)]) -> Vec<u8> {
        let mut raw = i32::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for (of, value) in columns {
            raw.extend(of.oid().to_be_bytes());
            let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap());
            raw.extend(length.to_be_bytes());
            raw.extend(value.unwrap_or_default());
        }
        raw
    }

    fn left(raw: &[u8]) -> Result<Left, Failure> {
        Left::from_sql(&Type::RECORD, raw)
    }

    #[test]
    fn a_record_is_decoded_and_one_that_is_cut_off_or_of_other_types_is_an_error() {
        let epoch = 7_i64.to_be_bytes();
        let raw = record(&[(&Type::BOOL, Some(&[1])), (&Type::INT8, Some(&epoch))]);
        let freed = Left {
            freed: true,
            epoch: Some(7),
        };
        assert_eq!(left(&raw).unwrap(), freed);
        for length in 0..raw.len() {
            assert!(left(&raw[..length]).is_err(), "{length} bytes");
        }
        let raw = record(&[(&Type::BOOL, Some(&[0])), (&Type::INT8, None)]);
        assert_eq!(left(&raw).unwrap().epoch, None);
        for other in [
            record(&[(&Type::TEXT, Some(b"t")), (&Type::INT8, None)]),
            record(&[(&Type::BOOL, None), (&Type::INT8, None)]),
        ] {
            assert!(left(&other).is_err());
        }
    }

    #[test]
    fn an_outcome_is_one_that_is_known() {
        let standing = |outcome: &[u8], token: Option<&[u8]>| {
            let raw = record(&[
                (&Type::TEXT, Some(outcome)),
                (&Type::INT8, token),
                (&Type::TEXT, None),
                (&Type::INT8, None),
                (&Type::INT8, None),
            ]);
            Standing::from_sql(&Type::RECORD, &raw)
        };
        let seven = 7_i64.to_be_bytes();
        let granted = Standing::Granted(FencingToken::new(7));
        assert_eq!(standing(b"granted", Some(&seven)).unwrap(), granted);
        assert_eq!(
            standing(b"stale", Some(&seven)).unwrap(),
            Standing::Stale(7)
        );
        assert_eq!(standing(b"ended", None).unwrap(), Standing::Ended);
        let queued = Standing::Queued {
            holder: None,
            look_in: None,
        };
        assert_eq!(standing(b"queued", None).unwrap(), queued);
        assert!(standing(b"granted", None).is_err(), "without its token");
        assert!(standing(b"lent", Some(&seven)).is_err());
    }
}
