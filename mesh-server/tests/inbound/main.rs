//! The inbound side over loopback: real sockets, real TLS, a hand-fed policy.
// The helpers of a test are tests, too; clippy knows only functions marked as such.
#![allow(clippy::unwrap_used)]

mod audit;
mod authorization;
mod cancel;
mod composites;
mod costs;
mod debug;
mod drain;
mod external;
mod filters;
mod floods;
mod frameworks;
mod framing;
mod h2spec;
mod kit;
mod limits;
mod live;
mod load;
mod panics;
mod raw;
mod requests;
mod rotation;
mod routes;
mod rows;
mod streams;
mod tcp;
mod tokens;
mod trailers;
mod transport;
mod tricks;
