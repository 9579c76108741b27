//! Hand-written protobuf messages and gRPC services that no published crate has: the certificate
//! service of Istio, SPIFFE's Workload API, our registration and trust bundle services, and the typed metadata of our
//! policy.
//!
//! Refuses to know about connections: clients are generic over the transport (a `tonic` channel, a
//! hyper client, a service in the same process) and servers are plain Tower services.

pub mod certificate;
pub mod policy;
pub mod registry;
mod rpc;
pub mod trust;
pub mod workload;

#[cfg(test)]
mod tests;
