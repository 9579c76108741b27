//! The listener of a server and its routes: what is followed, waited for and kept.

use std::sync::Arc;

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, ChainFilter, ChainFilterKind, FilterOverride, Guards, InboundListener,
    InboundRoutes, InboundState, InboundTls, PathMatch, Route, RouteAction, RouteMatch,
};
use mesh_core::source::{InboundSource, Watched};
use mesh_discovery::codec;
use mesh_testkit::policy;

use crate::plane::{BOTH, Named, Plane, broken, client};

pub(crate) const ADDRESS: &str = "127.0.0.1:8080";

fn name() -> String {
    format!("xds.istio.io/grpc/lds/inbound/{ADDRESS}")
}

pub(crate) fn listener(routes: InboundRoutes) -> Named {
    let listener = InboundListener::new(name(), ADDRESS.parse().unwrap(), InboundTls::Strict);
    let any = codec::encode_inbound(&InboundListener { routes, ..listener });
    ((any.type_url, name()), any.value)
}

/// A route configuration that serves this path and nothing else.
pub(crate) fn serving(name: &str, path: &str) -> Named {
    let matcher = RouteMatch { path: PathMatch::Exact(path.to_owned()), ..RouteMatch::any() };
    let mut routes = policy::routes([Route::new(matcher, RouteAction::NonForwarding)]);
    routes.name = name.to_owned();
    let any = codec::encode_routes(&routes);
    ((any.type_url, name.to_owned()), any.value)
}

pub(crate) async fn serves(state: &mut Watched<InboundState>, path: &str) {
    let only = |listener: &InboundListener| {
        let paths: Vec<_> = listener.routes.iter().map(|route| (&route.matcher.path, route.serves.is_some())).collect();
        paths == [(&PathMatch::Exact(path.to_owned()), true)]
    };
    state.wait_for(|state| matches!(state, InboundState::Ready(listener) if only(listener))).await;
}

#[tokio::test(start_paused = true)]
async fn a36_a_server_serves_when_its_routes_are_there_and_follows_them() {
    for variant in BOTH {
        let plane = Plane::new();
        plane.put(listener(InboundRoutes::Named("r".to_owned())));
        let client = client(variant, &[&plane]);
        let mut state = client.inbound(ADDRESS.parse().unwrap());
        plane.sees("the routes are asked for", |plane| plane.asked(codec::ROUTES) == ["r"]).await;
        assert_eq!(**state.load(), InboundState::Pending, "{variant:?}: nothing is served before");
        plane.put(serving("r", "/a"));
        serves(&mut state, "/a").await;
        plane.put(serving("r", "/b"));
        serves(&mut state, "/b").await;
        // A refused one leaves the last good.
        plane.put(broken(codec::ROUTES, "r"));
        plane.sees("a refusal", |plane| plane.nacks().len() == 1).await;
        serves(&mut state, "/b").await;
        // The control: a listener without routes of its own serves everything, and lets them go.
        plane.put(listener(InboundRoutes::All));
        state.wait_for(|state| matches!(state, InboundState::Ready(listener) if listener.routes.are_all())).await;
        plane.sees("the routes are let go", |plane| plane.asked(codec::ROUTES).is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a36_routes_that_do_not_exist_fail_the_server_and_nothing_is_served_without_them() {
    for variant in BOTH {
        let plane = Plane::new();
        plane.put(listener(InboundRoutes::Named("r".to_owned())));
        let client = client(variant, &[&plane]);
        let mut state = client.inbound(ADDRESS.parse().unwrap());
        let failed = state.wait_for(|state| matches!(state, InboundState::Failed(_))).await;
        assert!(format!("{failed:?}").contains("routes"), "{failed:?}");
        plane.put(serving("r", "/a"));
        serves(&mut state, "/a").await;
    }
}

/// A listener that lets nobody in, whose routes `r` may change that.
fn shut() -> Named {
    let policies = vec![AuthorizationPolicy::new("f", AuthorizationAction::Allow)];
    let kind = ChainFilterKind::Authorization(policies);
    let chain = vec![ChainFilter { name: "f".to_owned(), disabled: false, kind }];
    let Guards { authorization, .. } = ChainFilter::guards(&chain).unwrap();
    let listener = InboundListener {
        authorization,
        routes: InboundRoutes::Named("r".to_owned()),
        chain,
        ..InboundListener::new(name(), ADDRESS.parse().unwrap(), InboundTls::Strict)
    };
    let any = codec::encode_inbound(&listener);
    ((any.type_url, name()), any.value)
}

/// Routes `r`: one that serves all and changes this of the filter `f`.
fn changing(change: Option<FilterOverride>) -> Named {
    let mut route = Route::new(RouteMatch::any(), RouteAction::NonForwarding);
    route.filters = Arc::new(change.map(|change| ("f".to_owned(), change.into())).into_iter().collect());
    let mut routes = policy::routes([route]);
    routes.name = "r".to_owned();
    let any = codec::encode_routes(&routes);
    ((any.type_url, "r".to_owned()), any.value)
}

/// Waits until so many policies are asked of a request.
async fn asks(state: &mut Watched<InboundState>, policies: usize) {
    let serves = |listener: &InboundListener| {
        listener.routes.iter().map(|r| r.serves.as_ref().map(|guards| guards.authorization.len())).collect::<Vec<_>>()
    };
    let asks =
        |state: &InboundState| matches!(state, InboundState::Ready(listener) if serves(listener) == [Some(policies)]);
    state.wait_for(asks).await;
}

#[tokio::test(start_paused = true)]
async fn l3_rules_of_a_server_hold_with_what_its_routes_change_and_the_last_good_of_either_stays_a36_a39() {
    for variant in BOTH {
        let plane = Plane::new();
        plane.put(shut());
        let client = client(variant, &[&plane]);
        let mut state = client.inbound(ADDRESS.parse().unwrap());
        plane.sees("the routes are asked for", |plane| plane.asked(codec::ROUTES) == ["r"]).await;
        assert_eq!(**state.load(), InboundState::Pending, "{variant:?}: nothing is served before");
        // The control: routes that change nothing.
        plane.put(changing(None));
        asks(&mut state, 1).await;
        plane.put(changing(Some(FilterOverride::Disabled)));
        asks(&mut state, 0).await;
        let two = ["a", "b"].map(|name| AuthorizationPolicy::new(name, AuthorizationAction::Deny));
        let [enforced, observed] = two;
        let observed = AuthorizationPolicy { dry_run: true, ..observed };
        plane.put(changing(Some(FilterOverride::Authorization(vec![enforced, observed]))));
        asks(&mut state, 2).await;
        plane.put(broken(codec::ROUTES, "r"));
        plane.sees("a refusal", |plane| plane.nacks().len() == 1).await;
        asks(&mut state, 2).await;
        plane.put(broken(codec::LISTENER, &name()));
        plane.sees("another", |plane| plane.nacks().len() == 2).await;
        asks(&mut state, 2).await;
        // The routes go on under the last good listener.
        plane.put(changing(None));
        asks(&mut state, 1).await;
    }
}
