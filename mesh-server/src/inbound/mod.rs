//! From a listening socket to requests: `worker` accepts, `connection` decides about one socket and
//! serves it, `raw` does so where it carries no requests, `stay` says how long, `seldom` asks what
//! ends it only when that has news, `peers` counts those of one address, `stats` counts what was refused.

mod connection;
mod peers;
mod raw;
mod seldom;
mod stats;
mod stay;
mod worker;

pub use self::stats::{InboundStats, Refusal};

pub(crate) use self::connection::{Door, http1_builder, http2_builder};
pub(crate) use self::peers::Peers;
pub(crate) use self::stats::PlaintextOpen;
pub(crate) use self::worker::run;
