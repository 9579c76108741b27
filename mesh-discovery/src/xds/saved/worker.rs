//! Writes the snapshot: some time after a change, and once an hour so that it does not grow old while nothing
//! changes; only while some control plane vouches for what it gave. What another one gave, which is away, keeps its age
//! meanwhile, and what an earlier run knew of it stays: an outage takes nothing out and makes nothing younger. Encoding and writing are off the worker, on the runtime's threads for blocking work.
#![allow(clippy::disallowed_methods, reason = "blocking work of a worker, and the system's clock")]

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use super::{Account, Record, encode, replace};
use crate::xds::ads::Ads;
use crate::xds::kind::Key;
use crate::xds::message::Name;
use crate::xds::resource::{self, PolicyCodec, Value};

/// How often an unchanged snapshot is written again.
const REFRESH: Duration = Duration::from_secs(3600);

/// Decides when to write, and writes.
pub(in crate::xds) struct Saver {
    owner: u128,
    delay: Duration,
    timer: Pin<Box<Sleep>>,
    /// Something changed since the last write.
    dirty: bool,
    /// Some control plane vouches for what it gave, as of the last look.
    confirmed: bool,
    writing: Option<JoinHandle<std::io::Result<()>>>,
}

impl Saver {
    pub(in crate::xds) fn new(owner: u128, delay: Duration) -> Self {
        Self {
            owner,
            delay,
            timer: Box::pin(tokio::time::sleep(REFRESH)),
            dirty: false,
            confirmed: false,
            writing: None,
        }
    }

    /// A control plane changed something.
    pub(in crate::xds) fn changed(&mut self) {
        // Beyond what the clock can tell there is only the writing once an hour.
        if !std::mem::replace(&mut self.dirty, true)
            && let Some(at) = Instant::now().checked_add(self.delay)
        {
            self.timer.as_mut().reset(at);
        }
    }

    /// Moves on; gives whether it did something.
    pub(in crate::xds) fn poll(&mut self, cx: &mut Context<'_>, ads: &Ads<PolicyCodec>, account: &mut Account) -> bool {
        if let Some(writing) = &mut self.writing {
            let Poll::Ready(done) = Pin::new(writing).poll(cx) else { return false };
            self.writing = None;
            match done.map_err(std::io::Error::other).flatten() {
                Ok(()) => {
                    account.writes += 1;
                    account.error = None;
                }
                Err(error) => {
                    tracing::warn!(path = %account.config.path.display(), %error, "the snapshot of the last good configuration cannot be written");
                    account.error = Some(format!("cannot be written: {error}"));
                }
            }
            return true;
        }
        let before = std::mem::replace(&mut self.confirmed, ads.is_confirmed_in_part());
        if !self.confirmed {
            return false;
        }
        if !before {
            // It has just begun to speak, and what it said during an outage of ours is on its way.
            self.dirty = false;
            self.changed();
        }
        let Some(key) = account.key.clone() else { return false };
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.timer.as_mut().reset(Instant::now() + REFRESH);
        self.dirty = false;
        let seconds = wall_clock();
        let (owner, path, held) = (self.owner, account.config.path.clone(), held(ads, Instant::now(), seconds));
        self.writing = Some(tokio::task::spawn_blocking(move || replace(&path, &file(&held, &key, owner, seconds))));
        true
    }
}

/// A resource that is to be kept.
struct Held {
    key: Key,
    version: Name,
    confirmed: u64,
    content: Content,
}

enum Content {
    Value(Value),
    Bytes(Bytes),
}

/// What is good, by pointer, and what an earlier run knew and no control plane has spoken of since. What has yet to
/// end by itself is not kept: on disk it would not. `now` and `seconds` are the same moment.
fn held(ads: &Ads<PolicyCodec>, now: Instant, seconds: u64) -> Vec<Held> {
    let given = ads.entries().filter_map(|(kind, name, entry)| {
        let (good, giver) = (entry.good.as_ref()?, entry.giver()?);
        let key = Some(Key::new(kind, name.clone())).filter(|key| !ads.ends(key))?;
        let age = ads.sessions()[usize::from(giver)].unconfirmed_for(now).as_secs();
        Some(Held {
            key,
            version: good.version.clone(),
            confirmed: seconds.saturating_sub(age),
            content: Content::Value(good.value.value.clone()),
        })
    });
    let unanswered = |(key, _): &(&Key, &Record)| ads.entry(key).is_none_or(|entry| entry.giver().is_none());
    let of_before = ads.saved().filter(unanswered).map(|(key, record)| Held {
        key: key.clone(),
        version: record.version.clone(),
        confirmed: record.confirmed,
        content: Content::Bytes(record.body.bytes.clone()),
    });
    given.chain(of_before).collect()
}

/// The bytes of the file, written at `seconds`.
fn file(held: &[Held], key: &hmac::Key, owner: u128, seconds: u64) -> Vec<u8> {
    let body = |held: &Held| match &held.content {
        Content::Value(value) => resource::encode(value).value.into(),
        Content::Bytes(bytes) => bytes.clone(),
    };
    let bodies: Vec<Bytes> = held.iter().map(body).collect();
    let records = held
        .iter()
        .zip(&bodies)
        .map(|(Held { key, version, confirmed, .. }, body)| (key.kind, *confirmed, &*key.name, &**version, &body[..]));
    encode(records, key, owner, seconds)
}

