//! The Rust blocks of the README and the documents, as doc tests. Their commands are run by `tests/commands.rs`.

pub mod diagram;

#[cfg(doctest)]
mod blocks {
    #[doc = include_str!("../../../README.md")]
    struct Readme;

    #[doc = include_str!("../../../portalock/README.md")]
    struct Portalock;

    #[doc = include_str!("../../../portalock-core/README.md")]
    struct PortalockCore;

    #[doc = include_str!("../../../portalock-fs/README.md")]
    struct PortalockFs;

    #[doc = include_str!("../../../portalock-redis/README.md")]
    struct PortalockRedis;

    #[doc = include_str!("../../../portalock-etcd/README.md")]
    struct PortalockEtcd;

    #[doc = include_str!("../../../portalock-postgres/README.md")]
    struct PortalockPostgres;

    #[doc = include_str!("../../../portalock-testkit/README.md")]
    struct PortalockTestkit;

    #[doc = include_str!("../../guarantees.md")]
    struct Guarantees;

    #[doc = include_str!("../../migrating-from-portalocker.md")]
    struct MigratingFromPortalocker;

    #[doc = include_str!("../../tasks.md")]
    struct Tasks;

    #[doc = include_str!("../../with_lock.md")]
    struct WithLock;

    #[doc = include_str!("../../writing-a-backend.md")]
    struct WritingABackend;
}
