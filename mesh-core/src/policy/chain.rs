//! The filters of a server whose routes come on their own (RDS), and their junction with those: once for each change of
//! either, never for a request (gRFC A36, A39, A41).
//!
//! ```text
//! listener: f1 f2 f3 …        routes: /a {f2: off}   /b {f1: other rules}   /c
//!                      ╲      ╱
//!     for each route what guards its requests; routes that change the same share it
//! ```
//!
//! It fails closed: a route that changes a filter into what the listener has not, or so much that nobody could hold it, serves
//! nothing. Refuses to know where either came from.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::sync::Arc;

use serde::Serialize;

use super::{
    AuthorizationPolicy, FilterOverride, FilterOverrides, Guards, HttpFilter, HttpFilterKind, InboundHost,
    InboundListener, InboundRoute, InboundRoutes, JwtAuthentication, JwtRequirement, JwtRule, Route, RouteAction,
    RouteConfiguration, RouteMatch,
};

/// One filter of a server, by itself: routes that come on their own may change it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ChainFilter {
    /// Instance name: by it routes name what they change.
    pub name: String,
    /// It is off where no route turns it on.
    pub disabled: bool,
    /// What it does.
    pub kind: ChainFilterKind,
}

/// What a filter of a server does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainFilterKind {
    /// It authorizes (RBAC): by one policy that is enforced, one that only observes, both in this order, or none.
    Authorization(Vec<AuthorizationPolicy>),
    /// It demands tokens.
    Tokens {
        /// What it demands where no route says anything.
        demands: JwtAuthentication,
        /// What routes may have it demand instead, by name ([`FilterOverride::Requirement`]).
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        requirements: BTreeMap<String, JwtRequirement>,
    },
    /// Any other.
    Http(HttpFilterKind),
}

/// As much of filters as the routes of a listener may hold together, in bytes of their text: each place that changes one of
/// them holds all.
const MOST_OF_ROUTES: usize = 32 << 20;

/// What a filter without a word of configuration counts for, in bytes.
const LEAST_OF_FILTER: usize = 64;

impl InboundListener {
    /// This listener with the routes that [`InboundRoutes::Named`] stands for. What they change of its filters is followed;
    /// routes that change the same have the same guards, so that several places that set an equal limit share it. A route
    /// serves nothing that changes a filter into one of another kind, asks for a demand that is not listed, or turns a composite
    /// on that a server would ask too late ([`Composite::reads_tokens`](super::Composite::reads_tokens)); nor do those that
    /// together would hold more than 32 MiB.
    #[must_use]
    pub fn with_routes(&self, routes: &RouteConfiguration) -> Self {
        let chain = self.filters_one_by_one();
        let mut join = Join::new(&chain);
        let hosts = routes.virtual_hosts.iter().map(|host| InboundHost {
            name: host.name.clone(),
            domains: host.domains.clone(),
            routes: host.routes.iter().map(|route| join.route(route)).collect(),
        });
        let routes = InboundRoutes::Listed(hosts.collect());
        Self { routes, chain: Vec::new(), ..self.clone() }
    }

    /// Of a listener that was made [with these routes](Self::with_routes), those that serve nothing though they say that they
    /// do, for what they change of its filters does not fit: by virtual host and place in it.
    pub fn misfits(&self, routes: &RouteConfiguration) -> Vec<(usize, usize)> {
        let InboundRoutes::Listed(hosts) = &self.routes else { return Vec::new() };
        let wants = |route: &Route| matches!(route.action, RouteAction::NonForwarding);
        let both = routes.virtual_hosts.iter().zip(hosts.iter()).enumerate();
        let of_host = both.flat_map(|(h, (said, made))| {
            let pairs = said.routes.iter().zip(&made.routes).enumerate();
            pairs.filter(|(_, (said, made))| wants(said) && made.serves.is_none()).map(move |(r, _)| (h, r))
        });
        of_host.collect()
    }

