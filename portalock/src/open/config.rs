//! Backends by key, from a TOML file.

use std::{collections::BTreeMap, fmt, fs, ops::Range, path::Path};

use toml::{Table, Value};

#[cfg(feature = "fs")]
use crate::open::fs as files;
use crate::{
    AnyBackend, OpenError, Scheme,
    open::{migrate_table, open_table},
};

/// Backends by key, from a TOML file.
///
/// Each value is an address, or a table with a `type` (`fs`, `redis`, `etcd` or `postgres`) and the settings of that
/// backend:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), portalock::OpenError> {
/// let config = portalock::Config::from_toml(r#"
///     [backends]
///     ci = "fs:/run/lock/ci"
///
///     [backends.billing]
///     type = "fs"
///     directory = "/run/lock/billing"
///     file_mode = "660"
/// "#)?;
/// assert_eq!(config.keys().collect::<Vec<_>>(), ["billing", "ci"]);
///
/// let error = config.open("bililng").await.unwrap_err();
/// assert_eq!(error.to_string(), "no backend is called \"bililng\": there are billing and ci");
/// # Ok(()) }
/// ```
///
/// Neither its [`Debug`](fmt::Debug) text nor an error shows a value, which may be a password.
#[derive(Clone, Default)]
pub struct Config {
    /// The name of the configuration in errors.
    place: String,
    backends: BTreeMap<String, Entry>,
}

#[derive(Clone)]
enum Entry {
    Address(String),
    Settings(Scheme, Table),
}

impl Config {
    /// Parses the text of a configuration file.
    ///
    /// # Errors
    ///
    /// [`OpenError::Config`] if the text is not TOML, if it has other tables than `backends`, or if a backend is
    /// neither an address nor a table with a known `type`. [`open`](Self::open) checks the settings themselves.
    pub fn from_toml(text: &str) -> Result<Self, OpenError> {
        Self::parse("the configuration", text)
    }

    /// Reads the configuration file at `path`.
    ///
    /// # Errors
    ///
    /// [`OpenError::Unreadable`] if the file can't be read, and as [`from_toml`](Self::from_toml).
    pub fn load(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|source| OpenError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn parse(place: &str, text: &str) -> Result<Self, OpenError> {
        let wrong = |place: String, problem: String| OpenError::Config { place, problem };
        let file: Table = toml::from_str(text).map_err(|error| {
            // The parser's message quotes the line, which may contain a secret.
            wrong(
                at_line(place, text, error.span()),
                one_line(error.message()),
            )
        })?;
        let mut config = Self {
            place: place.to_owned(),
            backends: BTreeMap::new(),
        };
        for (field, value) in file {
            match value {
                Value::Table(backends) if field == "backends" => {
                    for (key, value) in backends {
                        let entry = entry(&key, value)
                            .map_err(|problem| wrong(place.to_owned(), problem))?;
                        config.backends.insert(key, entry);
                    }
                }
                _ if field == "backends" => {
                    let problem = "`backends` is no table: write [backends] and one `key = \"address\"` a line";
                    return Err(wrong(place.to_owned(), problem.to_owned()));
                }
                _ => {
                    let problem = format!("`{field}` is no field of it: there is only `backends`");
                    return Err(wrong(place.to_owned(), problem));
                }
            }
        }
        Ok(config)
    }

    /// The keys of the backends, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.backends.keys().map(String::as_str)
    }

    /// Opens the backend of this key. A text with a colon is not a key but an address, for [`open`](crate::open).
    ///
    /// # Errors
    ///
    /// [`OpenError`]; [`OpenError::UnknownKey`] lists the existing keys.
    ///
    /// # Cancel safety
    ///
    /// As [`open`](crate::open).
    pub async fn open(&self, key_or_address: &str) -> Result<AnyBackend, OpenError> {
        let opened = match self.entry(key_or_address)? {
            Some(Entry::Address(address)) => crate::open(address).await,
            Some(Entry::Settings(scheme, table)) => open_table(*scheme, table.clone()).await,
            None => return crate::open(key_or_address).await,
        };
        opened.map_err(|error| self.at(key_or_address, error))
    }

    /// The directory of this key's backend, if its locks are files. Nothing is opened or created, so a program that only looks at
    /// locks can refuse a directory that doesn't exist.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    #[cfg(feature = "fs")]
    pub fn directory(&self, key_or_address: &str) -> Result<Option<std::path::PathBuf>, OpenError> {
        let found = match self.entry(key_or_address)? {
            Some(Entry::Address(address)) => files::directory_of(address),
            Some(Entry::Settings(Scheme::Fs, table)) => {
                files::directory_in(table.clone()).map(Some)
            }
            Some(Entry::Settings(..)) => Ok(None),
            None => return files::directory_of(key_or_address),
        };
        found.map_err(|error| self.at(key_or_address, error))
    }

    /// Prepares the store of the backend of this key, as [`migrate`](crate::migrate) does for an address.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Cancel safety
    ///
    /// As [`migrate`](crate::migrate).
    pub async fn migrate(&self, key_or_address: &str) -> Result<(), OpenError> {
        let migrated = match self.entry(key_or_address)? {
            Some(Entry::Address(address)) => crate::migrate(address).await,
            Some(Entry::Settings(scheme, table)) => migrate_table(*scheme, table.clone()).await,
            None => return crate::migrate(key_or_address).await,
        };
        migrated.map_err(|error| self.at(key_or_address, error))
    }

