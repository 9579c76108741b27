//! What happened at the door: connections refused by reason, and who still speaks plaintext.
//!
//! Touched once a connection, never per request.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use mesh_core::error::Code;
use mesh_core::limit::Seldom;

/// Why a connection was closed before any request of it reached the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No policy has come yet, or what came was refused: nothing is accepted.
    NoPolicy,
    /// As many connections are open as policy or [`Config::max_connections`](crate::Config) allow.
    ConnectionLimit,
    /// As many connections of the peer's address are open as
    /// [`Config::max_connections_per_peer`](crate::Config) allows.
    PeerLimit,
    /// Plaintext at a port that demands mutual TLS.
    Plaintext,
    /// TLS at a port where policy disables it.
    TlsDisabled,
    /// TLS before this process has a certificate.
    NoIdentity,
    /// A failed handshake or a client certificate that was not accepted.
    Handshake,
    /// HTTP/2 over TLS that agreed on another protocol, or on none (ALPN).
    Alpn,
    /// Too slow with its first bytes or its handshake.
    Timeout,
    /// More control frames than [`Config::max_control_frames`](crate::Config) allows. The one that may come after requests.
    Flood,
}

impl Refusal {
    /// Every reason, in the order of the metric.
    pub const ALL: [Self; 10] = [
        Self::NoPolicy,
        Self::ConnectionLimit,
        Self::PeerLimit,
        Self::Plaintext,
        Self::TlsDisabled,
        Self::NoIdentity,
        Self::Handshake,
        Self::Alpn,
        Self::Timeout,
        Self::Flood,
    ];

    /// The reason as the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::ConnectionLimit => "connection_limit",
            Self::PeerLimit => "peer_limit",
            Self::Plaintext => "plaintext",
            Self::TlsDisabled => "tls_disabled",
            Self::NoIdentity => "no_identity",
            Self::Handshake => "handshake",
            Self::Alpn => "alpn",
            Self::Timeout => "timeout",
            Self::Flood => "flood",
        }
    }

    /// The error code, where there is one.
    pub fn code(self) -> Option<Code> {
        match self {
            Self::Plaintext => Some(Code::PLAINTEXT_REFUSED),
            Self::Handshake => Some(Code::PEER_REFUSED),
            Self::NoIdentity => Some(Code::NO_IDENTITY),
            Self::NoPolicy => Some(Code::CONFIG_PENDING),
            Self::ConnectionLimit | Self::PeerLimit | Self::TlsDisabled | Self::Alpn | Self::Timeout | Self::Flood => {
                None
            }
        }
    }
}

/// Counters of one or several servers. Passed in, never global.
#[derive(Default)]
pub struct InboundStats {
    refused: [Counted; Refusal::ALL.len()],
    // None = all beyond those that have a place of their own.
    plaintext: Mutex<HashMap<Option<IpAddr>, PlaintextPeer>>,
}

/// A plaintext connection that is open: while it is, its peer is not forgotten.
pub(crate) struct PlaintextOpen {
    stats: Arc<InboundStats>,
    peer: Option<IpAddr>,
}

impl Drop for PlaintextOpen {
    fn drop(&mut self) {
        if let Some(peer) = self.stats.plaintext.lock().get_mut(&self.peer) {
            peer.open -= 1;
            peer.seen = Instant::now();
        }
    }
}

#[derive(Default)]
struct Counted {
    count: AtomicU64,
    logged: Mutex<Seldom>,
}

struct PlaintextPeer {
    open: u64,
    /// When one of them was open last.
    seen: Instant,
    logged: Option<Instant>,
}

/// A refusal of one kind is logged once in this time, with the number of those not shown.
const REFUSAL_LOG_EVERY: Duration = Duration::from_secs(10);
/// A plaintext peer is logged once in this time.
const PLAINTEXT_LOG_EVERY: Duration = Duration::from_secs(60);
/// A plaintext peer that has not come for so long is forgotten: longer than connections get old by default.
const PLAINTEXT_KEPT: Duration = Duration::from_secs(2 * 3600);
/// Plaintext peers counted by address; those beyond are counted together.
const MAX_PLAINTEXT_PEERS: usize = 1024;

