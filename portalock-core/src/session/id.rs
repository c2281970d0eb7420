//! The id of a session.

use std::sync::Arc;

use crate::random::random;

/// The id for a new session: 32 hexadecimal digits. Two ids are never equal, and nobody can guess one.
///
/// ```
/// use portalock_core::session::new_id;
///
/// assert_eq!(new_id().len(), 32);
/// assert_ne!(new_id(), new_id());
/// ```
pub fn new_id() -> Arc<str> {
    format!("{:016x}{:016x}", random(), random()).into()
}
