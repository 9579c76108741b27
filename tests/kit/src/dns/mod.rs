//! A name server on loopback, over UDP and TCP, that says what the test wrote down.

#[cfg(test)]
mod tests;
mod wire;
mod worker;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::source::Family;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::wire::{Query, Record, Said};

/// A DNS server. Dropping it closes its port. Every negative answer says that it may be kept for an hour, as
/// careless zones do.
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<Zone>,
    _worker: worker::Worker,
}

/// How a name misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFault {
    /// NXDOMAIN; what names do that were not set.
    NotFound,
    /// SERVFAIL.
    ServerFailure,
    /// REFUSED.
    Refused,
    /// NOTIMP.
    NotImplemented,
    /// NOERROR without records and without the SOA record that says so.
    Nothing,
    /// NOERROR with the name servers of the zone and nothing else, of a server that asks nobody.
    Referral,
    /// Queries are swallowed.
    Silence,
}

/// What is known, by name in lower case without the last dot.
struct Zone {
    names: Mutex<HashMap<String, Known>>,
    queries: watch::Sender<u64>,
    over_tcp: watch::Sender<u64>,
}

struct Known {
    records: Result<Vec<Record>, DnsFault>,
    /// What becomes of queries for the addresses of one family.
    of_family: Option<(Family, DnsFault)>,
}

impl DnsServer {
    /// A server that knows no name yet.
    pub async fn start() -> Self {
        let (queries, over_tcp) = (watch::Sender::new(0), watch::Sender::new(0));
        let zone = Arc::new(Zone { names: Mutex::default(), queries, over_tcp });
        let (udp, tcp) = worker::bind().await;
        let address = udp.local_addr().expect("a bound socket has an address");
        Self { address, zone: zone.clone(), _worker: worker::Worker::spawn(udp, tcp, zone) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` has these addresses, for `ttl` seconds; an empty list is NOERROR without records.
    pub fn set(&self, name: &str, addresses: &[&str], ttl: u32) {
        let record = |text: &&str| match text.parse().unwrap_or_else(|e| panic!("{text}: {e}")) {
            IpAddr::V4(ip) => Record::A(ip, ttl),
            IpAddr::V6(ip) => Record::Aaaa(ip, ttl),
        };
        self.put(name, Ok(addresses.iter().map(record).collect()));
    }

    /// From now on `name` has these SRV records: priority, weight, host, port.
    pub fn set_services(&self, name: &str, services: &[(u16, u16, &str, u16)], ttl: u32) {
        let record = |&(priority, weight, host, port): &(u16, u16, &str, u16)| Record::Srv {
            priority,
            weight,
            port,
            host: host.to_owned(),
            ttl,
        };
        self.put(name, Ok(services.iter().map(record).collect()));
    }

    /// From now on `name` is another name of `target`, for `ttl` seconds; what there is of that is in the same answer.
    pub fn set_alias(&self, name: &str, target: &str, ttl: u32) {
        self.put(name, Ok(vec![Record::alias(target, ttl, false)]));
    }

    /// The same in an answer of its own: whoever asks has to ask for `target` too, as where it is another server's.
    pub fn set_bare_alias(&self, name: &str, target: &str, ttl: u32) {
        self.put(name, Ok(vec![Record::alias(target, ttl, true)]));
    }

    /// From now on `name` misbehaves.
    pub fn break_name(&self, name: &str, fault: DnsFault) {
        self.put(name, Err(fault));
    }

    /// From now on `name` misbehaves where its addresses of this family are asked for. It has to be set before.
    pub fn break_family(&self, name: &str, family: Family, fault: DnsFault) {
        let mut names = self.zone.names.lock();
        names.get_mut(&name.to_ascii_lowercase()).expect("a name that was set").of_family = Some((family, fault));
    }

    /// Queries so far: two for a look-up of addresses, one for each family.
    pub fn queries(&self) -> u64 {
        *self.zone.queries.borrow()
    }

    /// Of them, those over TCP: what was too long for UDP.
    pub fn queries_over_tcp(&self) -> u64 {
        *self.zone.over_tcp.borrow()
    }

    /// Waits until there were `count` queries.
    pub async fn wait_for_queries(&self, count: u64) {
        self.zone.queries.subscribe().wait_for(|n| *n >= count).await.expect("the sender is ours");
    }

    fn put(&self, name: &str, records: Result<Vec<Record>, DnsFault>) {
        self.zone.names.lock().insert(name.to_ascii_lowercase(), Known { records, of_family: None });
    }
}

impl Zone {
    /// The answer to a message, at most `limit` bytes long; nothing for what is no query or met with silence.
    fn answer(&self, message: &[u8], limit: usize) -> Option<Vec<u8>> {
        let query = Query::read(message)?;
        self.queries.send_modify(|n| *n += 1);
        let names = self.names.lock();
        let said = said(&names, &query)?;
        Some(query.answer(&said, limit))
    }
}

/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 8;

/// What is said of a query; nothing of a name that is silent.
fn said<'z>(names: &'z HashMap<String, Known>, query: &'z Query<'_>) -> Option<Said<'z>> {
    let (mut name, mut records) = (&*query.name, Vec::new());
    for _ in 0..MAX_ALIASES {
        let known = names.get(name).map(|known| match (known.of_family, query.family()) {
            (Some((broken, fault)), Some(family)) if broken == family => Err(fault),
            _ => known.records.as_ref().map_err(|fault| *fault),
        });
        match known {
            Some(Ok(found)) => records.extend(found.iter().map(|record| (name, record))),
            None | Some(Err(DnsFault::NotFound)) => return Some(Said::not_found(records)),
            Some(Err(DnsFault::ServerFailure)) => return Some(Said::bare(2)),
            Some(Err(DnsFault::Refused)) => return Some(Said::bare(5)),
            Some(Err(DnsFault::NotImplemented)) => return Some(Said::bare(4)),
            Some(Err(DnsFault::Nothing)) => return Some(Said::bare(0)),
            Some(Err(DnsFault::Referral)) => return Some(Said::referral()),
            Some(Err(DnsFault::Silence)) => return None,
        }
        match records.last() {
            Some((_, Record::Alias { target, is_bare: false, .. })) => name = target,
            _ => break,
        }
    }
    Some(Said::found(records, query))
}

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsServer").field("address", &self.address).finish_non_exhaustive()
    }
}
