//! Test helpers of mesh: a certificate authority, servers that misbehave on demand (HTTP and DNS) or just answer
//! (bytes), hand-fed sources and small policy.
//!
//! Only for tests: helpers panic where a test would `unwrap`. Everything listens on loopback, port 0,
//! and ends with its handle. Refuses to know the client, the server and the control plane: it stands
//! on `mesh-core` and the messages of xDS alone.

mod ca;
pub mod clock;
mod dns;
mod dropped;
mod echo;
mod issuer;
mod log;
#[cfg(target_os = "linux")]
pub mod memory;
pub mod policy;
mod raw;
mod reserved;
mod resolver;
mod source;
mod worker;
pub mod xds;

pub use self::ca::{CertificateSpec, TestCa, crypto};
pub use self::dns::{DnsFault, DnsServer};
pub use self::dropped::drop_after;
pub use self::echo::{Behaviour, EchoServer, Received};
pub use self::issuer::{Page, TokenIssuer};
pub use self::log::Log;
pub use self::raw::RawServer;
pub use self::reserved::ReservedAddress;
pub use self::resolver::FakeResolver;
pub use self::source::FixedSource;
