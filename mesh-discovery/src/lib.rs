//! mesh-discovery

pub mod codec;
pub mod proto;
