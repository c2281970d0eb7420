//! Readable settings: durations as `"5s"`, and errors that name the field.
//!
//! A settings type is deserialized through a raw type whose fields accept any value, and then checks each field. So the
//! error names the field in every format. Backends share [`RawDuration`].

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

/// The longest duration that a setting accepts: a year. A longer one is probably a wrong unit.
pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A setting with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct InvalidSetting {
    /// The field's name, as written in the file.
    pub field: &'static str,
    /// What is wrong with the value, and what would be right.
    pub problem: String,
}

impl InvalidSetting {
    /// The value of `field` is invalid. `problem` is text that continues after the field's name.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }
}

/// A duration in readable text, such as `"250ms"` or `"1h 30m"`, not yet checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum RawDuration {
    /// Text, to be parsed as a duration.
    Text(String),
    /// A number: refused, because it has no unit.
    Number(f64),
    /// A truth value: refused.
    Bool(bool),
    /// Anything else: refused.
    Other(serde::de::IgnoredAny),
}

impl RawDuration {
    /// Parses it as a duration of at most [`LONGEST`].
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] with the name `field`, if the value is not a duration, has no unit, is negative, or is too
    /// long.
    pub fn check(&self, field: &'static str) -> Result<Duration, InvalidSetting> {
        let right = "write a number and a unit, such as \"250ms\", \"5s\" or \"1h 30m\"";
        let text = match self {
            Self::Text(text) => text,
            Self::Number(number) => {
                return Err(InvalidSetting::new(
                    field,
                    format!("is {number}, without a unit: {right}"),
                ));
            }
            Self::Bool(_) | Self::Other(_) => {
                return Err(InvalidSetting::new(
                    field,
                    format!("is not a duration: {right}"),
                ));
            }
        };
        if text.trim_start().starts_with('-') {
            return Err(InvalidSetting::new(
                field,
                format!("is \"{text}\", but a duration can't be negative"),
            ));
        }
        let duration = humantime::parse_duration(text).map_err(|error| {
            InvalidSetting::new(field, format!("is \"{text}\": {error}; {right}"))
        })?;
        if duration > LONGEST {
            return Err(InvalidSetting::new(
                field,
                format!("is \"{text}\": at most a year is allowed"),
            ));
        }
        Ok(duration)
    }

    /// Parses it as a duration that is not zero.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check), and if it is zero.
    pub fn check_positive(&self, field: &'static str) -> Result<Duration, InvalidSetting> {
        positive(field, self.check(field)?)
    }
}

pub(crate) fn positive(
    field: &'static str,
    duration: Duration,
) -> Result<Duration, InvalidSetting> {
    if duration.is_zero() {
        let problem = "is zero: give a longer duration";
        return Err(InvalidSetting::new(field, problem));
    }
    Ok(duration)
}

/// Returns the duration if it is at least `least` and at most [`LONGEST`].
///
/// # Errors
///
/// [`InvalidSetting`] with the name of `field` otherwise.
pub fn at_least(
    least: Duration,
    field: &'static str,
    duration: Duration,
) -> Result<Duration, InvalidSetting> {
    within(least, LONGEST, field, duration)
}

/// Returns the duration if it is at least `least` and at most `most`.
///
/// # Errors
///
/// [`InvalidSetting`] with the name of `field` otherwise.
pub fn within(
    least: Duration,
    most: Duration,
    field: &'static str,
    duration: Duration,
) -> Result<Duration, InvalidSetting> {
    if duration < least || duration > most {
        let most = match most {
            LONGEST => "a year".to_owned(),
            most => format!("{most:?}"),
        };
        let problem = format!("is {duration:?}: give it {least:?} to {most}");
        return Err(InvalidSetting::new(field, problem));
    }
    Ok(duration)
}

/// Writes a duration as [`RawDuration`] reads it; for `#[serde(serialize_with)]`. A duration of more than [`LONGEST`] is
/// written as `LONGEST`.
///
/// # Errors
///
/// Those of the serializer.
pub fn serialize_duration<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    humantime::format_duration(LONGEST.min(*duration))
        .to_string()
        .serialize(serializer)
}

/// Decodes percent-encoded text, such as the part of a URL for `field`.
///
/// ```
/// assert_eq!(portalock_core::settings::percent_decode("user", "p%40x").unwrap(), "p@x");
/// ```
///
/// # Errors
///
/// [`InvalidSetting`] with the name of `field` if the text is not percent-encoded UTF-8. The error does not contain the
/// text, which may be a password.
pub fn percent_decode(field: &'static str, text: &str) -> Result<String, InvalidSetting> {
    let wrong = || {
        let problem = "is not percent-encoded UTF-8: write a percent sign as %25";
        InvalidSetting::new(field, problem)
    };
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or_else(wrong)?;
        if digits.starts_with('+') {
            // The parser would take it for a sign.
            return Err(wrong());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_percent_encoded_is_refused_without_being_shown() {
        assert_eq!(percent_decode("user", "%C3%a9%25+").unwrap(), "é%+");
        for text in [
            "hunter2%",
            "hunter2%1",
            "hunter2%g0",
            "hunter2%+1",
            "hunter2%-1",
            "%é",
            "%ff",
        ] {
            let error = percent_decode("password", text).unwrap_err().to_string();
            assert!(error.contains("`password`"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
