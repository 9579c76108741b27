//! The HTTP/2 connections to one endpoint, which everybody shares: one, and further ones while it has no room for another
//! stream.

use std::future::poll_fn;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::{Request, Response};
use smallvec::SmallVec;
use tokio::runtime::{Handle, Id};
use tokio::time::Instant;

use super::super::{Connection, SharedConnection, Want, worker};
use super::{Full, OpenGuard, Pool, Queued, Room, dialled, failed, is_of};
use crate::body::{Incoming, Outgoing, Unanswered};
use crate::error::Cause;

/// HTTP/2 connections to one endpoint that take no request any more; with so many of them no further one is made.
pub(super) const MAX_SHUT: usize = 8;

/// The HTTP/2 connections to an endpoint, the newest last.
pub(super) type SharedConnections = SmallVec<[Arc<SharedConnection>; 2]>;

type Connecting = Shared<BoxFuture<'static, Result<Arc<SharedConnection>, Cause>>>;

/// The connections being made, with the runtimes that do: one each.
pub(super) type Slots = SmallVec<[(Id, Connecting); 1]>;

/// One stream of an HTTP/2 connection, held until the answer's end: the connection stays for it.
pub(crate) struct SharedStream {
    pub(crate) connection: Arc<SharedConnection>,
    pub(super) reused: bool,
    // Of what sends the request body, where that takes longer than the answer's head.
    upload: Option<worker::Alive>,
}

/// What there is for a request that wants HTTP/2.
pub(super) enum Next {
    /// Room on a connection.
    Stream(SharedStream),
    /// A connection that is being made for others.
    Join(Connecting),
    /// One that was begun for it.
    Begun(Connecting),
    /// Neither room nor leave for a further connection.
    Full,
}

impl SharedStream {
    /// Sends the one request of this stream, and waits for the head of its answer. The rest of its body goes out while the
    /// stream is held.
    ///
    /// # Errors
    /// With the request, if nothing of it went out.
    pub(crate) fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> {
        // At once, for the request is large, and not held while we wait.
        let flight = self.connection.sender.begin(request);
        async move {
            let mut flight = flight?;
            let answer = poll_fn(|cx| flight.poll_head(cx)).await.map_err(Unanswered::sent)?;
            self.upload = flight.into_upload().map(worker::send_on);
            Ok(answer)
        }
    }
}

impl Drop for SharedStream {
    fn drop(&mut self) {
        self.connection.leave();
    }
}

