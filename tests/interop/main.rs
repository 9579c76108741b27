//! Peers that nobody here wrote: the stock gRPC (C-core, through Python) as client and as server, and the stock
//! Envoy. Pointed at our control plane they must do as the manifests say, refuse nothing, carry traffic to
//! and from our library, and lose no request when the control plane dies.
//!
//! The peers are pinned in `requirements.txt` and installed by the tests themselves.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::disallowed_methods, reason = "servers of a test run beside it, and end with it")]

mod actor;
mod backend;
mod caller;
mod client;
mod deaths;
mod envoy;
mod grpc;
mod grpc_client;
mod grpc_mtls;
mod herd;
mod manifests;
mod member;
mod outage;
mod proxy;
mod psm;
mod psm_csds;
mod psm_lists;
#[path = "../product/puppet.rs"]
mod puppet;
mod python;
mod server;
mod sidecar;
mod tokens;
mod world;
