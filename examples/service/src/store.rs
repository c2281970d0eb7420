//! The store of the service: a file that keeps the largest token, like a table in a database.

use std::{fs, io, path::PathBuf};

use portalock::{FencingToken, fs::FileLock};

/// A value, and the token of its writer. Its calls block.
pub(crate) struct Store {
    file: PathBuf,
}

/// Why a write was refused.
pub(crate) enum Refused {
    /// A later leader has written.
    Newer(FencingToken),
    /// The storage failed.
    Failed(io::Error),
}

impl Store {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// The value; empty before the first write.
    pub(crate) fn read(&self) -> io::Result<String> {
        Ok(self.read_both()?.1)
    }

    /// Writes the value, unless a write with a larger token came before. The file is locked, so check and write are one
    /// step.
    pub(crate) fn write(&self, token: FencingToken, value: &str) -> Result<(), Refused> {
        let beside = self.file.with_extension("lock");
        let lock = FileLock::new(beside).map_err(failed)?;
        let _alone = lock.blocking_acquire().map_err(failed)?;
        let (last, _) = self.read_both().map_err(Refused::Failed)?;
        if let Some(last) = last.filter(|last| *last > token) {
            return Err(Refused::Newer(last));
        }
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, format!("{}\n{value}", u64::from(token)))
            .and_then(|()| fs::rename(&fresh, &self.file))
            .map_err(Refused::Failed)
    }

    fn read_both(&self) -> io::Result<(Option<FencingToken>, String)> {
        let text = match fs::read_to_string(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((None, String::new()));
            }
            text => text?,
        };
        let (token, value) = text
            .split_once('\n')
            .and_then(|(token, value)| Some((token.parse().ok()?, value)))
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "the file is not one of ours")
            })?;
        Ok((Some(FencingToken::new(token)), value.to_owned()))
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Refused {
    Refused::Failed(io::Error::other(error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_token_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("value"));
        let (old, new) = (FencingToken::new(1), FencingToken::new(2));
        assert!(store.write(old, "one").is_ok());
        assert!(store.write(new, "two").is_ok());
        assert!(matches!(store.write(old, "late"), Err(Refused::Newer(newer)) if newer == new));
        assert_eq!(store.read().unwrap(), "two");
    }
}
