//! Composite filters of both sides: what is followed, what a route has instead, and what is refused by its path.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, Composite, DestinationState, ExecuteFilters, Fault, FilterOverride,
    HeaderKey, HttpFilter, HttpFilterKind, InboundListener, InboundState, InboundTls, Listener, MatcherRule,
    MatcherTree, OnMatch, RouteSource,
};
use mesh_core::source::{DestinationSource, InboundSource};
use mesh_discovery::codec;
use mesh_testkit::policy;

use crate::inbound::ADDRESS;
use crate::plane::{BOTH, Named, Plane, becomes, client, goes_to};

/// By `:path`, with this for one of them and nothing for the others.
fn by_path(path: &str, filters: ExecuteFilters) -> Composite {
    let map: BTreeMap<_, _> = [(path.to_owned(), OnMatch::Execute(Arc::new(filters)))].into();
    Composite::of(MatcherTree { rule: MatcherRule::Exact { input: HeaderKey::Path, map }, on_no_match: None })
}

fn faulty(path: &str) -> Composite {
    let fault = HttpFilterKind::Fault(Some(Fault { max_active: Some(7), ..Fault::default() }));
    by_path(path, ExecuteFilters::all(vec![HttpFilter { name: "fault".to_owned(), kind: fault }]))
}

fn judging(path: &str) -> Composite {
    let authorization = vec![AuthorizationPolicy::new("nobody", AuthorizationAction::Allow)];
    by_path(path, ExecuteFilters { authorization, ..ExecuteFilters::all(Vec::new()) })
}

/// One deeper than they may be.
fn too_deep(innermost: Composite) -> Composite {
    (0..Composite::MAX_DEPTH).fold(innermost, |inner, _| by_path("/", ExecuteFilters::all(vec![filter(inner)])))
}

fn filter(composite: Composite) -> HttpFilter {
    HttpFilter { name: "composite".to_owned(), kind: HttpFilterKind::Composite(composite) }
}

fn destination(composite: Composite) -> Named {
    let filters = vec![filter(composite)];
    let any =
        codec::encode_listener(&Listener { filters, ..Listener::new("a:80", RouteSource::Named("r".to_owned())) });
    ((any.type_url, "a:80".to_owned()), any.value)
}

fn route_with(composite: Composite) -> Named {
    let mut route = policy::route_to("x".into());
    route.filters = Arc::new([("composite".to_owned(), FilterOverride::Composite(composite).into())].into());
    let mut routes = policy::routes([route]);
    routes.name = "r".to_owned();
    let any = codec::encode_routes(&routes);
    ((any.type_url, "r".to_owned()), any.value)
}

#[tokio::test(start_paused = true)]
async fn a103_a_client_follows_a_composite_and_what_its_routes_have_instead() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        plane.put(destination(faulty("/a")));
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        let has = |want: Composite| {
            move |state: &DestinationState| match state {
                DestinationState::Ready(snapshot) => snapshot.listener.filters == [filter(want.clone())],
                _ => false,
            }
        };
        becomes(&mut state, "the composite", has(faulty("/a"))).await;
        plane.put(destination(faulty("/b")));
        becomes(&mut state, "another tree", has(faulty("/b"))).await;
        plane.put(route_with(faulty("/c")));
        let of_route = FilterOverride::Composite(faulty("/c"));
        let overridden = |state: &DestinationState| match state {
            DestinationState::Ready(snapshot) => {
                let route = &snapshot.routes.virtual_hosts[0].routes[0];
                route.filters.get("composite").is_some_and(|own| **own == of_route)
            }
            _ => false,
        };
        becomes(&mut state, "the tree of a route", overridden).await;
        // What is refused is named by its field, in a listener and in routes, and leaves the last good.
        plane.put(destination(too_deep(faulty("/d"))));
        plane.put(route_with(too_deep(faulty("/d"))));
        plane.sees("two refusals", |plane| plane.nacks().len() == 2).await;
        for (nack, field) in plane.nacks().iter().zip(["http_filters[0].xds_matcher", "typed_per_filter_config"]) {
            assert!(nack.contains(field) && nack.contains("gRFC A103"), "{variant:?}: {nack}");
        }
        assert!(has(faulty("/b"))(&state.load()) && overridden(&state.load()), "{variant:?}");
        // A server's filters are none of a client's listener.
        plane.put(destination(judging("/e")));
        plane.sees("a third", |plane| plane.nacks().len() == 3).await;
        assert!(plane.nacks()[2].contains("a client has no such filter"), "{:?}", plane.nacks());
    }
}

#[tokio::test(start_paused = true)]
async fn a103_a_server_follows_a_composite_and_serves_nothing_by_one_that_it_refuses() {
    let name = || format!("xds.istio.io/grpc/lds/inbound/{ADDRESS}");
    let listener = |composite: Composite| {
        let listener = InboundListener::new(name(), ADDRESS.parse().unwrap(), InboundTls::Strict);
        let any = codec::encode_inbound(&InboundListener { filters: vec![filter(composite)], ..listener });
        ((any.type_url, name()), any.value)
    };
    for variant in BOTH {
        let plane = Plane::new();
        // The first one: there is no last good, and nothing is served.
        plane.put(listener(faulty("/a")));
        let client = client(variant, &[&plane]);
        let mut state = client.inbound(ADDRESS.parse().unwrap());
        plane.sees("a refusal", |plane| plane.nacks().len() == 1).await;
        assert!(plane.nacks()[0].contains("a server has no such filter"), "{:?}", plane.nacks());
        assert!(!matches!(&**state.load(), InboundState::Ready(_)), "{variant:?}: it would let everybody in");
        plane.put(listener(judging("/a")));
        let has = |want: Composite| {
            move |state: &InboundState| match state {
                InboundState::Ready(listener) => listener.filters == [filter(want.clone())],
                _ => false,
            }
        };
        state.wait_for(has(judging("/a"))).await;
        plane.put(listener(too_deep(judging("/b"))));
        plane.sees("another refusal", |plane| plane.nacks().len() == 2).await;
        assert!(plane.nacks()[1].contains("http_filters[0].xds_matcher"), "{:?}", plane.nacks());
        assert!(has(judging("/a"))(&state.load()), "{variant:?}: the last good holds");
        plane.put(listener(judging("/c")));
        state.wait_for(has(judging("/c"))).await;
    }
}
