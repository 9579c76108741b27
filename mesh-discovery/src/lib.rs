//! Where configuration comes from: the xDS client and codec, the cascade that joins resources into
//! snapshots, certificates from the control plane's CA, and the registration of our own endpoints.
//!
//! Refuses to know what policy means for a request: it decodes, joins and publishes.

mod backoff;
pub mod bootstrap;
mod cascade;
mod clock;
pub mod codec;
pub mod connect;
mod json;
pub mod lrs;
pub mod proto;
pub mod registration;
pub mod secret;
#[cfg(test)]
mod test_plane;
pub mod xds;
