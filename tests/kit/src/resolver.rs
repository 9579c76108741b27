//! A resolver that answers what a test wrote down.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use mesh_core::source::{Family, Resolve, ResolveError, Resolved, Resolving, Service};

/// Names as the test sets them; what was not set does not exist.
pub struct FakeResolver {
    hosts: Mutex<HashMap<String, Reply<IpAddr>>>,
    services: Mutex<HashMap<String, Reply<Service>>>,
    asked: watch::Sender<u64>,
}

/// `None` = no answer ever comes.
type Reply<T> = Option<Result<Resolved<T>, ResolveError>>;

impl FakeResolver {
    /// A resolver that knows no name yet.
    pub fn new() -> Arc<Self> {
        let asked = watch::Sender::new(0);
        Arc::new(Self { hosts: Mutex::default(), services: Mutex::default(), asked })
    }

    /// From now on `host` has these addresses for `ttl`; an empty list is one.
    pub fn set(&self, host: &str, addresses: &[&str], ttl: Option<Duration>) {
        self.set_lacking(host, addresses, ttl, None);
    }

    /// The same where one family was not answered for.
    pub fn set_lacking(
        &self,
        host: &str,
        addresses: &[&str],
        ttl: Option<Duration>,
        lacks: Option<(Family, ResolveError)>,
    ) {
        let records = addresses.iter().map(|ip| ip.parse().unwrap_or_else(|e| panic!("{ip}: {e}"))).collect();
        self.hosts.lock().insert(host.to_owned(), Some(Ok(Resolved { records, ttl, lacks })));
    }

    /// From now on looking `host` up fails.
    pub fn fail(&self, host: &str, error: ResolveError) {
        self.hosts.lock().insert(host.to_owned(), Some(Err(error)));
    }

    /// From now on nobody answers for `host`.
    pub fn hang(&self, host: &str) {
        self.hosts.lock().insert(host.to_owned(), None);
    }

    /// From now on `name` has these SRV records: priority, weight, host, port.
    pub fn set_services(&self, name: &str, services: &[(u16, u16, &str, u16)], ttl: Option<Duration>) {
        let service = |&(priority, weight, host, port): &(u16, u16, &str, u16)| Service {
            priority,
            weight,
            host: host.into(),
            port,
        };
        let records = services.iter().map(service).collect();
        self.services.lock().insert(name.to_owned(), Some(Ok(Resolved { records, ttl, lacks: None })));
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        *self.asked.borrow()
    }

    /// Waits until it was asked `count` times.
    pub async fn wait_for_asked(&self, count: u64) {
        self.asked.subscribe().wait_for(|n| *n >= count).await.expect("the sender is ours");
    }

    fn answer<T: Clone + Send + 'static>(&self, reply: Reply<T>) -> Resolving<'static, T> {
        self.asked.send_modify(|n| *n += 1);
        Box::pin(async move {
            match reply {
                Some(reply) => reply,
                None => std::future::pending().await,
            }
        })
    }
}

impl Resolve for FakeResolver {
    fn addresses<'r>(&'r self, host: &'r str) -> Resolving<'r, IpAddr> {
        let reply = self.hosts.lock().get(host).cloned();
        self.answer(reply.unwrap_or(Some(Err(ResolveError::NotFound))))
    }

    fn services<'r>(&'r self, name: &'r str) -> Resolving<'r, Service> {
        let reply = self.services.lock().get(name).cloned();
        self.answer(reply.unwrap_or(Some(Err(ResolveError::NotFound))))
    }
}

impl fmt::Debug for FakeResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeResolver").field("asked", &self.asked()).finish_non_exhaustive()
    }
}
