//! Rate limits by who calls: the buckets of identities, as many as there are callers, up to a bound.
//!
//! A connection looks its bucket up once; requests only take tokens from it. Refuses to know how a refusal is answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::time::Instant;

use mesh_core::identity::PeerIdentity;
use mesh_core::limit::TokenBucket;
use mesh_core::policy::{self, CallerRateLimit};

/// The limits of all callers of a listener.
pub(crate) struct Callers {
    each: Option<policy::TokenBucket>,
    groups: HashMap<Box<str>, Arc<TokenBucket>>,
    known: Mutex<Known>,
}

struct Known {
    // None = whoever has no identity.
    buckets: HashMap<Option<Box<str>>, Arc<TokenBucket>>,
    // Of those who come when there are too many.
    rest: Option<Arc<TokenBucket>>,
    // Before then nothing can be forgotten.
    full_until: Option<Instant>,
}

/// Identities with a bucket of their own; further ones share one, until others have been silent long enough.
const MOST: usize = 10_000;
/// Time between two looks for those that can be forgotten.
const PAUSE: Duration = Duration::from_secs(1);

/// The bucket of a connection's peer, looked up with its first request.
#[derive(Default)]
pub(crate) struct Own(ArcSwapOption<Found>);

struct Found {
    of: Arc<Callers>,
    bucket: Option<Arc<TokenBucket>>,
}

/// Who sends a request.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) peer: Option<&'a PeerIdentity>,
    /// Where the peer is that of the connection.
    pub(super) own: Option<&'a Own>,
}

impl Callers {
    pub(super) fn new(policy: &CallerRateLimit, now: Instant) -> Self {
        let bucket = |rate| policy::TokenBucket::per_second(rate);
        let groups = policy.groups.iter().flat_map(|group| {
            let shared = Arc::new(TokenBucket::new(&bucket(group.per_second), now));
            group.callers.iter().map(move |caller| (caller.as_str().into(), shared.clone()))
        });
        let known = Known { buckets: HashMap::new(), rest: None, full_until: None };
        Self { each: policy.each.map(bucket), groups: groups.collect(), known: Mutex::new(known) }
    }

    /// Takes a token of the caller's; `false` = there is none.
    pub(super) fn take(self: &Arc<Self>, caller: Caller<'_>, now: Instant) -> bool {
        let take = |bucket: &Option<Arc<TokenBucket>>| bucket.as_ref().is_none_or(|bucket| bucket.take(now));
        let Some(own) = caller.own else { return take(&self.look_up(caller.peer, now)) };
        if let Some(found) = own.0.load().as_ref().filter(|found| Arc::ptr_eq(&found.of, self)) {
            return take(&found.bucket);
        }
        let bucket = self.look_up(caller.peer, now);
        own.0.store(Some(Arc::new(Found { of: self.clone(), bucket: bucket.clone() })));
        take(&bucket)
    }

    /// `None` = the caller is not limited.
    fn look_up(&self, peer: Option<&PeerIdentity>, now: Instant) -> Option<Arc<TokenBucket>> {
        let id = peer.and_then(|peer| peer.spiffe_id.as_ref()).map(|id| id.as_str());
        if let Some(group) = id.and_then(|id| self.groups.get(id)) {
            return Some(group.clone());
        }
        let policy = self.each.as_ref()?;
        Some(self.known.lock().bucket(id, policy, now))
    }
}

impl Known {
    fn bucket(&mut self, id: Option<&str>, policy: &policy::TokenBucket, now: Instant) -> Arc<TokenBucket> {
        let id = id.map(Box::from);
        if let Some(known) = self.buckets.get(&id) {
            return known.clone();
        }
        let fresh = || Arc::new(TokenBucket::new(policy, now));
        if self.buckets.len() >= MOST && self.full_until.is_none_or(|until| now >= until) {
            // One that nobody holds and that is full says nothing that a fresh one does not.
            self.buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1 || bucket.tokens(now) < policy.max_tokens);
            self.full_until = (self.buckets.len() >= MOST).then(|| now + PAUSE);
        }
        if self.buckets.len() >= MOST {
            return self.rest.get_or_insert_with(fresh).clone();
        }
        self.buckets.entry(id).or_insert_with(fresh).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use mesh_core::policy::CallerGroup;

    use super::*;

    fn peer(account: &str) -> PeerIdentity {
        let spiffe_id = (!account.is_empty()).then(|| id(account).parse().unwrap());
        PeerIdentity { spiffe_id, address: ([127, 0, 0, 1], 1).into() }
    }

    fn id(account: &str) -> String {
        format!("spiffe://cluster.local/ns/a/sa/{account}")
    }

    fn rate(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    fn taken(callers: &Arc<Callers>, account: &str, now: Instant) -> u32 {
        let peer = peer(account);
        (0..100).map(|_| u32::from(callers.take(Caller { peer: Some(&peer), own: None }, now))).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn each_identity_has_a_bucket_groups_share_one_and_who_has_none_share_one() {
        let group = CallerGroup { callers: vec![id("batch"), id("cron")], per_second: rate(5) };
        let policy = CallerRateLimit { each: Some(rate(3)), groups: vec![group] };
        let now = Instant::now();
        let callers = Arc::new(Callers::new(&policy, now));
        assert_eq!(["web", "api", "", "", "web"].map(|who| taken(&callers, who, now)), [3, 3, 3, 0, 0]);
        assert_eq!(["batch", "cron"].map(|who| taken(&callers, who, now)), [5, 0]);
        // A second later there are as many again.
        let later = now + Duration::from_secs(1);
        assert_eq!(["web", "cron", "batch", ""].map(|who| taken(&callers, who, later)), [3, 5, 0, 3]);
        let only_groups = Arc::new(Callers::new(&CallerRateLimit { each: None, ..policy }, now));
        assert_eq!(["batch", "web"].map(|who| taken(&only_groups, who, now)), [5, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn identities_are_bounded_and_forgotten_when_they_have_been_silent() {
        let now = Instant::now();
        let callers = Arc::new(Callers::new(&CallerRateLimit { each: Some(rate(1)), groups: Vec::new() }, now));
        let own = Own::default();
        let held = peer("held");
        assert!(callers.take(Caller { peer: Some(&held), own: Some(&own) }, now));
        for n in 1..MOST {
            assert_eq!(taken(&callers, &n.to_string(), now), 1, "{n}");
        }
        // Those beyond share what one has.
        assert_eq!(["beyond", "further"].map(|who| taken(&callers, who, now)), [1, 0]);
        assert_eq!(callers.known.lock().buckets.len(), MOST);
        let later = now + Duration::from_secs(2);
        assert_eq!(["beyond", "further"].map(|who| taken(&callers, who, later)), [1, 1]);
        // The one that a connection holds is not among the forgotten.
        assert_eq!(callers.known.lock().buckets.len(), 3);
        assert!(callers.take(Caller { peer: Some(&held), own: Some(&own) }, later));
        assert!(!callers.take(Caller { peer: Some(&held), own: None }, later), "it is the same bucket");
    }
}
