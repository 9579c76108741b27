//! A server's listener and the routes that it names: what is told of them where they do not fit, and where they do
//! (gRFC A36, A39, A40, A78).

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus::{self, Acked, Nacked};
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    AdaptiveConcurrency, Composite, DirectResponse, Domain, FilterOverride, HeaderPolicy, HttpFilter, HttpFilterKind,
    InboundListener, InboundRoutes, InboundState, InboundTls, MatcherRule, MatcherTree, OnMatch, PathMatch, Route,
    RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use mesh_core::source::InboundSource;
use mesh_testkit::clock::pass;
use prost::Message as _;
use tokio::runtime::Handle;

use super::super::csds::StatusService;
use super::super::kind::Kind;
use super::super::{Request, Variant, XdsClient, XdsConfig};
use super::{Server, Stream, network, response};
use crate::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use crate::codec;

const ADDRESS: &str = "127.0.0.1:80";
const NAME: &str = "xds.istio.io/grpc/lds/inbound/127.0.0.1:80";

fn client(variant: Variant) -> (StatusService, Server) {
    let (transport, server) = network();
    let memory = XdsServer::new("memory:1".parse().unwrap(), ChannelCredentials::Insecure);
    let mut config = XdsConfig::new(Bootstrap::new(memory, Node { id: "me".to_owned(), ..Default::default() }));
    config.variant = Some(variant);
    let client = XdsClient::spawn(config, move |_: &XdsServer| transport.clone(), &Handle::current());
    (StatusService { client: Arc::new(client) }, server)
}

/// A listener with a filter of this name, which no tree of a route may stand in for.
fn listener(filter: &str) -> Any {
    let kind = HttpFilterKind::AdaptiveConcurrency(Some(AdaptiveConcurrency::default()));
    codec::encode_inbound(&InboundListener {
        filters: vec![HttpFilter { name: filter.to_owned(), kind }],
        routes: InboundRoutes::Named("r".to_owned()),
        ..InboundListener::new(NAME, ADDRESS.parse().unwrap(), InboundTls::Strict)
    })
}

/// Routes that have a tree for a filter of this name.
fn routes(filter: &str) -> Any {
    let tree = MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(OnMatch::Skip) };
    let mut route = path("/a", RouteAction::NonForwarding);
    route.filters = Arc::new([(filter.to_owned(), FilterOverride::Composite(Composite::of(tree)).into())].into());
    table(vec![route])
}

fn path(path: &str, action: RouteAction) -> Route {
    Route::new(RouteMatch { path: PathMatch::Exact(path.to_owned()), ..RouteMatch::any() }, action)
}

fn table(routes: Vec<Route>) -> Any {
    let headers = HeaderPolicy::default;
    let domains = vec![Domain::new("*").unwrap()];
    let host = VirtualHost { name: "h".into(), domains, routes, headers: headers(), retry: None };
    codec::encode_routes(&RouteConfiguration {
        name: "r".into(),
        virtual_hosts: vec![host],
        headers: headers(),
        retry_budget: None,
    })
}

/// What the client answers to this.
async fn say(stream: &mut Stream, kind: Kind, version: &str, said: Any) -> Request {
    let mut said = response(kind, version, &format!("n{version}"), vec![said]);
    said.resources[0].version = version.to_owned();
    stream.send(said);
    loop {
        let request = stream.request().await;
        if request.nonce == format!("n{version}") && request.type_url == kind.type_url() {
            return request;
        }
    }
}

fn row(service: &StatusService, kind: Kind) -> GenericXdsConfig {
    let answer = service.answer(&ClientStatusRequest::default()).unwrap();
    let mut rows = answer.config.into_iter().flat_map(|config| config.generic_xds_configs);
    rows.find(|row| row.type_url == kind.type_url()).unwrap()
}

fn status(service: &StatusService) -> [ClientResourceStatus; 2] {
    [Kind::Listener, Kind::Routes].map(|kind| row(service, kind).client_status())
}

fn count(service: &StatusService, kind: &str, state: &str) -> usize {
    let all = service.client.standings();
    all.into_iter().find(|(k, s, _)| (*k, *s) == (kind, state)).unwrap().2
}

