//! The port to DNS: who turns a name into addresses, and what can come of asking.
//!
//! Refuses to know which servers are asked and how answers are kept.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Looks names up. Implementations bound their own concurrency and cache as they see fit; whoever asks keeps
/// the last good answer.
pub trait Resolve: fmt::Debug + Send + Sync + 'static {
    /// The IPv4 and IPv6 addresses of a name, in the order in which they should be tried.
    fn addresses<'r>(&'r self, host: &'r str) -> Resolving<'r, IpAddr>;

    /// The same where policy wants one family alone. Others may be among them, and are not used. Default: what
    /// [`addresses`](Self::addresses) gives, as fits a resolver for which a name has no family that hides the other.
    fn addresses_of<'r>(&'r self, host: &'r str, _family: Family) -> Resolving<'r, IpAddr> {
        self.addresses(host)
    }

    /// The SRV records of a name such as `_grpc._tcp.greeter.example.com` (RFC 2782). Default: fails, saying
    /// that this resolver cannot.
    fn services<'r>(&'r self, name: &'r str) -> Resolving<'r, Service> {
        let text =
            format!("this resolver does not look up SRV records, and {name} is one; give the mesh one that does");
        Box::pin(std::future::ready(Err(ResolveError::Failed(text.into()))))
    }

    /// What is kept of a name, addresses and services, may be wrong, for connecting failed: whoever asks for it next is
    /// to be answered anew, whatever its TTL. Default: does nothing, as fits a resolver that keeps no answers.
    fn forget(&self, _name: &str) {}
}

/// A look-up under way.
pub type Resolving<'r, T> = Pin<Box<dyn Future<Output = Result<Resolved<T>, ResolveError>> + Send + 'r>>;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved<T> {
    /// The records; at least one.
    pub records: Vec<T>,
    /// How long they may be used from now on (the TTL left). `None` = the resolver does not know.
    pub ttl: Option<Duration>,
    /// Of addresses the family for which there was no answer while the other one had records, and why: whoever asks keeps the
    /// last good ones of that family. Having none is an answer.
    pub lacks: Option<(Family, ResolveError)>,
}

/// A family of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4: `A` records.
    V4,
    /// IPv6: `AAAA` records.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// Lower ones are used first.
    pub priority: u16,
    /// Share among those of one priority; 0 is the smallest.
    pub weight: u16,
    /// Host name.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
}

/// A name that could not be looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// There is no such name.
    #[error("no such name (NXDOMAIN)")]
    NotFound,
    /// The name exists without records of the kind asked for.
    #[error("the name has no records of this kind")]
    NoRecords,
    /// No answer came in time.
    #[error("no DNS server answered in time")]
    Timeout,
    /// Anything else, such as SERVFAIL: what was said.
    #[error("{0}")]
    Failed(Arc<str>),
}
