//! Follows a dialled destination from its listener to its endpoints and publishes one consistent
//! snapshot when all of them are known or known to fail (the idea of gRFC A74).
//!
//! Make before break: while something new is still on its way, what was published stays, with its
//! clusters kept up to date, and its resources stay subscribed. What two control planes of one authority
//! say is never joined: after a change of the control plane everything is on its way (gRFC A71). Unchanged parts keep their `Arc`; an
//! unchanged state is not published again. Refuses to know versions, nonces and streams.
//!
//! ```text
//! listener ─▶ routes ─▶ clusters ─▶ endpoints
//!                          └▶ children of an aggregate
//! ```

mod follow;
mod joint;
mod published;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use mesh_core::id::{ClusterName, Target};
use mesh_core::policy::{ClusterState, Clusters, DestinationState, InboundState, Snapshot};
use mesh_core::source::Publisher;
use smallvec::SmallVec;
use tokio::time::Instant;

use self::follow::{Follow, Found, Grounds, Step};
pub(crate) use self::joint::Joined;
use self::joint::Joins;
pub(crate) use self::published::{Published, Unsettled};
use crate::xds::{Ads, Hold, Key, Kind, Known, Name, Resource};

/// Number of a subscription; never used twice.
pub(crate) type SubscriptionId = u64;

/// The protocol state as the cascade uses it.
pub(crate) trait Resources {
    /// Wants a resource for a subscription; gives its name, the one that all share, and what is known of it.
    fn want(&mut self, by: SubscriptionId, kind: Kind, name: &str) -> (Name, Known<'_, Resource>);
    /// A subscription no longer wants it.
    fn release(&mut self, by: SubscriptionId, key: &Key);
    /// The subscriptions that want it.
    fn users(&self, key: &Key) -> &[SubscriptionId];
    /// Everything that a subscription wants.
    fn wanted_by(&self, by: SubscriptionId) -> Vec<Key>;
    /// What is known of one that is wanted.
    fn known(&self, kind: Kind, name: &str) -> Known<'_, Resource>;
    /// Until when something holds that came with one of them, and holds `max_age` without its control plane.
    fn hold(&self, key: &Key, max_age: Duration) -> Hold;
}

impl<C: crate::xds::Codec<Value = Resource>> Resources for Ads<C> {
    fn want(&mut self, by: SubscriptionId, kind: Kind, name: &str) -> (Name, Known<'_, Resource>) {
        Ads::want(self, by, kind, name)
    }

    fn release(&mut self, by: SubscriptionId, key: &Key) {
        Ads::release(self, by, key);
    }

    fn users(&self, key: &Key) -> &[SubscriptionId] {
        Ads::users(self, key)
    }

    fn wanted_by(&self, by: SubscriptionId) -> Vec<Key> {
        Ads::wanted_by(self, by)
    }

    fn known(&self, kind: Kind, name: &str) -> Known<'_, Resource> {
        Ads::known(self, kind, name)
    }

    fn hold(&self, key: &Key, max_age: Duration) -> Hold {
        Ads::hold(self, key, max_age)
    }
}

/// Who wants what, and what was told to whom.
#[derive(Default)]
pub(crate) struct Cascade {
    followed: HashMap<SubscriptionId, Box<Followed>, RandomState>,
    /// Listening addresses with keys that do not hold for ever without a control plane.
    perishable: BTreeMap<SubscriptionId, Perishable>,
    /// Listening addresses whose routes come on their own.
    joins: Joins,
    /// Our id as a node, for what is said of failures (gRFC A88); empty if there is none to say.
    node: Arc<str>,
}

/// Resources, sorted.
type Keys = Arc<[Key]>;

/// One subscription.
struct Followed {
    root: Root,
    /// Every resource in use: of the latest look, and of what is published while that is incomplete.
    uses: Keys,
    /// What the published snapshot rests on; mostly the same list.
    settled: Keys,
    /// Who said what the published snapshot rests on.
    grounds: Grounds,
    /// Whether what is published is all that the latest walk found.
    is_settled: bool,
    /// What the latest walk came across, until something is published: while a large mesh comes page by page, each of
    /// its destinations is walked along with every page.
    steps: Vec<Step>,
}

/// Keys of token issuers that a control plane fetched.
struct Perishable {
    /// The listener that they came with.
    listener: Key,
    /// How long they hold without a word of it.
    max_age: Duration,
    /// Whether that is over, as was published.
    is_over: bool,
}

/// What is subscribed and where its state goes.
pub(crate) enum Root {
    /// A dialled destination.
    Destination {
        /// As dialled.
        target: Target,
        /// Resource name of its listener.
        listener: String,
        /// Its readers.
        publisher: Publisher<DestinationState>,
    },
    /// A listening address.
    Inbound {
        /// Resource name.
        listener: String,
        /// Its readers.
        publisher: Publisher<InboundState>,
    },
}

