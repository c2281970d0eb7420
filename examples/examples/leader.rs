//! One of three processes leads. The leader is killed, and the next one is asked to step down. An observer prints every
//! term.
//!
//! ```sh
//! cargo run --example leader
//! ```
//!
//! The program starts itself three times, as the candidates `ann`, `ben` and `cleo`. The leader writes its name and its
//! fencing token into a journal. On Redis, etcd or Postgres the same code runs across hosts.

use std::{
    env,
    error::Error,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use portalock::{Election, Leading, Policy, Term, fs::FsBackend};
use tokio::time::timeout;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    match env::args().collect::<Vec<_>>().as_slice() {
        [_, name, directory] => candidate(name, Path::new(directory)).await,
        _ => demonstrate().await,
    }
}

fn election(directory: &Path) -> Result<Election<FsBackend>, Box<dyn Error>> {
    let election = Election::new(FsBackend::open(directory.join("locks"))?, "scheduler")?;
    // How often the observer polls. Candidates are woken.
    let policy = Policy::forever().with_check_interval(Duration::from_millis(20))?;
    Ok(election.with_policy(policy))
}

/// What each process does: campaign, lead, and campaign again, until it is killed.
async fn candidate(me: &str, directory: &Path) -> Result<(), Box<dyn Error>> {
    let election = election(directory)?.with_label(me);
    let work = |leading: Leading<FsBackend>| {
        let line = format!("{me} {}\n", leading.token().map_or(0, u64::from));
        let journal = directory.join("journal.txt");
        async move {
            // A real resource checks the token, because a leader that was paused for too long must not write.
            let written = OpenOptions::new()
                .create(true)
                .append(true)
                .open(journal)
                .and_then(|mut journal| journal.write_all(line.as_bytes()));
            if let Err(error) = written {
                eprintln!("can't write the journal: {error}");
            }
            // Leads until somebody asks it to step down. Real work would finish first, and then return.
            let _ = leading.step_down_asked().await;
        }
    };
    election.lead(std::future::pending(), work).await?;
    Ok(())
}

async fn demonstrate() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let election = election(directory.path())?;
    let mut candidates = Vec::new();
    for name in ["ann", "ben", "cleo"] {
        let candidate = Command::new(env::current_exe()?)
            .arg(name)
            .arg(directory.path())
            .spawn()?;
        candidates.push(Killed(candidate));
    }

    let mut observer = election.observe();
    let mut tokens = Vec::new();
    for step in [
        "the leader is killed",
        "the leader is asked to step down",
        "done",
    ] {
        let term = timeout(PATIENCE, async {
            loop {
                if let Some(term) = observer.next().await? {
                    return Ok::<Term, Box<dyn Error>>(term);
                }
            }
        })
        .await??;
        let token = term.token.map(u64::from).ok_or("file locks have tokens")?;
        let name = term.leader.label.as_deref().unwrap_or("nobody").to_owned();
        println!("{name} leads with token {token}");
        tokens.push((name, token));
        // The journal is written after the term has begun.
        timeout(PATIENCE, journal_has(directory.path(), token)).await?;
        println!("{step}");
        match step {
            "the leader is killed" => {
                let leader = candidates
                    .iter_mut()
                    .find(|one| one.0.id() == term.leader.pid);
                leader.ok_or("a leader of unknown pid")?.kill()?;
            }
            "done" => {}
            _ => {
                election
                    .step_down(&Policy::new().with_timeout(PATIENCE))
                    .await?;
            }
        }
    }

    let journal = fs::read_to_string(directory.path().join("journal.txt"))?;
    let written: Vec<_> = tokens
        .iter()
        .map(|(name, token)| format!("{name} {token}"))
        .collect();
    if journal.lines().ne(written.iter().map(String::as_str))
        || !tokens.is_sorted_by_key(|(_, token)| *token)
    {
        return Err(
            format!("the journal and the observer disagree: {journal:?} {written:?}").into(),
        );
    }
    println!("the journal has the same three terms, in the order of their tokens");
    Ok(())
}

async fn journal_has(directory: &Path, token: u64) {
    let line = format!(" {token}\n");
    let journal = directory.join("journal.txt");
    while !fs::read_to_string(&journal).is_ok_and(|text| text.contains(&line)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A process that ends with the program.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) -> std::io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
