//! An HTTP service on several hosts: all of them answer reads, only the leader writes, and each write carries the
//! token.
//!
//! ```sh
//! cargo run -p portalock-example-service -- --help
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `GET /value` | the value, from any host |
//! | `PUT /value` | on the leader: written, with the term's token. On other hosts: 421, with the leader |
//! | `GET /leader` | the leader, and its token |
//! | `GET /metrics` | waits, holds, waiters and renewals for Prometheus |

mod store;

use std::{
    error::Error,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use portalock::{DynBackend, Election, Leading, LockError};
use tokio::net::TcpListener;

use crate::store::{Refused, Store};

const USAGE: &str = "usage: service BACKEND FILE [ADDRESS]
  BACKEND  where the leader is elected, such as fs:/run/lock/app or redis://cache.example
  FILE     what is served, on storage that all hosts share
  ADDRESS  where to listen, 127.0.0.1:0 if not given";

/// The state for requests.
#[derive(Clone)]
struct App {
    election: Election<DynBackend>,
    /// The current term, on the leader.
    leading: Arc<Mutex<Option<Leading<DynBackend>>>>,
    store: Arc<Store>,
    metrics: PrometheusHandle,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (backend, file, address) = match arguments.as_slice() {
        [one] if one == "--help" => {
            println!("{USAGE}");
            return Ok(());
        }
        [backend, file] => (backend, file, "127.0.0.1:0"),
        [backend, file, address] => (backend, file, address.as_str()),
        _ => return Err(USAGE.into()),
    };
    // Installed before the first lock, because measurements without a recorder are lost.
    let metrics = PrometheusBuilder::new().install_recorder()?;
    portalock::metrics::describe();
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let backend = portalock::open(backend).await?;
    let app = App {
        election: backend.election("service")?.with_label(address.to_string()),
        leading: Arc::default(),
        store: Arc::new(Store::new(PathBuf::from(file))),
        metrics,
    };
    println!("http://{address}");

    let routes = Router::new()
        .route("/value", get(read).put(write))
        .route("/leader", get(leader))
        .route(
            "/metrics",
            get(|State(app): State<App>| async move { app.metrics.render() }),
        )
        .with_state(app.clone());
    let serving = axum::serve(listener, routes).with_graceful_shutdown(asked_to_end());
    // Campaigns while it serves, and resigns when it ends.
    let campaigning = app
        .election
        .lead(std::future::pending(), |leading| app.clone().lead(leading));
    tokio::select! {
        served = async { serving.await } => served?,
        campaigned = campaigning => campaigned?,
    }
    portalock::shutdown(std::time::Duration::from_secs(5)).await?;
    backend.close().await?;
    Ok(())
}

async fn asked_to_end() {
    let _ = tokio::signal::ctrl_c().await;
}

impl App {
    /// The work of one term: it publishes the term for requests, until the term is lost or this leader is asked to step
    /// down.
    async fn lead(self, leading: Leading<DynBackend>) {
        let _term = Published::new(self.leading.clone(), leading.clone());
        if let Err(error) = leading.step_down_asked().await {
            eprintln!("can't hear requests to step down: {error}");
            std::future::pending::<()>().await;
        }
    }

    fn leading(&self) -> Option<Leading<DynBackend>> {
        let leading = self
            .leading
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // The signal reads the clock, so it is right even if the work was not stopped yet.
        leading.filter(|leading| !leading.lost_signal().is_lost())
    }
}

/// The term that requests see. It is removed when the work is dropped.
struct Published(Arc<Mutex<Option<Leading<DynBackend>>>>);

impl Published {
    fn new(place: Arc<Mutex<Option<Leading<DynBackend>>>>, leading: Leading<DynBackend>) -> Self {
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(leading);
        Self(place)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn read(State(app): State<App>) -> Result<String, (StatusCode, String)> {
    let reading = tokio::task::spawn_blocking(move || app.store.read());
    match reading.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(internal(&error)),
        Err(error) => Err(internal(&error)),
    }
}

async fn write(State(app): State<App>, value: String) -> Result<String, (StatusCode, String)> {
    let Some(token) = app.leading().and_then(|leading| leading.token()) else {
        return Err((StatusCode::MISDIRECTED_REQUEST, who_leads(&app).await));
    };
    // The store checks the token, because this leader may be paused here for longer than its lease.
    let writing = tokio::task::spawn_blocking(move || app.store.write(token, &value));
    match writing.await {
        Ok(Ok(())) => Ok(format!("written with token {token}\n")),
        Ok(Err(Refused::Newer(newer))) => Err((
            StatusCode::CONFLICT,
            format!("a leader with token {newer} has written meanwhile\n"),
        )),
        Ok(Err(Refused::Failed(error))) => Err(internal(&error)),
        Err(error) => Err(internal(&error)),
    }
}

async fn leader(State(app): State<App>) -> String {
    who_leads(&app).await
}

async fn who_leads(app: &App) -> String {
    match app.election.leader().await {
        Ok(Some(term)) => {
            let address = term.leader.label.as_deref().unwrap_or("nobody knows where");
            let token = term.token.map_or(0, u64::from);
            format!("{address} leads with token {token}\n")
        }
        Ok(None) => "nobody leads\n".to_owned(),
        Err(error @ LockError::Backend { .. }) => format!("nobody knows who leads: {error}\n"),
        Err(error) => format!("{error}\n"),
    }
}

fn internal(error: &dyn Error) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}
