//! Listening addresses: their listeners, and the routes that come on their own.

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::config::listener::v3::{Listener as ListenerProto, filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtProvider, jwt_provider::JwksSourceSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter as FilterProto, http_filter::ConfigType as HttpConfigType,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    AdaptiveConcurrency, Composite, DirectResponse, FilterOverride, HttpFilter, HttpFilterKind, InboundListener,
    InboundRoutes, InboundTls, MatcherRule, MatcherTree, OnMatch, PathMatch,
};
use prost::Message as _;

use super::*;
use crate::bootstrap::ServerFeatures;
use crate::codec;
use crate::xds::{Body, Codec, PolicyCodec};

#[test]
fn a_listening_address_gets_its_listener_and_nothing_else() {
    let mut world = World::new();
    let (publisher, state) = Watched::channel(InboundState::Pending);
    world.cascade.add(9, Root::Inbound { listener: "in".to_owned(), publisher }, &mut world.plane);
    world.give(Kind::Listener, "in", Err("not sent"));
    assert!(matches!(&**state.load(), InboundState::Failed(reason) if reason.contains("not sent")));
    world.give(Kind::Listener, "in", Ok(listener("r")));
    assert!(matches!(&**state.load(), InboundState::Failed(reason) if reason.contains("other direction")));
    let inbound = Arc::new(InboundListener::new("in", "127.0.0.1:80".parse().unwrap(), InboundTls::Strict));
    world.give(Kind::Listener, "in", Ok(self::inbound(&inbound)));
    assert_eq!(**state.load(), InboundState::Ready(inbound));
}

/// A cascade with the listening address `in`, which is known, and its listener.
fn listening() -> (World, Watched<InboundState>, Arc<InboundListener>) {
    let mut world = World::new();
    let (publisher, state) = Watched::channel(InboundState::Pending);
    world.cascade.add(9, Root::Inbound { listener: "in".to_owned(), publisher }, &mut world.plane);
    let inbound = Arc::new(InboundListener::new("in", "127.0.0.1:80".parse().unwrap(), InboundTls::Strict));
    world.give(Kind::Listener, "in", Ok(self::inbound(&inbound)));
    assert_eq!(**state.load(), InboundState::Ready(inbound.clone()));
    (world, state, inbound)
}

#[test]
fn a_listening_address_loses_its_good_listener_only_when_it_is_dropped_on_purpose() {
    let (mut world, state, good) = listening();
    let good = InboundState::Ready(good);
    // Another control plane does not have it, or says what is refused: the first one's word is kept.
    world.lose(Kind::Listener, "in");
    assert_eq!(**state.load(), good);
    // A listener of the other direction is no inbound policy.
    world.give(Kind::Listener, "in", Ok(listener("r")));
    assert_eq!(**state.load(), good);
    // The control run: a deletion counts.
    world.give(Kind::Listener, "in", Err("deleted"));
    assert!(matches!(&**state.load(), InboundState::Failed(reason) if reason.contains("deleted")));
}

