//! One look along the references of a destination: what it needs, and what that makes.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use mesh_core::id::{ClusterName, Target};
use mesh_core::policy::{
    Cluster, ClusterChoice, ClusterState, Clusters, Discovery, Endpoints, InboundListener, InboundRoutes, InboundState,
    Listener, RouteAction, RouteConfiguration, RouteSource, Snapshot,
};
use smallvec::SmallVec;

use super::joint::Join;
use super::{Perishable, Resources, SubscriptionId};
use crate::bootstrap::name::normalise;
use crate::codec;
use crate::xds::{AsSent, Hold, Key, Kind, Known, Loss, Origin, ServerId, Value};

/// How deep aggregate clusters may be nested (gRFC A37).
const MAX_DEPTH: usize = 16;

/// What a look found.
pub(super) enum Found<T> {
    /// Something is still on its way.
    Pending,
    /// All there.
    Ready(T),
    /// Known to fail.
    Failed(Arc<str>),
}

/// Who said what a look came across.
#[derive(Debug, Default)]
pub(super) struct Grounds {
    /// Mostly one.
    origins: SmallVec<[Origin; 4]>,
    /// Two control planes of one authority.
    mixed: bool,
    /// Something is missing without its end having been decided, and not for one cluster alone: no reason to give up what
    /// is in use.
    lost: bool,
}

impl Grounds {
    fn add(&mut self, origin: Origin) {
        match self.origins.iter().find(|known| known.authority == origin.authority) {
            Some(known) => self.mixed |= known.server != origin.server,
            None => self.origins.push(origin),
        }
    }

    /// Who gave what the look found of an authority.
    pub(super) fn giver(&self, authority: u16) -> Option<ServerId> {
        self.origins.iter().find(|origin| origin.authority == authority).map(|origin| origin.server)
    }

    /// Whether the look joined what two control planes of one authority said.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// Whether something is missing only because nobody could be asked for it.
    pub(super) fn has_lost(&self) -> bool {
        self.lost
    }

    /// Whether what was found may take the place of something good.
    pub(super) fn replace_good(&self) -> bool {
        !self.mixed && !self.lost
    }

    /// Whether both may stand in one snapshot.
    fn agrees_with(&self, other: &Self) -> bool {
        let differs = |origin: &Origin| {
            other.origins.iter().any(|o| o.authority == origin.authority && o.server != origin.server)
        };
        self.replace_good() && !self.origins.iter().any(differs)
    }
}

/// What a walk came across.
pub(super) struct Step {
    key: Key,
    /// Its value, if there is one.
    found: Option<(Value, Origin)>,
}

/// A walk that subscribes to everything it comes across and remembers it.
pub(super) struct Follow<'a, R> {
    by: SubscriptionId,
    resources: &'a mut R,
    /// Of the walk before what is still so: it need not be asked after again.
    known: Peekable<IntoIter<Step>>,
    /// In the order of the walk; some more than once.
    steps: Vec<Step>,
    grounds: Grounds,
    /// What was found missing last.
    missing: Option<Key>,
    join: Option<Join>,
    /// Who asked.
    node: &'a str,
}

impl<'a, R: Resources> Follow<'a, R> {
    pub(super) fn new(by: SubscriptionId, resources: &'a mut R, node: &'a str) -> Self {
        Self::on(by, resources, node, Vec::new(), Kind::Listener)
    }

    /// A walk after another that came across these, of which nothing before `changed` is other than it was.
    pub(super) fn on(
        by: SubscriptionId,
        resources: &'a mut R,
        node: &'a str,
        mut before: Vec<Step>,
        changed: Kind,
    ) -> Self {
        before.retain(|step| step.key.kind < changed && step.found.is_some());
        let (known, grounds) = (before.into_iter().peekable(), Grounds::default());
        Self { by, resources, known, steps: Vec::new(), grounds, missing: None, join: None, node }
    }

    /// Who said what the walk came across since the last call.
    pub(super) fn take_grounds(&mut self) -> Grounds {
        std::mem::take(&mut self.grounds)
    }

    /// Whether the walk failed for want of something that was there before: it was dropped on purpose.
    pub(super) fn has_lost_one_of(&self, settled: &[Key]) -> bool {
        self.missing.as_ref().is_some_and(|key| settled.binary_search(key).is_ok())
    }

