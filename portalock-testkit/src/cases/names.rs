//! Any name is taken, no two names meet, and none leads astray.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{
    FutureExt,
    future::BoxFuture,
    stream::{self, StreamExt, TryStreamExt},
};
use portalock_core::{BackendErrorKind, Guard, LockBackend, LockName};

use super::{Case, case};
use crate::{
    trial::{Client, Trial, ensure_contended},
    verdict::{CaseResult, Stop, ensure, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(names::odd_names_are_locked_like_others, rules [7], needs [],
        "every legal name can be locked, excludes others, and is freed: none panics, is refused, or leads out of the store"),
    case!(names::the_longest_names_are_locked, rules [7], needs [],
        "names of 255 bytes are locked, whatever they are made of, and two that differ in their last byte are two"),
    case!(names::names_that_look_alike_are_apart, rules [7], needs [],
        "names that differ in case, in Unicode form, in an escape or in a separator, or that have one hash, are different locks"),
    case!(names::all_names_are_held_at_once, rules [7], needs [],
        "all odd names, look-alikes and many random ones are held by one client at once, and refused to another"),
    case!(names::a_name_that_was_refused_can_be_had_later, rules [4, 7], needs [],
        "an odd name's lock passes from client to client like any other's"),
    case!(
        names::listed_names_are_those_that_are_held,
        rules[7],
        needs[Listing],
        "the list of names contains the held names, unchanged, and none after the release"
    ),
    case!(
        names::names_of_semaphores_are_apart,
        rules[7],
        needs[Semaphore],
        "names that look alike are different semaphores: all are in use at once, and each excludes others from itself"
    ),
    case!(names::locks_and_semaphores_are_apart, rules [], needs [Semaphore],
        "a lock and a semaphore of one name don't meet"),
];

/// Names that have broken lock libraries.
const ODD: &[&str] = &[
    " ",
    ".",
    "..",
    "...",
    "../job",
    "../../../../tmp/portalock-escape",
    "/",
    "//",
    "/etc/passwd",
    "/absolute/path",
    "C:\\job",
    "\\\\server\\share",
    "a/b",
    "a\\b",
    "a//b",
    "a/./b",
    "a/../b",
    "a/",
    "./a",
    "~",
    "~/a",
    "-rf",
    "--",
    "*",
    "?",
    "[a]",
    "{a}",
    "{}",
    "a:b",
    "a;b",
    "a|b",
    "a&b",
    "a$b",
    "$HOME",
    "a'b",
    "a\"b",
    "`a`",
    "a%b",
    "%2e%2e",
    "%00",
    "%",
    "%%",
    "a=b",
    "a+b",
    "a,b",
    "a@b",
    "a#b",
    "a\tb",
    "a\nb",
    "a\r\nb",
    "\u{1}",
    "\u{7f}",
    "\u{1b}[31m",
    "trailing.",
    "trailing ",
    " leading",
    "CON",
    "con",
    "NUL.txt",
    "COM1",
    "LPT1.lock",
    "a.lock",
    ".lock",
    "lock",
    "queue",
    "a.tmp",
    ".hidden",
    "Straße 7",
    "日本語",
    "имя",
    "🔒",
    "👩‍👩‍👧",
    "\u{202e}gnp.exe",
    "\u{feff}bom",
    "\u{200b}",
    "e\u{301}",
    "\u{1f3f4}\u{e0067}",
];

/// Pairs that a store may take for one.
const ALIKE: &[(&str, &str)] = &[
    ("a", "A"),
    ("straße", "STRASSE"),
    ("straße", "strasse"),
    ("i", "İ"),
    ("ß", "ẞ"),
    ("é", "e\u{301}"),
    ("Å", "\u{212b}"),
    ("ﬁ", "fi"),
    ("a", "a "),
    ("a", " a"),
    ("a", "a."),
    ("a", "a/"),
    ("a", "./a"),
    ("a", "/a"),
    ("a", "b/../a"),
    ("a/b", "a\\b"),
    ("a/b", "a//b"),
    ("a/b", "a:b"),
    ("a/b", "a_b"),
    ("a/b", "a%2Fb"),
    ("a/b", "a%2fb"),
    ("a%2fb", "a%2Fb"),
    ("a%b", "a%25b"),
    ("a b", "a+b"),
    ("a b", "a_b"),
    ("a", "a\n"),
    ("a", "a\u{200b}"),
    ("a", "a.lock"),
    ("{a}", "a"),
    ("{a}b", "{a}c"),
    ("a", "а"),
    ("1", "01"),
    ("a", "aa"),
    ("a", "a/b"),
    ("job", "job:queue"),
    ("job", "job#slot-0"),
    ("con", "CON"),
    ("..", "%2e%2e"),
    ("=61", "a"),
    ("_61", "a"),
    ("\\x61", "a"),
    // Each pair has one hash, of 32 bits: CRC-32, FNV-1a, Java's, and Postgres's `hashtext`, a usual key of advisory locks.
    ("plumless", "buckeroo"),
    ("costarring", "liquid"),
    ("Aa", "BB"),
    ("job-23316", "job-5108"),
];

async fn odd_names_are_locked_like_others(trial: Trial) -> CaseResult {
    let clients = trial.two_clients().await?;
    for_each(
        ODD.iter().copied(),
        &clients,
        |name, (first, second)| async move {
            let told = |stop: Stop| match stop {
                Stop::Failed(seen) => Stop::Failed(format!("name {name:?}: {seen}")),
                skipped @ Stop::Skipped(_) => skipped,
            };
            let played = async {
                let guard = first.lock(&name)?.try_acquire().await?;
                ensure_contended(second.lock(&name)?.try_acquire().await, "another client")?;
                guard.release().await?;
                second.lock(&name)?.try_acquire().await?.release().await?;
                Ok(())
            };
            played.await.map_err(told)
        },
    )
    .await?;
    Ok(())
}

const AT_ONCE: usize = 16;

/// Does the same with many names, with a few at a time: one after the other they would take minutes at a slow store.
async fn for_each<T: Send + 'static, Fut>(
    names: impl IntoIterator<Item = impl Into<String>>,
    clients: &(Client, Client),
    act: impl Fn(String, (Client, Client)) -> Fut,
) -> CaseResult<Vec<T>>
where
    Fut: Future<Output = CaseResult<T>> + Send + 'static,
{
    let calls: Vec<BoxFuture<'static, CaseResult<T>>> = names
        .into_iter()
        .map(|name| act(name.into(), clients.clone()).boxed())
        .collect();
    stream::iter(calls).buffered(AT_ONCE).try_collect().await
}

