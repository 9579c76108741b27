//! The control plane is killed under five hundred streams and started again (R03, with real processes): all come
//! back, in time, and get what changed meanwhile.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::policy::{Address, ClusterState, DestinationState};
use mesh_core::source::{DestinationSource, Watched};
use mesh_discovery::bootstrap::{Bootstrap, XdsServer};
use mesh_discovery::connect::Connector;
use mesh_discovery::xds::{GrpcTransport, XdsClient, XdsConfig};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::manifests::in_mesh;
use crate::world::{PATIENCE, World, eventually};

const CLIENTS: usize = 500;

fn at(port: u16) -> String {
    in_mesh("stock.example.com", "stock", ([127, 0, 0, 1], port).into())
}

fn goes_to(state: &DestinationState, port: u16) -> bool {
    let DestinationState::Ready(snapshot) = state else { return false };
    snapshot.clusters.values().all(|cluster| match cluster {
        ClusterState::Ready { endpoints, .. } => endpoints
            .iter()
            .all(|endpoint| matches!(&endpoint.address, Address::Socket(address) if address.port() == port)),
        ClusterState::Failed(_) => false,
    })
}

async fn all_go_to(clients: &mut [(XdsClient, Watched<DestinationState>)], port: u16) {
    let all = async {
        for (_, state) in clients {
            state.wait_for(|state| goes_to(state, port)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("not all go to {port}"));
}

/// Clients that the control plane lists as having accepted everything they were sent.
async fn in_sync(world: &World) -> usize {
    let nodes: Vec<Value> = serde_json::from_str(&world.debug("/sync").await).unwrap();
    let accepted = |node: &&Value| {
        let types = node["types"].as_array().unwrap();
        !types.is_empty() && types.iter().all(|entry| entry["version_acked"] == entry["version_sent"])
    };
    nodes.iter().filter(accepted).count()
}

#[tokio::test]
async fn five_hundred_streams_come_back_to_a_killed_control_plane_r03() {
    let mut world = World::start(&[("stock.yaml", at(1))]).await;
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let target = "stock.example.com:9080".parse().unwrap();
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let bootstrap = world.bootstrap(&format!("herd-{number}")).to_string();
            let config = XdsConfig::new(Bootstrap::from_json(&bootstrap).unwrap());
            let transport = |server: &XdsServer| GrpcTransport::new(Connector::new(server.clone(), crypto.clone()));
            let client = XdsClient::spawn(config, transport, &Handle::current());
            let state = client.destination(&target);
            (client, state)
        })
        .collect();
    all_go_to(&mut clients, 1).await;

    world.kill().await;
    eventually("everybody has noticed", async || {
        clients.iter().all(|(client, _)| !client.status().connected).then_some(())
    })
    .await;
    assert!(clients.iter().all(|(_, state)| goes_to(&state.load(), 1)), "the last good serves meanwhile");
    world.apply("stock.yaml", &at(2));
    world.resume().await;

    let back = Instant::now();
    all_go_to(&mut clients, 2).await;
    println!("{CLIENTS} streams were back {:?} after the return", back.elapsed());
    assert!(back.elapsed() <= Duration::from_secs(30), "{:?}", back.elapsed());
    eventually("all have accepted what they were sent", async || (in_sync(&world).await == CLIENTS).then_some(()))
        .await;
    assert!(clients.iter().all(|(client, _)| client.status().nacks == 0));
}
