//! One runtime in the background, for what has no runtime of its own: blocking calls on a network backend, and clean-up
//! after a runtime has gone.

use std::{future::Future, io, sync::OnceLock, thread};

use tokio::runtime::{Builder, Handle};

/// The handle of a runtime on a thread of its own, started at first use. It lasts as long as the process.
///
/// # Errors
///
/// What the system said when it gave neither a thread nor what a runtime needs.
pub(crate) fn handle() -> io::Result<&'static Handle> {
    static HANDLE: OnceLock<Handle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle);
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    // Two first users at once may each start one; both work, and one is used from then on.
    thread::Builder::new()
        .name("portalock".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(HANDLE.get_or_init(|| handle))
}

/// Runs `future` on the background runtime; if there can be none, `future` is dropped.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    match handle() {
        Ok(handle) => drop(handle.spawn(future)),
        Err(error) => tracing::error!(%error, "no thread for the clean-up of a lock"),
    }
}
