//! Pick first's connections (gRFC A61): while the endpoint in use does not answer, the next ones of the list are connected to
//! as well, each a quarter of a second after the one before, and whichever stands first has the request.
//!
//! Refuses to know what happens to a request whose endpoint was passed over.

use std::io;
use std::sync::Arc;

use mesh_core::balance::Pick;
use mesh_core::policy::Balancer;
use mesh_core::race::{ATTEMPT_DELAY, first_of};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use super::attempt::{Again, Failed, Shared};
use super::exchange::Hold;
use super::warm;
use crate::connect::{Lease, Needs};
use crate::error::Cause;

/// Endpoints of a list that are connected to beside the first.
const MAX_BESIDE: usize = 8;

impl Shared<'_> {
    /// Whether the endpoints of the cluster stand for one another, and the first that answers is used. Not where a session
    /// names one, nor where connections are limited: who waits for room would have others dialled, and lose its place.
    pub(super) fn picks_first(&self) -> bool {
        let room = self.cluster.admission().room(self.high_priority);
        matches!(self.cluster.policy().balancer.leaf(), Balancer::PickFirst { .. })
            && self.members.ready.len() > 1
            && self.session.address().is_none()
            && room.of_cluster.is_none()
            && room.of_endpoint.is_none()
    }

    /// A connection to the endpoint of this try.
    ///
    /// # Errors
    /// Another one of the list stood first: the request goes there, and so do those that come after it.
    pub(super) async fn first_of_list(&self, hold: &mut Hold, needs: Needs) -> Result<Result<Lease, Cause>, Failed> {
        let began = hold.attempt.started();
        let (pool, permit) = (hold.endpoint.pool(), &hold.permit);
        let passed = {
            let own = permit.connection(pool, needs, hold.fresh, began, hold.attempt.waits_at());
            tokio::select! {
                biased;
                lease = own => return Ok(lease),
                () = self.another(hold.index, needs) => began.elapsed(),
            }
        };
        if hold.attempt.waits_at().is_some() {
            // It answers, and has no room.
            return Ok(permit.connection(pool, needs, hold.fresh, began, hold.attempt.waits_at()).await);
        }
        hold.attempt.connected(false);
        hold.attempt.not_sent();
        let text = format!("nothing after {} ms, and another endpoint of the list answered", passed.as_millis());
        let source = io::Error::new(io::ErrorKind::TimedOut, text);
        let cause = Cause::ConnectFailed { address: hold.endpoint.address().clone(), source: Arc::new(source) };
        Err(Failed { cause, again: Some(Again::Unreached(hold.index)) })
    }

    /// Ends when one of the list's next has a connection. Those before it are passed over from now on.
    async fn another(&self, index: usize, needs: Needs) {
        sleep(ATTEMPT_DELAY).await;
        let mut order: SmallVec<[usize; 8]> = [index].into_iter().collect();
        while order.len() <= MAX_BESIDE {
            let pick = Pick { now: self.env.since_epoch(Instant::now()), tried: &order, ..Pick::default() };
            match self.members.ready.pick(&pick, &mut |below| self.env.draw(below)) {
                Some((next, _)) if !order.contains(&next) => order.push(next),
                _ => break,
            }
        }
        let endpoint = |index: usize| self.cluster.endpoint(&self.members, index, self.env);
        let connect = async |index: usize| {
            warm::one(self.cluster.clone(), endpoint(index), needs, self.env.clone()).await.map(|_| index)
        };
        let Ok(first) = first_of(order[1..].iter().copied(), connect).await else {
            // There is but the one.
            return std::future::pending().await;
        };
        let now = self.env.since_epoch(Instant::now());
        order[1..]
            .iter()
            .take_while(|index| **index != first)
            .for_each(|index| endpoint(*index).load().unreachable(now));
    }
}
