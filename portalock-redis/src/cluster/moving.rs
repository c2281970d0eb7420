//! A session whose slot moves from one node to another.
//!
//! Scripts that read other sessions wait until the move has ended (`scripts.rs`), so nothing in the slot is granted or
//! released meanwhile. But the session's time goes on, and must be extended. That needs only commands on one key each,
//! and one key is always at one of the two nodes. The source node is asked first; if it doesn't have the key, it names
//! the other node (`ASK`).
//!
//! A key that is at neither node may still exist: an operator may have cancelled the move and moved keys back. Whether
//! the key exists is known when the move has ended.

use portalock_core::{
    BackendError, BackendErrorKind,
    session::{Asked, Stand},
};
use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::MultiplexedConnection,
};

use crate::{
    breaking::{Mark, marks_key},
    connect::connect,
    error::failed,
    keys::Place,
    queue::token_of,
    replicas::renewed_at_replicas,
    route::Route,
    session::SessionKey,
};

const RENEWING: &str = "refresh a session whose slot moves in the Redis cluster";
const LOOKING: &str = "look after what is in a slot that moves in the Redis cluster";

/// Extends the session's time, and then reads the marks on its locks.
pub(crate) async fn renew(
    session: &SessionKey,
    connection: &mut MultiplexedConnection,
) -> Result<Vec<Mark>, BackendError> {
    let mut nodes = Nodes::new(&session.server.route, connection, RENEWING);
    let mut expire = redis::cmd("PEXPIRE");
    let is_known: bool = nodes
        .ask(expire.arg(&session.key).arg(&session.lifetime))
        .await?;
    if !is_known {
        return Err(not_found(RENEWING));
    }
    if let Some(other) = &mut nodes.other {
        renewed_at_replicas(other, session.settings()).await?;
    }
    let mut marks = redis::cmd("HGETALL");
    nodes.ask(marks.arg(marks_key(session))).await
}

/// Returns the state of places, if all are found. A place that is not found is not reported as gone: the call fails
/// instead.
pub(crate) async fn look(
    session: &SessionKey,
    connection: &mut MultiplexedConnection,
    asked: &[Asked<Place>],
) -> Result<Vec<Stand>, BackendError> {
    let mut nodes = Nodes::new(&session.server.route, connection, LOOKING);
    let mut stands = Vec::with_capacity(asked.len());
    for Asked { at: place, .. } in asked {
        let (keys, named) = (&session.server.keys, &place.wanted);
        let mut held = redis::cmd("HGET");
        let claim: Option<String> = nodes
            .ask(held.arg(keys.state(named)).arg(&*place.name))
            .await?;
        if let Some(token) = claim.as_deref().and_then(token_of) {
            stands.push(Stand::Held(token));
            continue;
        }
        let mut waits = redis::cmd("HGET");
        let claim: Option<String> = nodes
            .ask(waits.arg(keys.waiters(named)).arg(&*place.name))
            .await?;
        let claim = claim.ok_or_else(|| not_found(LOOKING))?;
        stands.push(token_of(&claim).map_or(Stand::Waits, Stand::Follows));
    }
    Ok(stands)
}

/// The two nodes of a slot that moves.
pub(super) struct Nodes<'a> {
    route: &'a Route,
    what: &'static str,
    /// The connection to the source node.
    first: &'a mut MultiplexedConnection,
    /// The connection to the other node, if a key was there.
    other: Option<MultiplexedConnection>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(
        route: &'a Route,
        first: &'a mut MultiplexedConnection,
        what: &'static str,
    ) -> Self {
        Self {
            route,
            what,
            first,
            other: None,
        }
    }

    /// Sends a command on one key to the node that has the key.
    pub(super) async fn ask<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
    ) -> Result<T, BackendError> {
        let what = self.what;
        let error = match command.query_async(self.first).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some((host, port)) = sent_on(&error) else {
            return Err(failed(what, error));
        };
        let mut other = if let Some(other) = self.other.take() {
            other
        } else {
            let location = self.route.beside(host, port);
            connect(self.route, &location, |_| Ok::<(), ()>(())).await?
        };
        let (answer,) = redis::pipe()
            .cmd("ASKING")
            .ignore()
            .add_command(command.clone())
            .query_async(&mut other)
            .await
            .map_err(|error| failed(what, error))?;
        self.other = Some(other);
        Ok(answer)
    }
}

/// The node that an `ASK` error names for a key that has already moved. A node with the setting
/// `cluster-preferred-endpoint-type unknown-endpoint` names only the port.
fn sent_on(error: &RedisError) -> Option<(&str, u16)> {
    if error.kind() != ErrorKind::Server(ServerErrorKind::Ask) {
        return None;
    }
    let (place, _) = error.redirect_node()?;
    let (host, port) = place.rsplit_once(':')?;
    Some((host, port.parse().ok()?))
}

fn not_found(what: &'static str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("can't {what}: neither node has a key of it now"),
    )
}
