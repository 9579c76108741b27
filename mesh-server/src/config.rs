//! Limits of an inbound server, every one with its default; nothing is left to a library's default but what hyper, which may
//! be in our place ([`Server::http2`](crate::Server::http2)), does not hand on. Of h2 that is: what small DATA frames that nobody has read yet may cost beside their bytes (256 each, together
//! a 32nd of [`Config::connection_window`] and at least 25,600; with hyper in our place half of it), empty DATA frames (100 in a connection's life) and
//! CONTINUATION frames (as many as the largest head takes, a quarter more, and at least five), with more of which the connection is closed
//! with ENHANCE_YOUR_CALM; and the streams that were reset here and are remembered (50, for a second). A test holds each of these
//! numbers but the second.

use std::time::Duration;

use mesh_core::policy::{AdaptiveConcurrency, PathMatch};
use mesh_core::target::EncodedSlash;

use crate::Priority;

/// Time and size limits of a server. Make one with [`Config::default`] and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// How long a new connection may take to send its first bytes, by which TLS, HTTP/1 and HTTP/2 are
    /// told apart. Default 10 s (Linkerd's detection time).
    pub detect_timeout: Duration,
    /// How long a TLS handshake may take. Default 5 s.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take from its first byte to its last, over HTTP/1 and HTTP/2. Then the connection is
    /// closed. Default 10 s.
    pub header_read_timeout: Duration,
    /// How long an HTTP/1 connection may go without a request: from the end of one to the next, whose head has
    /// `header_read_timeout` then.
    /// HTTP/2 connections may be idle for as long as they answer pings. Default 60 s.
    pub idle_timeout: Duration,
    /// How long somebody may wait for the next bytes of a request's body; then the request gets 408 if its answer has not
    /// begun, and its body ends with an error. Bodies of another acceptor, and of [`Server::accept`](crate::Server::accept) without
    /// [`Server::request`](crate::Server::request), are not limited. One that trickles ends with its connection's age. gRPC calls over HTTP/2 and tunnels (CONNECT), which may be silent, are not
    /// limited but while an external authorizer's question waits for their body: they have deadlines and keep-alive.
    /// Default 30 s; none = no limit.
    pub body_idle_timeout: Option<Duration>,
    /// Largest request head, bytes as decoded; a larger one gets 431. Default 60 KiB (Envoy `max_request_headers_kb`),
    /// and no more than that: a URI's length fits into 16 bits, so a larger value counts as 60 KiB.
    pub max_header_bytes: u32,
    /// Headers of a request, each value counted; more get 431. Default 100 (Envoy `max_headers_count`). A larger value
    /// costs each HTTP/1 request an allocation.
    pub max_headers: usize,
    /// Requests in flight at once, over all connections, each counted until its answer's body has ended; more get 503
    /// (gRPC: UNAVAILABLE) and do not reach the application. Questions about the load are answered all the same.
    /// Default none: connections and their streams are the bound then.
    pub max_requests: Option<usize>,
    /// A further limit on requests in flight, which follows their latency (Envoy `adaptive_concurrency`); what is beyond
    /// it gets the status given there, 503 by default (gRPC: UNAVAILABLE). The time of a request ends with its answer's
    /// body: not for servers of long streams. Default none; the listener's filters may have one too.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// Which requests give way while much of `max_requests` or of the limit of `adaptive_concurrency` is in flight; of
    /// several classes the first that a request belongs to counts. Default none: all are alike.
    pub priorities: Vec<Priority>,
    /// Connections open at once from one address, of IPv6 from one /64; more are closed at accept. Callers behind one address
    /// translator count as one. Default none.
    pub max_connections_per_peer: Option<usize>,
    /// What becomes of an encoded slash or backslash in a request's path, which is brought to its normal form
    /// before policy or application see it. Default: the request is refused with 400.
    pub encoded_slash: EncodedSlash,
    /// Paths at which an encoded slash or backslash is data although `encoded_slash` refuses it: for the routes of
    /// an application that take names with slashes in them. What is looked at is the path in its normal form, in which it
    /// stays encoded and divides nothing: `/files/` as a prefix is met by `/x/../files/a%2Fb` and not by `/files%2Fa`. An
    /// application that decodes such a name must not take it for a path. Default none.
    pub encoded_slash_at: Vec<PathMatch>,
    /// Streams open at once on one HTTP/2 connection, if policy says nothing. Default 256.
    pub max_concurrent_streams: u32,
    /// Connections open at once, if policy says nothing; more are closed at accept. Connections that
    /// the application took over (upgrades) count too. One that is slow or silent takes less than 50 KiB, twice what it
    /// has sent of a head, and what it has sent of its handshake (64 KiB at most); over HTTP/2 some 10 KiB more for each
    /// CONNECT that has not been answered. One whose handlers do not read what it sends over HTTP/2 takes up to
    /// `connection_window` more, a `stream_window` for each of its streams: by default sixteen of 1 MiB. Default 16,384.
    pub max_connections: usize,
    /// Age at which a connection is drained, if policy says nothing; varied by ±10 %, so that
    /// connections made together don't end together (gRFC A9). What is in flight has `drain_limit`. Default 1 h, so that
    /// identities are proved anew in that time; gRPC and Istio have none. It ends connections that the application took over
    /// (WebSockets over HTTP/1.1) and raw ones too ([`Server::serve_tcp`](crate::Server::serve_tcp)), `drain_limit` after it. A
    /// server of streams that are to live for longer needs another one, or none.
    pub max_connection_age: Option<Duration>,
    /// Silence after which an HTTP/2 peer is pinged. Default 60 s.
    pub keep_alive_interval: Duration,
    /// How long a pinged peer may take to answer. Default 20 s (gRPC's).
    pub keep_alive_timeout: Duration,
    /// Flow-control window of an HTTP/2 stream, bytes. Default 1 MiB.
    pub stream_window: u32,
    /// Flow-control window of an HTTP/2 connection, bytes: the most that slow handlers together make this process buffer for
    /// one connection, sixteen streams of 1 MiB by default, and as much for each connection (`max_connections`,
    /// `max_connections_per_peer`): where many strangers may connect, a smaller one is safer. Default 16 MiB: a request's body waits for others only where sixteen streams' windows of theirs are
    /// full of what their handlers do not read. With no more than `stream_window`, one such handler holds up all others.
    pub connection_window: u32,
    /// Bytes buffered for sending on one HTTP/2 stream, and in each direction on an HTTP/1 connection
    /// (there at least 8 KiB). Default 400 KiB.
    pub max_buffer: usize,
    /// Streams that a peer may open and reset before they are looked at, before the connection is closed (CVE-2023-44487, "rapid
    /// reset"). Default 20. Those that are reset later count as control frames.
    pub max_pending_resets: usize,
    /// Streams reset by us for a peer's errors before the connection is closed (RUSTSEC-2024-0003).
    /// Default 1,024.
    pub max_local_resets: usize,
    /// PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE and unknown frames that an HTTP/2 peer may send in a second while hardly anything but the
    /// answers to them is written; with more the connection is closed with GOAWAY, ENHANCE_YOUR_CALM (refusal `flood`).
    /// Default 1,000; none = no limit: they are answered one by one then, and whoever does not read the answers is not read
    /// from.
    pub max_control_frames: Option<u32>,
    /// How long a draining server goes on taking connections and requests, so that callers learn in time that
    /// it leaves: HTTP/1.1 answers carry `connection: close` meanwhile, and at the end HTTP/2 peers get their GOAWAY and
    /// idle HTTP/1.1 connections are closed. It is the same if nobody is connected: callers may be about to.
    /// Default 2 s: this mesh's control plane tells callers in a fraction of that. Where endpoints travel through the
    /// Kubernetes API take 5 s, and three less of `drain_limit`.
    pub lame_duck: Duration,
    /// How long requests in flight may take to finish once their connection drains. Default 22 s: with the
    /// lame duck's time more than five seconds below Kubernetes' 30 s of grace. In the last second of it gRPC calls are told UNAVAILABLE,
    /// those whose answers go on too, and other requests without an answer get 503 (`MESH-1501`).
    pub drain_limit: Duration,
    /// How long requests in flight may go on over a connection whose caller a changed policy may refuse, or whose peer
    /// is not trusted any more. Such a connection takes no further requests; what is left after this time is reset, and told so shortly before as in
    /// a drain.
    /// Default 5 s.
    pub unwelcome_limit: Duration,
    /// How long no byte may go over a raw connection ([`Server::serve_tcp`](crate::Server::serve_tcp)) before it is closed.
    /// Default 1 h (Envoy `tcp_proxy.idle_timeout`); none = no limit.
    pub raw_idle_timeout: Option<Duration>,
    /// Shortest interval of a stream of load reports, whatever its client asks for. Default 30 s (gRFC A51). Only with
    /// [`load_reports`](crate::ServerBuilder::load_reports).
    pub min_load_report_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            detect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_idle_timeout: Some(Duration::from_secs(30)),
            max_header_bytes: MOST_HEADER_BYTES,
            max_headers: 100,
            max_requests: None,
            adaptive_concurrency: None,
            priorities: Vec::new(),
            max_connections_per_peer: None,
            encoded_slash: EncodedSlash::Refuse,
            encoded_slash_at: Vec::new(),
            max_concurrent_streams: 256,
            max_connections: 16_384,
            max_connection_age: Some(Duration::from_secs(3600)),
            keep_alive_interval: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(20),
            stream_window: 1 << 20,
            connection_window: 1 << 24,
            max_buffer: 400 * 1024,
            max_pending_resets: 20,
            max_local_resets: 1024,
            max_control_frames: Some(1000),
            lame_duck: Duration::from_secs(2),
            drain_limit: Duration::from_secs(22),
            unwelcome_limit: Duration::from_secs(5),
            raw_idle_timeout: Some(Duration::from_secs(3600)),
            min_load_report_interval: Duration::from_secs(30),
        }
    }
}

/// The ceiling of [`Config::max_header_bytes`].
pub(crate) const MOST_HEADER_BYTES: u32 = 60 * 1024;
