//! A lock as a condition of the user's own transaction: the database itself then refuses who no longer holds.

use portalock_core::FencingToken;

/// A grant of a lock, by which a transaction in the same database can be made to depend on it.
///
/// [`STATEMENT`](Self::STATEMENT) with [`owner`](Self::owner) and [`token`](Self::token), run anywhere in a transaction with any
/// driver, makes that transaction fail with the SQLSTATE [`NOT_HELD`](Self::NOT_HELD) if the lock is no longer held: at once, and
/// again when it commits. So it can't commit once somebody else could have been granted the lock, however late it arrives and
/// whatever clock was wrong. That is more than any check before a write can promise.
///
/// Call it outside of a savepoint that could be rolled back, and leave `SET CONSTRAINTS` alone after it. A transaction that is
/// repeatable read or serializable must begin after the lock was granted, or it doesn't see the grant. Its user needs USAGE on the
/// schema `portalock`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fence {
    /// Whose grant it is: the statement's first argument, a text.
    pub owner: String,
    /// Its fencing token: the second argument, a bigint.
    pub token: i64,
}

impl Fence {
    /// The statement to run in the transaction.
    pub const STATEMENT: &str = "SELECT portalock.ensure_held($1, $2)";

    /// The SQLSTATE by which the database refuses a transaction whose lock is no longer held.
    pub const NOT_HELD: &str = "PL001";

    pub(crate) fn new(owner: &str, token: FencingToken) -> Self {
        Self {
            owner: owner.to_string(),
            token: token.get().cast_signed(),
        }
    }

    /// Whether this is how the database refuses a transaction whose lock is no longer held.
    pub fn refused(error: &tokio_postgres::Error) -> bool {
        error
            .code()
            .is_some_and(|code| code.code() == Self::NOT_HELD)
    }
}
