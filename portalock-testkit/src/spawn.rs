//! Tasks of the suite.

use std::pin::Pin;

use tokio::task::JoinHandle;

/// [`tokio::spawn`] in a box: for each type of future the compiler would make all of tokio's task anew.
pub(crate) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let boxed: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(task);
    tokio::spawn(boxed)
}
