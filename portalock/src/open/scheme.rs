//! The scheme of an address.

use crate::OpenError;

/// The kind of backend that an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// `fs:`, lock files in a directory.
    Fs,
    /// `redis:`, `rediss:` or `unix:`, a Redis or Valkey server; `redis+sentinel:` or `rediss+sentinel:`, the one that sentinels name;
    /// `redis+cluster:` or `rediss+cluster:`, a cluster.
    Redis,
    /// `etcd:` or `etcds:`, an etcd cluster.
    Etcd,
    /// `postgres:` or `postgresql:`, a PostgreSQL database.
    Postgres,
    /// `memory:`, this process.
    Memory,
}

impl Scheme {
    /// The scheme of `address`, and the text after its colon.
    ///
    /// # Errors
    ///
    /// [`OpenError::NoScheme`] or [`OpenError::UnknownScheme`].
    pub fn of(address: &str) -> Result<(Self, &str), OpenError> {
        let Some((scheme, rest)) = address.split_once(':') else {
            let hint = if address.contains(['/', '\\', '.', '~']) {
                ": for a directory, write fs: before it"
            } else {
                ": write fs:DIR, redis://HOST, rediss://HOST, unix:///SOCKET, etcd://HOST,HOST or postgres://HOST/DATABASE"
            };
            return Err(OpenError::NoScheme { hint });
        };
        let known = match scheme {
            "fs" => Self::Fs,
            "redis" | "rediss" | "valkey" | "valkeys" | "unix" | "redis+sentinel"
            | "rediss+sentinel" | "valkey+sentinel" | "valkeys+sentinel" | "redis+cluster"
            | "rediss+cluster" | "valkey+cluster" | "valkeys+cluster" => Self::Redis,
            "etcd" | "etcds" => Self::Etcd,
            "postgres" | "postgresql" => Self::Postgres,
            "memory" => Self::Memory,
            // A drive letter of Windows, or a path with a colon.
            _ if scheme.len() == 1 || scheme.contains(['/', '\\', '.']) => {
                return Err(OpenError::NoScheme {
                    hint: ": for a directory, write fs: before it",
                });
            }
            _ => {
                return Err(OpenError::UnknownScheme {
                    scheme: scheme.chars().take(20).collect(),
                });
            }
        };
        Ok((known, rest))
    }

    /// The text of the scheme, without the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fs => "fs",
            Self::Redis => "redis",
            Self::Etcd => "etcd",
            Self::Postgres => "postgres",
            Self::Memory => "memory",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_refused_with_what_to_write() {
        for (address, hint) in [
            ("", "no scheme: write fs:DIR"),
            ("locks", "no scheme: write fs:DIR"),
            ("./locks", "write fs: before it"),
            ("C:\\locks", "write fs: before it"),
            ("/a:b", "write fs: before it"),
            ("http://u:hunter2@a", "\"http\" is not a backend"),
            (":", "\"\" is not a backend"),
        ] {
            let error = Scheme::of(address).unwrap_err().to_string();
            assert!(error.contains(hint), "{address:?}: {error}");
            assert!(!error.contains("hunter2"), "{address:?}: {error}");
        }
    }

    #[test]
    fn the_rest_is_left_as_it_is() {
        assert_eq!(Scheme::of("fs:a:b c").unwrap(), (Scheme::Fs, "a:b c"));
        assert_eq!(Scheme::of("etcds://x").unwrap(), (Scheme::Etcd, "//x"));
        let sentinels = Scheme::of("redis+sentinel://a,b/m").unwrap();
        assert_eq!(sentinels, (Scheme::Redis, "//a,b/m"));
        let cluster = Scheme::of("rediss+cluster://a,b").unwrap();
        assert_eq!(cluster, (Scheme::Redis, "//a,b"));
    }
}
