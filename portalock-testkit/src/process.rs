//! The helper process: a client of the store in a real process, which can be killed and stopped.
//!
//! It is the same test binary, started with its helper test only, so no other program must be built. It takes orders on
//! its standard input and answers on its standard output, with one line of JSON each.

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    future::Future,
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use portalock_core::{FencingToken, Guard, Lock, LockBackend, LockError, Mode, Policy};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    Fixture, IntoFixture,
    crowd::{crowd, pass},
    fork,
    verdict::{A_WHILE, Stop, chain},
};

/// Environment variable: the process is a helper, and this is the address of the store.
pub(crate) const STORE: &str = "PORTALOCK_TESTKIT_STORE";

/// Marks an answer in the output of the test binary.
pub(crate) const MARK: &str = "@portalock ";

/// How to start the helper process: a program that calls [`serve`].
#[derive(Debug, Clone)]
pub struct HelperCommand {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl HelperCommand {
    /// A program that calls [`serve`] when started with `arguments`.
    pub fn new(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item: Into<OsString>>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }

    /// The helper test that [`conformance!`](crate::conformance!) puts into module `module` of the running test binary.
    ///
    /// `None` if the running program can't tell where its binary is.
    #[doc(hidden)]
    pub fn test_in(module: &str) -> Option<Self> {
        let within_crate = module.split_once("::").map(|(_, path)| path);
        let test = within_crate.map_or_else(
            || "helper_process".to_owned(),
            |path| format!("{path}::helper_process"),
        );
        let program = env::current_exe().ok()?;
        Some(Self::new(
            program,
            [&*test, "--exact", "--ignored", "--nocapture"],
        ))
    }
}

/// The orders to the helper. The sender numbers the acquisitions.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Acquire {
        id: u32,
        name: String,
        mode: Mode,
        timeout: Duration,
    },
    /// Answer whether the guard still holds, by its own knowledge.
    Check {
        id: u32,
    },
    Release {
        id: u32,
    },
    /// Acquire the lock repeatedly, in competition with other processes, and check that nobody else is inside.
    Crowd {
        name: String,
        doorway: PathBuf,
    },
    /// Fork a child, which releases its copy of the guard and ends. The guard stays.
    Fork {
        id: u32,
        releases: bool,
    },
    /// End at once, without releasing anything.
    Exit,
}

/// The answers of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It has a client of the store.
    Ready,
    /// It can't continue.
    Unable {
        error: String,
    },
    Granted {
        id: u32,
        token: Option<FencingToken>,
    },
    Refused {
        id: u32,
        error: String,
    },
    Checked {
        id: u32,
        lost: bool,
    },
    Lost {
        id: u32,
        why: String,
    },
    Released {
        id: u32,
        error: Option<String>,
    },
    Crowded {
        visits: u64,
        overlaps: u64,
        error: Option<String>,
    },
    /// An error of the child, or of forking it.
    Forked {
        id: u32,
        error: Option<String>,
    },
}

/// Runs the helper process: takes orders until its parent is gone. Returns at once if this process was not started as a
/// helper.
///
/// `fixture` is not called; only its type is used, for [`Fixture::connect`].
pub fn serve<M, Fut>(fixture: M)
where
    M: FnOnce() -> Fut,
    Fut: Future<Output: IntoFixture>,
{
    drop(fixture);
    let Ok(store) = env::var(STORE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => {
            runtime.block_on(take_orders::<<Fut::Output as IntoFixture>::Fixture>(&store))
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = served {
        say(&Answer::Unable { error });
    }
    // Exits instead of returning: held locks must be left as after a crash, without destructors.
    std::process::exit(0);
}

async fn take_orders<F: Fixture>(store: &str) -> Result<(), String> {
    let backend = F::connect(store).await.map_err(|error| chain(&error))?;
    let helper = Serving::<F> {
        backend: Arc::new(backend),
        guards: Arc::default(),
    };
    say(&Answer::Ready);
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders
        .next_line()
        .await
        .map_err(|error| error.to_string())?
    {
        match serde_json::from_str(&line).map_err(|error| error.to_string())? {
            Order::Exit => break,
            order => {
                crate::spawn(helper.clone().obey(order));
            }
        }
    }
    Ok(())
}

type Guards<B> = HashMap<u32, Guard<Arc<B>>>;

struct Serving<F: Fixture> {
    backend: Arc<F::Backend>,
    guards: Arc<Mutex<Guards<F::Backend>>>,
}

impl<F: Fixture> Clone for Serving<F> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            guards: self.guards.clone(),
        }
    }
}

