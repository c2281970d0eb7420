//! A slot that is on its way from one node to another.
//!
//! Scripts that meet sessions wait until it has arrived (`scripts.rs`), so nothing is granted or released there meanwhile. But a
//! session's time goes on, and must be moved on. What that takes are commands on one key each, and one key is always at one of the two
//! nodes: the node that had the slot is asked first, and names the other one for a key that it doesn't have (`ASK`).
//!
//! That the other one doesn't have it either proves nothing: it may have been on its way back, where a move was given up. It is known
//! once the slot has arrived.

use portalock_core::{BackendError, BackendErrorKind};
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};

use crate::{connect::connect, error::failed, route::Route};

/// What a command on one key was answered.
pub(crate) struct Found {
    pub(crate) value: Value,
    /// The connection to the node that had the key, if that was the other one.
    pub(crate) elsewhere: Option<MultiplexedConnection>,
}

/// Asks for one key, wherever it is while its slot moves. `connection` leads to the node that has the slot.
pub(crate) async fn ask_for_key(
    route: &Route,
    connection: &mut MultiplexedConnection,
    what: &'static str,
    command: &Cmd,
) -> Result<Found, BackendError> {
    let error = match command.query_async(connection).await {
        Ok(value) => {
            return Ok(Found {
                value,
                elsewhere: None,
            });
        }
        Err(error) => error,
    };
    let Some((host, port)) = sent_on(&error) else {
        return Err(failed(what, error));
    };
    let place = route.beside(host, port);
    let mut connection = connect(route, &place, |_| Ok::<(), ()>(())).await?;
    let (value,) = redis::pipe()
        .cmd("ASKING")
        .ignore()
        .add_command(command.clone())
        .query_async(&mut connection)
        .await
        .map_err(|error| failed(what, error))?;
    Ok(Found {
        value,
        elsewhere: Some(connection),
    })
}

/// Where a node sends who asks for a key that it has given away.
fn sent_on(error: &RedisError) -> Option<(&str, u16)> {
    if error.kind() != ErrorKind::Server(ServerErrorKind::Ask) {
        return None;
    }
    let (place, _) = error.redirect_node()?;
    let (host, port) = place.rsplit_once(':')?;
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

/// A key was at neither node.
pub(crate) fn not_found(what: &'static str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("can't {what}: its slot moves, and neither node has the key now"),
    )
}