#[test]
fn a_listening_address_whose_routes_come_on_their_own_serves_what_they_say_and_nothing_before_a36() {
    let (mut world, state, good) = listening();
    let routes = InboundRoutes::Named("r".to_owned());
    let named = InboundListener { routes, ..InboundListener::clone(&good) };
    let serving = |path: &str, action| {
        let matcher = RouteMatch { path: PathMatch::Exact(path.to_owned()), ..RouteMatch::any() };
        routes_of(vec![Route::new(matcher, action)])
    };
    let paths = || match &**state.load() {
        InboundState::Ready(listener) => {
            let paths = listener.routes.iter().map(|r| (r.matcher.path.clone(), r.serves.is_some()));
            Some(paths.collect::<Vec<_>>())
        }
        _ => None,
    };
    world.give(Kind::Listener, "in", Ok(inbound(&named)));
    // What was in force stays so until the routes are there.
    assert_eq!(**state.load(), InboundState::Ready(good));
    world.give(Kind::Routes, "r", Ok(served(&serving("/a", RouteAction::NonForwarding))));
    assert_eq!(paths(), Some(vec![(PathMatch::Exact("/a".into()), true)]));
    // They change on their own; what a client would answer, a server does not serve.
    let answer = RouteAction::DirectResponse(DirectResponse { status: 200, body: Vec::new() });
    world.give(Kind::Routes, "r", Ok(served(&serving("/b", answer))));
    assert_eq!(paths(), Some(vec![]));
    // Such routes are a client's, and whatever they say is taken.
    let never = RouteAction::DirectResponse(DirectResponse { status: 200, body: Vec::new() });
    world.give(Kind::Routes, "r", Ok(served(&serving("/c", RouteAction::NonForwarding))));
    assert_eq!(paths(), Some(vec![(PathMatch::Exact("/c".into()), true)]));
    world.give(Kind::Routes, "r", Ok(served(&serving("/a/../b", never))));
    assert_eq!(paths(), Some(vec![]));
    // What is taken back ends on connections that are open, too.
    world.give(Kind::Routes, "r", Ok(served(&serving("/c", RouteAction::NonForwarding))));
    world.give(Kind::Routes, "r", Err("deleted"));
    assert_eq!(paths(), Some(vec![]));
    // One that had no routes yet serves nobody.
    let (publisher, late) = Watched::channel(InboundState::Pending);
    let mut world = World::new();
    world.cascade.add(9, Root::Inbound { listener: "in".to_owned(), publisher }, &mut world.plane);
    let routes = InboundRoutes::Named("r".to_owned());
    let named =
        InboundListener { routes, ..InboundListener::new("in", "127.0.0.1:80".parse().unwrap(), InboundTls::Strict) };
    world.give(Kind::Listener, "in", Ok(inbound(&named)));
    assert_eq!(**late.load(), InboundState::Pending);
    // Nor by the routes of another control plane than its listener is of (gRFC A71).
    world.plane.server = 1;
    world.give(Kind::Routes, "r", Ok(served(&serving("/a", RouteAction::NonForwarding))));
    assert_eq!(**late.load(), InboundState::Pending);
    world.plane.server = 0;
    world.give(Kind::Routes, "r", Ok(served(&serving("/a", RouteAction::NonForwarding))));
    assert!(matches!(&**late.load(), InboundState::Ready(_)));
}

#[test]
fn a_listening_address_that_moves_to_routes_which_are_refused_keeps_what_is_in_force() {
    let (mut world, state, good) = listening();
    let inline = InboundState::Ready(good.clone());
    let naming = |routes: &str| {
        let routes = InboundRoutes::Named(routes.to_owned());
        Ok(inbound(&InboundListener { routes, ..InboundListener::clone(&good) }))
    };
    let serving = |name: &str| {
        let path = PathMatch::Exact("/a".to_owned());
        let route = Route::new(RouteMatch { path, ..RouteMatch::any() }, RouteAction::NonForwarding);
        Ok(served(&route_configuration(name, vec![route])))
    };
    world.give(Kind::Listener, "in", naming("r"));
    assert_eq!(**state.load(), inline, "they are on their way");
    world.give(Kind::Routes, "r", Err("refused"));
    assert_eq!(**state.load(), inline, "they never were in force");
    world.give(Kind::Routes, "r", serving("r"));
    let first = state.load_full();
    assert!(matches!(&*first, InboundState::Ready(listener) if listener.routes.iter().count() == 1));

    // The same from routes to others; those in force stay subscribed meanwhile, and are let go afterwards.
    world.give(Kind::Listener, "in", naming("s"));
    world.give(Kind::Routes, "s", Err("refused"));
    assert_eq!(**state.load(), *first);
    assert!(world.wanted().contains(&"Routes r".to_owned()), "{:?}", world.wanted());
    world.give(Kind::Routes, "s", serving("s"));
    assert!(!world.wanted().contains(&"Routes r".to_owned()), "{:?}", world.wanted());
    // The control run: what is in force and is dropped on purpose ends.
    world.give(Kind::Routes, "s", Err("deleted"));
    assert!(matches!(&**state.load(), InboundState::Ready(listener) if listener.routes.iter().count() == 0));
}

