//! Names of locks, which every backend can store.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The name of a lock or a semaphore.
///
/// Any UTF-8 text of 1 to 255 bytes without a NUL character. Two names that differ in a single byte are two locks, on
/// every backend, even if the store ignores case or treats dots or slashes specially.
///
/// ```
/// use portalock_core::LockName;
///
/// let name: LockName = "billing/../Straße 7".parse()?;
/// assert_eq!(name.as_str(), "billing/../Straße 7");
/// assert!("".parse::<LockName>().is_err());
/// # Ok::<(), portalock_core::InvalidName>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LockName(Arc<str>);

impl LockName {
    /// The longest name, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 255;

    /// Checks `name` and keeps a copy of it.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if `name` is empty, longer than [`MAX_BYTES`](Self::MAX_BYTES) or contains a NUL.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidName> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(InvalidName::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(InvalidName::TooLong {
                bytes: name.len(),
                most: Self::MAX_BYTES,
            });
        }
        if let Some(at) = name.find('\0') {
            return Err(InvalidName::Nul { at });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a valid [`LockName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// The text was empty.
    #[error("a lock's name is empty: give it 1 to 255 bytes of text")]
    Empty,
    /// The text was too long.
    #[error("a lock's name has {bytes} bytes: at most {most} are allowed")]
    TooLong {
        /// Its length in bytes of UTF-8.
        bytes: usize,
        /// The longest allowed length.
        most: usize,
    },
    /// The text contained a NUL character.
    #[error("a lock's name has a NUL character at byte {at}: remove it")]
    Nul {
        /// The offset of the first NUL, in bytes.
        at: usize,
    },
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl AsRef<str> for LockName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for LockName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl FromStr for LockName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl TryFrom<String> for LockName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl From<LockName> for String {
    fn from(name: LockName) -> Self {
        name.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_exact() {
        assert!(LockName::new("x".repeat(255)).is_ok());
        assert_eq!(
            LockName::new("x".repeat(256)),
            Err(InvalidName::TooLong {
                bytes: 256,
                most: 255
            })
        );
        assert_eq!(LockName::new(""), Err(InvalidName::Empty));
        assert_eq!(LockName::new("ab\0c"), Err(InvalidName::Nul { at: 2 }));
    }

    #[test]
    fn bytes_are_counted_not_characters() {
        assert!(LockName::new("é".repeat(127)).is_ok());
        assert!(LockName::new("é".repeat(128)).is_err());
    }

    #[test]
    fn a_bad_name_in_a_config_file_is_refused_by_its_reason() {
        let error = serde_json::from_str::<LockName>("\"\"").unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
    }
}
