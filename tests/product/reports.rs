//! What a process tells of itself: its configuration over its debug port (CSDS), its load to the control
//! plane (LRS).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource, config_source};
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use envoy_types::pb::envoy::r#type::matcher::v3::NodeMatcher;
use envoy_types::pb::google::protobuf::Any;
use mesh::Mesh;
use mesh_core::policy::{
    Address, Cluster, Domain, Endpoint, Endpoints, Forward, HeaderPolicy, Listener, LocalityEndpoints, Route,
    RouteAction, RouteConfiguration, RouteMatch, RouteSource, VirtualHost,
};
use mesh_discovery::codec;
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::puppet::{Puppet, Said, TARGET};
use crate::support::{FREE, Plane, call, eventually, plain_get};

/// Everything about [`TARGET`], with this cluster.
pub(crate) fn said(version: &'static str, cluster: Any) -> Said {
    let route = Route::new(RouteMatch::any(), RouteAction::Forward(Box::new(Forward::to("c".into()))));
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes: vec![route],
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let routes = RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    };
    let listener = Listener::new(TARGET, RouteSource::Named("r".to_owned()));
    let group = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: std::num::NonZeroU32::MIN,
        endpoints: vec![Endpoint::new(Address::Socket(([127, 0, 0, 1], 1).into()))],
    };
    let endpoints = Endpoints { cluster: "c".to_owned(), localities: vec![group], ..Endpoints::default() };
    let resources = BTreeMap::from([
        (codec::LISTENER, vec![codec::encode_listener(&listener)]),
        (codec::ROUTES, vec![codec::encode_routes(&routes)]),
        (codec::CLUSTER, vec![cluster]),
        (codec::ENDPOINTS, vec![codec::encode_endpoints(&endpoints)]),
    ]);
    Said { version, resources }
}

/// A cluster whose load is to be reported to nobody knows whom (gRFC A27).
pub(crate) fn bad_cluster() -> Any {
    let ads = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    let lrs_server = Some(ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() });
    let proto = ClusterProto { name: "c".to_owned(), lrs_server, ..ClusterProto::default() };
    Any { type_url: codec::CLUSTER.to_owned(), value: proto.encode_to_vec() }
}

async fn tool(address: SocketAddr) -> ClientStatusDiscoveryServiceClient<Channel> {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    ClientStatusDiscoveryServiceClient::new(channel)
}

fn only(response: ClientStatusResponse) -> Vec<GenericXdsConfig> {
    let [config] = <[_; 1]>::try_from(response.config).unwrap();
    assert_eq!((config.client_scope.as_str(), config.node.unwrap().id.as_str()), ("xds:///", "me"));
    config.generic_xds_configs
}

fn of<'a>(rows: &'a [GenericXdsConfig], type_url: &str) -> &'a GenericXdsConfig {
    rows.iter().find(|row| row.type_url == type_url).unwrap()
}

fn all_are(rows: &[GenericXdsConfig], status: ClientResourceStatus) -> bool {
    rows.len() == 4 && rows.iter().all(|row| row.client_status() == status)
}

/// A row as `/config_dump` has it.
fn in_json(row: &GenericXdsConfig) -> Value {
    let state = row.client_status().as_str_name().to_lowercase();
    let error = row.error_state.as_ref().map(|error| {
        json!({"reason": error.details, "version": error.version_info, "since": error.last_update_attempt.unwrap().seconds})
    });
    json!({
        "type_url": row.type_url,
        "name": row.name,
        "version": row.version_info,
        "state": state,
        "last_updated": row.last_updated.unwrap().seconds,
        "error": error,
    })
}