/// Each of the two is good by itself, and acknowledged: what they are together is known here alone.
#[test]
fn a_listening_address_whose_halves_do_not_fit_keeps_what_is_in_force_and_serves_nothing_before() {
    let limit = |name: &str| {
        let kind = HttpFilterKind::AdaptiveConcurrency(Some(AdaptiveConcurrency::default()));
        HttpFilter { name: name.to_owned(), kind }
    };
    let halves = |filter: &str| InboundListener {
        routes: InboundRoutes::Named("r".to_owned()),
        filters: vec![limit(filter)],
        ..InboundListener::new("in", "127.0.0.1:80".parse().unwrap(), InboundTls::Strict)
    };
    let tree = MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(OnMatch::Skip) };
    let by = FilterOverride::Composite(Composite::of(tree));
    let mut route = Route::new(RouteMatch::any(), RouteAction::NonForwarding);
    route.filters = Arc::new([("f".to_owned(), by.into())].into());
    let changing = || Ok(served(&routes_of(vec![route.clone()])));
    let follow = || {
        let mut world = World::new();
        let (publisher, state) = Watched::channel(InboundState::Pending);
        world.cascade.add(9, Root::Inbound { listener: "in".to_owned(), publisher }, &mut world.plane);
        (world, state)
    };
    let (mut world, state) = follow();
    world.give(Kind::Listener, "in", Ok(inbound(&halves("f"))));
    world.give(Kind::Routes, "r", changing());
    assert!(
        matches!(&**state.load(), InboundState::Failed(reason) if reason.contains("http_filters[0]")),
        "{:?}",
        state.load()
    );
    // The control: a filter of another name is none of theirs.
    world.give(Kind::Listener, "in", Ok(inbound(&halves("g"))));
    let good = state.load_full();
    assert!(matches!(&*good, InboundState::Ready(listener) if listener.filters == [limit("g")]), "{good:?}");
    world.give(Kind::Listener, "in", Ok(inbound(&halves("f"))));
    assert_eq!(**state.load(), *good);
    let misfits = |world: &World| world.cascade.joined().filter(|joined| joined.misfit.is_some()).count();
    assert_eq!(misfits(&world), 1);
    // What two control planes say is not compared, and what nobody wants is not told of.
    world.plane.server = 1;
    world.give(Kind::Listener, "in", Ok(inbound(&halves("f"))));
    assert_eq!((misfits(&world), &**state.load()), (0, &*good));
    world.give(Kind::Routes, "r", changing());
    assert_eq!((misfits(&world), &**state.load()), (1, &*good));
    world.cascade.remove(9, &mut world.plane);
    assert_eq!(misfits(&world), 0);
}

