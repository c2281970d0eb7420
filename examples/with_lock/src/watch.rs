//! `--watch`: a live table on a terminal; elsewhere one line for each change.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use portalock::{AnyBackend, BackendError, HolderWatch, LockBackend, LockName, clock};

use crate::{
    report::{Failure, chain, printable, say},
    seen::{self, Person, Seen},
    table::Table,
};

/// The pause between two reads, unless the backend reports a change earlier.
const PAUSE: Duration = Duration::from_secs(1);

/// What is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// This name.
    Name(&'a LockName),
    /// Every name with holders or waiters.
    All,
}

/// The result of one read, by name.
type Look = BTreeMap<String, Seen>;

/// Watches until a signal ends this program, or the reader closes the pipe.
pub(crate) async fn watch(
    backend: &AnyBackend,
    subject: Subject<'_>,
    json: bool,
) -> Result<String, Failure> {
    let redraws = !json && io::stdout().is_terminal();
    let mut before = Look::new();
    let mut changes = None;
    loop {
        if let (None, Subject::Name(name)) = (&changes, subject) {
            // The backend reports changes of the holder only; waiters are read.
            changes = backend.locks.watch(name).await.ok().flatten();
        }
        match look(backend, subject).await {
            Ok(now) => {
                let text = if redraws {
                    // Clears the screen, and moves the cursor to the top.
                    format!("\x1b[H\x1b[2J{}\n", table(&now))
                } else if json {
                    json_lines(&before, &now)?
                } else {
                    lines(&before, &now)
                };
                if !write(&text)? {
                    return Ok(String::new());
                }
                before = now;
            }
            Err(error) if error.is_retryable() => say(&chain(&error)),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = another_holds(&mut changes) => {}
        }
    }
}

/// Waits until the holder changes. If the backend can't report that, or has stopped, it waits forever.
async fn another_holds(changes: &mut Option<HolderWatch>) {
    if let Some(watch) = changes {
        if watch.next().await.is_some() {
            return;
        }
        *changes = None;
    }
    std::future::pending::<()>().await;
}

async fn look(backend: &AnyBackend, subject: Subject<'_>) -> Result<Look, BackendError> {
    let mut look = Look::new();
    match subject {
        Subject::Name(name) => {
            look.insert(name.to_string(), seen::look(backend, name).await?);
        }
        Subject::All => {
            for name in seen::names(backend).await? {
                let seen = seen::look(backend, &name).await?;
                if seen.is_used() {
                    look.insert(seen.name.clone(), seen);
                }
            }
        }
    }
    Ok(look)
}

fn table(now: &Look) -> String {
    let mut table = Table::new(["NAME", "STATE", "KIND", "FOR", "PID", "HOST", "LABEL"]);
    for seen in now.values() {
        for (state, person) in seen.persons() {
            table.row([
                seen.name.clone(),
                state.to_owned(),
                person.kind(),
                person.time(),
                person.pid.to_string(),
                person.host.to_string(),
                person.label.as_deref().unwrap_or_default().to_owned(),
            ]);
        }
    }
    table.to_string()
}

/// The names whose state has changed.
fn changed<'a>(before: &'a Look, now: &'a Look) -> impl Iterator<Item = (&'a Seen, Seen)> {
    let gone = before
        .values()
        .filter(|seen| !now.contains_key(&seen.name))
        .map(|seen| (seen, seen.unused()));
    let there = now
        .values()
        .map(|seen| (before.get(&seen.name).unwrap_or(seen), seen.clone()));
    gone.chain(there)
        .filter(move |(old, new)| *old != new || !before.contains_key(&new.name))
}

fn json_lines(before: &Look, now: &Look) -> Result<String, Failure> {
    let mut text = String::new();
    for (_, seen) in changed(before, now) {
        text += &serde_json::to_string(&seen)?;
        text.push('\n');
    }
    Ok(text)
}

fn lines(before: &Look, now: &Look) -> String {
    let at = humantime::format_rfc3339_seconds(clock::wall_clock()).to_string();
    let mut text = String::new();
    for (old, new) in changed(before, now) {
        let old: Vec<_> = match before.get(&new.name) {
            Some(_) => old.persons().collect(),
            None => Vec::new(),
        };
        let new_persons: Vec<_> = new.persons().collect();
        let ended = old.iter().filter(|person| !new_persons.contains(person));
        let ended = ended.map(|(state, person)| match *state {
            "holds" => ("held", *person),
            _ => ("waited", *person),
        });
        let begun = new_persons.iter().filter(|person| !old.contains(person));
        for (state, person) in ended.chain(begun.copied()) {
            text += &line(&at, &new.name, state, person);
        }
    }
    text
}

fn line(at: &str, name: &str, state: &str, person: &Person) -> String {
    let label = person.label.as_deref().unwrap_or("no label");
    let line = format!(
        "{at} {name} {state} {} pid {} on {} ({label})",
        person.kind(),
        person.pid,
        person.host
    );
    printable(&line) + "\n"
}

/// Writes, and returns whether the reader still reads.
fn write(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}
