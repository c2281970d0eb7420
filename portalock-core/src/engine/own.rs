//! What is dropped only in the process that made it.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

/// A value that a forked child does not drop: a thread of the parent may have had a lock during the fork that its destructor
/// needs, and never frees it in the child.
pub(crate) struct Own<T> {
    process: u32,
    pub(crate) value: Option<T>,
}

impl<T> Own<T> {
    pub(crate) fn new(value: Option<T>) -> Self {
        Self {
            process: std::process::id(),
            value,
        }
    }

    /// As in a child that was forked since.
    #[cfg(test)]
    pub(crate) fn inherit(&mut self) {
        self.process += 1;
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if self.value.is_some() && self.process != std::process::id() {
            mem::forget(self.value.take());
        }
    }
}

impl<F: Future + Unpin> Future for Own<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        match &mut self.value {
            Some(future) => Pin::new(future).poll(context),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_forked_child_does_not_drop_it() {
        for in_child in [true, false] {
            let kept = Arc::new(());
            let mut own = Own::new(Some(kept.clone()));
            if in_child {
                own.inherit();
            }
            drop(own);
            assert_eq!(Arc::strong_count(&kept) > 1, in_child);
        }
    }
}