    /// Every resource the walk came across and `others`, sorted; `before` itself if they are the same. And what the walk
    /// came across, for the next one.
    pub(super) fn into_uses(self, before: &Arc<[Key]>, others: &[Key]) -> (Arc<[Key]>, Vec<Step>) {
        let mut keys: SmallVec<[&Key; 8]> = self.steps.iter().map(|step| &step.key).chain(others).collect();
        keys.sort_unstable();
        keys.dedup();
        let same = keys.iter().copied().eq(before.iter());
        let uses = if same { before.clone() } else { keys.iter().copied().cloned().collect() };
        drop(keys);
        (uses, self.steps)
    }

    /// The whole destination.
    pub(super) fn destination(&mut self, target: &Target, name: &str) -> Found<Snapshot> {
        let listener = match self.listener(target, name) {
            Found::Ready(listener) => listener,
            Found::Pending => return Found::Pending,
            Found::Failed(reason) => return Found::Failed(reason),
        };
        let routes = match self.routes(&listener) {
            Found::Ready(routes) => routes,
            Found::Pending => return Found::Pending,
            Found::Failed(reason) => return Found::Failed(reason),
        };
        match self.clusters(&listener, &routes) {
            Some(clusters) => Found::Ready(Snapshot { listener, routes, clusters }),
            None => Found::Pending,
        }
    }

    /// A listening address; what is published rests on `settled`.
    pub(super) fn inbound(&mut self, name: &str, settled: &[Key]) -> InboundState {
        match self.need(Kind::Listener, name, |value| match value {
            Value::Listening(sent) => Some(sent.clone()),
            _ => None,
        }) {
            Found::Pending => InboundState::Pending,
            Found::Ready(sent) => self.inbound_routes(name, &sent, settled),
            Found::Failed(reason) if self.grounds.lost => {
                InboundState::Failed(format!("inbound configuration {name:?}: {reason}").into())
            }
            Found::Failed(reason) => InboundState::Failed(
                format!("no inbound configuration named {name:?} ({reason}): check that a Service selects this workload and port").into(),
            ),
        }
    }

    /// What is known of an address, without keys that have been without a word of their control plane for too long. Also
    /// those that do not hold for ever without.
    pub(super) fn aged(&self, name: &str, state: InboundState) -> (InboundState, Option<Perishable>) {
        let InboundState::Ready(listener) = &state else { return (state, None) };
        let Some(max_age) = listener.keys_max_age() else { return (state, None) };
        let key = Key::new(Kind::Listener, &*normalise(name));
        let is_over = self.resources.hold(&key, max_age) == Hold::Over;
        let keys = Some(Perishable { listener: key, max_age, is_over });
        (if is_over { InboundState::Ready(Arc::new(listener.outdated())) } else { state }, keys)
    }

    /// An address's listener with its routes. Until they are there nothing is served (gRFC A36).
    fn inbound_routes(&mut self, address: &str, sent: &AsSent<InboundListener>, settled: &[Key]) -> InboundState {
        let listener = &sent.policy;
        let InboundRoutes::Named(name) = &listener.routes else { return InboundState::Ready(listener.clone()) };
        let found = self.need(Kind::Routes, name, |value| match value {
            Value::Routes(_) => Some(None),
            Value::Serving(sent) => Some(Some(sent.bytes.clone())),
            _ => None,
        });
        // Where no route serves, none changes a filter either: whatever the listener is, there is nothing to join.
        let serves_nothing = || {
            let routes = InboundRoutes::Listed([].into());
            InboundState::Ready(Arc::new(InboundListener { routes, ..InboundListener::clone(listener) }))
        };
        let failed = |reason: &dyn fmt::Display| {
            InboundState::Failed(format!("routes {name:?} of {:?}: {reason}", listener.name).into())
        };
        match found {
            Found::Pending => InboundState::Pending,
            // Taken back on purpose: what they served ends on open connections, too.
            Found::Failed(_) if self.has_lost_one_of(settled) => serves_nothing(),
            Found::Failed(reason) => failed(&reason),
            // Two control planes of one authority: the listener of the one is not served by the routes of the other.
            Found::Ready(_) if self.grounds.is_mixed() => InboundState::Pending,
            Found::Ready(None) => serves_nothing(),
            Found::Ready(Some(routes)) => {
                let (made, state) = match codec::join(&sent.bytes, &routes) {
                    Ok(joined) => (Ok(joined.unenforced), InboundState::Ready(Arc::new(joined.value))),
                    Err(refused) => (Err(refused.problems()), failed(&refused)),
                };
                let key = |kind, name| Key::new(kind, &*normalise(name));
                let (listener, routes) = (key(Kind::Listener, address), key(Kind::Routes, name));
                self.join = Some(Join { listener, routes, made });
                state
            }
        }
    }

    /// What the walk made of a listener and the routes that it names.
    pub(super) fn take_join(&mut self) -> Option<Join> {
        self.join.take()
    }

