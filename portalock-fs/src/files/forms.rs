//! What the locks on a file have in common, in public: how they are set up, acquired and let go. Each of them has a `spec` and a
//! `policy`, and makes a `lock` for each acquisition; each guard wraps an [`Owned`](super::owned::Owned).

macro_rules! lock_methods {
    ($guard:ident) => {
        /// Sets the kind of lock. Default [`LockKind::Flock`].
        ///
        /// Use [`LockKind::Record`] to share a lock with a Python program that sets `portalocker.portalocker.LOCKER` to
        /// `fcntl.lockf`.
        #[must_use]
        pub const fn with_kind(mut self, kind: LockKind) -> Self {
            self.spec.kind = kind;
            self
        }

        /// The file, as an absolute path.
        pub fn path(&self) -> &Path {
            self.spec.given_path()
        }

        fn lock(&self) -> Result<Lock<Acquisition>, LockError> {
            Acquisition::lock_on(self.spec.clone())
        }

        acquire_methods!($guard, "Opens or creates the file, and locks it.");
    };
}

macro_rules! acquire_methods {
    ($guard:ident, $what:literal) => {
        /// Sets how [`acquire`](Self::acquire) waits: the timeout, the check interval, and whether it fails at once if
        /// the lock is held.
        #[must_use]
        pub fn with_policy(mut self, policy: Policy) -> Self {
            self.policy = policy;
            self
        }

        #[doc = $what]
        ///
        /// It waits according to the policy.
        ///
        /// # Errors
        ///
        /// - [`LockError::Timeout`] if another owner held the lock all the time; [`LockError::AlreadyLocked`] at once
        ///   if the lock is held and the policy has `fail_when_locked`. Both name the holder's pid if it is known: on
        ///   Linux the kernel takes about 10 ms to tell it, in which the thread is blocked.
        /// - [`LockError::Backend`] at once if the file can't be opened, written or locked at all. Its
        ///   [`kind`](portalock_core::BackendError::kind) gives the reason. Such a failure never counts as contention,
        ///   and the lock is not held.
        ///
        /// # Cancel safety
        ///
        /// Safe: the file is unlocked and closed. A new, unlocked file may be left behind.
        pub async fn acquire(&self) -> Result<$guard, LockError> {
            self.acquire_with(&self.policy).await
        }

        /// Like [`acquire`](Self::acquire), with another policy.
        ///
        /// # Errors
        ///
        /// As [`acquire`](Self::acquire).
        ///
        /// # Cancel safety
        ///
        /// As [`acquire`](Self::acquire).
        pub async fn acquire_with(&self, policy: &Policy) -> Result<$guard, LockError> {
            Ok($guard(Owned::acquire(self.lock()?, policy).await?))
        }

        /// Locks the file if it is free. It does not wait, so it is not async.
        ///
        /// # Errors
        ///
        /// [`LockError::AlreadyLocked`] if another owner holds the lock; [`LockError::Backend`] as
        /// [`acquire`](Self::acquire).
        pub fn try_acquire(&self) -> Result<$guard, LockError> {
            self.blocking_acquire_with(&once())
        }

        /// [`acquire`](Self::acquire) for synchronous code: it blocks the thread.
        ///
        /// # Errors
        ///
        /// As [`acquire`](Self::acquire).
        pub fn blocking_acquire(&self) -> Result<$guard, LockError> {
            self.blocking_acquire_with(&self.policy)
        }

        /// [`acquire_with`](Self::acquire_with) for synchronous code: it blocks the thread.
        ///
        /// # Errors
        ///
        /// As [`acquire`](Self::acquire).
        pub fn blocking_acquire_with(&self, policy: &Policy) -> Result<$guard, LockError> {
            Ok($guard(Owned::blocking_acquire(self.lock()?, policy)?))
        }
    };
}

macro_rules! guard_methods {
    () => {
        /// The file, as an absolute path.
        pub fn path(&self) -> &Path {
            self.0.path()
        }

        /// Returns an error if the path no longer leads to the locked file. Somebody, such as a cleaner of `/tmp`,
        /// removed or replaced it, and newcomers lock another file.
        ///
        /// It reads the file system; the result is true for that moment.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`]; [`LockError::Backend`] if the file system can't be asked.
        pub fn ensure_held(&self) -> Result<(), LockError> {
            self.0.ensure_held()
        }

        /// Releases the lock, and reports errors. The lock is released, and the file closed, in any case.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] if the path no longer led to the locked file: somebody removed or replaced it, and
        /// others may have locked the new file. [`LockError::Backend`] with the first failure, if the system refused to
        /// unlock the file, or to remove a temporary file.
        pub fn release(self) -> Result<(), LockError> {
            self.0.release()
        }
    };
}

/// Implements `Read`, `Write` and `Seek` for a type with a `file`.
macro_rules! io_of_its_file {
    ($type:ident) => {
        impl Deref for $type {
            type Target = File;

            fn deref(&self) -> &File {
                self.file()
            }
        }

        impl Read for $type {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.file().read(buffer)
            }
        }

        impl Write for $type {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.file().write(bytes)
            }

            fn flush(&mut self) -> io::Result<()> {
                self.file().flush()
            }
        }

        impl Seek for $type {
            fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
                self.file().seek(position)
            }
        }
    };
}

pub(super) use {acquire_methods, guard_methods, io_of_its_file, lock_methods};
