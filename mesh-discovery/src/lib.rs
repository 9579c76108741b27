//! Where configuration comes from: the xDS client and codec, the cascade that joins resources into
//! snapshots, certificates from the control plane's CA, the registration of our own endpoints, and targets and
//! names for which nobody has to be asked.
//!
//! Refuses to know what policy means for a request: it decodes, joins and publishes.

mod backoff;
pub mod bootstrap;
mod cascade;
mod clock;
pub mod codec;
pub mod connect;
#[cfg(feature = "dns")]
pub mod dns;
mod json;
pub mod lrs;
pub mod proto;
pub mod registration;
pub mod secret;
pub mod target;
#[cfg(test)]
mod test_plane;
pub mod xds;
