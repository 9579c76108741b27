//! The operating system's resolver: hosts file, DNS and whatever else `nsswitch.conf` names.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use mesh_core::source::{Resolve, ResolveError, Resolved, Resolving};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Look-ups at once: each holds a thread for as long as the system likes.
const CONCURRENT: usize = 16;

/// Looks names up as `getaddrinfo` does, in its order (RFC 6724). It tells no TTL, knows no SRV records, and
/// does not say whether a name that failed exists. At most 16 look-ups run at once. Needs a Tokio runtime.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    places: Arc<Semaphore>,
}

impl SystemResolver {
    /// The system's resolver.
    pub fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(CONCURRENT)) }
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolve for SystemResolver {
    fn addresses<'r>(&'r self, host: &'r str) -> Resolving<'r, IpAddr> {
        Box::pin(async move {
            let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let host = host.to_owned();
            let looked = spawn_blocking(move || {
                // With the thread, not with whoever waits: the system cannot be told to stop.
                let _place = place;
                (host.as_str(), 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
            });
            let found = looked.await.unwrap_or_else(|ended| Err(io::Error::other(ended)));
            let found = found.map_err(|error| ResolveError::Failed(error.to_string().into()))?;
            let mut records: Vec<IpAddr> = Vec::with_capacity(found.len());
            for address in found {
                if !records.contains(&address.ip()) {
                    records.push(address.ip());
                }
            }
            if records.is_empty() {
                return Err(ResolveError::NoRecords);
            }
            Ok(Resolved { records, ttl: None, lacks: None })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hosts_file_counts_and_what_does_not_exist_fails() {
        let resolver = SystemResolver::new();
        let localhost = resolver.addresses("localhost").await.unwrap();
        assert!(localhost.records.iter().all(IpAddr::is_loopback), "{localhost:?}");
        assert_eq!(localhost.ttl, None);
        assert!(matches!(resolver.addresses("no such name").await, Err(ResolveError::Failed(_))));
        let srv = resolver.services("_grpc._tcp.greeter").await.unwrap_err();
        assert!(srv.to_string().contains("_grpc._tcp.greeter"), "{srv}");
    }
}
