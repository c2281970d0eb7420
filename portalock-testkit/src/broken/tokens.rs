//! Fencing tokens that would let an old holder write after a new one.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, FencingToken, Grant, LockBackend, LockRequest, Mode,
    Tokens,
};

use super::{Flaw, Sound, Specimen, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(token_repeats: TokenRepeats,
        "takes its tokens from a clock of whole seconds",
        "tokens::grow_between_clients", "was granted with token"),
    specimen!(token_falls: TokenFalls,
        "starts counting its tokens anew when a client closes",
        "tokens::grow_when_the_name_was_forgotten", "was granted with token"),
    specimen!(token_falls_after_a_restart: TokenFallsAfterARestart,
        "starts counting its tokens anew when it is restarted",
        "tokens::grow_across_a_restart", "was granted with token"),
    specimen!(token_is_not_claimed: TokenIsNotClaimed,
        "claims no tokens and gives some",
        "tokens::absent_unless_claimed", "though the backend claims no tokens", NoTokens),
    specimen!(token_is_missing: TokenIsMissing,
        "claims tokens and gives none",
        "tokens::grow_between_clients", "was granted without a token"),
    specimen!(readers_have_one_token: ReadersHaveOneToken,
        "grants readers with a token that is always the same",
        "tokens::grow_in_shared_mode", "a reader beside another was granted with token"),
];

/// The same attempt, with another token if it was granted.
fn with_token(attempt: Attempt, change: impl FnOnce(u64) -> u64) -> Attempt {
    match attempt {
        Attempt::Granted(grant) => {
            let token = change(grant.token.map_or(0, FencingToken::get));
            Attempt::Granted(grant.with_token(FencingToken::new(token)))
        }
        contended @ Attempt::Contended(_) => contended,
    }
}

fn without_token(attempt: Attempt) -> Attempt {
    match attempt {
        Attempt::Granted(grant) => Attempt::Granted(Grant::new().with_lost(grant.lost)),
        contended @ Attempt::Contended(_) => contended,
    }
}

/// Takes its tokens from a clock of whole seconds.
#[derive(Debug, Default)]
pub struct TokenRepeats;

#[async_trait]
impl Flaw for TokenRepeats {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        Ok(with_token(attempt, |micros| micros / 1_000_000))
    }
}

/// A counter that can be reset.
#[derive(Debug, Default)]
struct Count {
    last: AtomicU64,
    start: AtomicU64,
}

impl Count {
    fn number(&self, token: u64) -> u64 {
        self.last.fetch_max(token, Ordering::SeqCst);
        token - self.start.load(Ordering::SeqCst)
    }

    fn start_anew(&self) {
        self.start
            .store(self.last.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// Resets the counter of its tokens when a client closes.
#[derive(Debug, Default)]
pub struct TokenFalls(Count);

#[async_trait]
impl Flaw for TokenFalls {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        Ok(with_token(attempt, |token| self.0.number(token)))
    }

    async fn close(&self, sound: &Sound) -> Result<(), BackendError> {
        self.0.start_anew();
        LockBackend::close(sound).await
    }
}

/// Resets the counter of its tokens when it is restarted.
#[derive(Debug, Default)]
pub struct TokenFallsAfterARestart(Count);

#[async_trait]
impl Flaw for TokenFallsAfterARestart {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        Ok(with_token(attempt, |token| self.0.number(token)))
    }

    async fn restart(&self, _: &Sound) {
        self.0.start_anew();
    }
}

/// Claims no tokens and gives some.
#[derive(Debug, Default)]
pub struct TokenIsNotClaimed;

impl Flaw for TokenIsNotClaimed {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_tokens(Tokens::None)
    }
}

/// Claims no tokens and gives none: no flaw, but what [`TokenIsNotClaimed`] should be.
#[derive(Debug, Default)]
pub struct NoTokens;

#[async_trait]
impl Flaw for NoTokens {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_tokens(Tokens::None)
    }

    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(without_token(
            LockBackend::try_acquire(sound, request).await?,
        ))
    }
}

/// Claims tokens and gives none.
#[derive(Debug, Default)]
pub struct TokenIsMissing;

#[async_trait]
impl Flaw for TokenIsMissing {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(without_token(
            LockBackend::try_acquire(sound, request).await?,
        ))
    }
}

/// Grants readers with a token that is always the same.
#[derive(Debug, Default)]
pub struct ReadersHaveOneToken;

#[async_trait]
impl Flaw for ReadersHaveOneToken {
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        if request.demand == Mode::Shared {
            return Ok(with_token(attempt, |_| 1));
        }
        Ok(attempt)
    }
}
