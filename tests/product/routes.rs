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
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Domain, Guards, InboundHost, InboundListener,
    InboundRoute, InboundRoutes, InboundTls, PathMatch, Permission, Principal, RouteMatch,
};
use mesh_discovery::codec;
use mesh_testkit::xds::apart;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;

use crate::puppet::{Puppet, Said};
use crate::support::{FREE, eventually, plain_get};

/// Denies requests for what lies below this.
fn denies(name: &str, below: &str) -> AuthorizationPolicy {
    let rule = AuthorizationRule {
        name: "rule".to_owned(),
        permissions: vec![Permission::Path(PathMatch::Prefix(below.to_owned()))],
        principals: vec![Principal::Any],
    };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new(name, AuthorizationAction::Deny) }
}

/// A listener whose filter `guard` keeps `/open/secret` and whose filter `shut` keeps everything, and routes: `/open`, where
/// these are on, `/shut`, where `shut` is, and the rest, where `guard` is. Filters that are not on somewhere are off there.
fn halves(address: SocketAddr, open: &[&str]) -> (Any, Any) {
    let all = [denies("guard", "/open/secret"), denies("shut", "/")];
    let on = |names: &[&str]| all.iter().filter(|policy| names.contains(&&*policy.name)).cloned().collect::<Vec<_>>();
    let route = |prefix: &str, names: &[&str]| InboundRoute {
        name: prefix.to_owned(),
        matcher: RouteMatch { path: PathMatch::Prefix(prefix.to_owned()), ..RouteMatch::any() },
        serves: Some(Arc::new(Guards { authorization: on(names), ..Guards::default() })),
    };
    let host = InboundHost {
        name: "all".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes: vec![route("/open", open), route("/shut", &["shut"]), route("/", &["guard"])],
    };
    let name = format!("xds.istio.io/grpc/lds/inbound/{address}");
    let whole = codec::encode_inbound(&InboundListener {
        authorization: on(&["guard"]),
        routes: InboundRoutes::Listed([host].into()),
        ..InboundListener::new(name, address, InboundTls::Disable)
    });
    let (listener, routes) = apart(&whole.value, "r").unwrap();
    let any = |type_url: &str, value| Any { type_url: type_url.to_owned(), value };
    (any(codec::LISTENER, listener), any(codec::ROUTES, routes))
}

#[tokio::test]
async fn l3_a_server_obeys_what_routes_of_rds_change_and_keeps_the_last_good_a36_a39_a41() {
    let socket = TcpListener::bind(FREE).await.unwrap();
    let address = socket.local_addr().unwrap();
    let (listener, first) = halves(address, &[]);
    let said = |version, routes: Any| {
        let resources = [(codec::LISTENER, vec![listener.clone()]), (codec::ROUTES, vec![routes])];
        Said { version, resources: BTreeMap::from(resources) }
    };
    let (plane_address, plane) = Puppet::start(said("1", first)).await;
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
        let each = [status("/x").await, status("/shut/x").await, status("/open/x").await];
        assert_eq!(each, [Some(200), Some(403), Some(200)]);
    };

    // The filter is off there, and another, which the listener has off, is on elsewhere.
    open(200).await;
    others().await;
    plane.send_replace(said("2", halves(address, &["guard"]).1));
    open(403).await;
    others().await;
    plane.send_replace(said("3", halves(address, &[]).1));
    open(200).await;
    others().await;

    // What cannot be read is refused, and what was good stays.
    let (_, mut broken) = halves(address, &["guard"]);
    let mut proto = RoutesProto::decode(broken.value.as_slice()).unwrap();
    proto.virtual_hosts[0].require_tls = 1;
    broken.value = proto.encode_to_vec();
    plane.send_replace(said("4", broken));
    eventually("the refusal is told", || async {
        let (_, dump) = plain_get(debug, "/config_dump").await.unwrap();
        dump.contains("virtual_hosts[0].require_tls").then_some(())
    })
    .await;
    open(200).await;
    others().await;
    plane.send_replace(said("5", halves(address, &["guard"]).1));
    open(403).await;
    others().await;
    serving.abort();
}
