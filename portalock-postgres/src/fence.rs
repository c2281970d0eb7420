//! A lock as a condition of the user's own transaction: the database itself refuses the write of a former holder.

use portalock_core::FencingToken;

use crate::keys::Place;

/// A grant of a lock, as a condition for a transaction in the same database.
///
/// Run [`STATEMENT`](Self::STATEMENT) with [`owner`](Self::owner) and [`token`](Self::token) anywhere in a transaction,
/// with any driver. If the lock is no longer held, the transaction fails with the SQLSTATE
/// [`NOT_HELD`](Self::NOT_HELD): the statement checks the lock at once, and again at the commit. So the transaction
/// can't commit after the lock could have been granted to somebody else, however late it arrives and whatever clock is
/// wrong. No check before a write can guarantee that.
///
/// Don't call it inside a savepoint that could be rolled back, and don't use `SET CONSTRAINTS` after it. A transaction
/// that is repeatable read or serializable must begin after the lock was granted; otherwise it doesn't see the grant. It
/// also fails, with a serialization failure, if another client has begun to wait for the lock meanwhile: then repeat it.
/// The transaction's user needs USAGE on the schema `portalock`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fence {
    /// The owner of the grant, with the kind and the name of the lock: the statement's first argument, a text.
    pub owner: String,
    /// The fencing token of the grant: the second argument, a bigint.
    pub token: i64,
}

impl Fence {
    /// The statement to run in the transaction.
    pub const STATEMENT: &str = "SELECT portalock.ensure_held($1, $2)";

    /// The SQLSTATE with which the database refuses a transaction whose lock is no longer held.
    pub const NOT_HELD: &str = "PL001";

    pub(crate) fn new(place: &Place, token: FencingToken) -> Self {
        let Place { name, wanted } = place;
        Self {
            owner: format!("{name}/{}/{}", wanted.kind.as_str(), wanted.name),
            token: token.get().cast_signed(),
        }
    }

    /// Whether the error is this refusal: the lock of the transaction is no longer held.
    pub fn refused(error: &tokio_postgres::Error) -> bool {
        error
            .code()
            .is_some_and(|code| code.code() == Self::NOT_HELD)
    }
}
