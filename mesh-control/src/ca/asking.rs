//! [`Asking`]: whose tokens the cluster is asked about, and who waits for whom. Anybody may send what looks like a token.
//!
//! ```text
//! with a certificate     its identity's line ─▶ members' places
//! without                its address's line  ─▶ strangers' places     full lines refuse at once
//! ```
//!
//! Refuses to know tokens.

use std::future::Future;
use std::net::IpAddr;

use mesh_core::id::SpiffeId;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::runtime::{Peer, Shares, holder};

/// Questions at once for those with a certificate, and as many for those without.
const PLACES: usize = 32;
/// Of these for one identity or address.
const OF_ONE: usize = 8;
/// Requests without a certificate that may ask or wait.
const WAITING: usize = 1_000;
/// Of these from one address: many may come through one address translator.
const WAITING_OF_ONE: usize = 64;

/// The places of both.
#[derive(Debug)]
pub(super) struct Asking {
    members: Semaphore,
    of_identity: Shares<SpiffeId>,
    strangers: Semaphore,
    of_address: Shares<IpAddr>,
    waiting: Semaphore,
    waiting_of_address: Shares<IpAddr>,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            members: Semaphore::new(PLACES),
            of_identity: Shares::new(OF_ONE),
            strangers: Semaphore::new(PLACES),
            of_address: Shares::new(OF_ONE),
            waiting: Semaphore::new(WAITING),
            waiting_of_address: Shares::new(WAITING_OF_ONE),
        }
    }
}

impl Asking {
    /// Asks `question` for `peer` when it is its turn.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if it has no certificate and too many such wait.
    pub(super) async fn ask<T>(&self, peer: &Peer, question: impl Future<Output = T>) -> Result<T, Status> {
        // Nobody closes a semaphore: each of these is a place.
        if let Some(id) = peer.caller.identity() {
            let _own = self.of_identity.wait(Some(id.clone())).await;
            let _place = self.members.acquire().await;
            return Ok(question.await);
        }
        let many = || Status::resource_exhausted("many ask for a certificate without having one; try again later");
        let address = holder(peer.address.ip());
        let _waiting_of_address = self.waiting_of_address.enter(address).ok_or_else(many)?;
        let _waiting = self.waiting.try_acquire().map_err(|_| many())?;
        let _own = self.of_address.wait(address).await;
        let _place = self.strangers.acquire().await;
        Ok(question.await)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tonic::Code;

    use super::*;
    use crate::runtime::Caller;

    fn stranger(from: [u8; 4]) -> Peer {
        Peer { address: (from, 1).into(), caller: Caller::Anonymous, joined: false }
    }

    fn member(account: &str) -> Peer {
        let id = format!("spiffe://cluster.local/ns/default/sa/{account}");
        Peer { address: ([192, 0, 2, 1], 1).into(), caller: Caller::Workload(id.parse().unwrap()), joined: false }
    }

    /// Questions of a peer that are never answered; whoever asks more gets its refusal.
    fn hang<'a>(asking: &'a Asking, peer: &'a Peer, count: usize) -> Vec<BoxFuture<'a, Result<(), Status>>> {
        let mut questions: Vec<_> = (0..count).map(|_| asking.ask(peer, pending()).boxed()).collect();
        assert!(questions.iter_mut().all(|question| question.now_or_never().is_none()));
        questions
    }

    /// How a question is answered at once; `None` = it waits.
    fn at_once(asking: &Asking, peer: &Peer) -> Option<Result<(), Code>> {
        asking.ask(peer, ready(())).now_or_never().map(|answer| answer.map_err(|status| status.code()))
    }

    #[test]
    fn who_has_a_certificate_waits_for_no_stranger_and_strangers_of_an_address_for_each_other() {
        let asking = Asking::default();
        let strangers: Vec<_> = (1..=4).map(|last| stranger([192, 0, 2, last])).collect();
        let mut hanging = hang(&asking, &strangers[0], OF_ONE);
        assert_eq!(at_once(&asking, &strangers[0]), None);
        assert_eq!(at_once(&asking, &strangers[1]), Some(Ok(())), "another address");
        hanging.extend(hang(&asking, &strangers[0], WAITING_OF_ONE - OF_ONE));
        assert_eq!(at_once(&asking, &strangers[0]), Some(Err(Code::ResourceExhausted)));
        // Four of them have all the places.
        strangers[1..].iter().for_each(|stranger| hanging.extend(hang(&asking, stranger, OF_ONE)));
        let late = stranger([198, 51, 100, 1]);
        assert_eq!((at_once(&asking, &late), at_once(&asking, &member("a"))), (None, Some(Ok(()))));
        drop(hanging);
        assert_eq!(at_once(&asking, &late), Some(Ok(())), "the control: there is room again");
    }

    #[test]
    fn a_member_with_many_questions_is_in_the_way_of_itself() {
        let asking = Asking::default();
        let (greedy, other) = (member("greedy"), member("other"));
        // Members wait; they are not refused.
        let hanging = hang(&asking, &greedy, WAITING_OF_ONE + 1);
        assert_eq!((at_once(&asking, &greedy), at_once(&asking, &other)), (None, Some(Ok(()))));
        drop(hanging);
        assert_eq!(at_once(&asking, &greedy), Some(Ok(())));
    }

    #[test]
    fn strangers_of_many_addresses_do_not_queue_without_end() {
        let asking = Asking::default();
        let strangers: Vec<_> = (0..WAITING).map(|n| stranger([10, 0, (n / 250) as u8, (n % 250) as u8])).collect();
        let hanging: Vec<_> = strangers.iter().flat_map(|stranger| hang(&asking, stranger, 1)).collect();
        let late = stranger([198, 51, 100, 1]);
        assert_eq!(at_once(&asking, &late), Some(Err(Code::ResourceExhausted)));
        drop(hanging);
        assert_eq!(at_once(&asking, &late), Some(Ok(())));
    }
}
