//! A DNS resolver of our own (feature `dns`): the port [`Resolve`] over hickory, with TTLs, SRV records and a
//! cache, which the system's resolver does not give.
//!
//! The two families of addresses are two look-ups of each name: one that is not answered holds the other up for no longer than
//! RFC 8305 has it, and one that fails is told apart from one that has no records.
//!
//! Refuses to know what the addresses are for, and keeps no answer beyond its TTL: that is the asker's part.

mod cache;
mod file;
mod hosts;
mod servers;
#[cfg(test)]
mod tests;
mod upstream;
mod worker;

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use mesh_core::source::{Family, Resolve, ResolveError, Resolved, Resolving, Service};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::cache::Cache;
use self::hosts::HostsFile;
use self::servers::Servers;
use self::upstream::{Addresses, Place, Search, Upstream};
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
/// ```no_run
/// use mesh_discovery::dns::DnsResolver;
/// # fn main() -> Result<(), mesh_discovery::dns::InvalidDnsConfig> {
/// let as_the_system_says = DnsResolver::builder().build()?;
/// let in_a_cluster = DnsResolver::builder().server("10.96.0.10:53".parse().unwrap()).search("default.svc.cluster.local").ndots(5).build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DnsResolver {
    upstream: Arc<Upstream>,
    places: Arc<Semaphore>,
    late: Arc<Tasks>,
    hosts: Arc<HostsFile>,
}

/// Settings of a [`DnsResolver`]; all have defaults.
#[derive(Clone, Debug)]
#[must_use]
pub struct DnsResolverBuilder {
    servers: Vec<SocketAddr>,
    search: Option<Vec<String>>,
    ndots: Option<usize>,
    timeout: Option<Duration>,
    attempts: Option<usize>,
    negative_ttl: Duration,
    concurrency: usize,
    hosts: Option<PathBuf>,
}

/// A resolver cannot be made of these settings, or of the system's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DNS: {field}: {reason}")]
pub struct InvalidDnsConfig {
    /// The setting, or the file.
    pub field: String,
    /// Why it cannot be used.
    pub reason: String,
}

impl DnsResolver {
    /// Begins a resolver.
    pub fn builder() -> DnsResolverBuilder {
        DnsResolverBuilder {
            servers: Vec::new(),
            search: None,
            ndots: None,
            timeout: None,
            attempts: None,
            negative_ttl: Duration::from_secs(1),
            concurrency: 64,
            hosts: None,
        }
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
        match wanted {
            // A name without the one is not what is looked for, whatever it has of the other (as with getaddrinfo).
            Some(family) => self.search(name, |name| self.alone(name, family)).await,
            // Both families of one name before the next one is tried: they are to be those of one host.
            None => self.search(name, |name| self.both(name)).await,
        }
    }

    /// What the first name has of those that a name may stand for.
    async fn search<T, F>(&self, name: Name, look: impl Fn(Name) -> F) -> Result<T, ResolveError>
    where
        F: Future<Output = Result<T, ResolveError>>,
    {
        let mut none = ResolveError::NotFound;
        for name in self.upstream.search.names(name) {
            match look(name).await {
                Err(error @ (ResolveError::NotFound | ResolveError::NoRecords)) => none = error,
                // Nor is the next one if this one may well be it: what fits there may be another host.
                found => return found,
            }
        }
        Err(none)
    }

