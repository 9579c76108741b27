//! The xDS client: state of the world over one ADS stream, on demand (gRFC A27, A30, A36, A40, A46,
//! A57, A74).
//!
//! [`XdsClient`] is the handle; a worker task owns the state. The protocol (`ads`) is a state machine
//! without I/O, the network is a [`Transport`]. Refuses to know what a request is.

mod ads;
mod client;
mod entry;
mod kind;
mod node;
mod report;
mod resource;
mod transport;
mod worker;

#[cfg(test)]
mod tests;

pub use self::client::{XdsClient, XdsConfig};
pub use self::report::Status;
pub use self::transport::{AdsStream, GrpcTransport, StreamError, Transport};

pub(crate) use self::ads::{Ads, Codec};
pub(crate) use self::entry::Known;
pub(crate) use self::kind::{Key, Kind};
pub(crate) use self::resource::{Resource, Value};
