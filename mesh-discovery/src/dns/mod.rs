//! A DNS resolver of our own (feature `dns`): the port [`Resolve`] over hickory, with TTLs, SRV records and a
//! cache, which the system's resolver does not give.
//!
//! The two families of addresses are two look-ups of each name: one that is not answered holds the other up for no longer than
//! RFC 8305 has it, and one that fails is told apart from one that has no records.
//!
//! Refuses to know what the addresses are for, and keeps no answer beyond its TTL: that is the asker's part.

mod builder;
mod cache;
mod file;
mod hosts;
mod servers;
mod system;
#[cfg(test)]
mod tests;
mod upstream;
mod worker;

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use mesh_core::source::{Family, Resolve, ResolveError, Resolved, Resolving, Service};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::builder::{DnsResolverBuilder, InvalidDnsConfig};
use self::hosts::HostsFile;
use self::system::System;
use self::upstream::{Addresses, Place, Upstream};
use self::worker::Tasks;

/// How long IPv6 addresses are waited for once there are IPv4 ones (RFC 8305, section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// The same the other way round: RFC 8305 would not wait, but hosts without IPv6 are many and can do nothing with what is there.
const WAIT_FOR_IPV4: Duration = Duration::from_secs(1);
/// How long a query goes on for which nobody waits. It is over before anybody looks again: hickory would have that one wait for
/// this one's answer, and send nothing.
const LATE: Duration = Duration::from_secs(4);
/// How long an address stands for itself, and the longest of all times: later than that a clock may not know.
const FOREVER: Duration = Duration::from_secs(86_400);

/// Looks names up in the hosts file and over DNS. Needs a Tokio runtime. Clones share cache and limits.
///
/// The hosts file comes first, as with `getaddrinfo`: a name that it has as it is written, whatever its dots, has the addresses
/// that stand there, of one family or both, and DNS is not asked; it is for whoever wants one family alone of which the file has
/// none. The file is read again within 5 s where it changes. A name that DNS answered before follows once that answer's time is
/// over.
///
/// Unless it is given servers, it asks those of `/etc/resolv.conf`, which is looked at every 5 s at most, beside the look-ups: where
/// it changes, what it says then is asked from the next look-up on and what was answered before is forgotten. What cannot be
/// read, or names no server, changes nothing. Of its options `ndots`, `timeout` and `attempts` are followed; `rotate` is not, for
/// the servers are asked in their order. (On Windows, macOS and Android the system is asked once, when the resolver is made.)
///
/// ```no_run
/// use mesh_discovery::dns::DnsResolver;
/// # fn main() -> Result<(), mesh_discovery::dns::InvalidDnsConfig> {
/// let as_the_system_says = DnsResolver::builder().build()?;
/// let in_a_cluster = DnsResolver::builder().server("10.96.0.10:53".parse().unwrap()).search("default.svc.cluster.local").ndots(5).build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DnsResolver {
    system: Arc<System>,
    looks: Arc<Tasks>,
    places: Arc<Semaphore>,
    late: Arc<Tasks>,
    hosts: Arc<HostsFile>,
}

impl DnsResolver {
    /// Begins a resolver.
    pub fn builder() -> DnsResolverBuilder {
        DnsResolverBuilder::new()
    }

    /// The addresses of a name, only those of the family that is `wanted`, if one is.
    async fn look_up(&self, host: &str, wanted: Option<Family>) -> Result<Resolved<IpAddr>, ResolveError> {
        if let Ok(ip) = host.parse() {
            return Ok(Resolved { records: vec![ip], ttl: Some(FOREVER), lacks: None });
        }
        let name = name(host)?;
        let mut records = self.hosts.addresses(&name).await;
        records.retain(|ip| wanted.is_none_or(|family| Family::of(ip) == family));
        if !records.is_empty() {
            return Ok(Resolved { records, ttl: Some(hosts::HOLD_FOR), lacks: None });
        }
        let upstream = &self.system.now(&self.looks);
        match wanted {
            // A name without the one is not what is looked for, whatever it has of the other (as with getaddrinfo).
            Some(family) => search(upstream, name, |name| self.alone(upstream, name, family)).await,
            // Both families of one name before the next one is tried: they are to be those of one host.
            None => search(upstream, name, |name| self.both(upstream, name)).await,
        }
    }

