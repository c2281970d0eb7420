//! Fencing tokens: each is larger than the last, whatever happens to the file.

use portalock_core::{FencingToken, LockBackend, Mode, Released};

use crate::support::{Locks, lock, try_once};

#[tokio::test]
async fn shared_holders_are_together_and_each_has_a_token_of_its_own() {
    let locks = Locks::new();
    let clients: Vec<_> = (0..4).map(|_| locks.client()).collect();
    let mut last = None;
    for round in 0..3 {
        let mut held = Vec::new();
        for client in clients.iter().chain(&clients) {
            let (request, grant) = try_once(client, "a", Mode::Shared).await.unwrap();
            assert!(grant.token > last, "round {round}");
            last = grant.token;
            held.push((client, request));
        }
        assert!(try_once(&clients[0], "a", Mode::Exclusive).await.is_none());
        for (client, request) in held {
            assert_eq!(client.release(&request).await.unwrap(), Released::Freed);
        }
        let (request, grant) = try_once(&clients[0], "a", Mode::Exclusive).await.unwrap();
        assert!(grant.token > last);
        last = grant.token;
        clients[0].release(&request).await.unwrap();
    }
}

#[test]
fn shared_tokens_drawn_at_once_never_meet() {
    let locks = Locks::new();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = locks.client();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build();
                runtime.unwrap().block_on(async {
                    let mut tokens = Vec::new();
                    for _ in 0..200 {
                        let guard = lock(&client, "a").acquire_shared().await.unwrap();
                        tokens.push(guard.token().unwrap());
                    }
                    assert!(tokens.is_sorted(), "a client's own tokens fell");
                    tokens
                })
            })
        })
        .collect();
    let mut tokens: Vec<FencingToken> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    let all = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), all, "two grants with one token");
}

#[tokio::test]
async fn tokens_grow_over_a_removed_file_and_a_torn_record() {
    let locks = Locks::new();
    let client = locks.client();
    let draw = async || {
        let guard = lock(&client, "a").acquire().await.unwrap();
        let token = guard.token();
        guard.release().await.unwrap();
        token
    };
    let mut last = draw().await;
    for damage in 0..6 {
        let file = locks.record("a");
        let mut bytes = std::fs::read(&file).unwrap();
        match damage {
            0 => std::fs::remove_file(&file).unwrap(),
            1 => std::fs::write(&file, "").unwrap(),
            2 => std::fs::write(&file, [0; 512]).unwrap(),
            torn => {
                for byte in bytes.iter_mut().skip(100 * torn).take(200) {
                    *byte = b'?';
                }
                std::fs::write(&file, bytes).unwrap();
            }
        }
        let next = draw().await;
        assert!(next > last, "damage {damage}");
        last = next;
    }
}

#[tokio::test]
async fn a_clock_set_back_does_not_lower_a_token() {
    let locks = Locks::new();
    let client = locks.client();
    drop(lock(&client, "a").acquire().await.unwrap());
    // As if the last grant had been made by a clock that was a century ahead.
    let file = locks.record("a");
    let text = String::from_utf8(std::fs::read(&file).unwrap()).unwrap();
    let line = text.lines().next().unwrap();
    let body = &line["portalock 1 ".len() + 17..];
    let ahead = 4_900_000_000_000_000_u64;
    let body = format!("{ahead:020}{}", &body[20..]);
    let sum = body
        .as_bytes()
        .chunks(8)
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
            mixed ^ (mixed >> 32)
        });
    std::fs::write(&file, format!("portalock 1 {sum:016x} {body}\n")).unwrap();
    for grant in 1..5 {
        let guard = lock(&client, "a").acquire().await.unwrap();
        assert_eq!(guard.token(), Some(FencingToken::new(ahead + grant)));
    }
}
