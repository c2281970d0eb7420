//! Tasks on the session thread.

use std::{future::Future, io};

use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinHandle},
};

use crate::{BackendError, BackendErrorKind, background::SESSIONS, own::Own};

/// A task on the session thread. Dropping this stops it.
#[derive(Debug)]
#[must_use = "dropping a task stops it"]
pub struct Task(Own<AbortHandle>);

impl Drop for Task {
    fn drop(&mut self) {
        // In a forked child this may wait for a lock of the thread's runtime, which that thread had during the fork.
        if let Some(task) = self.0.here() {
            task.abort();
        }
    }
}

impl Task {
    /// Lets the task run until it ends by itself.
    pub fn detach(mut self) {
        // `forget` would also leak the handle, and with it the task's memory.
        self.0.value = None;
    }
}

/// Runs `future` on the session thread until it ends or the [`Task`] is dropped.
///
/// # Errors
///
/// [`Exhausted`](BackendErrorKind::Exhausted) if the system gives no thread.
pub fn spawn<F>(future: F) -> Result<Task, BackendError>
where
    F: Future<Output = ()> + Send + 'static,
{
    start(future).map(|task| Task(Own::new(Some(task.abort_handle()))))
}

/// Runs `future` on the session thread and waits for its output.
///
/// # Errors
///
/// [`Exhausted`](BackendErrorKind::Exhausted) if the system gives no thread, [`Other`](BackendErrorKind::Other) if `future`
/// panicked.
///
/// # Cancel safety
///
/// Dropping the call doesn't stop `future`: it runs to its end on the session thread.
pub async fn run<F>(future: F) -> Result<F::Output, BackendError>
where
    F: Future<Output: Send> + Send + 'static,
{
    start(future)?.await.map_err(|error| {
        BackendError::new(
            BackendErrorKind::Other,
            "a task on the session thread panicked",
        )
        .with_source(error)
    })
}

fn start<F>(future: F) -> Result<JoinHandle<F::Output>, BackendError>
where
    F: Future<Output: Send> + Send + 'static,
{
    Ok(session_runtime()?.spawn(future))
}

/// The session thread's runtime.
pub(super) fn session_runtime() -> Result<Handle, BackendError> {
    SESSIONS.handle().map_err(no_thread)
}

fn no_thread(error: io::Error) -> BackendError {
    BackendError::new(
        BackendErrorKind::Exhausted,
        "no thread could be started for the sessions of lock services",
    )
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_dropped_task_is_stopped_and_a_detached_one_is_not() {
        let (stopped, was_stopped) = oneshot::channel::<()>();
        let task = spawn(async move {
            std::future::pending::<()>().await;
            drop(stopped);
        });
        drop(task.unwrap());
        assert!(was_stopped.await.is_err(), "its future was dropped");

        let (sender, receiver) = oneshot::channel();
        let (go, gone) = oneshot::channel::<()>();
        let task = spawn(async move {
            let _ = gone.await;
            let _ = sender.send(());
        });
        task.unwrap().detach();
        go.send(()).unwrap();
        receiver.await.unwrap();
    }

    #[tokio::test]
    async fn a_forked_child_that_drops_a_task_does_not_ask_its_parents_runtime_to_stop_it() {
        let (go, gone) = oneshot::channel::<()>();
        let (sender, receiver) = oneshot::channel();
        let task = spawn(async move {
            let _ = gone.await;
            let _ = sender.send(());
        });
        let mut task = task.unwrap();
        task.0.inherit();
        drop(task);
        go.send(()).unwrap();
        receiver.await.unwrap();
    }

    #[test]
    fn nothing_is_left_of_a_detached_task_that_has_ended() {
        let kept = std::sync::Arc::new(());
        let left = std::sync::Arc::downgrade(&kept);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.on_thread_park(move || {
            let _ = &kept;
        });
        let runtime = builder.build().unwrap();
        // The task's memory refers to its runtime.
        let task = runtime.spawn(async {});
        Task(Own::new(Some(task.abort_handle()))).detach();
        runtime.block_on(task).unwrap();
        drop((builder, runtime));
        assert!(left.upgrade().is_none());
    }

    #[tokio::test]
    async fn what_runs_there_is_answered_or_says_that_it_panicked() {
        let name = run(async { std::thread::current().name().map(str::to_owned) }).await;
        assert_eq!(name.unwrap().as_deref(), Some("portalock-session"));
        let told_to = true;
        let error = run(async move { assert!(!told_to, "told to panic") }).await;
        assert_eq!(error.unwrap_err().kind(), BackendErrorKind::Other);
    }
}
