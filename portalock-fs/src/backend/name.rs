//! The file name of a lock. Two locks never have the same file name, even if the file system ignores case, dots or
//! Unicode forms.
//!
//! Lower-case ASCII letters, digits, `_`, `-` and inner dots are kept; every other byte is written as `%` and two
//! lower-case hex digits. So two results never differ in case only, a file system has nothing to normalise, and no
//! result is a reserved name of Windows (the first letter of `con` is escaped). The suffix prevents `.`, `..` and
//! trailing dots.
//!
//! A name that is too long is cut, and `~` and the SHA-256 of the whole name are appended. `~` is used nowhere else, so
//! the two forms can't collide. Each lock file contains the full name, for listing the locks.

use std::fmt::Write;

use portalock_core::LockName;
use sha2::{Digest, Sha256};

/// The suffix of a lock file.
pub(crate) const LOCK_SUFFIX: &str = ".lock";
/// The suffix of the list of readers, which exists if the lock was ever shared.
pub(crate) const READERS_SUFFIX: &str = ".shared";
/// The suffix of the holder's record, on systems with mandatory locks.
pub(crate) const INFO_SUFFIX: &str = ".info";

/// The longest file name on common file systems, without the longest suffix.
const LONGEST_STEM: usize = 255 - READERS_SUFFIX.len();
/// How much of a long name stays readable.
const READABLE: usize = 100;
/// The separator between the readable part and the hash.
const HASH_MARK: char = '~';
/// Reserved names of Windows, with any extension.
const RESERVED: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];

/// The file name of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FileName(Box<str>);

impl FileName {
    /// The file of the lock `name`.
    pub(crate) fn of(name: &LockName) -> Self {
        let mut stem = escape(name.as_str());
        if stem.len() > LONGEST_STEM {
            stem.truncate(READABLE);
            stem.push(HASH_MARK);
            for byte in Sha256::digest(name.as_str()) {
                let _ = write!(stem, "{byte:02x}");
            }
        }
        stem.push_str(LOCK_SUFFIX);
        Self(stem.into())
    }

    /// The name of an existing file.
    pub(crate) fn existing(file_name: &str) -> Self {
        Self(file_name.into())
    }

    /// The lock file's name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of another file that belongs to the same lock.
    pub(crate) fn beside(&self, suffix: &str) -> String {
        let stem = self.0.strip_suffix(LOCK_SUFFIX).unwrap_or(&self.0);
        format!("{stem}{suffix}")
    }
}

fn escape(name: &str) -> String {
    let mut stem = String::with_capacity(name.len() + LOCK_SUFFIX.len());
    let reserved = is_reserved(name);
    for (at, byte) in name.bytes().enumerate() {
        let plain = match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => !(at == 0 && reserved),
            // A file name that starts with a dot is hidden, and `..` is a directory.
            b'.' => at > 0,
            _ => false,
        };
        if plain {
            stem.push(char::from(byte));
        } else {
            let _ = write!(stem, "%{byte:02x}");
        }
    }
    stem
}

fn is_reserved(name: &str) -> bool {
    let device = name.split('.').next().unwrap_or(name);
    let Some(letters) = device.get(..3) else {
        return false;
    };
    // `com1` and `lpt1` are reserved like `con`. Escaping `com` itself does no harm.
    RESERVED.contains(&letters) && device[3..].bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn file(name: &str) -> String {
        FileName::of(&LockName::new(name).unwrap())
            .as_str()
            .to_owned()
    }

    #[test]
    fn plain_names_stay_readable() {
        assert_eq!(file("nightly-build_2.x"), "nightly-build_2.x.lock");
        assert_eq!(file("a b"), "a%20b.lock");
    }

    #[test]
    fn no_name_leaves_the_directory_or_hides() {
        assert_eq!(file(".."), "%2e..lock");
        assert_eq!(file("../../etc/passwd"), "%2e.%2f..%2fetc%2fpasswd.lock");
        assert_eq!(file("/etc/passwd"), "%2fetc%2fpasswd.lock");
        assert_eq!(file("C:\\x"), "%43%3a%5cx.lock");
    }

    #[test]
    fn names_that_windows_reserves_are_escaped() {
        for (name, expected) in [
            ("con", "%63on.lock"),
            ("nul.txt", "%6eul.txt.lock"),
            ("com1", "%63om1.lock"),
            ("CON", "%43%4f%4e.lock"),
            ("console", "console.lock"),
            ("company", "company.lock"),
        ] {
            assert_eq!(file(name), expected);
        }
    }

    #[test]
    fn no_two_names_meet_even_without_case() {
        let long = "x".repeat(250);
        let mut names: Vec<String> = [
            "a", "A", "a.lock", "a%2e", "%61", "a/b", "a\\b", "a ", "a.", ".a", "é", "e\u{301}",
            "É", "~", "ß", "ss", "con", "%63on", "a~b",
        ]
        .map(str::to_owned)
        .to_vec();
        names.extend(["1", "2", "É", "é"].map(|tail| format!("{long}{tail}")));
        names.extend(["É", "é"].map(|letter| letter.repeat(127)));
        let mut seen = HashMap::new();
        for name in names {
            let file = file(&name);
            assert!(file.len() <= 255 && file.is_ascii(), "{file}");
            if let Some(other) = seen.insert(file.to_lowercase(), name.clone()) {
                panic!("{name:?} and {other:?} are both {file}");
            }
        }
    }

    #[test]
    fn every_file_of_a_lock_has_a_name_that_file_systems_take() {
        for length in 240..=255 {
            let name = LockName::new("x".repeat(length)).unwrap();
            for suffix in [LOCK_SUFFIX, READERS_SUFFIX, INFO_SUFFIX] {
                let file = FileName::of(&name).beside(suffix);
                assert!(file.len() <= 255, "{length} {suffix}");
            }
        }
    }

    #[test]
    fn a_name_too_long_for_a_file_is_cut_and_keeps_its_hash() {
        for letter in ["x", "É"] {
            let name = letter.repeat(255 / letter.len());
            let file = file(&name);
            let (readable, hash) = file.split_once(HASH_MARK).unwrap();
            assert_eq!(readable, &escape(&name)[..READABLE]);
            assert_eq!(hash.len(), 64 + LOCK_SUFFIX.len());
        }
    }
}
