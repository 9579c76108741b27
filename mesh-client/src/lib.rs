//! The outbound half of mesh: route, balance, retry, pool, mutual TLS.
//!
//! ```text
//! Client ─▶ destination (snapshot) ─▶ route ─▶ tries ─▶ cluster ─▶ endpoint ─▶ connection
//! ```
//!
//! [`Client`] works with any [`DestinationSource`](mesh_core::source::DestinationSource); a control plane
//! is only one of them. What this crate refuses to know: xDS, manifests, and who calls it.
//!
//! ```
//! use mesh_client::Client;
//! use mesh_testkit::{EchoServer, FixedSource, policy};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let server = EchoServer::start("v1").await;
//! let source = FixedSource::of("reviews:9080", policy::snapshot_to(&[server.address()]));
//! let client = Client::builder(source).build();
//!
//! let request = http::Request::get("http://reviews:9080/reviews/0").body(String::new()).unwrap();
//! let response = client.send(request).await?;
//! assert_eq!(response.headers()["x-echo-server"], "v1");
//! # Ok::<(), mesh_client::Error>(()) }).unwrap();
//! ```
//!
//! Reading order: `outbound/mod.rs` (the way of one request), `outbound/{tries,attempt}.rs`, `router.rs`,
//! `cluster/`, `connect/pool.rs`; `outbound/tcp.rs` for a raw connection.

mod body;
mod builder;
mod client;
mod cluster;
mod connect;
mod destination;
mod env;
mod error;
mod explain;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod limit;
mod outbound;
mod router;
mod tcp;

pub use self::body::Body;
pub use self::builder::ClientBuilder;
pub use self::client::{Client, ResponseFuture};
pub use self::cluster::{BreakerState, Breakers, InFlight};
pub use self::connect::{Connect, Io, SystemResolver};
pub use self::error::{Cause, Error, PeerMismatch, Refusal};
pub use self::explain::{
    ClientDump, ClusterDump, ClusterOption, DestinationDump, DestinationPhase, EndpointDump, Explanation,
    FilterExplanation, MirrorOption, PickExplanation, RetryExplanation, RetryPlace, SessionExplanation,
};
pub use self::grpc::{Channel, ChannelFuture};
pub use self::limit::{LimitLayer, Limited, LimitedBody};
pub use self::outbound::warm::Warmed;
pub use self::tcp::TcpConnection;
