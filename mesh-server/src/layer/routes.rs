//! Which route of the listener a request has, and what was compiled for its route (gRFC A36).
//!
//! Refuses to know what stands there: whoever keeps something for each route finds it by [`Place`].

use std::sync::Arc;

use mesh_core::id::Workload;
use mesh_core::matcher::{CompiledRoute, RequestView, RouteTable, unescaped};
use mesh_core::policy::{
    Guards, HeaderPolicy, InboundHost, InboundRoute, InboundRoutes, Route, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost,
};

use super::composite::ChainId;

/// Where a request stands in its listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// The listener treats all alike, or there is none.
    #[default]
    Whole,
    /// It has this one of [`InboundRoutes::iter`].
    Route(usize),
    /// It is in this chain of a composite filter.
    Chain(ChainId),
}

/// The routes of a listener.
pub(super) struct Routes {
    table: RouteTable,
    /// Of each; `None` = it serves no requests.
    guards: Box<[Option<Arc<Guards>>]>,
}

/// A request that has one route as we read it and maybe another one, which other guards stand before, as somebody else does.
pub(super) struct Ambiguous;

impl Routes {
    pub(super) fn new(routes: &InboundRoutes) -> Self {
        let hosts: &[InboundHost] = match routes {
            InboundRoutes::All | InboundRoutes::Named(_) => &[],
            InboundRoutes::Listed(hosts) => hosts,
        };
        let virtual_host = |host: &InboundHost| VirtualHost {
            name: host.name.clone(),
            domains: host.domains.clone(),
            routes: host
                .routes
                .iter()
                .map(|r| RouteMatch { path: unescaped(&r.matcher.path), ..of_requests(&r.matcher) })
                .map(|matcher| Route::new(matcher, RouteAction::NonForwarding))
                .collect(),
            headers: HeaderPolicy::default(),
            retry: None,
        };
        let config = RouteConfiguration {
            name: String::new(),
            virtual_hosts: hosts.iter().map(virtual_host).collect(),
            headers: HeaderPolicy::default(),
            retry_budget: None,
        };
        let table = RouteTable::compile(&Arc::new(config), 0, &Workload::default());
        Self { table, guards: routes.iter().map(|route| guards(route).cloned()).collect() }
    }

    /// `None` = nothing serves the request.
    pub(super) fn find(&self, request: &RequestView<'_>) -> Result<Option<Place>, Ambiguous> {
        let choices = self.table.choices(request);
        // No condition leaves a route out, so that positions are those of the listener.
        let Some(at) = choices.route.map(CompiledRoute::id) else { return Ok(None) };
        let guards = |at: usize| self.guards.get(at)?.as_ref();
        let Some(own) = guards(at) else { return Ok(None) };
        match choices.possible.iter().any(|other| other.id() != at && guards(other.id()) != Some(own)) {
            true => Err(Ambiguous),
            false => Ok(Some(Place::Route(at))),
        }
    }
}

/// What guards the requests of a route; `None` = it serves none.
pub(super) fn guards(route: &InboundRoute) -> Option<&Arc<Guards>> {
    route.serves.as_ref().filter(|_| of_requests(&route.matcher) == route.matcher)
}

/// Without the conditions that only a client can know.
fn of_requests(matcher: &RouteMatch) -> RouteMatch {
    RouteMatch { port: None, source_labels: Default::default(), source_namespace: None, ..matcher.clone() }
}
