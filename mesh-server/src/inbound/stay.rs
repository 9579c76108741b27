//! How long a connection may stay: until a drain, its age, or a change of policy or trust.
//!
//! A policy that comes while requests are being served is asked what it has to say of their caller. If all that was open
//! to it surely still is, they go on; if not, the connection takes no more of them, and those in flight have a limited
//! time: the caller comes again, and each of its requests is judged as it begins. A raw connection is judged anew.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::Either;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use mesh_core::authz::{Caller, PolicyChange};
use mesh_core::drain::DrainWatch;
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{InboundListener, InboundState, InboundTls};
use mesh_core::source::Watched;

use super::seldom::Seldom;
use crate::Config;
use crate::listen::{Leash, TlsAccept, Verified, Why};

/// A connection that was let in.
pub(super) struct Guest {
    pub(super) peer: PeerIdentity,
    pub(super) server_name: Box<str>,
    /// By what it proved who it is, if it did.
    pub(super) verified: Option<Verified>,
    /// The policy under which it came.
    pub(super) listener: Arc<InboundListener>,
}

impl Guest {
    pub(super) fn new(
        address: SocketAddr,
        server_name: &str,
        verified: Option<Verified>,
        listener: Arc<InboundListener>,
    ) -> Self {
        let peer = PeerIdentity { spiffe_id: verified.as_ref().map(|peer| peer.id.clone()), address };
        Self { peer, server_name: server_name.into(), verified, listener }
    }
}

/// The time that a connection which has to leave still has. What is worse than the reason that it had makes it shorter.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) leave: Leave,
    pub(super) end: Instant,
}

impl Left {
    pub(super) fn new(leave: Leave, config: &Config) -> Self {
        Self { leave, end: after(leave.limit(config)) }
    }

    /// Waits for what makes it shorter.
    pub(super) async fn shorter(self, closing: &mut (impl Stream<Item = Leave> + Unpin), config: &Config) -> Self {
        while let Some(leave) = closing.next().await {
            let next = Self::new(leave, config);
            if next.end < self.end || matches!(leave, Leave::Unwelcome | Leave::Distrusted) {
                return Self { leave, end: next.end.min(self.end) };
            }
        }
        std::future::pending().await
    }

    /// Waits until it is over; gives the last reason.
    pub(super) async fn over(mut self, mut closing: impl Stream<Item = Leave> + Unpin, config: &Config) -> Leave {
        loop {
            tokio::select! {
                shorter = self.shorter(&mut closing, config) => self = shorter,
                () = sleep_until(self.end) => return self.leave,
            }
        }
    }
}

/// A connection that the application took over stays until it ends by itself, is old, or policy or trust want it ended; a server
/// that leaves (`drained`) lets it be. `left` = why it had to leave, if it had before it was taken over.
pub(super) async fn stay_taken_over(
    mut leash: Leash,
    left: Option<Leave>,
    mut closing: impl Stream<Item = Leave> + Unpin,
    drained: impl Future<Output = ()>,
    config: &Config,
) {
    if !leash.is_held() {
        return;
    }
    let leave = match left {
        Some(_) => left,
        None => tokio::select! {
            () = leash.gone() => return,
            leave = closing.next() => leave,
        },
    };
    if let Some(leave) = leave.filter(|leave| *leave != Leave::Drained) {
        let leave = tokio::select! {
            () = leash.gone() => return,
            leave = Left::new(leave, config).over(closing, config) => leave,
        };
        leash.cut(leave.why());
        // As long as the application keeps it, it is one of those that are open, but nobody waits for it.
        tokio::select! {
            () = leash.gone() => {}
            () = drained => {}
        }
    }
}

/// Why a connection takes no further requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// The server leaves.
    Drained,
    /// It is old.
    Aged,
    /// Policy may refuse what it let pass before, or knows the peer by another name now, or us by another certificate provider.
    Narrowed,
    /// The port takes no plaintext any more.
    Unwelcome,
    /// Its peer is not trusted any more, is somebody else, or came by other roots than the port's: no request of it is served.
    Distrusted,
}

impl Leave {
    /// How long an HTTP/1 connection goes on with the word that it takes no further request, so that none is lost that
    /// is on its way. Nothing for a peer that no request is to be taken from.
    pub(super) fn notice(self, config: &Config) -> Duration {
        match self {
            Self::Drained | Self::Unwelcome | Self::Distrusted => Duration::ZERO,
            Self::Aged | Self::Narrowed => config.lame_duck.min(self.limit(config)),
        }
    }

    /// What the application hears of a connection that it has.
    pub(super) fn why(self) -> Why {
        match self {
            Self::Drained => Why::Drained,
            Self::Aged => Why::Age,
            Self::Narrowed | Self::Unwelcome | Self::Distrusted => Why::Policy,
        }
    }

    /// How long requests in flight have.
    pub(super) fn limit(self, config: &Config) -> Duration {
        match self {
            Self::Drained | Self::Aged => config.drain_limit,
            Self::Narrowed | Self::Unwelcome | Self::Distrusted => config.unwelcome_limit,
        }
    }
}

