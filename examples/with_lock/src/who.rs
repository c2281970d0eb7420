//! `with_lock who`: the holders and waiters of a name.

use std::path::Path;

use portalock::LockName;

use crate::{
    args::{WhoArgs, backend_and_name},
    backends,
    report::{Failure, printable},
    seen::{self, Seen},
    table::Table,
    watch::{self, Subject},
};

/// Shows the lock and the semaphore of this name, once or until a signal ends it.
pub(crate) async fn who(args: &WhoArgs, config: Option<&Path>) -> Result<String, Failure> {
    let (backend, name) = backend_and_name(&args.target);
    let name = LockName::new(name)?;
    let backend = backends::open_used(backend, config).await?;
    if args.watch {
        return watch::watch(&backend, Subject::Name(&name), args.json).await;
    }
    let seen = seen::look(&backend, &name).await?;
    let _ = backend.close().await;
    if args.json {
        return Ok(serde_json::to_string_pretty(&seen)?);
    }
    Ok(table(&seen))
}

fn table(seen: &Seen) -> String {
    if !seen.is_used() {
        return format!("nobody holds {}", printable(&seen.name));
    }
    let mut table = Table::new(["STATE", "KIND", "FOR", "SINCE", "PID", "HOST", "LABEL"]);
    for (state, person) in seen.persons() {
        table.row([
            state.to_owned(),
            person.kind(),
            person.time(),
            person.since.clone(),
            person.pid.to_string(),
            person.host.to_string(),
            person.label.as_deref().unwrap_or_default().to_owned(),
        ]);
    }
    if seen.held && seen.holders.is_empty() {
        let name = printable(&seen.name);
        return format!("{name} is held by an unknown holder\n{table}");
    }
    table.to_string()
}
