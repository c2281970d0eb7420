//! The Rust blocks of the README and the documents, as doc tests. Their commands are run by `tests/commands.rs`.

#[cfg(doctest)]
mod blocks {
    #[doc = include_str!("../../../README.md")]
    struct Readme;

    #[doc = include_str!("../../guarantees.md")]
    struct Guarantees;

    #[doc = include_str!("../../migrating-from-portalocker.md")]
    struct MigratingFromPortalocker;

    #[doc = include_str!("../../with_lock.md")]
    struct WithLock;

    #[doc = include_str!("../../writing-a-backend.md")]
    struct WritingABackend;
}