    /// The table of this key; `None` if the value is an address.
    fn entry(&self, key: &str) -> Result<Option<&Entry>, OpenError> {
        let entry = self.backends.get(key);
        let may_be_address = self.backends.is_empty() || key.contains([':', '/', '\\', '.', '~']);
        if entry.is_none() && !may_be_address {
            return Err(OpenError::UnknownKey {
                key: key.to_owned(),
                known: format!("there are {}", listed(self.keys())),
            });
        }
        Ok(entry)
    }

    fn at(&self, key: &str, error: OpenError) -> OpenError {
        match error {
            // Errors in settings don't say where they are, so add it; errors of a system or a server do.
            OpenError::Backend(_) => error,
            error => OpenError::Config {
                place: format!("{}: backend {key:?}", self.place),
                problem: error.to_string(),
            },
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("place", &self.place)
            .field("backends", &self.backends.keys())
            .finish()
    }
}

fn entry(key: &str, value: Value) -> Result<Entry, String> {
    if key.is_empty() || key.contains(':') {
        return Err(format!(
            "{key:?} is no key for a backend: give it text without a colon, which only addresses have"
        ));
    }
    let right =
        "write an address, or a table with `type = \"fs\"`, \"redis\", \"etcd\" or \"postgres\"";
    match value {
        Value::String(address) => Ok(Entry::Address(address)),
        Value::Table(mut settings) => match settings.remove("type") {
            Some(Value::String(kind)) => match kind.as_str() {
                "fs" => Ok(Entry::Settings(Scheme::Fs, settings)),
                "redis" => Ok(Entry::Settings(Scheme::Redis, settings)),
                "etcd" => Ok(Entry::Settings(Scheme::Etcd, settings)),
                "postgres" => Ok(Entry::Settings(Scheme::Postgres, settings)),
                _ => Err(format!("backend {key:?} has an unknown `type`: {right}")),
            },
            _ => Err(format!("backend {key:?} has no `type`: {right}")),
        },
        _ => Err(format!(
            "backend {key:?} is neither text nor a table: {right}"
        )),
    }
}

fn at_line(place: &str, text: &str, span: Option<Range<usize>>) -> String {
    let before = span.and_then(|span| text.get(..span.start));
    before.map_or_else(
        || place.to_owned(),
        |before| format!("{place}, line {}", before.matches('\n').count() + 1),
    )
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn listed<'k>(keys: impl Iterator<Item = &'k str>) -> String {
    let keys: Vec<_> = keys.collect();
    match keys.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => keys.join(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "fs")]
    #[tokio::test]
    async fn a_backend_is_an_address_or_a_table() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("locks.toml");
        let text = format!(
            "[backends]\na = 'fs:{0}/a'\nb = {{ type = 'fs', directory = '{0}/b', poll_interval = '5ms' }}",
            home.path().display()
        );
        fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        for key in ["a", "b"] {
            config.open(key).await.unwrap();
            assert!(home.path().join(key).is_dir());
        }
        let address = format!("fs:{}/c", home.path().display());
        config.open(&address).await.unwrap();
        assert!(home.path().join("c").is_dir());

        let at = |key| config.directory(key).unwrap();
        assert_eq!(at("a"), Some(home.path().join("a")));
        assert_eq!(at("b"), Some(home.path().join("b")));
        assert_eq!(at("fs:new"), Some("new".into()));
        assert_eq!(at("memory:"), None);
        assert!(!Path::new("new").exists());
    }

    #[test]
    fn nonsense_is_refused_by_its_place_and_no_secret_is_shown() {
        for (expected, text) in [
            ("line 2: ", "[backends]\na = hunter2"),
            ("line 2: ", "[backends]\na = \"hunter2\n"),
            (
                "`backend` is no field",
                "[backend]\na = 'redis://u:hunter2@x'",
            ),
            ("`backends` is no table", "backends = 'redis://u:hunter2@x'"),
            (
                "\"a\" has no `type`",
                "[backends.a]\nurl = 'redis://u:hunter2@x'",
            ),
            ("unknown `type`", "[backends.a]\ntype = 'hunter2'"),
            ("neither text", "[backends]\na = 2"),
            ("without a colon", "[backends]\n'a:b' = 'fs:x'"),
        ] {
            let error = Config::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(
                !error.contains("hunter2") && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }

    #[cfg(feature = "fs")]
    #[tokio::test]
    async fn a_setting_that_makes_no_sense_is_refused_by_its_backend_and_name() {
        let config = Config::from_toml(
            "[backends]\na = { type = 'fs', directory = 'x', file_mode = '666' }\nb = 'fs://host/x'\nc = 'http://u:hunter2@x'",
        )
        .unwrap();
        for (key, expected) in [("a", "`file_mode`"), ("b", "fs:///DIR"), ("c", "\"http\"")] {
            let error = config.open(key).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(&format!("backend {key:?}")), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn an_unknown_key_is_told_apart_from_a_path() {
        let config = Config::from_toml("[backends]\na = 'memory:'").unwrap();
        config.open("a").await.unwrap();
        config.open("memory:").await.unwrap();
        let error = config.open("b").await.unwrap_err().to_string();
        assert_eq!(error, "no backend is called \"b\": there are a");
        let error = config.open("./b").await.unwrap_err().to_string();
        assert!(error.contains("write fs: before it"), "{error}");
        let error = Config::default().open("b").await.unwrap_err().to_string();
        assert!(error.contains("no scheme"), "{error}");
    }
}
