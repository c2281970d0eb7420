//! The conformance suite, with each configuration of the backend.

mod support;

use std::{io::ErrorKind, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use portalock_core::{DynBackend, DynSemaphore, LockName, SlotSemaphore};
use portalock_fs::{Calls, FsBackend, FsSettings, Watch};
use portalock_testkit::{
    Fixture, FixtureError, HelperCommand, Suite,
    cases::{self, Case},
};
use support::wine;

type SetUp = fn(PathBuf) -> FsSettings;

/// A directory of its own, removed at the end.
struct Locks {
    directory: tempfile::TempDir,
    set_up: SetUp,
}

impl Locks {
    /// The directory of the lock files.
    fn path(&self) -> PathBuf {
        self.directory.path().join("locks")
    }
}

impl Drop for Locks {
    /// A call in another thread, which nobody waits for any more, may make a file while the directory is being removed.
    fn drop(&mut self) {
        let remove = || std::fs::remove_dir_all(self.directory.path());
        while remove().is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty) {}
    }
}

fn locks(set_up: SetUp) -> std::io::Result<Locks> {
    let directory = tempfile::tempdir()?;
    Ok(Locks { directory, set_up })
}

#[async_trait]
impl Fixture for Locks {
    type Backend = DynBackend;

    async fn client(&self) -> Result<DynBackend, FixtureError> {
        let settings = (self.set_up)(self.path());
        let backend = FsBackend::with_settings(&settings).map_err(FixtureError::failed)?;
        Ok(Arc::new(backend))
    }

    fn semaphore(&self, client: &Arc<DynBackend>) -> Option<DynSemaphore> {
        Some(Arc::new(SlotSemaphore::new(client.clone())))
    }

    #[cfg(windows)]
    async fn take_away(&self, _name: &LockName) -> Result<(), FixtureError> {
        let lack =
            "a way to take a lock away: on Windows nobody can remove a lock file that is open";
        Err(FixtureError::NotProvided(lack))
    }

    #[cfg(not(windows))]
    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        let file = self.path().join(FsBackend::file_name(name));
        match std::fs::remove_file(file) {
            // The file was not used yet, or was just removed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    }

    #[cfg(not(windows))]
    async fn move_store(&self) -> Result<(), FixtureError> {
        Ok(std::fs::rename(
            self.path(),
            self.path().with_extension("old"),
        )?)
    }

    fn skip(&self, case: &Case) -> Option<&'static str> {
        let skips = wine::is_here() && wine::SKIPPED_CASES.contains(&&*case.id());
        skips.then_some(wine::LENIENT)
    }

    fn address(&self) -> Option<String> {
        let settings = (self.set_up)(self.path());
        toml::to_string(&settings).ok()
    }

    async fn connect(address: &str) -> Result<DynBackend, FixtureError> {
        let settings = toml::from_str(address).map_err(FixtureError::failed)?;
        let backend = FsBackend::with_settings(&settings).map_err(FixtureError::failed)?;
        Ok(Arc::new(backend))
    }
}

mod by_default {
    portalock_testkit::conformance!(super::locks(super::FsSettings::new));
}

mod polling {
    use super::{FsSettings, Watch};
    portalock_testkit::conformance!(super::locks(
        |path| FsSettings::new(path).with_watch(Watch::Off)
    ));
}

#[cfg(any(target_os = "linux", target_os = "android", windows))]
mod record_locks {
    use portalock_fs::LockKind;

    use super::FsSettings;
    portalock_testkit::conformance!(super::locks(
        |path| FsSettings::new(path).with_lock(LockKind::Record)
    ));
}

mod in_other_threads {
    use super::{Calls, FsSettings};
    portalock_testkit::conformance!(super::locks(
        |path| FsSettings::new(path).with_calls(Calls::Offload)
    ));
}

/// The readable report: each case, and why a case was skipped.
#[test]
#[ignore = "it runs all cases once more, and prints the report"]
fn the_report() {
    let helper = HelperCommand::new(
        std::env::current_exe().unwrap(),
        [
            "by_default::helper_process",
            "--exact",
            "--ignored",
            "--nocapture",
        ],
    );
    let report = Suite::new(|| async { locks(FsSettings::new) })
        .with_helper(helper)
        .run();
    println!("{report}");
    assert!(report.is_success());
}

#[test]
fn what_is_skipped_under_wine_are_cases_of_the_suite() {
    for case in wine::SKIPPED_CASES {
        assert!(cases::find(case).is_some(), "{case}");
    }
}
