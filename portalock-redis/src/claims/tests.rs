use super::*;
use crate::keys::Kind;
use futures_util::FutureExt as _;
use portalock_core::{BackendErrorKind, LockName, Wake};

fn claims() -> (Claims, OwnerId, Arc<str>) {
    let (claims, owner, session) = (Claims::default(), OwnerId::mint(), "session".into());
    claims.expect(owner, &session, &named(), 1);
    (claims, owner, session)
}

fn named() -> Named {
    Named {
        kind: Kind::Lock,
        name: LockName::new("name").unwrap(),
    }
}

fn token() -> FencingToken {
    FencingToken::new(7)
}

#[tokio::test]
async fn a_grant_that_comes_before_the_waiter_listens_is_kept() {
    let (claims, owner, _) = claims();
    claims.granted(owner, token(), &LostSignal::never());
    let mut line = claims.listen(owner).unwrap();
    let Wake::Granted(grant) = line.next().await else {
        panic!("there should be a grant");
    };
    assert_eq!(grant.token, Some(token()));
    assert!(claims.take_unheard(owner).is_none());
}

#[tokio::test]
async fn after_a_gap_those_who_wait_look_and_those_who_do_not_listen_yet_will() {
    let (claims, owner, session) = claims();
    let other = OwnerId::mint();
    claims.expect(other, &session, &named(), 1);
    let mut line = claims.listen(owner).unwrap();
    claims.look_again(&session);
    assert!(matches!(line.next().await, Wake::TryNow));
    let mut late = claims.listen(other).unwrap();
    assert!(matches!(late.next().await, Wake::TryNow));
}

/// What has been told on `line` by now.
fn told(line: &mut Wakeups) -> Option<Wake> {
    line.next().now_or_never()
}

#[test]
fn a_grant_goes_to_one_who_asks_before_it_listens() {
    let (claims, owner, _) = claims();
    claims.granted(owner, token(), &LostSignal::never());
    let grant = claims.take_unheard(owner).unwrap();
    assert_eq!(grant.token, Some(token()));
    assert!(claims.take_unheard(owner).is_none());
}

#[test]
fn after_a_gap_holders_and_other_sessions_are_left_alone() {
    let (claims, owner, session) = claims();
    let mut holder = claims.listen(owner).unwrap();
    claims.hold(owner, token(), &LostSignal::never());
    let other = OwnerId::mint();
    claims.expect(other, &"another session".into(), &named(), 1);
    let mut elsewhere = claims.listen(other).unwrap();
    claims.look_again(&session);
    assert!(told(&mut holder).is_none() && told(&mut elsewhere).is_none());
}

#[test]
fn the_last_in_line_looks_unless_it_holds() {
    let (claims, owner, _) = claims();
    let mut line = claims.listen(owner).unwrap();
    claims.last(owner);
    assert!(matches!(told(&mut line), Some(Wake::TryNow)));
    claims.hold(owner, token(), &LostSignal::never());
    claims.last(owner);
    assert!(told(&mut line).is_none());
}

#[test]
fn a_failure_is_told_to_its_waiter_alone() {
    let (claims, owner, session) = claims();
    let other = OwnerId::mint();
    claims.expect(other, &session, &named(), 1);
    let mut line = claims.listen(owner).unwrap();
    let mut others = claims.listen(other).unwrap();
    let error = BackendError::new(BackendErrorKind::Unavailable, "no replica");
    claims.failed(owner, error);
    assert!(matches!(told(&mut line), Some(Wake::Failed(_))));
    assert!(told(&mut others).is_none());
}

#[test]
fn a_forgotten_claim_is_no_more_of_its_session() {
    let (claims, owner, session) = claims();
    let found = claims.of_session(&session);
    assert_eq!(
        found.iter().map(|(owner, _)| *owner).collect::<Vec<_>>(),
        [owner]
    );
    assert!(claims.of_session("another session").is_empty());
    claims.forget(owner);
    assert!(claims.of_session(&session).is_empty());
}

#[test]
fn an_unanswered_request_may_arrive_until_the_session_has_a_later_stamp() {
    let (claims, owner, session) = claims();
    assert!(claims.may_arrive(owner, &session, 1));
    // Another that is answered says nothing of the first.
    let before = claims.expect(owner, &session, &named(), 1);
    claims.answered(owner, before);
    assert!(claims.may_arrive(owner, &session, 1));
    assert!(!claims.may_arrive(owner, &session, 2));

    let other = OwnerId::mint();
    let before = claims.expect(other, &session, &named(), 1);
    claims.answered(other, before);
    assert!(!claims.may_arrive(other, &session, 1));
}

#[tokio::test]
async fn a_session_takes_its_claims_along_and_no_others() {
    let (claims, owner, session) = claims();
    let other = OwnerId::mint();
    claims.expect(other, &"another session".into(), &named(), 1);
    let mut line = claims.listen(owner).unwrap();
    let error = BackendError::new(BackendErrorKind::SessionEnded, "over");
    claims.session_ended(&session, &error);
    assert!(matches!(line.next().await, Wake::Failed(_)));
    assert!(claims.listen(owner).is_none());
    assert!(claims.listen(other).is_some());
}

#[test]
fn a_claim_that_is_broken_before_its_grant_is_heard_is_lost_with_it() {
    let loss = Loss::Removed("broken".into());
    for heard_first in [true, false] {
        let (claims, owner, _) = claims();
        let mut grant = None;
        if heard_first {
            grant = Some(claims.hold(owner, token(), &LostSignal::never()));
        }
        assert_eq!(claims.broken(owner, &loss), Some(named()));
        let grant = grant.unwrap_or_else(|| claims.hold(owner, token(), &LostSignal::never()));
        assert_eq!(grant.lost.loss(), Some(loss.clone()));
    }
    let (claims, _, _) = claims();
    assert_eq!(claims.broken(OwnerId::mint(), &loss), None);
}

#[test]
fn a_removed_claim_is_lost_unless_it_is_being_released() {
    let (claims, owner, session) = claims();
    let grant = claims.hold(owner, token(), &LostSignal::never());
    assert_eq!(claims.held_by(&session).len(), 1);
    let releasing = claims.releasing(owner);
    assert!(claims.held_by(&session).is_empty());
    claims.removed(owner);
    assert!(!grant.lost.is_lost());
    assert!(claims.due(&session).is_empty());
    drop(releasing);
    assert_eq!(claims.due(&session).len(), 1);
    claims.releasing(owner).done();
    assert!(claims.due(&session).is_empty());

    let (claims, owner, _) = self::claims();
    let grant = claims.hold(owner, token(), &LostSignal::never());
    claims.removed(owner);
    assert!(grant.lost.is_lost());
}
