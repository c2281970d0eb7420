//! `with_lock list`: what is held or waited for.

use std::path::Path;

use crate::{
    args::ListArgs,
    backends,
    report::{Failure, printable},
    seen,
    watch::{self, Subject},
};

/// One name a line, sorted; or JSON, for names with line breaks. Once, or until it is told to end.
pub(crate) async fn list(args: &ListArgs, config: Option<&Path>) -> Result<String, Failure> {
    let backend = backends::open(args.backend.as_deref(), config).await?;
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