    /// A cluster of a published snapshot as it is now, or as it was if that is not known completely or
    /// from somebody else than the rest.
    pub(super) fn cluster_or(
        &mut self,
        name: &ClusterName,
        old: &ClusterState,
        published: &Snapshot,
        rest: &Grounds,
    ) -> ClusterState {
        let now = self.cluster(name);
        if !self.take_grounds().agrees_with(rest) {
            return old.clone();
        }
        match now {
            Some(ClusterState::Ready { cluster, .. })
                if children(&cluster).iter().any(|child| !published.clusters.contains_key(child)) =>
            {
                old.clone()
            }
            Some(now) => now,
            None => old.clone(),
        }
    }

    fn listener(&mut self, target: &Target, name: &str) -> Found<Arc<Listener>> {
        let found = self.need(Kind::Listener, name, |value| match value {
            Value::Listener(listener) => Some(listener.clone()),
            _ => None,
        });
        match found {
            Found::Failed(reason) if !self.grounds.lost => {
                let text = format!(
                    "no such destination {target} ({reason}): check the name, the port and the namespace it is dialled from"
                );
                Found::Failed(text.into())
            }
            other => other,
        }
    }

    fn routes(&mut self, listener: &Listener) -> Found<Arc<RouteConfiguration>> {
        let name = match &listener.routes {
            RouteSource::Inline(routes) => return Found::Ready(routes.clone()),
            RouteSource::Named(name) => name,
        };
        let found = self.need(Kind::Routes, name, |value| match value {
            Value::Routes(routes) => Some(routes.clone()),
            Value::Serving(sent) => Some(sent.policy.clone()),
            _ => None,
        });
        match found {
            Found::Failed(reason) => Found::Failed(format!("routes {name:?} of {:?}: {reason}", listener.name).into()),
            other => other,
        }
    }

    /// Every cluster that listener and routes name, and their children; `None` while one of them is on its way.
    /// All are asked for before the first is waited for.
    fn clusters(&mut self, listener: &Listener, routes: &RouteConfiguration) -> Option<Clusters> {
        let mut known = Vec::new();
        let mut complete = true;
        let mut seen = BTreeSet::new();
        let mut open: VecDeque<_> = named_clusters(listener, routes).into_iter().map(|name| (name, 1)).collect();
        while let Some((name, depth)) = open.pop_front() {
            // Aggregates may name each other: every cluster is looked at once.
            if !seen.insert(name.clone()) {
                continue;
            }
            let mut state = self.cluster(&name);
            if let Some(ClusterState::Ready { cluster, .. }) = &state
                && !children(cluster).is_empty()
            {
                if depth < MAX_DEPTH {
                    open.extend(children(cluster).iter().map(|child| (child.clone(), depth + 1)));
                } else {
                    let reason = format!("cluster {name}: aggregates are nested more than {MAX_DEPTH} deep");
                    state = Some(ClusterState::Failed(reason.into()));
                }
            }
            match state {
                None => complete = false,
                Some(state) => known.push((name, state)),
            }
        }
        complete.then(|| known.into_iter().collect())
    }

    fn cluster(&mut self, name: &ClusterName) -> Option<ClusterState> {
        let found = self.need(Kind::Cluster, name.as_str(), |value| match value {
            Value::Cluster(cluster) => Some(cluster.clone()),
            _ => None,
        });
        let cluster: Arc<Cluster> = match found {
            Found::Pending => return None,
            Found::Failed(reason) => return Some(ClusterState::Failed(format!("cluster {name}: {reason}").into())),
            Found::Ready(cluster) => cluster,
        };
        let endpoints = match &cluster.discovery {
            Discovery::Eds { service_name } => {
                let name = service_name.as_deref().unwrap_or(name.as_str());
                let found = self.need(Kind::Endpoints, name, |value| match value {
                    Value::Endpoints(endpoints) => Some(endpoints.clone()),
                    _ => None,
                });
                match found {
                    Found::Pending => return None,
                    Found::Failed(reason) => {
                        return Some(ClusterState::Failed(format!("endpoints {name:?}: {reason}").into()));
                    }
                    Found::Ready(endpoints) => endpoints,
                }
            }
            Discovery::Static(endpoints) => endpoints.clone(),
            _ => Arc::<Endpoints>::default(),
        };
        Some(ClusterState::Ready { cluster, endpoints })
    }

