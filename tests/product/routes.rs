//! A server whose routes come on their own, beside filters that they change (gRFC A36, A39, A41): what it then lets pass.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use envoy_types::pb::google::protobuf::Any;
use mesh::Mesh;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, ChainFilter, ChainFilterKind, FilterOverride, Guards,
    InboundListener, InboundRoutes, InboundTls, PathMatch, Pattern, Permission, Principal, Route, RouteAction,
    RouteMatch,
};
use mesh_discovery::codec;
use mesh_testkit::policy;
use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;

use crate::puppet::{Puppet, Said};
use crate::support::{FREE, eventually, plain_get};

/// Refuses requests whose path this pattern meets.
fn denies(name: &str, path: &str) -> AuthorizationPolicy {
    let rule = AuthorizationRule {
        name: "rule".to_owned(),
        permissions: vec![Permission::Path(PathMatch::Regex(Pattern::new(path).unwrap()))],
        principals: vec![Principal::Any],
    };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new(name, AuthorizationAction::Deny) }
}

/// `guard` keeps secrets, and `shut`, which is off, everything.
fn listener(address: SocketAddr) -> Any {
    let filter = |name: &str, disabled, path| {
        let kind = ChainFilterKind::Authorization(vec![denies(name, path)]);
        ChainFilter { name: name.to_owned(), disabled, kind }
    };
    let chain = vec![filter("guard", false, "/.*secret"), filter("shut", true, "/.*")];
    let Guards { before, jwt, authorization, filters } = ChainFilter::guards(&chain).unwrap();
    codec::encode_inbound(&InboundListener {
        before,
        jwt,
        authorization,
        filters,
        routes: InboundRoutes::Named("r".to_owned()),
        chain,
        ..InboundListener::new(format!("xds.istio.io/grpc/lds/inbound/{address}"), address, InboundTls::Disable)
    })
}

/// `/open`, where this is changed, `/shut`, where `shut` is on, and the rest.
fn routes(open: &[(&str, FilterOverride)]) -> Any {
    let route = |prefix: &str, changes: &[(&str, FilterOverride)]| {
        let matcher = RouteMatch { path: PathMatch::Prefix(prefix.to_owned()), ..RouteMatch::any() };
        let mut route = Route::new(matcher, RouteAction::NonForwarding);
        route.filters = Arc::new(changes.iter().map(|(name, by)| ((*name).to_owned(), by.clone().into())).collect());
        route
    };
    let all = [route("/open", open), route("/shut", &[("shut", FilterOverride::Enabled)]), route("/", &[])];
    let mut routes = policy::routes(all);
    routes.name = "r".to_owned();
    codec::encode_routes(&routes)
}

/// The same with a pattern that is none in what `/open` changes.
fn broken(with: Any) -> Any {
    let mut proto = RoutesProto::decode(with.value.as_slice()).unwrap();
    let config = proto.virtual_hosts[0].routes[0].typed_per_filter_config.values_mut().next().unwrap();
    let pattern = b"/never";
    let at = config.value.windows(pattern.len()).position(|part| part == pattern).unwrap();
    config.value[at..at + pattern.len()].copy_from_slice(b"/(((((");
    Any { value: proto.encode_to_vec(), ..with }
}

#[tokio::test]
async fn l3_a_server_obeys_what_routes_of_rds_change_and_keeps_the_last_good_a39_a41() {
    let socket = TcpListener::bind(FREE).await.unwrap();
    let address = socket.local_addr().unwrap();
    let said = |version, routes: Any| {
        let resources = BTreeMap::from([(codec::LISTENER, vec![listener(address)]), (codec::ROUTES, vec![routes])]);
        Said { version, resources }
    };
    let (plane_address, plane) = Puppet::start(said("1", routes(&[("guard", FilterOverride::Disabled)]))).await;
    let bootstrap = json!({
        "xds_servers": [{"server_uri": plane_address, "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "server"},
    });
    let server = Mesh::builder().bootstrap(bootstrap.to_string()).debug_address(FREE).build().await.unwrap();
    let debug = server.debug_address().unwrap();
    let app = Router::new().fallback(get(async || "served"));
    let serving = tokio::spawn(server.serve(socket, app).without_signals().into_future());
    let status = async |path: &str| plain_get(address, path).await.ok().map(|(status, _)| status);
    let open = async |want: u16| {
        let is = || async { (status("/open/secret").await == Some(want)).then_some(()) };
        eventually("the routes are in force", is).await;
    };
    let others = async || {
        let each = [status("/x").await, status("/x/secret").await, status("/shut/x").await, status("/open/x").await];
        assert_eq!(each, [Some(200), Some(403), Some(403), Some(200)]);
    };

    open(200).await;
    others().await;
    // Nothing is changed there any more: the filter's own rules hold.
    plane.send_replace(said("2", routes(&[])));
    open(403).await;
    others().await;
    let other = |path: &str| FilterOverride::Authorization(vec![denies("guard", path)]);
    plane.send_replace(said("3", routes(&[("guard", other("/nothing"))])));
    open(200).await;
    others().await;

    // Those that cannot be read are refused by the path of what is wrong, and what was good stays.
    let mut bad = said("4", broken(routes(&[("guard", other("/never"))])));
    plane.send_replace(bad.clone());
    let refusal = "virtual_hosts[0].routes[0].typed_per_filter_config[\\\"guard\\\"].rbac.rules";
    eventually("the refusal is told", || async {
        let (_, dump) = plain_get(debug, "/config_dump").await.unwrap();
        dump.contains(refusal).then_some(())
    })
    .await;
    open(200).await;
    others().await;

    // What does not fit the filter serves nothing, and costs no other route anything.
    bad.version = "5";
    let misfit = FilterOverride::Requirement("nobody's".to_owned());
    bad.resources.insert(codec::ROUTES, vec![routes(&[("guard", misfit)])]);
    plane.send_replace(bad);
    open(404).await;
    let each = [status("/x").await, status("/x/secret").await, status("/shut/x").await];
    assert_eq!(each, [Some(200), Some(403), Some(403)]);
    serving.abort();
}
