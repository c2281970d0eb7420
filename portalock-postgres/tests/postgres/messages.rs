//! The messages that the functions send to sessions.

use std::sync::{Arc, Mutex};

use futures_util::future::poll_fn;
use portalock_postgres::tokio_postgres::{self, AsyncMessage, Client, NoTls};

use crate::{
    steps::{acquire, release, run, with_sessions},
    support::{Server, until},
};

/// A connection that listens for sessions, and what it has heard: the session and the text.
struct Listener {
    client: Client,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    async fn of(server: &Server, sessions: &[&str]) -> Self {
        let (client, mut connection) = tokio_postgres::connect(&server.url, NoTls).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let told = heard.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(message) = message {
                    let text = format!("{}: {}", message.channel(), message.payload());
                    told.lock().unwrap().push(text.replace("portalock_", ""));
                }
            }
        });
        for session in sessions {
            let listen = format!("LISTEN \"portalock_{session}\"");
            client.batch_execute(&listen).await.unwrap();
        }
        Self { client, heard }
    }

    /// Compares what was heard since the last call. Tokens and times are left out: they differ from run to run.
    async fn heard(&self, expected: &[&str]) {
        let end = "NOTIFY portalock_s, 'end'";
        self.client.batch_execute(end).await.unwrap();
        until("the last message has arrived", async || {
            let heard = self.heard.lock().unwrap();
            heard.last().is_some_and(|last| last == "s: end")
        })
        .await;
        let mut heard = std::mem::take(&mut *self.heard.lock().unwrap());
        heard.pop();
        for text in &mut heard {
            let words = text
                .split(' ')
                .filter(|word| word.parse::<i64>().is_ok_and(|number| number > 1000));
            let numbers: Vec<_> = words.map(str::to_owned).collect();
            for number in numbers {
                *text = text.replace(&format!(" {number}"), "");
            }
        }
        assert_eq!(heard, expected);
    }
}

/// Waiters and observers are told what happens, each once. An owner that gets its grant as an answer gets no message.
#[tokio::test]
async fn waiters_and_observers_are_told() {
    let (server, admin) = with_sessions().await;
    let listener = Listener::of(&server, &["s", "t", "u"]).await;
    let observe = "SELECT portalock.observe('u', 7, 'lock', 'a')::text";
    // Nothing happens to these.
    run(
        &admin,
        &[
            (
                "SELECT portalock.observe('t', 8, 'semaphore', 'a')::text",
                "true",
            ),
            (
                "SELECT portalock.observe('t', 9, 'lock', 'b')::text",
                "true",
            ),
        ],
    )
    .await;
    listener
        .heard(&["t: holder 8 other-1 other", "t: holder 9 other-3 other"])
        .await;
    run(
        &admin,
        &[(observe, "true"), (&acquire("s", "o", 10), "granted")],
    )
    .await;
    listener.heard(&["u: holder 7", "u: holder 7 o o"]).await;

    let waiters = [acquire("t", "p", 10), acquire("s", "q", 10)];
    run(&admin, &waiters.each_ref().map(|sql| (&**sql, "queued o"))).await;
    listener.heard(&[]).await;

    let breaks = "SELECT portalock.break_claim('lock', 'a', 'o', 'by')::text";
    run(&admin, &[(breaks, "3600000")]).await;
    listener.heard(&["s: broken"]).await;

    run(&admin, &[(&release("s", "o"), "true")]).await;
    listener.heard(&["t: p", "u: holder 7 p p"]).await;

    let evict = "SELECT portalock.evict('lock', 'a', 'p')::text";
    run(&admin, &[(evict, "true")]).await;
    listener.heard(&["s: q", "u: holder 7 q q"]).await;

    // A person removes the holder, and the waiter's own attempt grants it the lock.
    let removes = "UPDATE portalock.names SET owner = NULL WHERE name = 'a' AND kind = 'lock' RETURNING 'removed'";
    run(
        &admin,
        &[
            (&acquire("t", "p", 10), "queued q"),
            (removes, "removed"),
            (&acquire("t", "p", 10), "granted"),
        ],
    )
    .await;
    listener.heard(&["u: holder 7 p p"]).await;

    let leaves =
        "SELECT freed || ' ' || epoch FROM portalock.release_for_good('t', 'lock', 'a', 'p')";
    run(
        &admin,
        &[
            (leaves, "true 1"),
            ("SELECT portalock.stop_observing('u', 7)::text", ""),
            (&acquire("s", "o", 10), "granted"),
        ],
    )
    .await;
    listener.heard(&["u: holder 7"]).await;
}