#[tokio::test]
async fn csds_tells_what_is_in_use_and_what_was_refused_as_the_config_dump_does() {
    let good = codec::encode_cluster(&Cluster::new("c".into()));
    let (address, plane) = Puppet::start(said("1", good.clone())).await;
    let bootstrap = json!({
        "xds_servers": [{"server_uri": address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
        "node": {"id": "me"},
    });
    let builder = Mesh::builder().bootstrap(bootstrap.to_string()).debug_address(FREE);
    let mesh = builder.build().await.unwrap();
    let debug = mesh.debug_address().unwrap();
    let mut tool = tool(debug).await;
    assert_eq!(only(tool.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner()), []);

    // Nobody listens at the endpoint; the configuration is asked for all the same.
    call(&mesh, "http://reviews:9080/", &[]).await.unwrap_err();
    let (requests, outgoing) = mpsc::channel(1);
    let mut answers = tool.stream_client_status(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let mut ask = async || {
        requests.send(ClientStatusRequest::default()).await.unwrap();
        only(answers.message().await.unwrap().unwrap())
    };
    let before = ask().await;
    assert!(all_are(&before, ClientResourceStatus::Acked), "{before:#?}");
    assert!(before.iter().all(|row| row.version_info == "1" && row.error_state.is_none()));
    assert_eq!(of(&before, codec::CLUSTER).xds_config.as_ref(), Some(&good));

    plane.send_replace(said("2", bad_cluster()));
    let others = [codec::LISTENER, codec::ROUTES, codec::ENDPOINTS];
    let after = loop {
        let rows = ask().await;
        let refused = of(&rows, codec::CLUSTER).client_status() == ClientResourceStatus::Nacked;
        if refused && others.iter().all(|other| of(&rows, other).version_info == "2") {
            break rows;
        }
        tokio::task::yield_now().await;
    };
    let cluster = of(&after, codec::CLUSTER);
    let error = cluster.error_state.as_ref().unwrap();
    assert_eq!((cluster.version_info.as_str(), error.version_info.as_str()), ("1", "2"));
    assert!(error.details.contains("lrs_server") && error.last_update_attempt.is_some(), "{error:?}");
    assert_eq!(cluster.xds_config.as_ref(), Some(&good), "the last good one is in use");
    for other in others {
        assert_eq!(of(&after, other).client_status(), ClientResourceStatus::Acked, "{other}");
    }

    let (_, dump) = plain_get(debug, "/config_dump").await.unwrap();
    let mut dump: Value = serde_json::from_str(&dump).unwrap();
    let rows = dump["resources"].as_array_mut().unwrap();
    for (row, row_of_csds) in rows.iter_mut().zip(&after) {
        if let Some(error) = row["error"].as_object_mut() {
            error.remove("age_seconds");
        }
        let mut of_csds = in_json(row_of_csds);
        for (key, value) in of_csds.as_object_mut().unwrap() {
            assert_eq!(row[key.as_str()], *value, "{key}");
        }
    }
    assert_eq!(rows.len(), after.len());
}

#[tokio::test]
async fn csds_leaves_contents_out_when_asked_and_refuses_node_matchers() {
    let (address, _plane) = Puppet::start(said("1", bad_cluster())).await;
    let bootstrap = json!({
        "xds_servers": [{"server_uri": address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
        "node": {"id": "me"},
    });
    let builder = Mesh::builder().bootstrap(bootstrap.to_string()).debug_address(FREE);
    let mesh = builder.build().await.unwrap();
    let mut tool = tool(mesh.debug_address().unwrap()).await;
    call(&mesh, "http://reviews:9080/", &[]).await.unwrap_err();

    let bare = ClientStatusRequest { exclude_resource_contents: true, ..ClientStatusRequest::default() };
    let rows = only(tool.fetch_client_status(bare).await.unwrap().into_inner());
    assert!(rows.iter().all(|row| row.xds_config.is_none()));
    let rows = only(tool.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner());
    assert!(of(&rows, codec::LISTENER).xds_config.is_some(), "control");
    let cluster = of(&rows, codec::CLUSTER);
    assert_eq!(cluster.client_status(), ClientResourceStatus::Nacked);
    assert_eq!((&cluster.xds_config, cluster.version_info.as_str()), (&None, ""), "there never was a good one");

    let matching =
        ClientStatusRequest { node_matchers: vec![NodeMatcher::default()], ..ClientStatusRequest::default() };
    let refused = tool.fetch_client_status(matching.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let once = futures_util::stream::iter([matching]);
    let mut answers = tool.stream_client_status(once).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn the_control_plane_hears_of_the_load_it_asks_for() {
    let plane = Plane::with(|builder| builder.load_reports(true)).await;
    let _server = plane.answering("reviews", "", "hello").await;
    let caller = plane.caller("productpage").await;
    for _ in 0..5 {
        assert_eq!(call(&caller, "http://reviews:9080/", &[]).await.unwrap().1, "hello");
    }
    let total = async |number: &str| {
        let (_, metrics) = plain_get(plane.debug(), "/metrics").await.unwrap();
        let begins = format!("mesh_control_load_requests_{number}_total{{");
        let line = metrics.lines().find(|line| line.starts_with(&begins) && line.contains("reviews"))?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    eventually("every request is reported", || async { (total("successful").await == Some(5)).then_some(()) }).await;
    assert_eq!((total("issued").await, total("failed").await, total("dropped").await), (Some(5), Some(0), Some(0)));
    let load = plane.json("/load").await;
    assert_eq!(load[0]["identity"], "spiffe://cluster.local/ns/default/sa/productpage", "{load:#}");
    assert!(load[0]["interval_ms"].as_u64().unwrap() > 0, "measured: {load:#}");
}