impl Cascade {
    /// That of the node with this id.
    pub(crate) fn of(node: &str) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// Begins to follow; publishes at once what is already known.
    pub(crate) fn add(&mut self, id: SubscriptionId, root: Root, resources: &mut impl Resources) {
        let (uses, settled, grounds) = (Keys::default(), Keys::default(), Grounds::default());
        let followed = Followed { root, uses, settled, grounds, is_settled: false, steps: Vec::new() };
        self.followed.insert(id, Box::new(followed));
        self.refresh(id, Kind::Listener, resources);
    }

    /// Tells the readers of a subscription that it cannot be followed.
    pub(crate) fn fail(&mut self, id: SubscriptionId, reason: &str) {
        match self.followed.get(&id).map(|followed| &followed.root) {
            Some(Root::Destination { publisher, .. }) => publisher.publish(DestinationState::Failed(reason.into())),
            Some(Root::Inbound { publisher, .. }) => publisher.publish(InboundState::Failed(reason.into())),
            None => {}
        }
    }

    /// Ends a subscription.
    pub(crate) fn remove(&mut self, id: SubscriptionId, resources: &mut impl Resources) {
        self.perishable.remove(&id);
        self.joins.remove(id);
        if let Some(followed) = self.followed.remove(&id) {
            followed.uses.iter().for_each(|key| resources.release(id, key));
        }
    }

    /// Looks again at everything that uses one of the changed resources.
    pub(crate) fn changed(&mut self, keys: &[Key], resources: &mut impl Resources) {
        let Some(first) = keys.iter().map(|key| key.kind).min() else { return };
        for id in affected(keys, resources) {
            // What changes all the time is who serves the clusters: then the rest need not be walked through.
            if !(first == Kind::Endpoints && self.move_endpoints(id, resources)) {
                self.refresh(id, first, resources);
            }
        }
    }

    /// Takes keys of issuers out of use of whose control plane nothing has been heard for too long, and back into use once
    /// something is.
    pub(crate) fn age(&mut self, resources: &mut impl Resources) {
        let turned = self.perishable.iter().filter(|(_, keys)| {
            let is_over = resources.hold(&keys.listener, keys.max_age) == Hold::Over;
            is_over != keys.is_over
        });
        let turned: SmallVec<[SubscriptionId; 4]> = turned.map(|(id, _)| *id).collect();
        for id in turned {
            self.refresh(id, Kind::Listener, resources);
        }
    }

    /// When that has something to do, if nothing is heard until then.
    pub(crate) fn next_age(&self, resources: &impl Resources) -> Option<Instant> {
        let holds = self.perishable.values().map(|keys| resources.hold(&keys.listener, keys.max_age));
        let ends = holds.filter_map(|hold| match hold {
            Hold::Until(end) => Some(end),
            Hold::Confirmed | Hold::Over => None,
        });
        ends.min()
    }

    /// Listeners of servers with the routes that they name, where they do not fit or something is not enforced.
    pub(crate) fn joined(&self) -> impl Iterator<Item = &Joined> {
        self.joins.all()
    }

    /// After a look at what uses these has panicked: what it wanted and could not note any more is followed like the
    /// rest, so that it is let go of.
    pub(crate) fn mend(&mut self, keys: &[Key], resources: &impl Resources) {
        affected(keys, resources).into_iter().for_each(|id| self.mend_one(id, resources));
    }

    /// The same for one subscription.
    pub(crate) fn mend_one(&mut self, id: SubscriptionId, resources: &impl Resources) {
        let Some(followed) = self.followed.get_mut(&id) else { return };
        let mut wanted = resources.wanted_by(id);
        wanted.sort_unstable();
        followed.uses = wanted.into();
    }

    /// Publishes what is published with the endpoints as they are now, for a subscription of which nothing else has
    /// changed. False if that is not all there is to it: then nothing is done.
    fn move_endpoints(&self, id: SubscriptionId, resources: &impl Resources) -> bool {
        // While something is on its way, the walk decides.
        let Some(Followed { root: Root::Destination { publisher, .. }, grounds, is_settled: true, .. }) =
            self.followed.get(&id).map(|followed| &**followed)
        else {
            return false;
        };
        let before = publisher.load_full();
        let DestinationState::Ready(old) = &*before else { return false };
        let now = |(name, state): (&ClusterName, &ClusterState)| {
            Some((name.clone(), follow::moved(resources, name, state, grounds)?))
        };
        let Some(clusters) = old.clusters.iter().map(now).collect::<Option<Clusters>>() else { return false };
        if clusters != old.clusters {
            let next = Snapshot { listener: old.listener.clone(), routes: old.routes.clone(), clusters };
            publisher.publish(DestinationState::Ready(Arc::new(next)));
        }
        true
    }