impl InboundStats {
    /// How many connections were refused for a reason.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused[reason as usize].count.load(Ordering::Relaxed)
    }

    /// Plaintext connections that are open, let in under a permissive policy, by address, in order; `None` = all
    /// addresses beyond the first 1,024. Who has none any more is there with 0, and is forgotten after two hours: when it is empty nobody has
    /// had a plaintext connection in that time, and it is safe to turn to STRICT for whoever comes at least as often.
    pub fn plaintext_peers(&self) -> Vec<(Option<IpAddr>, u64)> {
        let mut kept = self.plaintext.lock();
        forget_old(&mut kept, Instant::now());
        let mut peers: Vec<_> = kept.iter().map(|(ip, peer)| (*ip, peer.open)).collect();
        peers.sort_unstable_by_key(|(ip, _)| (ip.is_none(), *ip));
        peers
    }

    pub(crate) fn refuse(&self, reason: Refusal, peer: SocketAddr, why: &dyn fmt::Display) {
        let counted = &self.refused[reason as usize];
        counted.count.fetch_add(1, Ordering::Relaxed);
        let told = counted.logged.lock().tell(REFUSAL_LOG_EVERY, Instant::now());
        let Some(suppressed) = told else { return };
        let code = reason.code().map(tracing::field::display);
        tracing::warn!(reason = reason.as_str(), code, %peer, suppressed, "connection refused: {why}");
    }

    pub(crate) fn served_plaintext(self: &Arc<Self>, peer: SocketAddr) -> PlaintextOpen {
        let now = Instant::now();
        let (open, told) = {
            let mut peers = self.plaintext.lock();
            let own = Some(peer.ip());
            if peers.len() >= MAX_PLAINTEXT_PEERS && !peers.contains_key(&own) {
                forget_old(&mut peers, now);
            }
            let full = peers.len() >= MAX_PLAINTEXT_PEERS && !peers.contains_key(&own);
            let own = own.filter(|_| !full);
            let new = PlaintextPeer { open: 0, seen: now, logged: None };
            let known = peers.entry(own).or_insert(new);
            known.open += 1;
            known.seen = now;
            let told = full || known.logged.is_some_and(|at| now.duration_since(at) < PLAINTEXT_LOG_EVERY);
            if !told {
                known.logged = Some(now);
            }
            (PlaintextOpen { stats: self.clone(), peer: own }, told)
        };
        if !told {
            tracing::info!(peer = %peer.ip(), "plaintext peer served under PERMISSIVE; STRICT would refuse it");
        }
        open
    }
}

fn forget_old(peers: &mut HashMap<Option<IpAddr>, PlaintextPeer>, now: Instant) {
    peers.retain(|_, peer| peer.open > 0 || now.duration_since(peer.seen) < PLAINTEXT_KEPT);
}

impl fmt::Debug for InboundStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = Refusal::ALL.map(|reason| (reason.as_str(), self.refused(reason)));
        f.debug_struct("InboundStats").field("refused", &refused).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_peers_are_counted_by_address_within_a_bound() {
        let stats = Arc::<InboundStats>::default();
        let come = |i: u32| stats.served_plaintext((std::net::Ipv4Addr::from(i), 1).into());
        let open: Vec<_> = (0..=MAX_PLAINTEXT_PEERS as u32).map(come).collect();
        let again = come(0);
        let peers = stats.plaintext_peers();
        assert_eq!(peers.len(), MAX_PLAINTEXT_PEERS + 1);
        assert_eq!((peers[0].1, peers[1].1, peers[MAX_PLAINTEXT_PEERS]), (2, 1, (None, 1)));
        // What has ended is none of them any more, though its peer is remembered.
        drop(again);
        assert_eq!(stats.plaintext_peers()[0], (Some([0, 0, 0, 0].into()), 1));
        drop(open);
        let peers = stats.plaintext_peers();
        assert!(peers.len() == MAX_PLAINTEXT_PEERS + 1 && peers.iter().all(|(_, open)| *open == 0), "{peers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn plaintext_peers_that_do_not_come_again_are_forgotten() {
        let stats = Arc::<InboundStats>::default();
        let (one, other) = (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 1).into());
        drop(stats.served_plaintext(one));
        drop(stats.served_plaintext(other));
        mesh_testkit::clock::pass(PLAINTEXT_KEPT / 2).await;
        drop(stats.served_plaintext(other));
        assert_eq!(stats.plaintext_peers().len(), 2, "control");
        mesh_testkit::clock::pass(PLAINTEXT_KEPT / 2).await;
        assert_eq!(stats.plaintext_peers(), [(Some([10, 0, 0, 2].into()), 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_plaintext_peer_is_known_for_as_long_as_it_has_a_connection_open() {
        let stats = Arc::<InboundStats>::default();
        let open = stats.served_plaintext(([10, 0, 0, 1], 1).into());
        drop(stats.served_plaintext(([10, 0, 0, 2], 1).into()));
        mesh_testkit::clock::pass(PLAINTEXT_KEPT * 2).await;
        assert_eq!(stats.plaintext_peers(), [(Some([10, 0, 0, 1].into()), 1)], "the control has ended");
        drop(open);
        mesh_testkit::clock::pass(PLAINTEXT_KEPT / 2).await;
        assert_eq!(stats.plaintext_peers().len(), 1, "it counts from the end on");
        mesh_testkit::clock::pass(PLAINTEXT_KEPT / 2).await;
        assert!(stats.plaintext_peers().is_empty());
    }

    #[test]
    fn refusals_are_counted_even_when_not_logged() {
        let stats = InboundStats::default();
        for _ in 0..3 {
            stats.refuse(Refusal::Plaintext, ([127, 0, 0, 1], 1).into(), &"test");
        }
        assert_eq!((stats.refused(Refusal::Plaintext), stats.refused(Refusal::Timeout)), (3, 0));
    }
}