    /// The filters one by one, also of a listener that was not made of such: then they are in the order in which a server asks
    /// them, and those that authorize have the names of their policies.
    fn filters_one_by_one(&self) -> Vec<ChainFilter> {
        if !self.chain.is_empty() {
            return self.chain.clone();
        }
        let filter = |name: &str, kind| ChainFilter { name: name.to_owned(), disabled: false, kind };
        let http = |of: &HttpFilter| filter(&of.name, ChainFilterKind::Http(of.kind.clone()));
        let tokens = |jwt: &JwtAuthentication| {
            let kind = ChainFilterKind::Tokens { demands: jwt.clone(), requirements: BTreeMap::new() };
            filter(&jwt.name, kind)
        };
        let policy = |of: &AuthorizationPolicy| filter(&of.name, ChainFilterKind::Authorization(vec![of.clone()]));
        // What is before needs something to be before of.
        let judges = !self.jwt.is_empty() || !self.authorization.is_empty();
        let none = (!self.before.is_empty() && !judges).then(|| filter("", ChainFilterKind::Authorization(Vec::new())));
        let judging = self.jwt.iter().map(tokens).chain(self.authorization.iter().map(policy)).chain(none);
        self.before.iter().map(http).chain(judging).chain(self.filters.iter().map(http)).collect()
    }
}

impl ChainFilter {
    /// What these filters are where nothing changes them; `None` if a composite stands where a server would ask it too late.
    pub fn guards(chain: &[Self]) -> Option<Guards> {
        guards(chain, &vec![None; chain.len()])
    }

    fn judges(&self) -> bool {
        !matches!(self.kind, ChainFilterKind::Http(_))
    }

    fn is_off(&self, change: Option<&FilterOverride>) -> bool {
        match change {
            None => self.disabled,
            Some(change) => matches!(change, FilterOverride::Disabled),
        }
    }

    /// What a place changes of it: nothing, if it says no more than what is so anyway. A client's filters a server has not.
    fn change<'r>(&self, by: &'r FilterOverrides) -> Option<&'r Arc<FilterOverride>> {
        let change = by.get(&self.name)?;
        match &**change {
            FilterOverride::Enabled if !self.disabled => None,
            FilterOverride::Fault(_) | FilterOverride::Session(_) => None,
            _ => Some(change),
        }
    }
}

/// Routes being joined with the filters of their listener.
struct Join<'a> {
    chain: &'a [ChainFilter],
    /// How much each filter is.
    sizes: Vec<usize>,
    /// Guards by what is changed of each filter, none where that does not fit. First by where it stands: many routes have it of
    /// one place, and to compare what is large takes time.
    by_place: HashMap<Vec<Option<*const FilterOverride>>, Option<Arc<Guards>>>,
    by_value: HashMap<Vec<Option<&'a FilterOverride>>, Option<Arc<Guards>>>,
    /// How much all of them hold.
    held: usize,
}

impl<'a> Join<'a> {
    fn new(chain: &'a [ChainFilter]) -> Self {
        let sizes = chain.iter().map(size).collect();
        Self { chain, sizes, by_place: HashMap::new(), by_value: HashMap::new(), held: 0 }
    }

    fn route(&mut self, route: &'a Route) -> InboundRoute {
        let serves = matches!(route.action, RouteAction::NonForwarding);
        let serves = if serves { self.guards(&route.filters) } else { None };
        InboundRoute { name: route.name.clone(), matcher: route.matcher.clone(), serves }
    }

    fn guards(&mut self, by: &'a FilterOverrides) -> Option<Arc<Guards>> {
        let changes: Vec<_> = self.chain.iter().map(|filter| filter.change(by)).collect();
        let place = changes.iter().map(|change| change.map(Arc::as_ptr)).collect();
        if let Some(known) = self.by_place.get(&place) {
            return known.clone();
        }
        let changes: Vec<_> = changes.into_iter().map(|change| change.map(|change| &**change)).collect();
        let made = match self.by_value.get(&changes) {
            Some(known) => known.clone(),
            None => {
                let made = self.make(&changes);
                self.by_value.insert(changes, made.clone());
                made
            }
        };
        self.by_place.insert(place, made.clone());
        made
    }

