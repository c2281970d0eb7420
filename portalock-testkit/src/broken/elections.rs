//! Backends that report wrong changes to observers of an election.

use async_trait::async_trait;
use portalock_core::{
    BackendError, Claim, HolderSender, HolderWatch, LockBackend, LockName, holder_watch,
};

use super::{Flaw, Sound, Specimen, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[
    specimen!(misses_a_term: MissesATerm,
        "tells observers of every second change only",
        "election::observers_see_every_term_in_order", "and an observer was told of"),
    specimen!(tells_terms_out_of_order: TellsTermsOutOfOrder,
        "tells observers of two changes in the wrong order",
        "election::observers_see_every_term_in_order", "and an observer was told of"),
    specimen!(tells_the_token_before: TellsTheTokenBefore,
        "tells observers of each leader with the token of the one before",
        "election::observers_see_every_term_in_order", "and an observer was told of"),
    specimen!(falls_silent: FallsSilent,
        "tells observers who leads when they begin, and nothing after that",
        "election::observers_see_every_term_in_order", "an observer's word of the last term did not happen"),
    specimen!(tells_nobody_of_an_end: TellsNobodyOfAnEnd,
        "tells observers of each leader, and never that nobody leads",
        "election::an_observer_hears_of_a_crash", "word that a crashed leader is gone did not happen"),
    specimen!(forgets_who_asks: ForgetsWhoAsks,
        "tells observers of holders without their labels",
        "election::a_step_down_is_heard", "the leader was asked by None"),
];

/// A watch that passes on what `tell` makes of each change.
async fn retold(
    sound: &Sound,
    name: &LockName,
    mut tell: impl FnMut(&HolderSender, Option<Claim>) + Send + 'static,
) -> Result<Option<HolderWatch>, BackendError> {
    let Some(mut true_watch) = LockBackend::watch(sound, name).await? else {
        return Ok(None);
    };
    let (sender, watch) = holder_watch();
    crate::spawn(async move {
        while let Some(change) = true_watch.next().await {
            if sender.is_closed() {
                return;
            }
            tell(&sender, change);
        }
    });
    Ok(Some(watch))
}

/// Tells observers of every second leader only.
#[derive(Debug, Default)]
pub struct MissesATerm;

#[async_trait]
impl Flaw for MissesATerm {
    async fn watch(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Option<HolderWatch>, BackendError> {
        let mut leaders = 0;
        retold(sound, name, move |sender, change| {
            leaders += u32::from(change.is_some());
            if change.is_none() || leaders % 2 == 1 {
                sender.tell(change);
            }
        })
        .await
    }
}

/// Tells observers of two changes in the wrong order.
#[derive(Debug, Default)]
pub struct TellsTermsOutOfOrder;

#[async_trait]
impl Flaw for TellsTermsOutOfOrder {
    async fn watch(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Option<HolderWatch>, BackendError> {
        let mut leaders = 0;
        let mut kept_back = None;
        retold(sound, name, move |sender, change| {
            leaders += u32::from(change.is_some());
            // The first leader is told of after the second.
            if leaders == 1 && change.is_some() {
                kept_back = change;
                return;
            }
            let is_second = leaders == 2 && change.is_some();
            sender.tell(change);
            if is_second {
                sender.tell(kept_back.take());
            }
        })
        .await
    }
}

/// Tells observers of each leader with the token of the one before.
#[derive(Debug, Default)]
pub struct TellsTheTokenBefore;

#[async_trait]
impl Flaw for TellsTheTokenBefore {
    async fn watch(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Option<HolderWatch>, BackendError> {
        let mut before = None;
        retold(sound, name, move |sender, change| {
            let change = change.map(|mut claim| {
                std::mem::swap(&mut claim.token, &mut before);
                claim
            });
            sender.tell(change);
        })
        .await
    }
}

/// Tells observers who leads when they begin, and nothing after that.
#[derive(Debug, Default)]
pub struct FallsSilent;

#[async_trait]
impl Flaw for FallsSilent {
    async fn watch(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Option<HolderWatch>, BackendError> {
        let mut is_first = true;
        retold(sound, name, move |sender, change| {
            if std::mem::take(&mut is_first) {
                sender.tell(change);
            }
        })
        .await
    }
}

/// Tells observers of each leader, and never that nobody leads.
#[derive(Debug, Default)]
pub struct TellsNobodyOfAnEnd;

#[async_trait]
impl Flaw for TellsNobodyOfAnEnd {
    async fn watch(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Option<HolderWatch>, BackendError> {
        retold(sound, name, |sender, change| {
            if change.is_some() {
                sender.tell(change);
            }
        })
        .await
    }
}

/// Tells observers of holders without their labels.
#[derive(Debug, Default)]
pub struct ForgetsWhoAsks;

#[async_trait]
impl Flaw for ForgetsWhoAsks {
    async fn watch(
        &self,
        sound: &Sound,
        name: &LockName,
    ) -> Result<Option<HolderWatch>, BackendError> {
        retold(sound, name, |sender, change| {
            let change = change.map(|mut claim| {
                claim.holder.label = None;
                claim
            });
            sender.tell(change);
        })
        .await
    }
}
