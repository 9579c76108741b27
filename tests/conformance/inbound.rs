//! The listener of a server and its routes: what is followed, waited for and kept.

use std::sync::Arc;

use envoy_types::pb::envoy::config::rbac::v3::Rbac as Rules;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, Domain, Guards, InboundHost, InboundListener, InboundRoute,
    InboundRoutes, InboundState, InboundTls, PathMatch, Route, RouteAction, RouteMatch,
};
use mesh_core::source::{InboundSource, Watched};
use mesh_discovery::codec;
use mesh_testkit::policy;
use prost::Message as _;

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

/// A listener and the routes that it names, which serve this path alone and have rules for a filter that the listener has off.
pub(crate) fn guarded(path: &str) -> [Named; 2] {
    let policy = AuthorizationPolicy::new("f", AuthorizationAction::Deny);
    let route = InboundRoute {
        name: "a".to_owned(),
        matcher: RouteMatch { path: PathMatch::Exact(path.to_owned()), ..RouteMatch::any() },
        serves: Some(Arc::new(Guards { authorization: vec![policy], ..Guards::default() })),
    };
    let host = InboundHost { name: "all".to_owned(), domains: vec![Domain::new("*").unwrap()], routes: vec![route] };
    let (_, whole) = listener(InboundRoutes::Listed([host].into()));
    let (listener, routes) = mesh_testkit::xds::apart(&whole, "r").unwrap();
    // Rules of its own, which whoever dials by such routes knows nothing of.
    let mut proto = RoutesProto::decode(routes.as_slice()).unwrap();
    let rules = Rbac { rules: Some(Rules { action: 1, ..Default::default() }), ..Default::default() };
    let rules = Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute".to_owned(),
        value: RbacPerRoute { rbac: Some(rules) }.encode_to_vec(),
    };
    proto.virtual_hosts[0].routes[0].typed_per_filter_config.insert("f".to_owned(), rules);
    let routes = proto.encode_to_vec();
    [((codec::LISTENER.to_owned(), name()), listener), ((codec::ROUTES.to_owned(), "r".to_owned()), routes)]
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