/// Seconds since the Unix epoch.
pub(in crate::xds) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use mesh_core::policy::{Cluster, Discovery};

    use super::super::{Saved, decode};
    use super::*;
    use crate::bootstrap::Node;
    use crate::cascade::SubscriptionId;
    use crate::codec;
    use crate::xds::ads::{Known, Server, Servers, Topology};
    use crate::xds::kind::Kind;
    use crate::xds::message::{Body, Resource, Response, Variant};

    const HOUR: Duration = Duration::from_secs(3600);
    const US: SubscriptionId = 1;
    /// One cluster of each authority, which have a control plane each.
    const CLUSTERS: [&str; 2] = ["x", "xdstp://other/envoy.config.cluster.v3.Cluster/y"];

    fn protocol(now: Instant) -> Ads<PolicyCodec> {
        let server = |name: &str| Server { name: name.to_owned(), features: Default::default(), variant: None };
        let servers = |id| Servers { ordered: vec![id], on_reachability_only: false };
        let topology = Topology {
            node: Arc::new(Node::default()),
            servers: vec![server("s0"), server("s1")],
            authorities: vec![servers(0), servers(1)],
            by_name: HashMap::from([("other".to_owned(), 1)]),
            resource_timeout: Duration::from_secs(15),
            transient_timeout: Duration::from_secs(30),
        };
        Ads::new(PolicyCodec::default(), topology, now)
    }

    /// The control plane is there and gives its cluster.
    fn give(ads: &mut Ads<PolicyCodec>, server: u16, now: Instant) {
        assert_eq!(ads.variant(server, now), Variant::Delta);
        ads.opened(server, now);
        while ads.take_request(server, now).is_some() {}
        let name = CLUSTERS[usize::from(server)];
        let cluster = Cluster { discovery: Discovery::OriginalDestination, ..Cluster::new(name.into()) };
        let any = codec::encode_cluster(&cluster);
        let body = Some(Body::new(&any.type_url, any.value));
        let resources = vec![Resource { name: name.to_owned(), version: "v1".to_owned(), ttl: None, body }];
        let type_url = Kind::Cluster.type_url().to_owned();
        ads.response(server, Response { type_url, resources, ..Default::default() }, now);
        ads.conclude();
        assert_eq!(ads.entry(&Key::new(Kind::Cluster, name)).unwrap().giver(), Some(server));
    }

    /// What a process that starts at `seconds` reads of a file written at `written`.
    fn read(ads: &Ads<PolicyCodec>, now: Instant, written: u64, seconds: u64) -> Saved {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let bytes = file(&held(ads, now, written), &key, 7, written);
        decode(&bytes, &key, 7, (now, seconds), 24 * HOUR).unwrap().1
    }

    fn confirmed(saved: &Saved) -> [Option<u64>; 2] {
        CLUSTERS.map(|name| saved.get(&Key::new(Kind::Cluster, name)).map(|record| record.confirmed))
    }

    #[test]
    fn a_control_plane_that_stays_away_makes_what_others_gave_no_older() {
        let (mut now, hour) = (Instant::now(), HOUR.as_secs());
        let mut ads = protocol(now);
        for name in CLUSTERS {
            let _ = ads.want(US, Kind::Cluster, name);
        }
        give(&mut ads, 0, now);
        give(&mut ads, 1, now);
        assert!(ads.is_confirmed());

        // One goes away for most of a day. It is written all the same.
        ads.closed(1, None, now);
        now += 20 * HOUR;
        assert!(ads.is_confirmed_in_part() && !ads.is_confirmed());
        let day = 1_000_000;
        let both = read(&ads, now, day, day + 2 * hour);
        assert_eq!(confirmed(&both), [Some(day), Some(day - 20 * hour)]);
        assert_eq!(confirmed(&read(&ads, now, day, day + 5 * hour)), [Some(day), None], "each by its own age");

        // The next process: what is of the one that is still away serves, and gets no younger by being written again,
        // wanted or not.
        for wanted in [false, true] {
            let mut ads = protocol(now);
            ads.restore(both.clone());
            let _ = ads.want(US, Kind::Cluster, CLUSTERS[0]);
            give(&mut ads, 0, now);
            if wanted {
                assert!(matches!(ads.want(US, Kind::Cluster, CLUSTERS[1]).1, Known::Value(..)));
            }
            let later = day + 2 * hour;
            assert_eq!(confirmed(&read(&ads, now, later, later)), [Some(later), Some(day - 20 * hour)]);
            // Nobody who comes when it is too old is served.
            if !wanted {
                ads.expire(now + 2 * HOUR);
                assert!(matches!(ads.want(US, Kind::Cluster, CLUSTERS[1]).1, Known::Pending));
            }
        }

        // The control run: with all of them away, nothing is.
        ads.closed(0, None, now);
        assert!(!ads.is_confirmed_in_part());
    }
}
