//! The case's side of a helper process: start it, send it orders, kill it.

#[cfg(unix)]
use std::io;
use std::{path::Path, process::Stdio, time::Duration};

use portalock_core::{FencingToken, LockName, Mode};
#[cfg(unix)]
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

use crate::{
    process::{Answer, MARK, Order, STORE},
    trial::Trial,
    verdict::{CaseResult, SOON, Stop, soon},
};

/// A running helper process. Killed when it is dropped.
pub(crate) struct Helper {
    child: Child,
    orders: ChildStdin,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// Answers that came while the case waited for another one.
    aside: Vec<Answer>,
}

impl Helper {
    /// Starts the process, and waits until it has a client of the trial's store.
    pub(crate) async fn start(trial: &Trial) -> CaseResult<Self> {
        let command = trial
            .helper()
            .ok_or_else(|| lacks("a helper process: use conformance!, or Suite::with_helper"))?;
        let store = trial
            .address()
            .ok_or_else(|| lacks("an address for clients in another process"))?;
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .env(STORE, store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Stop::Failed(format!("the helper process: {error}")))?;
        let (Some(orders), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Stop::Failed("the helper process has no pipes".to_owned()));
        };
        let (tell, answers) = mpsc::unbounded_channel();
        crate::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer = line.strip_prefix(MARK).map(serde_json::from_str);
                if let Some(Ok(answer)) = answer
                    && tell.send(answer).is_err()
                {
                    break;
                }
            }
        });
        let mut helper = Self {
            child,
            orders,
            answers,
            aside: Vec::new(),
        };
        helper
            .answer("its first word", |answer| matches!(answer, Answer::Ready))
            .await?;
        Ok(helper)
    }

    /// Orders it to wait for `name`; [`granted`](Self::granted) returns the outcome.
    pub(crate) async fn ask(&mut self, id: u32, name: &LockName, mode: Mode) -> CaseResult {
        self.order(&Order::Acquire {
            id,
            name: name.as_str().to_owned(),
            mode,
            timeout: SOON,
        })
        .await
    }

    /// Waits until acquisition `id` is granted.
    pub(crate) async fn granted(&mut self, id: u32) -> CaseResult<Option<FencingToken>> {
        let answer = self
            .answer("a grant", |answer| {
                matches!(answer, Answer::Granted { id: of, .. } | Answer::Refused { id: of, .. } if *of == id)
            })
            .await?;
        match answer {
            Answer::Granted { token, .. } => Ok(token),
            other => Err(Stop::Failed(format!(
                "the helper process was not granted the lock: {other:?}"
            ))),
        }
    }

    /// Orders it to acquire `name`, and waits until it holds it.
    pub(crate) async fn acquire(
        &mut self,
        id: u32,
        name: &LockName,
        mode: Mode,
    ) -> CaseResult<Option<FencingToken>> {
        self.ask(id, name, mode).await?;
        self.granted(id).await
    }

    /// Orders it to release acquisition `id`, and waits until that is done. `Some` is an error.
    pub(crate) async fn release(&mut self, id: u32) -> CaseResult<Option<String>> {
        self.order(&Order::Release { id }).await?;
        let answer = self
            .answer(
                "a release",
                |answer| matches!(answer, Answer::Released { id: of, .. } if *of == id),
            )
            .await?;
        match answer {
            Answer::Released { error, .. } => Ok(error),
            _ => Ok(None),
        }
    }

    /// Orders it to acquire `name` repeatedly, in competition with others; [`crowded`](Self::crowded) returns the
    /// outcome.
    pub(crate) async fn crowd(&mut self, name: &LockName, doorway: &Path) -> CaseResult {
        self.order(&Order::Crowd {
            name: name.as_str().to_owned(),
            doorway: doorway.to_owned(),
        })
        .await
    }

    /// How often it was inside, and how often another holder was inside too.
    pub(crate) async fn crowded(&mut self) -> CaseResult<(u64, u64)> {
        let answer = self
            .answer("the end of its visits", |answer| {
                matches!(answer, Answer::Crowded { .. })
            })
            .await?;
        match answer {
            Answer::Crowded {
                visits,
                overlaps,
                error: None,
            } => Ok((visits, overlaps)),
            other => Err(Stop::Failed(format!(
                "the helper process did not get its turns: {other:?}"
            ))),
        }
    }

    /// Makes it fork a child that releases its copy of acquisition `id`, and waits until the child has ended.
    #[cfg(unix)]
    pub(crate) async fn fork(&mut self, id: u32, releases: bool) -> CaseResult {
        self.order(&Order::Fork { id, releases }).await?;
        let answer = self
            .answer(
                "word of its child",
                |answer| matches!(answer, Answer::Forked { id: of, .. } if *of == id),
            )
            .await?;
        match answer {
            Answer::Forked {
                error: Some(error), ..
            } => Err(Stop::Failed(error)),
            _ => Ok(()),
        }
    }

    #[cfg(not(unix))]
    #[allow(clippy::unused_async, reason = "the same face as on other systems")]
    pub(crate) async fn fork(&mut self, _id: u32, _releases: bool) -> CaseResult {
        Err(lacks("a way to fork a process on this system"))
    }

    /// Whether acquisition `id` is lost, according to its guard.
    pub(crate) async fn is_lost(&mut self, id: u32) -> CaseResult<bool> {
        self.order(&Order::Check { id }).await?;
        let answer = self
            .answer(
                "word of its guard",
                |answer| matches!(answer, Answer::Checked { id: of, .. } if *of == id),
            )
            .await?;
        Ok(matches!(answer, Answer::Checked { lost: true, .. }))
    }

    /// Waits until the lost signal of acquisition `id` fires.
    pub(crate) async fn lost(&mut self, id: u32) -> CaseResult {
        self.answer(
            "its lost signal",
            |answer| matches!(answer, Answer::Lost { id: of, .. } if *of == id),
        )
        .await?;
        Ok(())
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(mut self) -> CaseResult {
        self.child
            .kill()
            .await
            .map_err(|error| Stop::Failed(format!("killing the helper process: {error}")))
    }

    /// Makes it exit without a release, and waits until it is gone.
    pub(crate) async fn leave(mut self) -> CaseResult {
        self.order(&Order::Exit).await?;
        let left = soon("the helper process leaving", self.child.wait()).await?;
        left.map(drop)
            .map_err(|error| Stop::Failed(format!("waiting for the helper process: {error}")))
    }

    /// Stops it with SIGSTOP.
    #[cfg(unix)]
    pub(crate) fn freeze(&self) -> CaseResult {
        self.signal(crate::stop::stop)
    }

    /// Continues it with SIGCONT.
    #[cfg(unix)]
    pub(crate) fn thaw(&self) -> CaseResult {
        self.signal(|pid| Ok(kill_process(pid, Signal::CONT)?))
    }

    #[cfg(unix)]
    fn signal(&self, signal: impl FnOnce(Pid) -> io::Result<()>) -> CaseResult {
        let pid = self
            .child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| Stop::Failed("the helper process has ended".to_owned()))?;
        signal(pid).map_err(|error| Stop::Failed(format!("signalling the helper process: {error}")))
    }

    #[cfg(not(unix))]
    #[allow(clippy::unused_self, reason = "the same face as on other systems")]
    pub(crate) fn freeze(&self) -> CaseResult {
        Err(lacks("a way to stop a process on this system"))
    }

    #[cfg(not(unix))]
    #[allow(clippy::unused_self, reason = "the same face as on other systems")]
    pub(crate) fn thaw(&self) -> CaseResult {
        Err(lacks("a way to stop a process on this system"))
    }

    async fn order(&mut self, order: &Order) -> CaseResult {
        let mut line = serde_json::to_string(order)
            .map_err(|error| Stop::Failed(format!("an order to the helper process: {error}")))?;
        line.push('\n');
        let sent = async {
            self.orders.write_all(line.as_bytes()).await?;
            self.orders.flush().await
        };
        sent.await
            .map_err(|error| Stop::Failed(format!("an order to the helper process: {error}")))
    }

    async fn answer(&mut self, what: &str, wanted: impl Fn(&Answer) -> bool) -> CaseResult<Answer> {
        if let Some(at) = self.aside.iter().position(&wanted) {
            return Ok(self.aside.swap_remove(at));
        }
        let waiting = async {
            loop {
                match self.answers.recv().await {
                    None => return Err(Stop::Failed("the helper process ended early".to_owned())),
                    Some(Answer::Unable { error }) => {
                        return Err(Stop::Failed(format!("the helper process: {error}")));
                    }
                    Some(answer) if wanted(&answer) => return Ok(answer),
                    Some(answer) => self.aside.push(answer),
                }
            }
        };
        // Its own waits last up to `SOON`, and its answer comes a moment later.
        tokio::time::timeout(SOON + Duration::from_secs(5), waiting)
            .await
            .map_err(|_| Stop::Failed(format!("the helper process did not give {what}")))?
    }
}

fn lacks(what: &str) -> Stop {
    Stop::Skipped(format!("the fixture does not provide {what}"))
}
