//! Where configuration comes from: the xDS client, the cascade that joins its resources into
//! snapshots, certificates from the control plane's CA, and the registration of our own endpoints.
//!
//! Refuses to know what policy means for a request: it decodes, joins and publishes.

mod backoff;
pub mod bootstrap;
pub mod connect;