    /// The services of one name (RFC 2782). None is an answer where it says so, and nothing to be looked for elsewhere.
    async fn services_of(&self, upstream: &Arc<Upstream>, name: Name) -> Result<Resolved<Service>, ResolveError> {
        let found = upstream.ask(name, RecordType::SRV, &Place::among(&self.places)).await?;
        let services = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        });
        if services.clone().next().is_none() {
            return Err(ResolveError::NoRecords);
        }
        let service = |srv: &SRV| Service {
            priority: srv.priority,
            weight: srv.weight,
            // With its last dot: it is searched nowhere else.
            host: srv.target.to_ascii().into(),
            port: srv.port,
        };
        // The root as a host says that there is no such service.
        let records = services.filter(|srv| !srv.target.is_root()).map(service).collect();
        Ok(Resolved { records, ttl: Some(left(found.valid_until())), lacks: None })
    }

    /// Both families of one name.
    async fn both(&self, upstream: &Arc<Upstream>, name: Name) -> Result<Resolved<IpAddr>, ResolveError> {
        let place = Place::among(&self.places);
        // Boxed: they may go on by themselves.
        let of = |family| Box::pin(upstream.clone().of_family(name.clone(), family, place.clone()));
        let (mut v6, mut v4) = (of(Family::V6), of(Family::V4));
        let (v6, v4) = tokio::select! {
            biased;
            v6 = &mut v6 => {
                let v4 = self.beside(&v6, WAIT_FOR_IPV4, v4).await;
                (v6, v4)
            }
            v4 = &mut v4 => {
                let v6 = self.beside(&v4, RESOLUTION_DELAY, v6).await;
                (v6, v4)
            }
        };
        // One that goes on holds up nobody.
        place.give_back();
        join(v6, v4)
    }

    /// The other family, for which nobody waits any longer than `delay` if the first one to come has addresses. It is asked for
    /// still (RFC 8305, section 3): whoever looks next has it.
    async fn beside<F>(&self, first: &Addresses, delay: Duration, mut other: F) -> Addresses
    where
        F: Future<Output = Addresses> + Send + Unpin + 'static,
    {
        if first.is_err() {
            return other.await;
        }
        match timeout(delay, &mut other).await {
            Ok(addresses) => addresses,
            Err(_) => {
                self.late.go_on(async move { drop(timeout(LATE, other).await) });
                Err(ResolveError::Timeout)
            }
        }
    }

    /// One family of one name.
    async fn alone(
        &self,
        upstream: &Arc<Upstream>,
        name: Name,
        family: Family,
    ) -> Result<Resolved<IpAddr>, ResolveError> {
        let (records, until) = upstream.clone().of_family(name, family, Place::among(&self.places)).await?;
        Ok(Resolved { records, ttl: Some(left(until)), lacks: None })
    }
}

/// What the first name has of those that a name may stand for.
async fn search<T, F>(upstream: &Upstream, name: Name, look: impl Fn(Name) -> F) -> Result<T, ResolveError>
where
    F: Future<Output = Result<T, ResolveError>>,
{
    let mut none = ResolveError::NotFound;
    for name in upstream.search.names(name) {
        match look(name).await {
            Err(error @ (ResolveError::NotFound | ResolveError::NoRecords)) => none = error,
            // Nor is the next one if this one may well be it: what fits there may be another host.
            found => return found,
        }
    }
    Err(none)
}

/// IPv6 first (RFC 6724).
fn join(v6: Addresses, v4: Addresses) -> Result<Resolved<IpAddr>, ResolveError> {
    use ResolveError::{NoRecords, NotFound};
    let ((records, until), lacks) = match (v6, v4) {
        (Ok((mut v6, of_v6)), Ok((v4, of_v4))) => {
            v6.extend(v4);
            ((v6, of_v6.min(of_v4)), None)
        }
        (Ok(v6), Err(error)) => (v6, Some((Family::V4, error))),
        (Err(error), Ok(v4)) => (v4, Some((Family::V6, error))),
        // One that says that there is nothing says less than one that failed: there may be something.
        (Err(NotFound), Err(error)) | (Err(NoRecords), Err(error)) | (Err(error), Err(_)) => return Err(error),
    };
    let lacks = lacks.filter(|(_, error)| !matches!(error, NoRecords | NotFound));
    Ok(Resolved { records, ttl: Some(left(until)), lacks })
}

impl Resolve for DnsResolver {
    fn addresses<'r>(&'r self, host: &'r str) -> Resolving<'r, IpAddr> {
        Box::pin(self.look_up(host, None))
    }

    fn addresses_of<'r>(&'r self, host: &'r str, family: Family) -> Resolving<'r, IpAddr> {
        Box::pin(self.look_up(host, Some(family)))
    }

    fn services<'r>(&'r self, name: &'r str) -> Resolving<'r, Service> {
        Box::pin(async move {
            let name = self::name(name)?;
            let upstream = &self.system.now(&self.looks);
            let found = search(upstream, name, |name| self.services_of(upstream, name)).await?;
            if found.records.is_empty() { Err(ResolveError::NoRecords) } else { Ok(found) }
        })
    }

    fn forget(&self, name: &str) {
        let Ok(name) = self::name(name) else { return };
        let upstream = self.system.known();
        for name in upstream.search.names(name) {
            for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
                upstream.cache.forget(name.clone(), kind);
            }
        }
    }
}

/// A name as it is written, in the form that it has over DNS. Names of many things have characters that no host's has: services of
/// a compose file, targets of SRV records.
fn name(text: &str) -> Result<Name, ResolveError> {
    Name::from_str_relaxed(text).map_err(|error| ResolveError::Failed(format!("{text}: {error}").into()))
}

/// The time from now on.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsResolver").finish_non_exhaustive()
    }
}
