//! What a fencing token is for: a store that checks it refuses a holder that was cut off too long.
//!
//! ```sh
//! cargo run -p portalock-examples-redis --example fenced_store # starts a redis-server of its own
//! ```
//!
//! Alice acquires the lock, checks that she holds it, and then computes for a while. Meanwhile her network is cut, her
//! session ends, and Bob is granted the lock and writes. When Alice continues, she sends her write: no lock can prevent
//! that. The store can, because it has seen Bob's token, which is larger.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use portalock::redis::{RedisBackend, RedisSettings};
use portalock::{FencingToken, Lock, Policy};
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::RedisServer,
};

type Failure = Box<dyn Error + Send + Sync>;

/// The resource that the lock protects. It never accepts a smaller token.
#[derive(Default)]
struct Store(Mutex<Content>);

#[derive(Default)]
struct Content {
    newest: Option<FencingToken>,
    text: String,
}

impl Store {
    fn write(&self, token: FencingToken, text: &str) -> Result<(), FencingToken> {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The token is checked and kept in the same step as the write, like in one transaction of a database.
        if let Some(newest) = content.newest.filter(|newest| token < *newest) {
            return Err(newest);
        }
        content.newest = Some(token);
        text.clone_into(&mut content.text);
        Ok(())
    }

    fn read(&self) -> String {
        let content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        content.text.clone()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let server = RedisServer::start()?;
    let network = FaultProxy::start(server.addr())?;
    let store = Arc::new(Store::default());

    let (tell, asleep) = mpsc::channel();
    let (wake, woken) = mpsc::channel();
    let alice = {
        let (url, store) = (format!("redis://{}", network.addr()), store.clone());
        thread::spawn(move || alice(&url, &store, &tell, &woken))
    };
    asleep.recv()?;
    network.black_hole(Direction::Both);

    let redis = RedisBackend::with_settings(settings(&server.url())?).await?;
    let lock = Lock::new(redis, "examples/store")?.with_policy(Policy::forever());
    let guard = lock.acquire().await?;
    let token = guard.token().ok_or("Redis has tokens")?;
    match store.write(token, "written by bob") {
        Ok(()) => println!("bob holds the lock and writes, token {token}"),
        Err(newest) => return Err(format!("bob's {token} is not above {newest}").into()),
    }

    wake.send(())?;
    alice.join().map_err(|_| "alice panicked")??;
    println!("the store says: {}", store.read());
    guard.release().await?;
    Ok(())
}

/// A short session, so that the example ends soon; and no wait for a restarted server, because this server is new.
fn settings(url: &str) -> Result<RedisSettings, Failure> {
    let settings = RedisSettings::new(url)?.with_restart_wait(Duration::ZERO);
    Ok(settings.with_session_ttl(Duration::from_secs(2))?)
}

/// A program that computes between its last check of the lock and its write.
fn alice(
    url: &str,
    store: &Store,
    tell: &mpsc::Sender<()>,
    woken: &mpsc::Receiver<()>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let redis = RedisBackend::with_settings(settings(url)?).await?;
        let lock = Lock::new(redis, "examples/store")?;
        let guard = lock.acquire().await?;
        let token = guard.token().ok_or("Redis has tokens")?;
        guard.ensure_held()?;
        println!("alice holds the lock, token {token}, and computes");

        tell.send(())?;
        woken.recv()?;

        match store.write(token, "written by alice") {
            Ok(()) => return Err("alice overwrote what bob had written".into()),
            Err(newest) => {
                println!("alice goes on and writes: refused, {token} is older than {newest}");
            }
        }
        // Another check would have shown the loss. The store doesn't rely on that.
        match guard.ensure_held() {
            Err(lost) => println!("alice looks: {lost}"),
            Ok(()) => return Err("alice believes that she holds".into()),
        }
        Ok(())
    })
}
