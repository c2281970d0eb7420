//! `with_lock who`: who holds a name, and who waits for it.

use std::{path::Path, sync::Arc, time::SystemTime};

use portalock::{
    BackendError, BackendErrorKind, Claim, ClaimKind, Inspection, Lock, LockError, clock,
};
use serde::Serialize;

use crate::{
    args::{WhoArgs, backend_and_name},
    backends,
    report::{Failure, in_seconds, printable},
    table::Table,
};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    name: String,
    held: bool,
    holders: Vec<Person>,
    waiters: Vec<Person>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_token: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Person {
    /// `exclusive`, `shared` or `permits`.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    permits: Option<u32>,
    host: Arc<str>,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<Arc<str>>,
    /// In RFC 3339.
    since: String,
    #[serde(skip)]
    began: SystemTime,
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
            host: claim.holder.host,
            pid: claim.holder.pid,
            label: claim.holder.label,
            since: humantime::format_rfc3339_seconds(claim.holder.since).to_string(),
            began: claim.holder.since,
        }
    }

    fn kind(&self) -> String {
        match self.permits {
            Some(1) => "1 permit".to_owned(),
            Some(count) => format!("{count} permits"),
            None => self.kind.to_owned(),
        }
    }
}

/// Shows the lock and the semaphore of this name: most names are only one of them.
pub(crate) async fn who(args: &WhoArgs, config: Option<&Path>) -> Result<String, Failure> {
    let (backend, name) = backend_and_name(&args.target);
    let backend = backends::open(backend, config).await?;
    let lock = Lock::new(backend.locks.clone(), name)?;
    let of_lock = lock.inspect().await?;
    let of_permits =
        unless_unsupported(backend.inspect_permits(lock.name()).await).map_err(|source| {
            LockError::Backend {
                name: lock.name().clone(),
                source,
            }
        })?;
    let _ = backend.close().await;
    let answer = answer(name, of_lock, of_permits);
    if args.json {
        return Ok(serde_json::to_string_pretty(&answer)?);
    }
    Ok(table(&answer))
}

fn unless_unsupported(
    inspection: Result<Inspection, BackendError>,
) -> Result<Inspection, BackendError> {
    match inspection {
        Err(error) if error.kind() == BackendErrorKind::Unsupported => Ok(Inspection::default()),
        inspection => inspection,
    }
}

fn answer(name: &str, lock: Inspection, permits: Inspection) -> Answer {
    let persons =
        |one: Vec<Claim>, two: Vec<Claim>| one.into_iter().chain(two).map(Person::new).collect();
    Answer {
        name: name.to_owned(),
        held: lock.held || permits.held,
        holders: persons(lock.holders, permits.holders),
        waiters: persons(lock.waiters, permits.waiters),
        last_token: lock.last_token.max(permits.last_token).map(u64::from),
    }
}

fn table(answer: &Answer) -> String {
    if !answer.held && answer.waiters.is_empty() {
        return format!("nobody holds {}", printable(&answer.name));
    }
    let now = clock::wall_clock();
    let mut table = Table::new(["STATE", "KIND", "FOR", "SINCE", "PID", "HOST", "LABEL"]);
    let states = [("holds", &answer.holders), ("waits", &answer.waiters)];
    for (state, persons) in states {
        for person in persons {
            let time = now.duration_since(person.began).unwrap_or_default();
            table.row([
                state.to_owned(),
                person.kind(),
                in_seconds(time).to_string(),
                person.since.clone(),
                person.pid.to_string(),
                person.host.to_string(),
                person.label.as_deref().unwrap_or_default().to_owned(),
            ]);
        }
    }
    if answer.held && answer.holders.is_empty() {
        return format!("{} is held, nobody knows by whom\n{table}", answer.name);
    }
    table.to_string()
}
