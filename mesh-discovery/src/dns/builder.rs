//! The settings of a resolver, and what is made of them beside what the system says.
//!
//! Refuses to know how names are looked up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::Semaphore;

use super::cache::Cache;
use super::hosts::HostsFile;
use super::servers::Servers;
use super::system::System;
use super::upstream::{Search, Upstream};
use super::worker::Tasks;
use super::{DnsResolver, FOREVER};

/// Whether the system has its name servers in a file that is to be read: hickory knows no other form of it.
const IS_A_FILE: bool = cfg!(all(unix, not(any(target_os = "android", target_vendor = "apple"))));

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
    /// The system's file, and the port of the servers that it names: none is written there.
    pub(super) resolv_conf: (PathBuf, u16),
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

impl DnsResolverBuilder {
    pub(super) fn new() -> Self {
        Self {
            servers: Vec::new(),
            search: None,
            ndots: None,
            timeout: None,
            attempts: None,
            negative_ttl: Duration::from_secs(1),
            concurrency: 64,
            hosts: None,
            resolv_conf: ("/etc/resolv.conf".into(), 53),
        }
    }

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

    /// Wait for one answer of one server, from a millisecond to a day. A server that was silent for so long, and answered nothing
    /// else meanwhile, is for 30 s asked first still, but waited for no longer than 250 ms where there are others. Default:
    /// `/etc/resolv.conf`'s, of a second at least, else 5 s.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time.clamp(Duration::from_millis(1), FOREVER));
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
        self.concurrency = most.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// The file of hosts, in the form of `/etc/hosts`; one that is not there has no entries, and one of more than 32 MiB is not
    /// read. Default: the system's.
    pub fn hosts_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.hosts = Some(path.into());
        self
    }

    /// The resolver. Reads the hosts file, and `/etc/resolv.conf` unless servers are given; needs no runtime yet.
    ///
    /// # Errors
    /// That file cannot be read or names no server, or a search domain is not a name.
    pub fn build(self) -> Result<DnsResolver, InvalidDnsConfig> {
        let (concurrency, hosts) = (self.concurrency, self.hosts.clone().unwrap_or_else(HostsFile::of_the_system));
        Ok(DnsResolver {
            system: Arc::new(self.system()?),
            // One, and one more should that be on a runtime that stands still.
            looks: Arc::new(Tasks::new(2)),
            places: Arc::new(Semaphore::new(concurrency)),
            late: Arc::new(Tasks::new(concurrency)),
            hosts: Arc::new(HostsFile::open(hosts)),
        })
    }

    fn system(self) -> Result<System, InvalidDnsConfig> {
        if !self.servers.is_empty() {
            let servers = self.servers.iter().map(|address| name_server(*address)).collect();
            let config = ResolverConfig::from_name_servers(servers);
            return self.upstream(config, ResolverOpts::default()).map(System::fixed);
        }
        let (path, _) = &self.resolv_conf;
        if IS_A_FILE {
            return System::read(path.clone(), self);
        }
        let (config, options) = read_system_conf().map_err(|error| invalid("the system's name servers", error))?;
        self.upstream(config, options).map(System::fixed)
    }

    /// What the system's file comes to beside these settings.
    pub(super) fn upstream_of(&self, content: &[u8], path: &Path) -> Result<Upstream, InvalidDnsConfig> {
        let (config, options) = parse(content).map_err(|error| refused(path, error))?;
        let (domain, search, mut servers) = config.into_parts();
        let connections = servers.iter_mut().flat_map(|server| &mut server.connections);
        connections.for_each(|connection| connection.port = self.resolv_conf.1);
        self.upstream(ResolverConfig::from_parts(domain, search, servers), options)
    }

    fn upstream(&self, config: ResolverConfig, mut options: ResolverOpts) -> Result<Upstream, InvalidDnsConfig> {
        let (domain, search, servers) = config.into_parts();
        let domains = self.domains(domain, search)?;
        options.ndots = self.ndots.unwrap_or(options.ndots);
        // None in the file is a second, as for glibc.
        options.timeout = self.timeout.unwrap_or(options.timeout.max(Duration::from_secs(1)));
        options.attempts = self.attempts.unwrap_or(options.attempts);
        // Over one TCP connection: of both families, and each may have been asked before by somebody who went away since.
        options.max_active_requests = options.max_active_requests.max(self.concurrency.saturating_mul(4));
        // It would be looked at name by name and family by family.
        options.use_hosts_file = ResolveHosts::Never;
        // What is kept is kept here.
        options.cache_size = 0;
        let servers = Servers::new(servers, &options).map_err(|error| invalid("resolver", error))?;
        Ok(Upstream { servers, cache: Cache::new(self.negative_ttl), search: Search { domains, ndots: options.ndots } })
    }

    /// Where names are searched, given what the system says: `search` has the last of its two settings.
    pub(super) fn domains(&self, domain: Option<Name>, search: Vec<Name>) -> Result<Vec<Name>, InvalidDnsConfig> {
        let parse = |text: &String| Name::from_str_relaxed(text).map_err(|e| invalid(&format!("search {text}"), e));
        match &self.search {
            Some(own) => own.iter().map(parse).collect(),
            // It is that of the host's own name, unless something is said (resolv.conf(5)).
            None if search.is_empty() => Ok(domain.into_iter().collect()),
            None => Ok(search),
        }
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

#[cfg(all(unix, not(any(target_os = "android", target_vendor = "apple"))))]
fn parse(content: &[u8]) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    hickory_resolver::system_conf::parse_resolv_conf(content)
}

#[cfg(not(all(unix, not(any(target_os = "android", target_vendor = "apple")))))]
fn parse(_: &[u8]) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    read_system_conf()
}

pub(super) fn refused(path: &Path, reason: impl ToString) -> InvalidDnsConfig {
    invalid(&path.display().to_string(), reason)
}

fn invalid(field: &str, reason: impl ToString) -> InvalidDnsConfig {
    InvalidDnsConfig { field: field.to_owned(), reason: reason.to_string() }
}
