//! `with_lock list`: what is held or waited for.

use std::path::Path;

use crate::{
    args::ListArgs,
    backends,
    report::{Failure, printable},
};

/// One name a line, sorted; or JSON, for names with line breaks.
pub(crate) async fn list(args: &ListArgs, config: Option<&Path>) -> Result<String, Failure> {
    let backend = backends::open(args.backend.as_deref(), config).await?;
    let mut names: Vec<String> = backend
        .locks
        .names()
        .await?
        .into_iter()
        .map(String::from)
        .collect();
    let _ = backend.close().await;
    names.sort_unstable();
    if args.json {
        return Ok(serde_json::to_string_pretty(&names)?);
    }
    let lines: Vec<_> = names.iter().map(|name| printable(name)).collect();
    Ok(lines.join("\n"))
}
