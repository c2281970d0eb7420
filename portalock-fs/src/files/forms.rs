//! What the locks on a file have in common, in public: how they are set up, acquired and let go. Each of them has a `spec`, a mode
//! to `share` it in, and a `policy`; each guard wraps an [`Owned`](super::owned::Owned).

macro_rules! lock_methods {
    ($guard:ident) => {
        /// Sets how [`acquire`](Self::acquire) waits: timeout, check interval, whether to fail when locked.
        #[must_use]
        pub fn with_policy(mut self, policy: Policy) -> Self {
            self.policy = policy;
            self
        }

        /// Sets which of the system's locks to use. Default [`LockKind::Flock`].
        ///
        /// Choose [`LockKind::Record`] to meet a Python program that sets `portalocker.portalocker.LOCKER` to `fcntl.lockf`.
        #[must_use]
        pub const fn with_kind(mut self, kind: LockKind) -> Self {
            self.spec.kind = kind;
            self
        }

        /// The file, as an absolute path.
        pub fn path(&self) -> &Path {
            self.spec.given_path()
        }

        /// Locks the file, waiting as the lock's policy says. It is opened, or made, for that.
        ///
        /// # Errors
        ///
        /// - [`LockError::Timeout`] if somebody else held it all the time, and [`LockError::AlreadyLocked`] at once, if the policy
        ///   says to fail when locked. Both name the holder's pid where it can be told.
        /// - [`LockError::Backend`] at once if the file can't be opened, written or locked at all: its
        ///   [`kind`](portalock_core::BackendError::kind) says why. Such a failure is never taken for contention, and the lock is
        ///   not held then.
        ///
        /// # Cancel safety
        ///
        /// Safe: what was opened is closed, what was locked is freed. A new file that nobody locks may stay behind.
        pub async fn acquire(&self) -> Result<$guard, LockError> {
            self.acquire_with(&self.policy).await
        }

        /// As [`acquire`](Self::acquire), waiting as `policy` says.
        ///
        /// # Errors
        ///
        /// As [`acquire`](Self::acquire).
        ///
        /// # Cancel safety
        ///
        /// As [`acquire`](Self::acquire).
        pub async fn acquire_with(&self, policy: &Policy) -> Result<$guard, LockError> {
            let lock = Acquisition::lock_on(self.spec.clone())?;
            let owned = Owned::acquire(lock, self.share, policy).await?;
            Ok($guard(owned))
        }

        /// Locks the file if it is free. It does not wait, so there is nothing async about it.
        ///
        /// # Errors
        ///
        /// [`LockError::AlreadyLocked`] if somebody else holds it; [`LockError::Backend`] as [`acquire`](Self::acquire).
        pub fn try_acquire(&self) -> Result<$guard, LockError> {
            self.blocking_acquire_with(&once())
        }

        /// [`acquire`](Self::acquire) for synchronous code: it parks the thread.
        ///
        /// # Errors
        ///
        /// As [`acquire`](Self::acquire).
        pub fn blocking_acquire(&self) -> Result<$guard, LockError> {
            self.blocking_acquire_with(&self.policy)
        }

        /// [`acquire_with`](Self::acquire_with) for synchronous code: it parks the thread.
        ///
        /// # Errors
        ///
        /// As [`acquire`](Self::acquire).
        pub fn blocking_acquire_with(&self, policy: &Policy) -> Result<$guard, LockError> {
            let lock = Acquisition::lock_on(self.spec.clone())?;
            let owned = Owned::blocking_acquire(lock, self.share, policy)?;
            Ok($guard(owned))
        }
    };
}

macro_rules! guard_methods {
    () => {
        /// The file, as an absolute path.
        pub fn path(&self) -> &Path {
            self.0.path()
        }

        /// An error if the path no longer names the locked file: somebody removed or replaced it, as a cleaner of `/tmp` does, and
        /// newcomers lock another.
        ///
        /// It looks at the file system; what it found is true for that moment.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`]; [`LockError::Backend`] if the file system can't be asked.
        pub fn ensure_held(&self) -> Result<(), LockError> {
            self.0.ensure_held()
        }

        /// Frees the lock, and says how that went. It is freed, and the file closed, in any case.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] if the path no longer named the locked file: somebody removed or replaced it, and others may have
        /// locked the new one. [`LockError::Backend`] with the first failure, if the system refused to unlock it, or to remove a
        /// file that goes with its lock.
        pub fn release(self) -> Result<(), LockError> {
            self.0.release()
        }
    };
}

/// Lets something that has a `file` be read, written and sought as that is.
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

pub(super) use {guard_methods, io_of_its_file, lock_methods};