/// Why the connection should take no further requests, as it comes: its time, and what policy and trust say, which goes
/// on to count once that is over. `is_welcome` says whether a caller may stay although its policy has become another one.
pub(super) fn stay(
    guest: Guest,
    drain: DrainWatch,
    inbound: Watched<InboundState>,
    tls: &TlsAccept,
    config: &Config,
    is_welcome: impl Fn(&Arc<InboundListener>, &Arc<InboundListener>, Caller<'_>) -> bool,
) -> impl Stream<Item = Leave> + Unpin {
    let aged = aged(&guest.listener, config);
    let time = async move {
        tokio::select! {
            () = drain.drained() => Leave::Drained,
            () = aged => Leave::Aged,
        }
    };
    let narrowed = Arc::<Notify>::default();
    let unwelcome = unwelcome(guest, inbound, tls, is_welcome, narrowed.clone());
    let narrowed = async move {
        narrowed.notified().await;
        Leave::Narrowed
    };
    let all = [Either::Left(time), Either::Right(Either::Left(narrowed)), Either::Right(Either::Right(unwelcome))];
    Seldom::new(all.into_iter().collect::<FuturesUnordered<_>>())
}

/// The end of this time; of more than there is, a year.
pub(super) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + Duration::from_secs(365 * 86_400))
}

/// Waits until a connection that is new now is as old as it may get, as policy says or else the server's own settings.
pub(super) fn aged(listener: &InboundListener, config: &Config) -> impl Future<Output = ()> + use<> {
    let age = listener.limits.max_connection_age.or(config.max_connection_age);
    let varied = |age: Duration| Duration::try_from_secs_f64(age.as_secs_f64() * (0.9 + 0.2 * fastrand::f64()));
    let oldest = age.and_then(|age| Instant::now().checked_add(varied(age).ok()?));
    async move {
        match oldest {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// Waits until policy or trust want a connection's peer gone. Of one that proved who it is, the proof must still hold; any
/// other needs a port that asks for none. One that may do less than before (`is_welcome`), or has another name now, is told of
/// by `narrowed`, and what is worse goes on to be waited for.
pub(super) fn unwelcome<W>(
    guest: Guest,
    inbound: Watched<InboundState>,
    tls: &TlsAccept,
    is_welcome: W,
    narrowed: Arc<Notify>,
) -> impl Future<Output = Leave> + use<W>
where
    W: Fn(&Arc<InboundListener>, &Arc<InboundListener>, Caller<'_>) -> bool,
{
    let Guest { peer, server_name, verified, listener } = guest;
    let proven = verified.is_some();
    let renamed = narrowed.clone();
    let distrusted = verified.map(|verified| tls.distrusted(verified, move || renamed.notify_one()));
    async move {
        let distrusted = async {
            match distrusted {
                Some(distrusted) => distrusted.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = distrusted => Leave::Distrusted,
            leave = changed(inbound, listener, &peer, &server_name, proven, is_welcome, &narrowed) => leave,
        }
    }
}

/// The last change of policy. Every connection asks about it, and they are many: it is compared once.
#[derive(Default)]
pub(crate) struct LastChange(ArcSwapOption<PolicyChange>);

impl LastChange {
    /// Whether requests of a caller go on as they did: all that was open to it surely still is.
    pub(super) fn may_ask_on(
        &self,
        known: &Arc<InboundListener>,
        now: &Arc<InboundListener>,
        caller: Caller<'_>,
    ) -> bool {
        let last = self.0.load();
        if let Some(change) = last.as_ref().filter(|change| change.is_between(known, now)) {
            return change.keeps_open(caller);
        }
        // Several may do this at once; all get the same.
        let change = Arc::new(PolicyChange::between(known, now));
        self.0.store(Some(change.clone()));
        change.keeps_open(caller)
    }
}

/// Waits for a policy that the connection does not stand under, and tells by `narrowed` of those that have something against the
/// caller.
async fn changed(
    mut inbound: Watched<InboundState>,
    mut known: Arc<InboundListener>,
    peer: &PeerIdentity,
    server_name: &str,
    proven: bool,
    is_welcome: impl Fn(&Arc<InboundListener>, &Arc<InboundListener>, Caller<'_>) -> bool,
    narrowed: &Notify,
) -> Leave {
    loop {
        // Without word from the control plane what was in force last still is.
        if let InboundState::Ready(now) = &*inbound.load_full()
            && !Arc::ptr_eq(now, &known)
        {
            // Of those that did not prove who they are the port must not ask for it.
            if !proven && now.tls == InboundTls::Strict {
                return Leave::Unwelcome;
            }
            if proven && now.instances.roots != known.instances.roots {
                return Leave::Distrusted;
            }
            // To those that did we have to be the same.
            if proven && now.instances.certificate != known.instances.certificate {
                narrowed.notify_one();
            }
            let caller = Caller { peer, destination: now.address, server_name };
            if !is_welcome(&known, now, caller) {
                tracing::info!(
                    peer = %peer.address,
                    principal = peer.spiffe_id.as_ref().map(tracing::field::display),
                    "policy has changed for a connection's caller: it is closed",
                );
                narrowed.notify_one();
            }
            known = now.clone();
        }
        inbound.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_compared_once_for_all_connections() {
        let listener = || Arc::new(InboundListener::new("l", ([127, 0, 0, 1], 80).into(), InboundTls::Permissive));
        let (known, now, next) = (listener(), listener(), listener());
        let (last, peer) = (LastChange::default(), PeerIdentity { spiffe_id: None, address: now.address });
        let compared = |known, now| {
            assert!(last.may_ask_on(known, now, Caller { peer: &peer, destination: peer.address, server_name: "" }));
            last.0.load_full().unwrap()
        };
        let first = compared(&known, &now);
        assert!(Arc::ptr_eq(&first, &compared(&known, &now)));
        // The control: another change.
        assert!(!Arc::ptr_eq(&first, &compared(&now, &next)));
        assert!(!Arc::ptr_eq(&first, &compared(&known, &next)));
    }
}
