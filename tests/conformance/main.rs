//! The cases of gRPC's xDS specifications, each with delta and with the state of the world, through the public
//! interface of the client and over a control plane in memory. A test's name begins with the gRFC it is of.
//!
//! Refuses to know how the client is built inside.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::disallowed_methods, reason = "control planes of a test run beside it, and end with it")]

mod composite;
mod fallback;
mod inbound;
mod plane;
mod resources;
mod restart;