impl Pool {
    /// A stream on an HTTP/2 connection that has room, is being made, or is begun for it. Connecting goes on even if
    /// all who wait give up: the next request will want it.
    pub(super) async fn connect_shared<'p>(
        &'p self,
        room: Room,
        mut turn: Option<Queued<'p>>,
        at: &mut Option<Full>,
    ) -> Result<SharedStream, Cause> {
        let mut in_vain = 0;
        loop {
            let connecting = match self.next_shared(room)? {
                Next::Stream(stream) => return Ok(stream),
                Next::Join(connecting) | Next::Begun(connecting) => connecting,
                Next::Full => {
                    *at = Some(OpenGuard::full(room, &self.dialer));
                    match &mut turn {
                        // Counted among those who wait; then another look, so that nothing that happens is missed.
                        None => turn = Some(self.turn(Want::Http2, room, at).await?),
                        Some(turn) => self.wait(room, turn).await?,
                    }
                    continue;
                }
            };
            // As long as this takes it is the endpoint's time.
            *at = None;
            let result = match self.made_or_left(&connecting, &mut turn).await {
                Ok(stream) => return Ok(stream),
                Err(result) => result,
            };
            let mut slot = self.kept().connecting.lock();
            let place = slot.iter().position(|(_, other)| other.ptr_eq(&connecting));
            let first = place.map(|place| slot.remove(place)).is_some();
            // The first of those who waited puts it in place, having taken a place on it: whatever its room is, it
            // serves one.
            let open = result.as_ref().ok().filter(|shared| !shared.is_closed());
            let stream = open.and_then(|shared| self.enter(shared));
            let failure = match &result {
                Err(cause) => Some(cause.clone()),
                // Shut before it took one. Other connections may do better; of those that end as they begin one, for who
                // leaves may have a successor.
                Ok(shared) if stream.is_none() && (first || shared.ended_in_vain()) => {
                    in_vain += 1;
                    let most = if shared.is_closed() { 1 } else { MAX_SHUT };
                    (in_vain > most).then(|| self.takes_no_stream())
                }
                Ok(_) => None,
            };
            if first {
                // One that ended as it began has neither failed nor worked: the back-off before it goes on.
                if failure.is_some() || !result.as_ref().is_ok_and(|shared| shared.ended_in_vain()) {
                    self.tell(failure.as_ref());
                }
                result.iter().for_each(|shared| self.share(shared));
            }
            drop(slot);
            match (stream, failure) {
                (Some(stream), _) => return Ok(stream),
                (None, Some(failure)) => return Err(failure),
                (None, None) => {}
            }
        }
    }

    /// Waits for a connection that is being made. Who has the turn takes room that comes free on another one meanwhile: all
    /// the others stand behind.
    ///
    /// # Errors
    /// There was none: what came of the connection.
    async fn made_or_left(
        &self,
        connecting: &Connecting,
        turn: &mut Option<Queued<'_>>,
    ) -> Result<SharedStream, Result<Arc<SharedConnection>, Cause>> {
        let Some((turn, _)) = turn else { return Err(connecting.clone().await) };
        let here = Some(Handle::current().id());
        loop {
            tokio::select! {
                biased;
                result = connecting.clone() => return Err(result),
                () = turn.changed() => {
                    // What another runtime has connected and nobody there waits for any more.
                    self.tidy(&mut self.kept().connecting.lock());
                    if let Some(stream) = self.reuse_shared(false, here).or_else(|| self.reuse_shared(false, None)) {
                        return Ok(stream);
                    }
                }
            }
        }
    }

    /// What there is for a request that wants HTTP/2.
    ///
    /// # Errors
    /// Nothing, and connecting failed a moment ago.
    pub(super) fn next_shared(&self, room: Room) -> Result<Next, Cause> {
        let mut slot = self.kept().connecting.lock();
        self.tidy(&mut slot);
        // One that came while we waited for the lock.
        let here = Handle::current().id();
        if let Some(stream) = self.reuse_shared(false, Some(here)) {
            return Ok(Next::Stream(stream));
        }
        if let Some((_, connecting)) = slot.iter().find(|(runtime, _)| *runtime == here) {
            return Ok(Next::Join(connecting.clone()));
        }
        let open = self.further(Want::Http2, room);
        // Connections that are on their way out are no reason to wait for them.
        let none = || slot.is_empty() && !self.has_live(None);
        let open = open.or_else(|| none().then(|| OpenGuard::pooled(Want::Http2, &self.dialer, &self.counts)));
        let Some(open) = open else {
            // There may be no further one: whoever drives it.
            return Ok(self.reuse_shared(false, None).map_or(Next::Full, Next::Stream));
        };
        self.leave(room)?;
        let connecting = self.connect(open);
        slot.push((here, connecting.clone()));
        Ok(Next::Begun(connecting))
    }

    /// A stream on the first HTTP/2 connection that has room for it; `None` = whoever drives it.
    pub(super) fn reuse_shared(&self, newest: bool, runtime: Option<Id>) -> Option<SharedStream> {
        let all = self.shared.load();
        let all = all.as_deref()?;
        let mut own = all.iter().filter(|connection| is_of(runtime, connection.runtime));
        let mut enter = |connection| if is_live(connection) { self.enter(connection) } else { None };
        if newest { own.next_back().and_then(enter) } else { own.find_map(&mut enter) }
    }

    /// A stream on this connection, which is retired with its last request.
    pub(super) fn enter(&self, connection: &Arc<SharedConnection>) -> Option<SharedStream> {
        let served = connection.enter()?;
        if connection.is_spent() {
            // Requests on their way over it end in peace; the next one does not find it.
            self.discard(connection);
        }
        Some(SharedStream { connection: connection.clone(), reused: served > 1, upload: None })
    }

    pub(super) fn share(&self, connection: &Arc<SharedConnection>) {
        self.shared.rcu(|all| {
            let mut all = all.as_deref().cloned().unwrap_or_default();
            all.retain(|other| !other.is_closed());
            // One that was spent by who put it here ends with that request; kept, it would end when it is idle for too long.
            if !connection.is_spent() {
                all.push(connection.clone());
            }
            Some(Arc::new(all))
        });
        self.counts.made_room();
        if self.is_closed() {
            self.shared.store(None);
        }
    }

    /// Forgets the HTTP/2 connections that are not to be kept.
    pub(super) fn keep_shared(&self, keep: impl Fn(&Arc<SharedConnection>) -> bool) {
        if self.shared.load().as_deref().is_none_or(|all| all.iter().all(&keep)) {
            return;
        }
        self.shared.rcu(|all| {
            let mut kept = all.as_deref().cloned().unwrap_or_default();
            kept.retain(|connection| keep(connection));
            (!kept.is_empty()).then(|| Arc::new(kept))
        });
    }

    /// Requests that those which take some have room for.
    pub(super) fn free_streams(&self) -> u32 {
        let all = self.shared.load();
        let live = all.as_deref().into_iter().flatten().filter(|connection| is_live(connection));
        live.map(|connection| connection.free()).fold(0, u32::saturating_add)
    }

    /// Forgets an HTTP/2 connection that is gone.
    pub(crate) fn discard(&self, gone: &Arc<SharedConnection>) {
        self.keep_shared(|connection| !Arc::ptr_eq(connection, gone));
    }

    /// Whether there is one that takes requests; `None` = whoever drives it.
    pub(super) fn has_live(&self, runtime: Option<Id>) -> bool {
        let live = |connection: &Arc<SharedConnection>| is_of(runtime, connection.runtime) && is_live(connection);
        self.shared.load().as_deref().is_some_and(|all| all.iter().any(live))
    }

    /// Looks after a connection that nobody waited for to its end: it is put in place, or forgotten with its failure,
    /// which the next request would take for its own.
    pub(super) fn tidy(&self, slots: &mut Slots) {
        slots.retain(|(_, connecting)| {
            let Some(result) = connecting.clone().now_or_never() else { return true };
            if let Ok(shared) = result
                && !shared.is_closed()
            {
                self.tell(None);
                self.share(&shared);
            }
            false
        });
    }

    pub(super) fn takes_no_stream(&self) -> Cause {
        failed(&self.peer.address, "the new HTTP/2 connection takes no stream")
    }

    fn connect(&self, open: OpenGuard) -> Connecting {
        let address = self.peer.address.clone();
        let result = self.dial(Want::Http2, open).task.map(move |done| match dialled(done, &address)? {
            Connection::Shared(shared) => Ok(shared),
            Connection::Sole(_) => Err(failed(&address, "the peer does not speak HTTP/2")),
        });
        result.boxed().shared()
    }
}

/// Whether requests may go over a connection.
pub(super) fn is_live(connection: &Arc<SharedConnection>) -> bool {
    !connection.is_closed() && !connection.is_spent() && connection.is_trusted() && !connection.life.is_worn()
}

pub(super) fn is_done(shared: &SharedConnection, now: Instant) -> bool {
    shared.life.is_over(shared.quiet_since(now), now) || !shared.is_trusted()
}
