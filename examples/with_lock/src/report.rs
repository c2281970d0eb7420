//! Messages on stderr, one line each.

use std::{error::Error, fmt, time::Duration};

/// Why `with_lock` can't continue: one line, without the program's name.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn say(&self) {
        say(&self.0);
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Writes one line to stderr, and ignores errors.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "with_lock: {}", printable(text));
}

/// The text without terminal control characters, because names and labels come from other users.
pub(crate) fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    clean
}

/// A readable duration, in milliseconds.
pub(crate) fn in_millis(duration: Duration) -> impl fmt::Display {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis))
}

/// A readable duration, in whole seconds.
pub(crate) fn in_seconds(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("disk on fire");
        let outer = portalock::BackendError::new(
            portalock::BackendErrorKind::Other,
            "can't write the holder",
        )
        .with_source(inner);
        assert_eq!(chain(&outer), "can't write the holder: disk on fire");
    }

    #[test]
    fn nobodys_label_moves_the_cursor() {
        assert_eq!(printable("a\x1b[2J\nb\u{9b}é"), "a\\u{1b}[2J\\nb\\u{9b}é");
    }
}
