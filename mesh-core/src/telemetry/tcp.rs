//! Raw connections, counted with Istio's names.
//!
//! As in Istio a connection that could not be made is opened and closed at once, with the response flag that says why, and
//! so is one that a server denies; and *sent* and *received* are the server's words: what it sent, the client reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Raw connections opened (Istio standard metric).
pub const TCP_OPENED: &str = "istio_tcp_connections_opened_total";
/// Raw connections closed (Istio standard metric).
pub const TCP_CLOSED: &str = "istio_tcp_connections_closed_total";
/// Bytes from the server to the client (Istio standard metric).
pub const TCP_SENT_BYTES: &str = "istio_tcp_sent_bytes_total";
/// Bytes from the client to the server (Istio standard metric).
pub const TCP_RECEIVED_BYTES: &str = "istio_tcp_received_bytes_total";

/// The counters of the raw connections of one set of labels and one response flag.
#[derive(Debug, Default)]
pub struct TcpSeries {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl TcpSeries {
    /// Counts a connection that stands.
    pub fn open(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of one.
    pub fn close(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes from the server to the client.
    pub fn send(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes from the client to the server.
    pub fn receive(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Connections opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Connections closed.
    pub fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    /// Bytes from the server to the client.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the client to the server.
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}