    /// Walks along a subscription again; nothing of a kind before `changed` is other than it was.
    fn refresh(&mut self, id: SubscriptionId, changed: Kind, resources: &mut impl Resources) {
        let Some(followed) = self.followed.get_mut(&id) else { return };
        let uses = match &followed.root {
            Root::Destination { target, listener, publisher } => {
                let mut follow = Follow::on(id, resources, &self.node, std::mem::take(&mut followed.steps), changed);
                let found = follow.destination(target, listener);
                let grounds = follow.take_grounds();
                let before = publisher.load_full();
                let (next, settled) = match (found, &*before) {
                    (_, DestinationState::Ready(old)) if !grounds.replace_good() => {
                        (keep(&mut follow, old, &followed.grounds), false)
                    }
                    (Found::Ready(_), _) if grounds.is_mixed() => (DestinationState::Pending, false),
                    (Found::Ready(snapshot), _) => (DestinationState::Ready(Arc::new(snapshot)), true),
                    (Found::Failed(reason), DestinationState::Ready(_))
                        if follow.has_lost_one_of(&followed.settled) =>
                    {
                        (DestinationState::Failed(reason), true)
                    }
                    (_, DestinationState::Ready(old)) => (keep(&mut follow, old, &followed.grounds), false),
                    (Found::Failed(reason), _) if grounds.has_lost() => (DestinationState::Unreachable(reason), false),
                    (Found::Failed(reason), _) => (DestinationState::Failed(reason), true),
                    (Found::Pending, _) => (DestinationState::Pending, false),
                };
                if next != *before {
                    publisher.publish(next);
                }
                followed.is_settled = settled;
                if settled {
                    (followed.settled, _) = follow.into_uses(&followed.uses, &[]);
                    followed.grounds = grounds;
                    followed.settled.clone()
                } else {
                    let (uses, steps) = follow.into_uses(&followed.uses, &followed.settled);
                    if followed.settled.is_empty() {
                        followed.steps = steps;
                    }
                    uses
                }
            }
            Root::Inbound { .. } => {
                let Some(uses) = self.refresh_inbound(id, resources) else { return };
                uses
            }
        };
        let Some(followed) = self.followed.get_mut(&id) else { return };
        let before = std::mem::replace(&mut followed.uses, uses.clone());
        if !Arc::ptr_eq(&before, &uses) {
            let unused = before.iter().filter(|key| uses.binary_search(key).is_err());
            unused.for_each(|key| resources.release(id, key));
        }
    }

    /// The same for a listening address; gives what it uses.
    fn refresh_inbound(&mut self, id: SubscriptionId, resources: &mut impl Resources) -> Option<Keys> {
        let followed = self.followed.get_mut(&id)?;
        let Root::Inbound { listener, publisher } = &followed.root else { return None };
        let mut follow = Follow::new(id, resources, &self.node);
        let before = publisher.load_full();
        let in_force = matches!(*before, InboundState::Ready(_));
        let next = follow.inbound(listener, if in_force { &followed.settled } else { &[] });
        let grounds = follow.take_grounds();
        // Only what was dropped on purpose ends what is good, as for destinations.
        let stays = in_force && !matches!(next, InboundState::Ready(_)) && !follow.has_lost_one_of(&followed.settled);
        let next = if stays { (*before).clone() } else { next };
        let (next, keys) = follow.aged(listener, next);
        tell_age(listener, self.perishable.get(&id), keys.as_ref());
        match keys {
            Some(keys) => self.perishable.insert(id, keys),
            None => self.perishable.remove(&id),
        };
        if next != *before {
            publisher.publish(next);
        }
        followed.is_settled = !stays;
        let join = follow.take_join();
        let uses = if stays {
            follow.into_uses(&followed.uses, &followed.settled).0
        } else {
            followed.grounds = grounds;
            (followed.settled, _) = follow.into_uses(&followed.uses, &[]);
            followed.settled.clone()
        };
        self.joins.note(id, join, stays);
        Some(uses)
    }
}

/// Tells of keys that have gone out of use, or come back into it.
fn tell_age(listener: &str, before: Option<&Perishable>, now: Option<&Perishable>) {
    match (before.is_some_and(|keys| keys.is_over), now) {
        (false, Some(Perishable { is_over: true, max_age, .. })) => tracing::warn!(
            listener,
            ?max_age,
            "nothing has been heard of the control plane for so long: the keys of token issuers that it fetched are out of \
             use, and tokens of these issuers are refused until it is heard of"
        ),
        (true, Some(Perishable { is_over: false, .. })) => {
            tracing::info!(listener, "the keys of token issuers that the control plane fetched are in use again");
        }
        _ => {}
    }
}

/// The subscriptions that use one of these.
fn affected(keys: &[Key], resources: &impl Resources) -> SmallVec<[SubscriptionId; 4]> {
    let mut affected: SmallVec<[_; 4]> = keys.iter().flat_map(|key| resources.users(key)).copied().collect();
    affected.sort_unstable();
    affected.dedup();
    affected
}

/// The published snapshot with its clusters as they are now: what cannot be brought up to date stays.
fn keep<R: Resources>(follow: &mut Follow<'_, R>, old: &Arc<Snapshot>, grounds: &Grounds) -> DestinationState {
    let now = |(name, state)| (ClusterName::clone(name), follow.cluster_or(name, state, old, grounds));
    let clusters = old.clusters.iter().map(now).collect();
    let kept = Snapshot { listener: old.listener.clone(), routes: old.routes.clone(), clusters };
    DestinationState::Ready(if kept == **old { old.clone() } else { Arc::new(kept) })
}
