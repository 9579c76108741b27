//! A DNS resolver of our own (feature `dns`): the port [`Resolve`] over hickory, with TTLs, SRV records and a
//! cache, which the system's resolver does not give.
//!
//! Refuses to know what the addresses are for, and keeps no answer beyond its TTL: that is the asker's part.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use mesh_core::source::{Resolve, ResolveError, Resolved, Resolving, Service};
use tokio::sync::Semaphore;

/// Looks names up over DNS, in the hosts file first. Needs a Tokio runtime. Clones share cache and limits.
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
    resolver: TokioResolver,
    places: Arc<Semaphore>,
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
        }
    }

    /// Waits for a place among the look-ups under way; whoever waits does so within the asker's patience.
    async fn place(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.places.acquire().await.expect("the semaphore is never closed")
    }
}

impl DnsResolverBuilder {
    /// Adds a name server, asked over UDP and, for long answers, TCP. Default: those of `/etc/resolv.conf`.
    pub fn server(mut self, address: SocketAddr) -> Self {
        self.servers.push(address);
        self
    }

    /// Adds a domain in which names with fewer dots than [`ndots`](Self::ndots) are searched first. Default:
    /// those of `/etc/resolv.conf`; none if servers are given.
    pub fn search(mut self, domain: impl Into<String>) -> Self {
        self.search.get_or_insert_default().push(domain.into());
        self
    }

    /// How many dots make a name that is tried as it is first. Default: `/etc/resolv.conf`'s, else 1.
    pub fn ndots(mut self, dots: usize) -> Self {
        self.ndots = Some(dots);
        self
    }

    /// Wait for one answer of one server. Default: `/etc/resolv.conf`'s, else 5 s.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// Times a query is sent. Default: `/etc/resolv.conf`'s, else 2.
    pub fn attempts(mut self, times: usize) -> Self {
        self.attempts = Some(times);
        self
    }

    /// How long "no such name" is kept, whatever the zone says. Default 1 s: long enough to spare the servers
    /// a crowd, short enough that a name that appears is seen within seconds.
    pub fn negative_ttl(mut self, time: Duration) -> Self {
        self.negative_ttl = time;
        self
    }

    /// Look-ups at once; more wait. Default 64.
    pub fn concurrency(mut self, most: usize) -> Self {
        self.concurrency = most.max(1);
        self
    }

    /// The resolver. Reads `/etc/resolv.conf` unless servers are given; needs no runtime yet.
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
        let (domain, mut search, servers) = config.into_parts();
        if let Some(domains) = &self.search {
            let parse = |text: &String| Name::from_str_relaxed(text).map_err(|e| invalid(&format!("search {text}"), e));
            search = domains.iter().map(parse).collect::<Result<_, _>>()?;
        }
        options.ndots = self.ndots.unwrap_or(options.ndots);
        options.timeout = self.timeout.unwrap_or(options.timeout);
        // hickory counts the attempts after the first.
        options.attempts = self.attempts.map_or(options.attempts, |times| times.saturating_sub(1));
        options.negative_min_ttl = Some(self.negative_ttl);
        options.negative_max_ttl = Some(self.negative_ttl);
        let config = ResolverConfig::from_parts(domain, search, servers);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        let resolver = builder.build().map_err(|error| invalid("resolver", error))?;
        Ok(DnsResolver { resolver, places: Arc::new(Semaphore::new(self.concurrency)) })
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
        Box::pin(async move {
            let _place = self.place().await;
            let found = self.resolver.lookup_ip(host).await.map_err(|error| failure(&error))?;
            resolved(found.iter().collect(), found.valid_until())
        })
    }

    fn services<'r>(&'r self, name: &'r str) -> Resolving<'r, Service> {
        Box::pin(async move {
            let _place = self.place().await;
            let found = self.resolver.srv_lookup(name).await.map_err(|error| failure(&error))?;
            let services = found.answers().iter().filter_map(|record| match &record.data {
                // RFC 2782: the root as a host says that there is no such service.
                RData::SRV(srv) if !srv.target.is_root() => Some(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    // With its last dot: it is searched nowhere else.
                    host: srv.target.to_ascii().into(),
                    port: srv.port,
                }),
                _ => None,
            });
            resolved(services.collect(), found.valid_until())
        })
    }

    fn forget(&self, name: &str) {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
            self.resolver.clear_lookup_cache(name, kind);
        }
    }
}

fn resolved<T>(records: Vec<T>, until: Instant) -> Result<Resolved<T>, ResolveError> {
    if records.is_empty() {
        return Err(ResolveError::NoRecords);
    }
    Ok(Resolved { records, ttl: Some(until.saturating_duration_since(Instant::now())) })
}

fn failure(error: &NetError) -> ResolveError {
    match error {
        error if error.is_nx_domain() => ResolveError::NotFound,
        error if error.is_no_records_found() => ResolveError::NoRecords,
        NetError::Timeout => ResolveError::Timeout,
        other => ResolveError::Failed(other.to_string().into()),
    }
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsResolver").finish_non_exhaustive()
    }
}
