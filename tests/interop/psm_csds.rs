//! The first case of gRPC's interop suite to its end: what client and server say over CSDS that they hold.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use mesh_core::policy::Address;
use mesh_discovery::codec::{self, AnyListener};
use tonic::transport::Channel;

use crate::manifests::{STRICT, announced};
use crate::member::{self, Server};
use crate::psm::{BOTH, Caller, PATH};
use crate::world::{World, eventually};

/// What the process at this debug port holds.
async fn held(debug: SocketAddr) -> Vec<GenericXdsConfig> {
    let channel = Channel::from_shared(format!("http://{debug}")).unwrap().connect().await.unwrap();
    let mut tool = ClientStatusDiscoveryServiceClient::new(channel);
    let answer = tool.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    answer.config.into_iter().flat_map(|config| config.generic_xds_configs).collect()
}

fn of<'a>(held: &'a [GenericXdsConfig], type_url: &str) -> impl Iterator<Item = &'a GenericXdsConfig> {
    held.iter().filter(move |row| row.type_url == type_url)
}

fn all_acked(held: &[GenericXdsConfig]) -> bool {
    held.iter().all(|row| row.client_status() == ClientResourceStatus::Acked && row.error_state.is_none())
}

#[tokio::test]
async fn baseline_01_client_and_server_agree_on_what_they_hold() {
    for protocol in BOTH {
        let manifests = [("strict.yaml", STRICT.to_owned()), ("reviews.yaml", announced("reviews"))];
        let world = World::start(&manifests).await;
        let server = Server::start(&world, "reviews", "app=reviews", "ours").await;
        let mesh = member::join(&world, "productpage", "app=productpage").await;
        let caller = Caller { mesh, protocol, target: "reviews:9080" };
        eventually("it is answered", async || caller.call().await.ok()).await;
        for _ in 0..50 {
            assert!(caller.call_with(PATH, &[]).await.unwrap().contains("ours"), "every call succeeds");
        }
        let debug = caller.mesh.debug_address().unwrap();
        let (client, serving) = (held(debug).await, held(server.debug()).await);
        assert!(all_acked(&client), "{protocol:?}: {client:#?}");
        assert!(all_acked(&serving), "{protocol:?}: {serving:#?}");
        let types: BTreeSet<_> = client.iter().map(|row| row.type_url.as_str()).collect();
        let all = [codec::LISTENER, codec::ROUTES, codec::CLUSTER, codec::ENDPOINTS];
        assert_eq!(types, BTreeSet::from(all), "{protocol:?}");

        // The one endpoint that the client knows is the server, and the listener that the server has is of that address.
        let endpoints = of(&client, codec::ENDPOINTS).map(|row| row.xds_config.as_ref().unwrap());
        let endpoints = endpoints.map(|any| codec::decode_endpoints(any).unwrap().value);
        let known: Vec<_> =
            endpoints.flat_map(|all| all.iter().map(|e| e.address.clone()).collect::<Vec<_>>()).collect();
        assert_eq!(known, [Address::Socket(server.address)], "{protocol:?}");
        let listeners = of(&serving, codec::LISTENER).map(|row| row.xds_config.as_ref().unwrap());
        let listeners: Vec<_> = listeners.map(|any| codec::decode_listener(any).unwrap().value).collect();
        assert!(
            listeners.iter().any(|held| matches!(held, AnyListener::Inbound(held) if held.address == server.address)),
            "{protocol:?}: {listeners:#?}"
        );

        // The control: what the control plane says next is seen.
        let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: none, namespace: default }\n\
                    spec: { selector: { matchLabels: { app: reviews } } }\n";
        world.apply("deny.yaml", deny);
        eventually("the server holds the new rule and the caller feels it", async || {
            let refused = caller.call().await.is_err();
            let now = held(server.debug()).await;
            (refused && now != serving && all_acked(&now)).then_some(())
        })
        .await;
    }
}