/// 255 bytes each, pairs that differ in the last one.
fn longest() -> Vec<(String, String)> {
    let pair = |unit: &str| {
        let mut base = unit.repeat(254 / unit.len());
        while base.len() < 254 {
            base.push('x');
        }
        (format!("{base}1"), format!("{base}2"))
    };
    ["a", "A", "/", ".", "%", "\u{1}", " ", "é", "日", "🔒", "a/"]
        .into_iter()
        .map(pair)
        .collect()
}

async fn the_longest_names_are_locked(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    for (one, two) in longest() {
        apart(&first, &second, &one, &two).await?;
    }
    Ok(())
}

async fn names_that_look_alike_are_apart(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    for (one, two) in ALIKE {
        apart(&first, &second, one, two).await?;
    }
    Ok(())
}

/// Two names are two locks: both are held at once, and each excludes others from itself alone.
async fn apart(first: &Client, second: &Client, one: &str, two: &str) -> CaseResult {
    let held = first.lock(one)?.try_acquire().await.map_err(|error| {
        Stop::Failed(format!("name {one:?}: {}", crate::verdict::chain(&error)))
    })?;
    let other = second.lock(two)?.try_acquire().await.map_err(|error| {
        Stop::Failed(format!(
            "name {two:?} is in the way of {one:?}: {}",
            crate::verdict::chain(&error)
        ))
    })?;
    ensure_contended(second.lock(one)?.try_acquire().await, one)?;
    ensure_contended(first.lock(two)?.try_acquire().await, two)?;
    other.release().await?;
    ensure_contended(second.lock(one)?.try_acquire().await, one)?;
    held.release().await?;
    Ok(())
}