impl<F: Fixture> Serving<F> {
    async fn obey(self, order: Order) {
        match order {
            Order::Acquire {
                id,
                name,
                mode,
                timeout,
            } => match self.acquire(&name, mode, timeout).await {
                Ok(guard) => self.keep(id, guard).await,
                Err(error) => say(&Answer::Refused {
                    id,
                    error: chain(&error),
                }),
            },
            Order::Check { id } => {
                let lost = self.guards().get(&id).is_none_or(Guard::is_lost);
                say(&Answer::Checked { id, lost });
            }
            Order::Release { id } => {
                let guard = self.guards().remove(&id);
                let error = match guard {
                    None => Some("it does not hold".to_owned()),
                    Some(guard) => guard.release().await.err().map(|error| chain(&error)),
                };
                say(&Answer::Released { id, error });
            }
            Order::Crowd { name, doorway } => {
                let (mut visits, mut overlaps) = (0, 0);
                let crowded = crowd(self.backend.clone(), &name, || {
                    let alone = pass(&doorway).map_err(|error| Stop::Failed(error.to_string()))?;
                    visits += 1;
                    overlaps += u64::from(!alone);
                    Ok(())
                });
                let error = crowded.await.err().map(|stop| stop.to_string());
                say(&Answer::Crowded {
                    visits,
                    overlaps,
                    error,
                });
            }
            Order::Fork { id, releases } => {
                let helper = self.clone();
                // A thread without a runtime. In the child it is the only thread, as after a fork of a normal program.
                std::thread::spawn(move || {
                    let mut inherited = helper.guards().remove(&id);
                    let forked = fork::forked_child(|| give_back(inherited.take(), releases));
                    if let Some(guard) = inherited {
                        helper.guards().insert(id, guard);
                    }
                    let error = forked.err();
                    say(&Answer::Forked { id, error });
                });
            }
            Order::Exit => {}
        }
    }

    async fn acquire(
        &self,
        name: &str,
        mode: Mode,
        timeout: Duration,
    ) -> Result<Guard<Arc<F::Backend>>, LockError> {
        let lock = Lock::new(self.backend.clone(), name)?;
        let policy = Policy::new().with_timeout(timeout);
        match mode {
            Mode::Exclusive => lock.acquire_with(&policy).await,
            Mode::Shared => lock.acquire_shared_with(&policy).await,
        }
    }

    async fn keep(&self, id: u32, guard: Guard<Arc<F::Backend>>) {
        let signal = guard.lost_signal();
        let token = guard.token();
        self.guards().insert(id, guard);
        say(&Answer::Granted { id, token });
        let why = signal.lost().await.to_string();
        say(&Answer::Lost { id, why });
    }

    fn guards(&self) -> MutexGuard<'_, Guards<F::Backend>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a forked child does with its copy of a guard. False if it was told that this freed the lock.
fn give_back<B: LockBackend>(inherited: Option<Guard<B>>, releases: bool) -> bool {
    let refused = match inherited {
        // Waiting for another thread would never end, because the child has no other threads.
        Some(guard) if releases => !matches!(guard.release().now_or_never(), Some(Ok(()))),
        guard => {
            drop(guard);
            true
        }
    };
    // Time for work in the background.
    fork::pause(A_WHILE);
    refused
}

fn say(answer: &Answer) {
    let Ok(json) = serde_json::to_string(answer) else {
        return;
    };
    // Starts with a new line, because the test harness may have left an unfinished one. If the parent is gone, errors
    // are ignored.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "\n{MARK}{json}").and_then(|()| out.flush());
}
