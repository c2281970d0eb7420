//! `with_lock list`: the names with holders or waiters.

use std::path::Path;

use crate::{
    args::ListArgs,
    backends,
    report::{Failure, printable},
    seen,
    watch::{self, Subject},
};

/// Prints one name per line, sorted, or JSON. Once, or until a signal ends it.
pub(crate) async fn list(args: &ListArgs, config: Option<&Path>) -> Result<String, Failure> {
    let backend = backends::open_used(args.backend.as_deref(), config).await?;
    if args.watch {
        return watch::watch(&backend, Subject::All, args.json).await;
    }
    let names = seen::names(&backend).await?;
    let _ = backend.close().await;
    let names: Vec<_> = names.iter().map(portalock::LockName::as_str).collect();
    if args.json {
        return Ok(serde_json::to_string_pretty(&names)?);
    }
    let lines: Vec<_> = names.iter().map(|name| printable(name)).collect();
    Ok(lines.join("\n"))
}
