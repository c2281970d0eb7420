//! The holders and waiters of a name.

use std::{sync::Arc, time::SystemTime};

use portalock::{
    AnyBackend, BackendError, BackendErrorKind, Claim, ClaimKind, Inspection, LockName, OwnerId,
    clock,
};
use serde::Serialize;

use crate::report::in_seconds;

/// The output of `--json` for a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) held: bool,
    pub(crate) holders: Vec<Person>,
    pub(crate) waiters: Vec<Person>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_token: Option<u64>,
}

/// One holder or waiter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Person {
    /// `exclusive`, `shared` or `permits`.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    permits: Option<u32>,
    /// The value for `break --owner`.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerId>,
    pub(crate) host: Arc<str>,
    pub(crate) pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<Arc<str>>,
    /// In RFC 3339.
    pub(crate) since: String,
    #[serde(skip)]
    began: SystemTime,
}

impl Seen {
    /// Whether there are holders or waiters.
    pub(crate) fn is_used(&self) -> bool {
        self.held || !self.waiters.is_empty()
    }

    /// The same name, without holders and waiters.
    pub(crate) fn unused(&self) -> Self {
        Self {
            name: self.name.clone(),
            held: false,
            holders: Vec::new(),
            waiters: Vec::new(),
            last_token: self.last_token,
        }
    }

    /// All holders and waiters, with their state.
    pub(crate) fn persons(&self) -> impl Iterator<Item = (&'static str, &Person)> {
        let holders = self.holders.iter().map(|person| ("holds", person));
        holders.chain(self.waiters.iter().map(|person| ("waits", person)))
    }
}

impl Person {
    fn new(claim: Claim) -> Self {
        let (kind, permits) = match claim.kind {
            ClaimKind::Exclusive => ("exclusive", None),
            ClaimKind::Shared => ("shared", None),
            ClaimKind::Permits(count) => ("permits", Some(count)),
            _ => ("other", None),
        };
        Self {
            kind,
            permits,
            owner: claim.owner,
            host: claim.holder.host,
            pid: claim.holder.pid,
            label: claim.holder.label,
            since: humantime::format_rfc3339_seconds(claim.holder.since).to_string(),
            began: claim.holder.since,
        }
    }

    /// Of what the person has or wants how much.
    pub(crate) fn kind(&self) -> String {
        match self.permits {
            Some(1) => "1 permit".to_owned(),
            Some(count) => format!("{count} permits"),
            None => self.kind.to_owned(),
        }
    }

    /// For how long, as people read it.
    pub(crate) fn time(&self) -> String {
        let time = clock::wall_clock().duration_since(self.began);
        in_seconds(time.unwrap_or_default()).to_string()
    }
}

/// Inspects the lock and the semaphore of this name: most names are only one of them.
pub(crate) async fn look(backend: &AnyBackend, name: &LockName) -> Result<Seen, BackendError> {
    let of_lock = backend.locks.inspect(name).await?;
    let of_permits = unless_unsupported(backend.inspect_permits(name).await)?;
    Ok(seen(name, of_lock, of_permits))
}

fn unless_unsupported(
    inspection: Result<Inspection, BackendError>,
) -> Result<Inspection, BackendError> {
    match inspection {
        Err(error) if error.kind() == BackendErrorKind::Unsupported => Ok(Inspection::default()),
        inspection => inspection,
    }
}

fn seen(name: &LockName, lock: Inspection, permits: Inspection) -> Seen {
    let persons =
        |one: Vec<Claim>, two: Vec<Claim>| one.into_iter().chain(two).map(Person::new).collect();
    Seen {
        name: name.to_string(),
        held: lock.held || permits.held,
        holders: persons(lock.holders, permits.holders),
        waiters: persons(lock.waiters, permits.waiters),
        last_token: lock.last_token.max(permits.last_token).map(u64::from),
    }
}

/// The names with holders or waiters, sorted.
pub(crate) async fn names(backend: &AnyBackend) -> Result<Vec<LockName>, BackendError> {
    let mut names = backend.locks.names().await?;
    names.sort_unstable();
    Ok(names)
}
