//! A server whose clock is set. It runs with a library that adds a number of seconds to the system's clock.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use portalock_core::Loss;
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::servers::{Program, ServerProcess};
use tokio::time::timeout;

use crate::fixture::{ENOUGH, granted, lock, settings_at, waiting};

/// The loader puts this before the C library. `SHIFT` names a file with the number.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    static const long *seconds;
    if (!seconds) seconds = mmap(0, sizeof *seconds, PROT_READ, MAP_SHARED, open(getenv("SHIFT"), O_RDONLY), 0);
    return *seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}
"#;

const PROGRAM: Program = Program {
    name: "env",
    install: "it is a part of every system",
    ready_line: "eady to accept connections",
};

/// Short enough for a test to wait for it, and long enough for a loaded machine to be in time.
const SESSION: Duration = Duration::from_secs(2);

struct Server {
    _process: ServerProcess,
    url: String,
    shift: PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let library = build(dir.path());
        let shift = dir.path().join("shift");
        fs::write(&shift, 0_i64.to_ne_bytes()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let arguments = [
            format!("LD_PRELOAD={}", library.display()),
            format!("SHIFT={}", shift.display()),
            "redis-server".to_owned(),
            format!(
                "--port {port} --bind 127.0.0.1 --dir {}",
                dir.path().display()
            ),
        ];
        let words = arguments.iter().flat_map(|words| words.split(' '));
        Self {
            _process: ServerProcess::start(&PROGRAM, words.chain(["--save", ""])).unwrap(),
            url: format!("redis://127.0.0.1:{port}"),
            shift,
            _dir: dir,
        }
    }

    /// Sets the clock: to this number of seconds after the system's.
    fn set(&self, seconds: i64) {
        // In place, because the server has mapped the file.
        let file = fs::File::options().write(true).open(&self.shift).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0).unwrap();
    }

    fn settings(&self) -> RedisSettings {
        settings_at(&self.url).with_session_ttl(SESSION).unwrap()
    }

    async fn client(&self) -> RedisBackend {
        RedisBackend::with_settings(self.settings()).await.unwrap()
    }
}

fn build(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    fs::write(&source, LIBRARY).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source);
    let built = cc
        .status()
        .expect("install a C compiler, such as by `apt install gcc`");
    assert!(built.success());
    library
}

#[tokio::test]
async fn a_clock_that_jumps_forward_ends_all_sessions_and_the_holders_learn_it() {
    let server = Server::start();
    let (holder, other) = (server.client().await, server.client().await);
    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = waiting(&other, "a").await;
    server.set(3600);
    // The server tells it, before the time by its own clock is over.
    let loss = timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(matches!(loss, Loss::SessionEnded(_)), "{loss}");
    let next = granted(waiter).await;
    assert!(next.token() > held.token());
}

#[tokio::test]
async fn a_clock_that_is_set_back_loses_nothing_and_lets_no_token_fall() {
    let server = Server::start();
    server.set(3600);
    let (holder, other) = (server.client().await, server.client().await);
    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = waiting(&other, "a").await;
    server.set(0);
    tokio::time::sleep(SESSION * 3 / 2).await;
    held.ensure_held().unwrap();
    assert!(!waiter.is_finished());
    let token = held.token();
    held.release().await.unwrap();
    let next = granted(waiter).await;
    assert!(next.token() > token);
}
