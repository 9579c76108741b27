//! [`Refusals`]: who is not let in, counted by reason, and told of as often as a log can bear.
//!
//! Refuses to know who decides.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_core::limit::Seldom;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::{Caller, Peer};

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The handshake failed, or the certificate names nobody.
    Handshake,
    /// The handshake was not finished in time.
    Timeout,
    /// The address has as many connections without a certificate as one may.
    AddressLimit,
    /// There are as many connections without a certificate as there may be.
    AnonymousLimit,
    /// The identity has as many connections as one may.
    IdentityLimit,
    /// A stream of configuration, of load reports or of an announcing process was not opened, or ended.
    Stream,
    /// A stream of roots was not opened, or ended. Strangers have those, and hide no others with them.
    Roots,
    /// No certificate was given.
    Certificate,
    /// An endpoint was not taken in.
    Announcement,
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::Handshake,
        Self::Timeout,
        Self::AddressLimit,
        Self::AnonymousLimit,
        Self::IdentityLimit,
        Self::Stream,
        Self::Roots,
        Self::Certificate,
        Self::Announcement,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Timeout => "timeout",
            Self::AddressLimit => "address_limit",
            Self::AnonymousLimit => "anonymous_limit",
            Self::IdentityLimit => "identity_limit",
            Self::Stream => "stream",
            Self::Roots => "roots",
            Self::Certificate => "certificate",
            Self::Announcement => "announcement",
        }
    }
}

/// The refusals of all ports.
#[derive(Debug, Default)]
pub(crate) struct Refusals([Counted; Refusal::ALL.len()]);

#[derive(Debug, Default)]
struct Counted {
    count: AtomicU64,
    told: Mutex<Seldom>,
}

/// Of one reason a line comes once in this time, with the number of those left out.
pub(crate) const EVERY: Duration = Duration::from_secs(10);

impl Refusals {
    /// Counts a connection that is refused, and tells of it if none was told of for a while.
    pub(super) fn connection(&self, refusal: Refusal, peer: &dyn Display, why: &dyn Display) {
        if let Some(left_out) = self.seldom(refusal) {
            tracing::warn!(%peer, reason = refusal.as_str(), left_out, "connection refused: {why}");
        }
    }

    /// Counts what `caller` is refused; `Some` = it is to be told, with how many were left out. Of who proved who it is
    /// nothing is left out.
    pub(crate) fn of(&self, refusal: Refusal, caller: &Caller) -> Option<u64> {
        if caller.identity().is_none() {
            return self.seldom(refusal);
        }
        self.0[refusal as usize].count.fetch_add(1, Ordering::Relaxed);
        Some(0)
    }

    /// Counts a stream that is not opened, or is ended, and tells of it.
    pub(crate) fn stream(&self, of_what: &str, peer: &Peer, status: &Status) {
        self.denied(Refusal::Stream, of_what, peer, status);
    }

    /// The same, of a stream of roots.
    pub(crate) fn roots(&self, peer: &Peer, status: &Status) {
        self.denied(Refusal::Roots, "roots", peer, status);
    }

    fn denied(&self, refusal: Refusal, of_what: &str, peer: &Peer, status: &Status) {
        let (code, reason) = (status.code(), status.message());
        if let Some(left_out) = self.of(refusal, &peer.caller) {
            tracing::warn!(target: "mesh::audit", %peer, ?code, reason, left_out, "{of_what} stream denied");
        }
    }

    /// Counts one; `Some` = it is to be told, with how many were left out.
    fn seldom(&self, refusal: Refusal) -> Option<u64> {
        let counted = &self.0[refusal as usize];
        counted.count.fetch_add(1, Ordering::Relaxed);
        counted.told.lock().tell(EVERY, Instant::now())
    }

    /// As Prometheus text.
    pub(crate) fn metrics(&self, out: &mut String) {
        let name = "mesh_control_refusals_total";
        // Writing to a string cannot fail.
        let _ = write!(out, "# HELP {name} Who was not let in, by reason.\n# TYPE {name} counter\n");
        for refusal in Refusal::ALL {
            let count = self.0[refusal as usize].count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}{{reason=\"{}\"}} {count}", refusal.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_log::Listening;

    #[tokio::test(start_paused = true)]
    async fn s91_strangers_at_the_door_make_a_line_at_times_with_the_number_of_those_left_out() {
        let (log, refusals) = (Listening::begin(), Refusals::default());
        let refuse = |times| {
            (0..times).for_each(|_| refusals.connection(Refusal::Handshake, &"192.0.2.1:1", &"a TLS handshake failed"));
        };
        refuse(100);
        assert_eq!(log.lines(&["connection refused"]), 1, "{}", log.text());
        refusals.connection(Refusal::Timeout, &"192.0.2.1:1", &"late");
        assert_eq!(log.lines(&["connection refused: late"]), 1, "another reason");
        // The control: after a time there is one again.
        mesh_testkit::clock::pass(EVERY).await;
        refuse(1);
        assert_eq!(log.lines(&["connection refused: a TLS", "left_out=99"]), 1, "{}", log.text());
        let mut metrics = String::new();
        refusals.metrics(&mut metrics);
        assert!(metrics.contains("{reason=\"handshake\"} 101\n"), "{metrics}");
    }

    #[tokio::test(start_paused = true)]
    async fn s91_of_members_every_denied_stream_is_recorded_and_of_strangers_one_at_times() {
        let (log, refusals) = (Listening::begin(), Refusals::default());
        let id = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        for (caller, said, lines) in [
            (Caller::Anonymous, "peer=anonymous", 1),
            // The control.
            (Caller::Workload(id), "sa/reviews", 100),
        ] {
            let peer = Peer { address: ([192, 0, 2, 1], 1).into(), caller, joined: false };
            // Strangers who are refused roots hide none who is refused something else.
            (0..100).for_each(|_| refusals.roots(&peer, &Status::resource_exhausted("no")));
            (0..100).for_each(|_| refusals.stream("configuration", &peer, &Status::unauthenticated("no")));
            for of in ["roots stream", "configuration stream"] {
                assert_eq!(log.lines(&["mesh::audit", said, of]), lines, "{}", log.text());
            }
        }
    }
}
