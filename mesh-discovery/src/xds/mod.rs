//! The xDS client: delta or the state of the world over one ADS stream a control plane, on demand (gRFC
//! A27, A30, A36, A40, A46, A47, A53, A57, A71, A74, A88).
//!
//! [`XdsClient`] is the handle; a worker task owns the state. The protocol (`ads`) is a state machine
//! without I/O that knows neither gRPC nor protobuf, the network is a [`Transport`]. Refuses to know what a
//! request of the application is.

mod ads;
mod client;
mod contain;
mod csds;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod kind;
mod lane;
mod message;
mod name;
mod node;
mod report;
mod resource;
mod saved;
mod topology;
mod transport;
mod wire;
mod worker;

#[cfg(test)]
mod tests;

pub use self::client::{XdsClient, XdsConfig};
pub use self::csds::{StatusService, status_service};
pub use self::grpc::GrpcTransport;
pub use self::message::{
    Ask, Body, Cause, Name, Request, Resource as RawResource, ResourceError, Response, StreamError, Variant,
};
pub use self::report::{ServerStatus, Status};
pub use self::saved::{SnapshotConfig, SnapshotStatus};
pub use self::transport::{AdsStream, Transport};

pub(crate) use self::ads::{Ads, Codec, Hold, Known, Loss, Origin, ServerId};
pub(crate) use self::client::Givers;
pub(crate) use self::kind::{Key, Kind};
pub(crate) use self::node::to_wire as node_to_wire;
#[cfg(test)]
pub(crate) use self::resource::PolicyCodec;
pub(crate) use self::resource::{AsSent, Resource, Value};
