//! The regular check of a session: whether its places still exist.

use portalock_core::{
    BackendError, FencingToken,
    session::{Asked, Looked, Stand},
};
use redis::{Value, aio::MultiplexedConnection};

use crate::{
    cluster::moving,
    error::{failed, is_moving, unexpected},
    keys::Place,
    record::text,
    replicas::confirm,
    scripts::LOOK,
    session::SessionKey,
};

const LOOKING: &str = "look after what a session has in Redis";

/// Asks the server for the state of these places. A grant that is found counts when replicas have it, like every other
/// grant.
pub(crate) async fn look(
    session: &SessionKey,
    mut connection: MultiplexedConnection,
    asked: &[Asked<Place>],
) -> Result<Looked, BackendError> {
    let mut keys = Vec::with_capacity(2 * asked.len());
    for asked in asked {
        let (of, named) = (&session.server.keys, &asked.at.wanted);
        keys.extend([of.state(named), of.waiters(named)]);
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let names: Vec<&str> = asked.iter().map(|asked| &*asked.at.name).collect();
    let tag = session.server.route.tag();
    let answer = LOOK.run_in(tag, &mut connection, &keys, &names).await;
    let stands = match answer {
        Ok(Value::Array(answers)) => {
            let stands: Option<Vec<_>> = answers.iter().map(stand).collect();
            stands.ok_or_else(|| unexpected(LOOKING))?
        }
        Ok(_) => return Err(unexpected(LOOKING)),
        Err(error) if is_moving(&error) => moving::look(session, &mut connection, asked).await?,
        Err(error) => return Err(failed(LOOKING, error)),
    };
    let is_new =
        |(asked, stand): (&Asked<Place>, &Stand)| !asked.held && matches!(stand, Stand::Held(_));
    if session.settings().wait_replicas() > 0 && asked.iter().zip(&stands).any(is_new) {
        confirm(&mut connection, session).await?;
    }
    Ok(Looked::new(stands, None))
}

fn stand(answer: &Value) -> Option<Stand> {
    Some(match text(answer)? {
        "gone" => Stand::Gone,
        "waits|" => Stand::Waits,
        other => match other.strip_prefix("waits|") {
            Some(token) => Stand::Follows(FencingToken::new(token.parse().ok()?)),
            None => Stand::Held(FencingToken::new(other.parse().ok()?)),
        },
    })
}