    fn make(&mut self, changes: &[Option<&FilterOverride>]) -> Option<Arc<Guards>> {
        let each = self.sizes.iter().zip(changes).map(|(own, change)| LEAST_OF_FILTER + change.map_or(*own, size));
        self.held = self.held.saturating_add(each.sum());
        if self.held > MOST_OF_ROUTES {
            return None;
        }
        guards(self.chain, changes).map(Arc::new)
    }
}

/// What the filters are where these changes hold; `None` = they do not fit.
fn guards(chain: &[ChainFilter], changes: &[Option<&FilterOverride>]) -> Option<Guards> {
    let both = || chain.iter().zip(changes.iter().copied());
    let is_on = |(filter, change): (&ChainFilter, Option<&FilterOverride>)| !filter.is_off(change);
    // As Envoy has it, what stands before the first one that looks at callers here holds before that does.
    let first = both().position(|both| both.0.judges() && is_on(both));
    let first = first.or_else(|| chain.iter().position(ChainFilter::judges)).unwrap_or_default();
    let demands = |filter: &ChainFilter| matches!(filter.kind, ChainFilterKind::Tokens { .. });
    let tokens = chain.iter().zip(changes).rposition(|(filter, change)| demands(filter) && is_on((filter, *change)));
    let mut guards = Guards::default();
    let mut authorizes = false;
    for (i, (filter, change)) in both().enumerate().filter(|(_, both)| is_on(*both)) {
        let change = change.filter(|change| !matches!(change, FilterOverride::Enabled));
        match (&filter.kind, change) {
            (ChainFilterKind::Authorization(own), None) => guards.authorization.extend_from_slice(own),
            (ChainFilterKind::Authorization(_), Some(FilterOverride::Authorization(other))) => {
                guards.authorization.extend_from_slice(other);
            }
            (ChainFilterKind::Tokens { demands, .. }, None) => guards.jwt.push(demands.clone()),
            (ChainFilterKind::Tokens { demands, requirements }, Some(FilterOverride::Requirement(name))) => {
                let requirement = Some(requirements.get(name)?.clone());
                guards.jwt.push(JwtAuthentication {
                    name: format!("{}@{name}", demands.name),
                    rules: vec![JwtRule { matcher: RouteMatch::any(), requirement }],
                    ..demands.clone()
                });
            }
            (ChainFilterKind::Http(own), change) => {
                let kind = changed(own, change)?;
                if let HttpFilterKind::Composite(composite) = &kind {
                    // A server asks for tokens before it looks at headers, which may take them away, and RBAC after.
                    let late = (first..tokens.unwrap_or_default()).contains(&i);
                    if late || authorizes && composite.reads_tokens() {
                        return None;
                    }
                }
                let place = if i < first { &mut guards.before } else { &mut guards.filters };
                place.push(HttpFilter { name: filter.name.clone(), kind });
            }
            _ => return None,
        }
        authorizes |= matches!(filter.kind, ChainFilterKind::Authorization(_));
    }
    Some(guards)
}

/// A filter that looks at no caller by itself, where that is changed of it; `None` = it is none of this kind.
fn changed(own: &HttpFilterKind, change: Option<&FilterOverride>) -> Option<HttpFilterKind> {
    match (own, change) {
        (own, None) => Some(own.clone()),
        (HttpFilterKind::RateLimit(_), Some(FilterOverride::RateLimit(limit))) => {
            Some(HttpFilterKind::RateLimit(limit.clone()))
        }
        (HttpFilterKind::Composite(_), Some(FilterOverride::Composite(composite))) => {
            Some(HttpFilterKind::Composite(composite.clone()))
        }
        _ => None,
    }
}

/// How large something is: as its text is long.
fn size(of: &impl fmt::Debug) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }
    let mut count = Count(0);
    // Nothing here says that it could not be told.
    let _ = write!(count, "{of:?}");
    count.0
}

#[cfg(test)]
mod tests;
