//! New connections, before their first statement.

use std::{
    path::Path,
    pin::{Pin, pin},
    slice::from_ref,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::Stream};
use portalock_core::{BackendError, BackendErrorKind, session::new_id};
use tokio::time::{sleep, timeout};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, SimpleQueryMessage, config::Host, error::SqlState,
};

use crate::{
    PostgresSettings,
    error::{failed, is_of_another_request, not_connected, timed_out},
    route::{Order, Timeline},
    tls,
};

/// The pause after a connection with another client's answers: there may be more of them on their way.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The first eight digits of a file's name are its timeline.
const TIMELINE: &str = "SELECT system_identifier, pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)
    FROM pg_catalog.pg_control_system()";

/// What the server sends without a request. To poll it drives the connection.
pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<AsyncMessage, Error>> + Send>>;

/// The parts of a new connection.
pub(crate) struct Dialled {
    /// The operation, for errors.
    pub(crate) connecting: String,
    pub(crate) client: Client,
    pub(crate) messages: Messages,
    pub(crate) version: Option<String>,
    pub(crate) encoding: Option<String>,
    /// Of one of several servers, if it tells.
    pub(crate) timeline: Option<Timeline>,
}

/// Connects to the first server that accepts and is no former primary, in this order. Each server of the settings has a share of
/// the time. Returns the server's index too.
pub(crate) async fn dial(
    settings: &PostgresSettings,
    order: &Order,
) -> Result<(usize, Dialled), BackendError> {
    let servers = u32::try_from(settings.servers.len()).unwrap_or(u32::MAX);
    let share = settings.connect_timeout / servers.max(1);
    // With whether it is the refusal of a former primary.
    let mut worst: Option<(bool, BackendError)> = None;
    for &index in &order.servers {
        let Some(server) = settings.servers.get(index) else {
            continue;
        };
        let mut is_former = false;
        let dialling = async {
            let mut dialled = dial_in_step(server, settings.ca_file()).await?;
            // The only server has no other one that could have followed it.
            if servers > 1 {
                dialled.timeline = dialled.read_timeline().await?;
                let timeline = dialled.timeline.as_ref();
                let told = order.route.told(timeline, &dialled.connecting);
                is_former = told.is_err();
                told?;
            }
            Ok(dialled)
        };
        let dialling = timeout(share, dialling).await;
        match dialling.unwrap_or_else(|_| Err(timed_out(&connecting(from_ref(server))))) {
            Ok(dialled) => return Ok((index, dialled)),
            // An error that a retry can't fix is more useful than one of an unavailable server. So is the refusal of a former primary.
            Err(error) => match &worst {
                Some((_, known)) if !known.is_retryable() => {}
                Some((true, _)) if error.is_retryable() => {}
                _ => worst = Some((is_former, error)),
            },
        }
    }
    Err(worst.map_or_else(
        || timed_out(&connecting(&settings.servers)),
        |(_, error)| error,
    ))
}

/// The operation, for errors: it names the server or servers.
pub(crate) fn connecting(servers: &[Config]) -> String {
    let places: Vec<_> = servers.iter().map(place).collect();
    format!("connect to Postgres at {}", places.join(" or "))
}

fn place(server: &Config) -> String {
    let port = server.get_ports().first().unwrap_or(&5432);
    match server.get_hosts().first() {
        Some(Host::Tcp(host)) => format!("{host}:{port}"),
        #[cfg(unix)]
        Some(Host::Unix(directory)) => format!("{}, port {port}", directory.display()),
        // `url.rs` refuses a server without a host.
        None => port.to_string(),
    }
}

/// Connects to `server`, and again if the new connection brings answers to requests of another client.
///
/// A client that ends without having read all answers leaves the rest behind. PgBouncer 1.18 may then give its server
/// process to the next client, which would take them for its own: it could believe that it was granted a lock. Pgagroal
/// does it too (<https://github.com/pgagroal/pgagroal/issues/989>).
async fn dial_in_step(server: &Config, ca_file: Option<&Path>) -> Result<Dialled, BackendError> {
    loop {
        let mut dialled = tls::dial(server, ca_file).await?;
        if dialled.is_in_step().await? {
            return Ok(dialled);
        }
        tracing::warn!("a pooler gave this client answers that another one has left behind");
        sleep(AGAIN_AFTER).await;
    }
}