/// A table of none, or of none that serves, leaves nothing to be judged: a demand that only a listener whose routes are one
/// can have does not keep what they served.
#[test]
fn routes_that_are_taken_back_end_what_they_served_whatever_the_listener_is() {
    let (mut world, state, good) = listening();
    let named = InboundListener { routes: InboundRoutes::Named("r".to_owned()), ..InboundListener::clone(&good) };
    let listener = Ok(as_sent(Kind::Listener, &choosing_again(&named)));
    world.give(Kind::Listener, "in", listener);
    let one = Route::new(RouteMatch::any(), RouteAction::NonForwarding);
    let path = RouteMatch { path: PathMatch::Exact("/a".to_owned()), ..RouteMatch::any() };
    let several = routes_of(vec![Route::new(path.clone(), RouteAction::NonForwarding), one.clone()]);
    world.give(Kind::Routes, "r", Ok(served(&several)));
    assert_eq!(**state.load(), InboundState::Ready(good), "the control: of several routes the listener cannot be");
    let serves = |world: &mut World, routes: Result<Value, &str>| {
        world.give(Kind::Routes, "r", Ok(served(&routes_of(vec![one.clone()]))));
        assert!(matches!(&**state.load(), InboundState::Ready(listener) if listener.routes == InboundRoutes::All));
        world.give(Kind::Routes, "r", routes);
        match &**state.load() {
            InboundState::Ready(listener) => (listener.routes.clone(), listener.jwt.len()),
            other => panic!("{other:?}"),
        }
    };
    let nothing = (InboundRoutes::Listed([].into()), 1);
    assert_eq!(serves(&mut world, Err("deleted")), nothing);
    let answer = RouteAction::DirectResponse(DirectResponse { status: 200, body: Vec::new() });
    assert_eq!(serves(&mut world, Ok(served(&routes_of(vec![Route::new(path, answer)])))), nothing);
}

/// The listener with a demand on tokens after which the route is to be chosen again.
fn choosing_again(listener: &InboundListener) -> Any {
    let mut proto = ListenerProto::decode(codec::encode_inbound(listener).value.as_slice()).unwrap();
    let Some(ConfigType::TypedConfig(config)) = &mut proto.filter_chains[0].filters[0].config_type else { panic!() };
    let mut manager = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
    let keys = JwksSourceSpecifier::LocalJwks(DataSource {
        specifier: Some(data_source::Specifier::InlineString(r#"{"keys": []}"#.to_owned())),
        ..Default::default()
    });
    let provider = JwtProvider {
        issuer: "i".to_owned(),
        clear_route_cache: true,
        jwks_source_specifier: Some(keys),
        ..Default::default()
    };
    let demand = JwtAuthentication { providers: [("p".to_owned(), provider)].into(), ..Default::default() };
    let config_type = Some(HttpConfigType::TypedConfig(Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication".to_owned(),
        value: demand.encode_to_vec(),
    }));
    manager.http_filters.insert(0, FilterProto { name: "tokens".to_owned(), config_type, ..Default::default() });
    config.value = manager.encode_to_vec();
    Any { type_url: codec::LISTENER.to_owned(), value: proto.encode_to_vec() }
}

fn routes_of(routes: Vec<Route>) -> RouteConfiguration {
    let headers = HeaderPolicy::default;
    let domains = vec![Domain::new("*").unwrap()];
    let host = VirtualHost { name: "h".into(), domains, routes, headers: headers(), retry: None };
    RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], headers: headers(), retry_budget: None }
}

#[test]
fn a_listening_address_that_nobody_could_be_asked_for_says_so_and_blames_no_service() {
    let mut world = World::new();
    world.plane.away = true;
    let (publisher, state) = Watched::channel(InboundState::Pending);
    world.cascade.add(9, Root::Inbound { listener: "in".to_owned(), publisher }, &mut world.plane);
    let InboundState::Failed(reason) = &**state.load() else { panic!("it failed") };
    assert!(reason.contains("nobody can be asked") && !reason.contains("Service"), "{reason}");
    // The control run: where somebody says that there is none, a Service is what to look at.
    world.give(Kind::Listener, "in", Err("not sent"));
    assert!(matches!(&**state.load(), InboundState::Failed(reason) if reason.contains("check that a Service")));
}

/// What a control plane's resource is read as.
fn as_sent(kind: Kind, any: &Any) -> Value {
    let body = Body::new(&any.type_url, any.value.clone());
    PolicyCodec::default().decode(kind, "", &body, ServerFeatures::default()).unwrap().value
}

fn inbound(listener: &InboundListener) -> Value {
    as_sent(Kind::Listener, &codec::encode_inbound(listener))
}

fn served(routes: &RouteConfiguration) -> Value {
    as_sent(Kind::Routes, &codec::encode_routes(routes))
}
