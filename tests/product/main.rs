//! The product over loopback: control plane, servers and clients as their users put them together, with
//! real certificates and real xDS.
//!
//! Refuses to know how any part works inside: only manifests, the public API, debug pages and sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::disallowed_methods, reason = "servers and loads of a test run beside it, and end with it")]

mod allocations;
#[cfg(feature = "cli")]
mod analyze;
#[cfg(feature = "cli")]
mod asleep;
mod authorization;
mod bodies;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod bookinfo;
mod bootstrap;
#[cfg(feature = "cli")]
mod by_hand;
mod cancel;
mod codes;
mod drain;
mod federation;
mod health;
mod instances;
mod isolation;
mod jobs;
#[cfg(target_os = "linux")]
mod listeners;
mod load;
mod memory;
#[cfg(feature = "dns")]
mod names;
mod outage;
mod pages;
mod probe;
mod profile;
mod puppet;
mod quarter;
mod reload;
mod removed;
mod rename;
mod reports;
mod restarts;
mod root;
mod rotation;
mod routes;
mod starved;
mod streaming;
mod strict;
mod support;
mod targets;
mod tcp;
mod tokens;
