//! The runtimes that everything over a network is measured on.

use portalock_benches::Failure;
use tokio::runtime::{Builder, Runtime};

/// A runtime, and what its rows say.
pub(crate) struct Flavour {
    pub(crate) name: &'static str,
    pub(crate) runtime: Runtime,
}

/// One thread for all; and two workers, as tokio starts them on a machine with two cores.
pub(crate) fn flavours() -> Result<[Flavour; 2], Failure> {
    Ok([
        Flavour {
            name: "current-thread",
            runtime: Builder::new_current_thread().enable_all().build()?,
        },
        Flavour {
            name: "multi-thread",
            runtime: multi_thread(2)?,
        },
    ])
}

/// So many workers.
pub(crate) fn multi_thread(workers: usize) -> Result<Runtime, Failure> {
    Ok(Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?)
}

impl Flavour {
    /// Runs `work` as a task of its own, as a server's handlers run. What `block_on` polls itself is another matter: see
    /// the section on lone tasks.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        self.runtime.block_on(async { tokio::spawn(work).await? })
    }
}