impl Dialled {
    /// Whether the first answer is the one to the first request. All later ones are then, too, because a pooler in
    /// session mode keeps the server process for this connection.
    async fn is_in_step(&mut self) -> Result<bool, BackendError> {
        let nonce = new_id();
        let asked = format!("SELECT '{nonce}'");
        let Some(answer) = self.ask(&asked).await else {
            return Err(timed_out(&self.connecting));
        };
        match answer {
            Ok(answer) => Ok(answer.iter().any(|message| {
                // Another client's row may have no column.
                matches!(message, SimpleQueryMessage::Row(row) if row.try_get(0).ok() == Some(Some(&nonce)))
            })),
            Err(error) if is_of_another_request(&error) => Ok(false),
            Err(error) => Err(failed(&self.connecting, error)),
        }
    }

    /// `None` if the server doesn't tell: some services that speak like Postgres have no timelines, and a role may lack the privilege.
    ///
    /// After any other failure the connection is not used. If it were, one cancelled statement would let a former primary in.
    async fn read_timeline(&mut self) -> Result<Option<Timeline>, BackendError> {
        let Some(answer) = self.ask(TIMELINE).await else {
            return Err(timed_out(&self.connecting));
        };
        match answer {
            Ok(answer) => Ok(timeline(&answer)),
            Err(error) if tells_none(&error) => {
                tracing::warn!(%error, "a server does not tell its timeline, so a former primary can't be told from it");
                Ok(None)
            }
            Err(error) => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {}: it failed to tell its timeline", self.connecting),
            )
            .with_source(error)),
        }
    }

    /// The answer to a request, while nobody else drives the connection; `None` if it ends without a reason.
    async fn ask(&mut self, asked: &str) -> Option<Result<Vec<SimpleQueryMessage>, Error>> {
        let mut answer = pin!(self.client.simple_query(asked));
        tokio::select! {
            // The request is sent before the connection is driven.
            biased;
            answer = &mut answer => Some(answer),
            // The answer may have come together with the end: it says why a pooler gives no server process.
            ended = ended(&mut self.messages) => answer.now_or_never().or(ended.map(Err)),
        }
    }
}

fn timeline(answer: &[SimpleQueryMessage]) -> Option<Timeline> {
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })?;
    let (system, number) = (row.try_get(0).ok()??, row.try_get(1).ok()??);
    Some(Timeline {
        system: system.to_owned(),
        number: u32::from_str_radix(number, 16).ok()?,
    })
}

/// Whether this is the server's answer each time.
fn tells_none(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        [
            SqlState::UNDEFINED_FUNCTION,
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::FEATURE_NOT_SUPPORTED,
        ]
        .contains(code)
    })
}

/// Drives a connection until it ends, and returns the reason, if there is one.
async fn ended(messages: &mut Messages) -> Option<Error> {
    loop {
        if let Err(error) = messages.next().await? {
            return Some(error);
        }
    }
}

/// Converts a connection over any stream to one form.
pub(crate) fn dialled<S, T>(
    server: &Config,
    dialled: Result<(Client, tokio_postgres::Connection<S, T>), Error>,
) -> Result<Dialled, BackendError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connecting = connecting(from_ref(server));
    let (client, mut connection) = dialled.map_err(|error| not_connected(&connecting, error))?;
    let parameter = |name| connection.parameter(name).map(str::to_owned);
    Ok(Dialled {
        connecting,
        client,
        version: parameter("server_version"),
        encoding: parameter("server_encoding"),
        timeline: None,
        messages: Box::pin(futures_util::stream::poll_fn(move |context| {
            connection.poll_message(context)
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_named_as_its_address_names_it() {
        for (url, named) in [
            ("postgres://u@db.example/app", "db.example:5432"),
            ("postgres://u@a:6000,b:6001/app", "a:6000 or b:6001"),
            ("postgres://u@c/app?hostaddr=192.0.2.7", "c:5432"),
            #[cfg(unix)]
            (
                "postgres://u@/app?host=/run/pg&port=6000",
                "/run/pg, port 6000",
            ),
        ] {
            let settings = PostgresSettings::from_url(url).unwrap();
            let text = connecting(&settings.servers);
            assert_eq!(text, format!("connect to Postgres at {named}"), "{url}");
        }
    }
}