    /// The services of one name (RFC 2782). None is an answer where it says so, and nothing to be looked for elsewhere.
    async fn services_of(&self, name: Name) -> Result<Resolved<Service>, ResolveError> {
        let found = self.upstream.ask(name, RecordType::SRV, &Place::among(&self.places)).await?;
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
    async fn both(&self, name: Name) -> Result<Resolved<IpAddr>, ResolveError> {
        let place = Place::among(&self.places);
        // Boxed: they may go on by themselves.
        let of = |family| Box::pin(self.upstream.clone().of_family(name.clone(), family, place.clone()));
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
    async fn alone(&self, name: Name, family: Family) -> Result<Resolved<IpAddr>, ResolveError> {
        let (records, until) = self.upstream.clone().of_family(name, family, Place::among(&self.places)).await?;
        Ok(Resolved { records, ttl: Some(left(until)), lacks: None })
    }
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

impl DnsResolverBuilder {
    /// Adds a name server, asked over UDP and, for long answers, TCP. Those after the first are asked where the ones before are
    /// silent, or answer SERVFAIL, REFUSED or NOTIMP; what one says of a name (NXDOMAIN, too) is the answer. Default: those of
    /// `/etc/resolv.conf`.
    pub fn server(mut self, address: SocketAddr) -> Self {
        self.servers.push(address);
        self
    }

    /// Adds a domain in which names with fewer dots than [`ndots`](Self::ndots) are searched first. Default:
    /// those of the last `search` or `domain` in `/etc/resolv.conf`, or where it has neither that of the host's own name;
    /// none if servers are given.
    pub fn search(mut self, domain: impl Into<String>) -> Self {
        self.search.get_or_insert_default().push(domain.into());
        self
    }

    /// How many dots make a name that is tried as it is first. Default: `/etc/resolv.conf`'s, else 1.
    pub fn ndots(mut self, dots: usize) -> Self {
        self.ndots = Some(dots);
        self
    }

    /// Wait for one answer of one server, a day at most. Default: `/etc/resolv.conf`'s, else 5 s.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time.min(FOREVER));
        self
    }

    /// How often a query is put to the servers, each time to one after the other until one answers and to each for
    /// [`timeout`](Self::timeout) at most. Over UDP each of these times sends it up to three times, a third of a second or more
    /// apart, as long as no answer comes. Default: `/etc/resolv.conf`'s, else 2.
    pub fn attempts(mut self, times: usize) -> Self {
        self.attempts = Some(times);
        self
    }

    /// How long "no such name" is kept, a day at most, whatever the zone says. Default 1 s: long enough to spare the servers
    /// a crowd, short enough that a name that appears is seen within seconds.
    pub fn negative_ttl(mut self, time: Duration) -> Self {
        self.negative_ttl = time.min(FOREVER);
        self
    }

    /// Names that name servers are asked about at once; more wait, and for what is kept nobody does. Default 64.
    pub fn concurrency(mut self, most: usize) -> Self {
        self.concurrency = most.max(1);
        self
    }

    /// The file of hosts, in the form of `/etc/hosts`; one that is not there has no entries. Default: the system's.
    pub fn hosts_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.hosts = Some(path.into());
        self
    }

    /// The resolver. Reads the hosts file, and `/etc/resolv.conf` unless servers are given; needs no runtime yet.
    ///
    /// # Errors
    /// That file cannot be read or names no server, or a search domain is not a name.
    pub fn build(self) -> Result<DnsResolver, InvalidDnsConfig> {
        let (config, mut options) = if self.servers.is_empty() {
            read_system_conf().map_err(|error| invalid("/etc/resolv.conf", error))?
        } else {
            let servers = self.servers.iter().map(|address| name_server(*address)).collect();
            (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
        };
        let (domain, search, servers) = config.into_parts();
        let domains = self.domains(domain, search)?;
        options.ndots = self.ndots.unwrap_or(options.ndots);
        options.timeout = self.timeout.unwrap_or(options.timeout);
        options.attempts = self.attempts.unwrap_or(options.attempts);
        // Over one TCP connection: of both families, and each may have been asked before by somebody who went away since.
        options.max_active_requests = options.max_active_requests.max(self.concurrency.saturating_mul(4));
        // It would be looked at name by name and family by family.
        options.use_hosts_file = ResolveHosts::Never;
        // What is kept is kept here.
        options.cache_size = 0;
        let servers = Servers::new(servers, &options).map_err(|error| invalid("resolver", error))?;
        let cache = Cache::new(self.negative_ttl);
        let upstream = Upstream { servers, cache, search: Search { domains, ndots: options.ndots } };
        Ok(DnsResolver {
            upstream: Arc::new(upstream),
            places: Arc::new(Semaphore::new(self.concurrency)),
            late: Arc::new(Tasks::new(self.concurrency)),
            hosts: Arc::new(HostsFile::open(self.hosts.unwrap_or_else(HostsFile::of_the_system))),
        })
    }

    /// Where names are searched, given what the system says: `search` has the last of its two settings.
    fn domains(&self, domain: Option<Name>, search: Vec<Name>) -> Result<Vec<Name>, InvalidDnsConfig> {
        let parse = |text: &String| Name::from_str_relaxed(text).map_err(|e| invalid(&format!("search {text}"), e));
        match &self.search {
            Some(own) => own.iter().map(parse).collect(),
            // It is that of the host's own name, unless something is said (resolv.conf(5)).
            None if search.is_empty() => Ok(domain.into_iter().collect()),
            None => Ok(search),
        }
    }
}

fn invalid(field: &str, reason: impl ToString) -> InvalidDnsConfig {
    InvalidDnsConfig { field: field.to_owned(), reason: reason.to_string() }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
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
            let found = self.search(name, |name| self.services_of(name)).await?;
            if found.records.is_empty() { Err(ResolveError::NoRecords) } else { Ok(found) }
        })
    }

    fn forget(&self, name: &str) {
        let Ok(name) = self::name(name) else { return };
        for name in self.upstream.search.names(name) {
            for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
                self.upstream.cache.forget(name.clone(), kind);
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
