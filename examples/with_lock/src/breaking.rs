//! `with_lock break`: take a lock away from its holder.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::Path,
};

use portalock::{AnyBackend, Broken, Claim, Lock, LockBackend, LockName, OwnerId};
use serde::Serialize;

use crate::{
    args::{BreakArgs, backend_and_name},
    backends,
    exit::{self, Ending},
    report::{Failure, printable, say},
};

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a LockName,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerId>,
    /// `released`, `evicted` or `not_held`.
    broken: &'static str,
}

/// Breaks the lock of the shown holder, or of the given owner. Returns the output and the exit code.
pub(crate) async fn break_lock(
    args: &BreakArgs,
    config: Option<&Path>,
) -> Result<(String, Ending), Failure> {
    let (backend, name) = backend_and_name(&args.target);
    let name = LockName::new(name)?;
    let backend = backends::open_used(backend, config).await?;
    if !backend.locks.capabilities().breaks {
        return Err(Failure::new(
            "this backend can't take a lock away: end the holder's process",
        ));
    }
    let outcome = break_at(&backend, &name, args).await;
    let _ = backend.close().await;
    outcome
}

async fn break_at(
    backend: &AnyBackend,
    name: &LockName,
    args: &BreakArgs,
) -> Result<(String, Ending), Failure> {
    let label = args.label.clone().or_else(|| env::var("USER").ok());
    let lock = match label {
        Some(label) => backend.lock(name)?.with_label(label),
        None => backend.lock(name)?,
    };
    let holders = lock.inspect().await?.holders;
    let is_meant = |claim: &&Claim| args.owner.is_none_or(|owner| claim.owner == Some(owner));
    let meant: Vec<_> = holders.iter().filter(is_meant).collect();
    let claim = match meant[..] {
        [] if args.owner.is_none() => {
            let text = format!("nobody holds {}", printable(name.as_str()));
            return report(args, name, None, Broken::NotHeld, text);
        }
        // It may have become the holder meanwhile; if not, the backend reports that.
        [] => None,
        [claim] => Some(claim),
        [..] => return Err(several(name, &meant)),
    };
    let owner = args.owner.or_else(|| claim?.owner).ok_or_else(|| {
        Failure::new(format!(
            "{name} is held by {}, whose owner is not known: it can't be broken without hitting others by mistake",
            claim.map_or_else(String::new, |claim| claim.holder.to_string())
        ))
    })?;
    let who = claim.map_or_else(
        || format!("the owner {owner}"),
        |claim| claim.holder.to_string(),
    );
    if !args.yes && !is_confirmed(name, &who)? {
        return Err(Failure::new("not confirmed: nothing was broken"));
    }
    break_owner(&lock, args, owner, &who).await
}

async fn break_owner(
    lock: &Lock<portalock::DynBackend>,
    args: &BreakArgs,
    owner: OwnerId,
    who: &str,
) -> Result<(String, Ending), Failure> {
    let broken = lock.break_holder(owner).await?;
    let name = lock.name();
    let text = match broken {
        Broken::Released => format!("broke {name}: {who} was told and gave it back"),
        Broken::Evicted => {
            format!("broke {name}: {who} did not respond, its hold was ended by force")
        }
        _ => format!("{who} does not hold {name}: nothing was broken"),
    };
    report(args, name, Some(owner), broken, printable(&text))
}

fn report(
    args: &BreakArgs,
    name: &LockName,
    owner: Option<OwnerId>,
    broken: Broken,
    text: String,
) -> Result<(String, Ending), Failure> {
    let (word, code) = match broken {
        Broken::Released => ("released", 0),
        Broken::Evicted => ("evicted", 0),
        _ => ("not_held", exit::NOT_HELD),
    };
    let text = if args.json {
        serde_json::to_string_pretty(&Report {
            name,
            owner,
            broken: word,
        })?
    } else {
        text
    };
    Ok((text, code.into()))
}

fn several(name: &LockName, holders: &[&Claim]) -> Failure {
    for claim in holders {
        let owner = claim.owner.map(|owner| owner.to_string());
        let owner = owner.unwrap_or_else(|| "an unknown owner".to_owned());
        say(&format!("{owner} is {}", claim.holder));
    }
    let count = holders.len();
    Failure::new(format!(
        "{count} holders share {name}: choose one with --owner"
    ))
}

/// Asks on the terminal.
fn is_confirmed(name: &LockName, who: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new(
            "there is no terminal to ask on: give --yes to break the lock",
        ));
    }
    let question = format!("{name} is held by {who}: break it? [y/N] ");
    let mut stderr = io::stderr().lock();
    stderr.write_all(printable(&question).as_bytes())?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
