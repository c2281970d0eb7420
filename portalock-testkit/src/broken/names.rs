//! Names that collide, lead elsewhere, or are not supported.

use std::{collections::BTreeSet, fmt::Debug, marker::PhantomData, sync::Mutex};

use async_trait::async_trait;
use futures_util::FutureExt;
use portalock_core::{
    Attempt, BackendError, Inspection, LockBackend, LockName, LockRequest, PermitRequest, Released,
    Semaphore, Wakeups,
};

use super::{Flaw, Sound, Specimen, locked, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(lets_a_name_escape: Renames<FollowsPaths>,
        "follows the dots and slashes in a name, out of its own corner of the store",
        "names::names_that_look_alike_are_apart", "is in the way of"),
    specimen!(folds_case: Renames<FoldsCase>,
        "takes names that differ in case for one",
        "names::names_that_look_alike_are_apart", "is in the way of"),
    specimen!(cuts_names_short: Renames<CutsShort>,
        "keeps the first 200 bytes of a name",
        "names::the_longest_names_are_locked", "is in the way of"),
    specimen!(trims_names: Renames<Trims>,
        "takes names that differ in their surrounding blanks for one",
        "names::names_that_look_alike_are_apart", "is in the way of"),
    specimen!(panics_on_odd_names: PanicsOnOddNames,
        "cuts names between bytes, and panics within a character",
        "names::odd_names_are_locked_like_others", "panicked"),
    specimen!(hashes_names: Renames<Hashes>,
        "takes names with the same CRC-32 for one",
        "names::names_that_look_alike_are_apart", "is in the way of"),
    specimen!(lists_released_names: ListsReleasedNames,
        "lists every name that it has ever had",
        "names::listed_names_are_those_that_are_held", "the last of the released names leaving the list"),
    specimen!(folds_the_case_of_semaphores: FoldsTheCaseOfSemaphores,
        "takes semaphores whose names differ in case for one",
        "names::names_of_semaphores_are_apart", "was not free"),
];

/// How a name is stored.
pub trait Rename: Debug + Default + Send + Sync + 'static {
    /// The stored form. The right one is the name itself.
    fn rename(name: &str) -> String;
}

/// Stores a lock under another name than its own.
#[derive(Debug, Default)]
pub struct Renames<R>(PhantomData<R>);

impl<R: Rename> Renames<R> {
    fn name(name: &LockName) -> LockName {
        LockName::new(R::rename(name.as_str())).unwrap_or_else(|_| name.clone())
    }

    fn request(request: &LockRequest) -> LockRequest {
        let mut request = request.clone();
        request.name = Self::name(&request.name);
        request
    }
}

#[async_trait]
impl<R: Rename> Flaw for Renames<R> {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        LockBackend::try_acquire(sound, &Self::request(request)).await
    }

    async fn release(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        LockBackend::release(sound, &Self::request(request)).await
    }

    async fn subscribe(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Option<Wakeups>, BackendError> {
        LockBackend::subscribe(sound, &Self::request(request)).await
    }

    async fn inspect(&self, sound: &Sound, name: &LockName) -> Result<Inspection, BackendError> {
        LockBackend::inspect(sound, &Self::name(name)).await
    }
}

/// Resolves a name as a path: what a directory does with it.
#[derive(Debug, Default)]
pub struct FollowsPaths;

impl Rename for FollowsPaths {
    fn rename(name: &str) -> String {
        let mut parts = Vec::new();
        for part in name.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        parts.join("/")
    }
}

/// Folds case: what some file systems and databases do.
#[derive(Debug, Default)]
pub struct FoldsCase;

impl Rename for FoldsCase {
    fn rename(name: &str) -> String {
        name.to_lowercase()
    }
}

/// Keeps what fits into a column of 200 bytes.
#[derive(Debug, Default)]
pub struct CutsShort;

impl Rename for CutsShort {
    fn rename(name: &str) -> String {
        let fits = |end: &usize| *end <= 200;
        let ends = name
            .char_indices()
            .map(|(at, character)| at + character.len_utf8());
        let end = ends.take_while(fits).last().unwrap_or(0);
        name[..end].to_owned()
    }
}

/// Trims blanks: what a form or a parser does.
#[derive(Debug, Default)]
pub struct Trims;

impl Rename for Trims {
    fn rename(name: &str) -> String {
        name.trim().to_owned()
    }
}

/// Puts a slash after the first two bytes, to spread names over directories: whether or not a character ends there.
#[derive(Debug, Default)]
pub struct PanicsOnOddNames;

#[async_trait]
impl Flaw for PanicsOnOddNames {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let name = request.name.as_str();
        let (directory, file) = name.split_at(name.len().min(2));
        let _path = format!("{directory}/{file}");
        LockBackend::try_acquire(sound, request).await
    }
}

/// Hashes to 32 bits: what a key of an advisory lock has room for.
#[derive(Debug, Default)]
pub struct Hashes;

impl Rename for Hashes {
    fn rename(name: &str) -> String {
        let mut crc = u32::MAX;
        for byte in name.bytes() {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
            }
        }
        format!("{crc:x}")
    }
}

/// Lists every name that it has ever had.
#[derive(Debug, Default)]
pub struct ListsReleasedNames(Mutex<BTreeSet<LockName>>);

#[async_trait]
impl Flaw for ListsReleasedNames {
    async fn names(&self, sound: &Sound) -> Result<Vec<LockName>, BackendError> {
        let mut listed = locked(&self.0);
        listed.extend(
            sound
                .memory()
                .names()
                .now_or_never()
                .into_iter()
                .flatten()
                .flatten(),
        );
        Ok(listed.iter().cloned().collect())
    }
}

/// Takes semaphores whose names differ in case for one.
#[derive(Debug, Default)]
pub struct FoldsTheCaseOfSemaphores;

impl FoldsTheCaseOfSemaphores {
    fn folded(request: &PermitRequest) -> PermitRequest {
        let mut request = request.clone();
        request.name = Renames::<FoldsCase>::name(&request.name);
        request
    }
}

#[async_trait]
impl Flaw for FoldsTheCaseOfSemaphores {
    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        Semaphore::try_acquire(sound, &Self::folded(request)).await
    }

    async fn release_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Released, BackendError> {
        Semaphore::release(sound, &Self::folded(request)).await
    }
}
