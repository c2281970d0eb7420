//! What is dropped only in the process that made it.

use std::{
    future::Future,
    mem,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// A value that a forked child does not drop: a thread of the parent may have had a lock during the fork that its destructor
/// needs, and never frees it in the child.
#[derive(Debug)]
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

    /// The value, except in a forked child.
    pub(crate) fn here(&mut self) -> Option<&mut T> {
        let is_here = !self.is_inherited();
        self.value.as_mut().filter(|_| is_here)
    }

    fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

    /// As in a child that was forked since.
    #[cfg(test)]
    pub(crate) fn inherit(&mut self) {
        self.process += 1;
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if self.value.is_some() && self.is_inherited() {
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

/// The same for a value behind an [`Arc`], which is there until the drop.
#[derive(Debug)]
pub(crate) struct OwnArc<T> {
    process: u32,
    value: Arc<T>,
}

impl<T> OwnArc<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            process: std::process::id(),
            value: Arc::new(value),
        }
    }

    pub(crate) fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

    /// As in a child that was forked since.
    #[cfg(test)]
    pub(crate) fn inherit(&mut self) {
        self.process += 1;
    }
}

impl<T> Deref for OwnArc<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.value
    }
}

impl<T> Drop for OwnArc<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            mem::forget(self.value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_does_not_drop_it() {
        for in_child in [true, false] {
            let kept = Arc::new(());
            let mut own = Own::new(Some(kept.clone()));
            let mut own_arc = OwnArc::new(kept.clone());
            if in_child {
                own.inherit();
                own_arc.inherit();
            }
            drop(own);
            drop(own_arc);
            assert_eq!(Arc::strong_count(&kept), if in_child { 3 } else { 1 });
        }
    }
}