    /// Subscribes to a resource and gives what `pick` makes of its value.
    fn need<T>(&mut self, kind: Kind, name: &str, pick: impl FnOnce(&Value) -> Option<T>) -> Found<T> {
        let name = normalise(name);
        if let Some(step) = self.known.next_if(|step| step.key.kind == kind && *step.key.name == *name) {
            let found = match &step.found {
                Some((value, origin)) => {
                    self.grounds.add(*origin);
                    pick(value)
                }
                None => None,
            };
            self.steps.push(step);
            return found.map_or_else(other_direction, Found::Ready);
        }
        let (name, known) = self.resources.want(self.by, kind, &name);
        let key = Key { kind, name };
        let mut value = None;
        let found = match known {
            Known::Pending => Found::Pending,
            Known::Lost(reason, loss) => {
                self.grounds.lost |= !fails_alone(&self.steps, kind, loss);
                if let Loss::Former(origin) | Loss::Late(origin) = loss {
                    self.grounds.add(origin);
                }
                Found::Failed(told(reason, self.node))
            }
            Known::Missing(reason, origin) => {
                self.missing = Some(key.clone());
                self.grounds.add(origin);
                Found::Failed(told(reason, self.node))
            }
            Known::Value(resource, origin) => {
                self.grounds.add(origin);
                value = Some((resource.value.clone(), origin));
                pick(&resource.value).map_or_else(other_direction, Found::Ready)
            }
        };
        self.steps.push(Step { key, found: value });
        found
    }
}

/// Whether what is missing fails its cluster and holds nothing else back (gRFC A74): who gave listener and routes, which
/// come before it, goes on without it. Where nobody of their authority can be reached, no more is said of them either, and
/// what is in use is better.
fn fails_alone(before: &[Step], kind: Kind, loss: Loss) -> bool {
    let frame = before.iter().filter(|step| step.key.kind <= Kind::Routes).filter_map(|step| step.found.as_ref());
    kind > Kind::Routes
        && match loss {
            Loss::Former(_) => false,
            Loss::Late(_) => true,
            Loss::Unreachable(authority) => !frame.map(|(_, origin)| origin.authority).any(|of| of == authority),
        }
}

/// A reason and the node it was told to, by which a control plane's operator finds it (gRFC A88).
fn told(reason: &str, node: &str) -> Arc<str> {
    if node.is_empty() { reason.into() } else { format!("{reason}; node {node:?}").into() }
}

/// Only listeners come in two shapes.
fn other_direction<T>() -> Found<T> {
    Found::Failed("it is a listener of the other direction".into())
}

/// A cluster of a complete snapshot with its endpoints as they are now, if those alone may differ; `None` if the walk
/// is to decide, for they are missing or from somebody else than the rest.
pub(super) fn moved(
    resources: &impl Resources,
    name: &ClusterName,
    state: &ClusterState,
    grounds: &Grounds,
) -> Option<ClusterState> {
    let ClusterState::Ready { cluster, .. } = state else { return None };
    let Discovery::Eds { service_name } = &cluster.discovery else { return Some(state.clone()) };
    let name = normalise(service_name.as_deref().unwrap_or(name.as_str()));
    let Known::Value(resource, origin) = resources.known(Kind::Endpoints, &name) else { return None };
    let Value::Endpoints(endpoints) = &resource.value else { return None };
    let known = grounds.replace_good() && grounds.origins.contains(&origin);
    known.then(|| ClusterState::Ready { cluster: cluster.clone(), endpoints: endpoints.clone() })
}

/// The clusters that an aggregate stands for; none for every other cluster.
fn children(cluster: &Cluster) -> &[ClusterName] {
    match &cluster.discovery {
        Discovery::Aggregate(children) => children,
        _ => &[],
    }
}

/// Every cluster that a request could be sent or copied to, or a raw connection go to. A cluster that a request
/// header names cannot be known in advance.
fn named_clusters(listener: &Listener, routes: &RouteConfiguration) -> BTreeSet<ClusterName> {
    let tcp = listener.tcp.iter().flat_map(|forward| forward.clusters());
    let mut names: BTreeSet<ClusterName> = tcp.map(|share| share.name.clone()).collect();
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let RouteAction::Forward(forward) = &route.action else { continue };
        match &forward.to {
            ClusterChoice::Cluster(name) => {
                names.insert(name.clone());
            }
            ClusterChoice::Weighted(weighted) => {
                // Nothing goes to a share of 0, which may name what is yet to come (gRFC A28).
                let drawn = weighted.entries().iter().filter(|entry| entry.weight > 0);
                names.extend(drawn.map(|entry| entry.name.clone()))
            }
            ClusterChoice::Header(_) => {}
        }
        names.extend(forward.mirrors.iter().map(|mirror| mirror.cluster.clone()));
    }
    names
}
