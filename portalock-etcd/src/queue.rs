//! Taking a place in a queue, and giving it up. How it is looked at see [`look`](crate::look). Each is one transaction.
//!
//! The order of a queue is the order in which its keys were created, and a key's create revision is its request's fencing
//! token. A request holds when nobody before it is in its way; that is a matter of the queue alone, so a grant needs no
//! write. Keys before one's own can only go, so who holds once goes on holding.
//!
//! To take a place is to put a key and to count those that could be in its way: etcd counts without reading them. Only who is
//! not alone looks who they are, in a transaction that reads and nothing else. Those etcd answers beside its log, while a
//! long queue read in a transaction that writes would hold up everyone.
//!
//! A place is taken under a condition on the session's own key: that it is as this client last knew it. So a place can only be
//! taken while the session lives, and a request whose answer never came can be stopped from taking effect later, by
//! modifying that key. It is given up under the condition that it is the very place that is meant, by its value: so that a
//! late deletion can't take away the place of who uses the key next (see [`numbers`](crate::numbers)).

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, SortOrder, SortTarget,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use portalock_core::{BackendError, BackendErrorKind, Holder, session::Answered};

use crate::{
    keys::Rule,
    look::Standing,
    place::Place,
    record::{decode, foreign},
    session::SessionLease,
};

const ENTERING: &str = "take a place in the queue";
const RELEASING: &str = "release";

impl Place {
    /// Takes the last place in the queue, or finds that it was taken; `only_if_free`: unless somebody is in the way. `None` if it was
    /// taken and how it stands is to be looked at, or if the session's key was modified meanwhile.
    pub(crate) async fn enter(
        &self,
        session: &SessionLease,
        only_if_free: bool,
    ) -> Result<Answered<Option<Standing>>, BackendError> {
        let (key, known) = (&*self.key, session.known());
        let mut conditions = vec![
            Compare::create_revision(key, CompareOp::Equal, 0),
            Compare::mod_revision(session.key(), CompareOp::Equal, known),
        ];
        if only_if_free {
            // A missing key has create revision 0.
            let free = Compare::create_revision(self.queue.in_the_way(), CompareOp::Less, 1);
            conditions.push(free.with_prefix());
        }
        let options = PutOptions::new().with_lease(session.id());
        let put = TxnOp::put(key, self.value.as_slice(), Some(options));
        let count = GetOptions::new().with_prefix().with_count_only();
        let transaction = Txn::new()
            .when(conditions)
            .and_then([put, TxnOp::get(self.queue.in_the_way(), Some(count))])
            // Why it was not taken, and who holds.
            .or_else([TxnOp::get(key, None), session.own(), self.first()]);
        let Answered { value, repeated } = session.server.transact(ENTERING, transaction).await?;
        let value = if value.succeeded() {
            self.taken_by(&value)?
        } else {
            self.not_taken_by(&value, session, known)?
        };
        Ok(Answered { value, repeated })
    }

    fn taken_by(&self, answer: &TxnResponse) -> Result<Option<Standing>, BackendError> {
        // What was put has the transaction's revision; what it counts it counts after the put.
        let at = revision(answer);
        self.was_taken(at);
        let alone = match &self.queue.rule {
            Rule::Shared { .. } => 0,
            // Its own.
            Rule::Exclusive | Rule::Permits(_) => 1,
        };
        match answer.op_responses().get(1) {
            Some(TxnOpResponse::Get(counted)) => {
                Ok((counted.count() == alone).then_some(Standing::Granted(at)))
            }
            _ => Err(not_understood()),
        }
    }

    fn not_taken_by(
        &self,
        answer: &TxnResponse,
        session: &SessionLease,
        known: i64,
    ) -> Result<Option<Standing>, BackendError> {
        let ranges = ranges(answer);
        let [own, lives, first] = ranges.as_slice() else {
            return Err(not_understood());
        };
        let Some(lives) = lives.first() else {
            return Ok(Some(Standing::Ended));
        };
        session.key_modified(lives.mod_revision());
        match own.first() {
            // By an earlier try, whose answer never came.
            Some(own) if own.value() == self.value => {
                self.was_taken(own.create_revision());
                Ok(None)
            }
            // Nobody of this session uses the key but this place.
            Some(own) => Err(foreign(own.key())),
            None if lives.mod_revision() == known => Ok(Some(Standing::Refused(holder(first)))),
            None => Ok(None),
        }
    }

    /// Gives up the place. True if there was one.
    pub(crate) async fn withdraw(
        &self,
        session: &SessionLease,
    ) -> Result<Answered<bool>, BackendError> {
        let answer = session.server.transact(RELEASING, self.delete()).await?;
        Ok(Answered {
            value: answer.value.succeeded(),
            repeated: answer.repeated,
        })
    }

    /// As [`withdraw`](Self::withdraw), and sees to it that no earlier request of this session for a place takes effect any more,
    /// should it still be on its way. A full store takes neither this nor, for now, a late place.
    pub(crate) async fn withdraw_for_good(
        &self,
        session: &SessionLease,
    ) -> Result<(), BackendError> {
        let options = PutOptions::new().with_lease(session.id());
        let transaction = Txn::new()
            // Without the session's key no place can be taken in it.
            .when([Compare::create_revision(
                session.key(),
                CompareOp::Greater,
                0,
            )])
            .and_then([
                TxnOp::txn(self.delete()),
                TxnOp::put(session.key(), "", Some(options)),
            ]);
        let answer = session.server.transact(RELEASING, transaction).await?;
        if answer.value.succeeded() {
            session.key_modified(revision(&answer.value));
        }
        Ok(())
    }

    /// Deletes the key, if it is this place's.
    fn delete(&self) -> Txn {
        let key = &*self.key;
        Txn::new()
            .when([Compare::value(key, CompareOp::Equal, self.value.as_slice())])
            .and_then([TxnOp::delete(key, None)])
    }

    /// Asks for the first of the queue, who holds.
    pub(crate) fn first(&self) -> TxnOp {
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        TxnOp::get(self.queue.keys.as_str(), Some(options))
    }
}

pub(crate) fn holder(first: &[KeyValue]) -> Option<Holder> {
    Some(decode(first.first()?.value())?.holder)
}

pub(crate) fn revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, ResponseHeader::revision)
}

pub(crate) fn ranges(answer: &TxnResponse) -> Vec<Vec<KeyValue>> {
    answer
        .op_responses()
        .into_iter()
        .map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs(),
            _ => Vec::new(),
        })
        .collect()
}

pub(crate) fn not_understood() -> BackendError {
    BackendError::new(
        BackendErrorKind::Unsupported,
        "the server's answer to a transaction has other parts than were asked for: it is no etcd",
    )
}