/// Every name above, and random ones: each as few bytes as collisions need.
fn many_names() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ODD.iter().map(|name| (*name).to_owned()).collect();
    names.extend(
        ALIKE
            .iter()
            .flat_map(|(one, two)| [(*one).to_owned(), (*two).to_owned()]),
    );
    names.extend(longest().into_iter().flat_map(|(one, two)| [one, two]));
    let mut random = fastrand::Rng::with_seed(super::stress::seed());
    let letters: Vec<char> = "aAbB.%/\\:_-= 019{}~éÉ\n".chars().collect();
    names.extend((0..150).map(|_| {
        let length = random.usize(1..5);
        (0..length)
            .filter_map(|_| random.choice(&letters))
            .collect::<String>()
    }));
    names
}

async fn all_names_are_held_at_once(trial: Trial) -> CaseResult {
    let clients = trial.two_clients().await?;
    let names = many_names();
    let guards = for_each(&names, &clients, |name, (first, _)| async move {
        first.lock(&name)?.try_acquire().await.map_err(|error| {
            Stop::Failed(format!(
                "with other names held, {name:?} could not be: {} (seed {})",
                crate::verdict::chain(&error),
                super::stress::seed()
            ))
        })
    })
    .await?;
    for_each(&names, &clients, |name, (_, second)| async move {
        ensure_contended(second.lock(&name)?.try_acquire().await, &name).map(drop)
    })
    .await?;
    let releases = stream::iter(guards).map(Guard::release);
    releases.buffered(AT_ONCE).try_collect::<()>().await?;
    Ok(())
}

async fn a_name_that_was_refused_can_be_had_later(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    for name in ["../up", "C:\\a", "日本語", "a\nb", "%2e", "A", "a"] {
        let held = first.lock(name)?.acquire().await?;
        let lock = second.lock(name)?;
        let waiting = crate::spawn(async move { lock.acquire().await });
        tokio::task::yield_now().await;
        held.release().await?;
        let next = soon(format!("the grant of {name:?}"), waiting).await???;
        next.release().await?;
    }
    Ok(())
}

async fn listed_names_are_those_that_are_held(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let mut guards = Vec::new();
    for name in ["job", "../up", "A", "a", "日本語", "a/b", "a%2fb"] {
        guards.push(client.lock(name)?.acquire().await?);
    }
    let listed = match soon("the list of names", client.backend().names()).await? {
        Ok(listed) => listed,
        Err(error) if error.kind() == BackendErrorKind::Unsupported => {
            return Err(Stop::Skipped(
                "the backend says that it does not list its names".to_owned(),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    let listed: BTreeSet<LockName> = listed.into_iter().collect();
    let held: BTreeSet<LockName> = guards.iter().map(|guard| guard.name().clone()).collect();
    ensure!(
        listed == held,
        "{held:?} are held, and {listed:?} are listed"
    );
    for guard in guards {
        guard.release().await?;
    }
    let emptied = async {
        while !client.backend().names().await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok::<_, Stop>(())
    };
    soon("the last of the released names leaving the list", emptied).await?
}

async fn names_of_semaphores_are_apart(trial: Trial) -> CaseResult {
    let clients = trial.two_clients().await?;
    let names: BTreeSet<&str> = ALIKE.iter().flat_map(|(one, two)| [*one, *two]).collect();
    let permits = for_each(names.clone(), &clients, |name, (first, _)| async move {
        first.pool(&name, 1)?.try_acquire(1).await.map_err(|error| {
            Stop::Failed(format!(
                "with other semaphores in use, {name:?} was not free: {}",
                crate::verdict::chain(&error)
            ))
        })
    })
    .await?;
    for_each(names, &clients, |name, (_, second)| async move {
        ensure_contended(second.pool(&name, 1)?.try_acquire(1).await, &name).map(drop)
    })
    .await?;
    for permit in permits {
        permit.release().await?;
    }
    Ok(())
}

async fn locks_and_semaphores_are_apart(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let guard = client.lock("job")?.acquire().await?;
    let permit = client.pool("job", 1)?.try_acquire(1).await?;
    ensure_contended(client.lock("job")?.try_acquire().await, "a lock")?;
    guard.release().await?;
    client.lock("job")?.try_acquire().await?.release().await?;
    permit.release().await?;
    Ok(())
}