#[tokio::test(start_paused = true)]
async fn l3_x16_halves_that_do_not_fit_are_refused_and_told_of_until_they_do() {
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        let (service, mut server) = client(variant);
        let state = service.client.inbound(ADDRESS.parse().unwrap());
        let mut stream = server.accept().await;
        assert_eq!(say(&mut stream, Kind::Listener, "1", listener("f")).await.error, None);
        // The routes meet the listener: they are refused, and nothing is in force.
        let error = say(&mut stream, Kind::Routes, "2", routes("f")).await.error.unwrap();
        assert!(error.contains(NAME) && error.contains("\"r\"") && error.contains("http_filters[0]"), "{error}");
        assert!(error.contains("nothing is served"), "{error}");
        assert!(matches!(&**state.load(), InboundState::Failed(_)));
        assert_eq!(status(&service), [Acked, Nacked]);
        assert_eq!((count(&service, "routes", "nacked"), count(&service, "routes", "nacked_but_cached")), (1, 0));
        let told = row(&service, Kind::Routes);
        let failure = told.error_state.unwrap();
        assert_eq!((told.version_info.as_str(), told.xds_config, failure.version_info.as_str()), ("", None, "2"));
        assert_eq!((failure.details, failure.failed_configuration), (error, Some(routes("f"))));

        // The control: routes that change another filter. From now on something is in force.
        assert_eq!(say(&mut stream, Kind::Routes, "3", routes("g")).await.error, None);
        assert_eq!(status(&service), [Acked, Acked]);
        let good = state.load_full();
        assert!(matches!(&*good, InboundState::Ready(_)), "{good:?}");

        // The listener meets the routes, and is refused as often as it comes.
        let mut since = Vec::new();
        for version in ["4", "5"] {
            let error = say(&mut stream, Kind::Listener, version, listener("g")).await.error.unwrap();
            assert!(error.contains("stays"), "{error}");
            assert_eq!((status(&service), &**state.load()), ([Nacked, Acked], &*good));
            assert_eq!(row(&service, Kind::Listener).error_state.unwrap().version_info, version);
            assert_eq!(count(&service, "listener", "nacked_but_cached"), 1);
            since.push(service.client.config_dump()["resources"][0]["error"]["since"].as_u64().unwrap());
            pass(Duration::from_secs(60)).await;
        }
        assert_eq!(since[0], since[1], "it was said first then");
        // What comes meanwhile and does not fit either is refused, too; the one that was held is in force with what fits.
        let both = table(vec![path("/b", RouteAction::NonForwarding)]);
        assert!(say(&mut stream, Kind::Routes, "6", with_field(routes("g"))).await.error.is_some());
        assert_eq!((status(&service), &**state.load()), ([Nacked, Nacked], &*good));
        assert_eq!(say(&mut stream, Kind::Routes, "7", both).await.error, None);
        assert_eq!(status(&service), [Acked, Acked]);
        assert_eq!(row(&service, Kind::Listener).version_info, "5");
        assert!(matches!(&**state.load(), InboundState::Ready(now) if now.filters[0].name == "g"));
    }
}

/// The same in other bytes.
fn with_field(mut any: Any) -> Any {
    // One that nobody knows.
    any.value.extend([0xfa, 0x7f, 0x00]);
    any
}

/// After a reconnection the control plane is told of nothing that does not fit as if it were in use.
#[tokio::test(start_paused = true)]
async fn x16_halves_that_do_not_fit_are_asked_for_again_after_a_reconnection() {
    use super::super::Ask;

    let (service, mut server) = client(Variant::Delta);
    let _state = service.client.inbound(ADDRESS.parse().unwrap());
    let mut stream = server.accept().await;
    say(&mut stream, Kind::Listener, "1", listener("f")).await;
    assert!(say(&mut stream, Kind::Routes, "2", routes("f")).await.error.is_some());
    drop(stream);
    let mut stream = server.accept().await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let Ask::Changes { initial_versions, .. } = stream.request().await.ask else { panic!("it is delta") };
        held.extend(initial_versions.into_iter().map(|(name, version)| (name.to_string(), version.to_string())));
    }
    assert_eq!(held, [(NAME.to_owned(), "1".to_owned())]);
    assert!(say(&mut stream, Kind::Routes, "2", routes("f")).await.error.is_some(), "the same bytes");
    assert_eq!(status(&service), [Acked, Nacked]);
}

/// What a server does not enforce of its routes is said where they meet their listener, as if it had them in itself.
#[tokio::test(start_paused = true)]
async fn what_is_not_enforced_of_a_listener_with_its_routes_is_listed_and_counted_once() {
    let answer = RouteAction::DirectResponse(DirectResponse { status: 200, body: Vec::new() });
    let mut changing =
        RoutesProto::decode(table(vec![path("/a", RouteAction::NonForwarding), path("/b", answer)]).value.as_slice())
            .unwrap();
    let header = HeaderValue { key: "x".to_owned(), value: "y".to_owned(), ..Default::default() };
    changing.virtual_hosts[0].request_headers_to_add =
        vec![HeaderValueOption { header: Some(header), ..Default::default() }];
    let routes = Any { type_url: codec::ROUTES.to_owned(), value: changing.encode_to_vec() };
    let (service, mut server) = client(Variant::Delta);
    let _state = service.client.inbound(ADDRESS.parse().unwrap());
    let mut stream = server.accept().await;
    say(&mut stream, Kind::Listener, "1", listener("f")).await;
    assert_eq!(&service.client.unenforced()[..2], [("listener", 0), ("routes", 0)], "the control");
    assert_eq!(say(&mut stream, Kind::Routes, "2", routes.clone()).await.error, None);
    let lines = |kind: &str| {
        let dump = service.client.config_dump();
        let rows = dump["resources"].as_array().unwrap();
        let row = rows.iter().find(|row| row["type"] == kind).unwrap();
        let lines = row["unenforced"].as_array().unwrap().iter().map(|line| line["field"].as_str().unwrap().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(lines("listener"), ["routes.virtual_hosts[0].routes[1]"]);
    assert_eq!(lines("routes"), ["virtual_hosts[0].request_headers_to_add"]);
    assert_eq!(&service.client.unenforced()[..2], [("listener", 1), ("routes", 1)]);
    // What does not fit is not in use.
    let mut misfit = changing.clone();
    let change = RoutesProto::decode(self::routes("f").value.as_slice()).unwrap();
    misfit.virtual_hosts[0].routes.splice(..1, change.virtual_hosts[0].routes.clone());
    let misfit = Any { type_url: codec::ROUTES.to_owned(), value: misfit.encode_to_vec() };
    assert!(say(&mut stream, Kind::Routes, "3", misfit).await.error.is_some());
    assert_eq!(service.client.unenforced()[1], ("routes", 0));
    // Nor are routes that are gone.
    let only = table(vec![path("/a", RouteAction::NonForwarding)]);
    assert_eq!(say(&mut stream, Kind::Routes, "4", only).await.error, None);
    assert_eq!(&service.client.unenforced()[..2], [("listener", 0), ("routes", 0)]);
}
