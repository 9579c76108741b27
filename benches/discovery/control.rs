//! The control plane over loopback, with many clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_control::ControlPlane;
use mesh_control::model::Model;
use mesh_control::registry::Registration;
use mesh_control::translate::World;
use mesh_core::id::Locality;
use mesh_core::policy::{ClusterState, DestinationState};
use mesh_core::source::{DestinationSource, Watched};
use mesh_discovery::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use mesh_discovery::connect::Connector;
use mesh_discovery::xds::{GrpcTransport, Variant, XdsClient, XdsConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};

use crate::median;
use crate::rows::Row;
use crate::runtime::ServerThread;
use crate::{Error, Scale, cpu};

const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Services that each client uses.
const USED: usize = 20;

/// Starts a control plane on another thread's runtime.
pub(crate) async fn start(on: &Handle) -> Result<(ControlPlane, TempDir), Error> {
    let state = tempfile::tempdir()?;
    let builder =
        ControlPlane::builder().state_dir(state.path()).listen(FREE).debug_listen(Some(FREE)).insecure_xds(Some(FREE));
    let plane = on.spawn(builder.start()).await??;
    Ok((plane, state))
}

/// A client of it, on the current runtime.
pub(crate) fn client(plane: &ControlPlane, variant: Variant) -> Result<XdsClient, Error> {
    client_of(plane.insecure_address().ok_or("it serves no plaintext")?, variant)
}

fn client_of(address: SocketAddr, variant: Variant) -> Result<XdsClient, Error> {
    let server = XdsServer::new(address.to_string().parse()?, ChannelCredentials::Insecure);
    let connector = Connector::new(server.clone(), mesh_testkit::crypto());
    let mut config = XdsConfig::new(Bootstrap::new(server, Node::default()));
    config.variant = Some(variant);
    let transport = |server: &XdsServer| GrpcTransport::new(connector.to(server.clone()));
    Ok(XdsClient::spawn(config, transport, &Handle::current()))
}

/// A process that serves service `n`.
pub(crate) fn registration(n: usize, address: SocketAddr, zone: &str) -> Registration {
    Registration {
        service: format!("s{n}"),
        namespace: "default".to_owned(),
        service_port: 80,
        address,
        labels: BTreeMap::new(),
        locality: Locality { zone: zone.to_owned(), ..Locality::default() },
        mesh_tls: false,
        port_protocol: "http".to_owned(),
        workload: String::new(),
        service_account: "default".to_owned(),
    }
}

/// How service `n` is dialled.
fn dialled(n: usize) -> String {
    format!("s{n}.default.svc.cluster.local:80")
}

pub(crate) fn url(n: usize) -> String {
    format!("http://{}/", dialled(n))
}

/// Every row of the control plane.
pub(crate) fn rows(runtime: &Runtime, scale: &Scale) -> Result<Vec<Row>, Error> {
    let all: Vec<_> = (0..scale.clusters).flat_map(|n| (0..10).map(move |i| member(n, i, "a"))).collect();
    let indexed = allocation_counter::measure(|| drop(World::build(&Model::default(), &all)));
    let server = ServerThread::start()?;
    let heap = heap_of_1000_resources(server.handle(), scale.clusters.min(1_000))?;
    let (plane, _state) = runtime.block_on(start(server.handle()))?;
    let mut rows = runtime.block_on(fan_out(&plane, all, scale))?;
    rows.push(Row::new("control_heap_of_1000_resources", "kB", heap / 1e3, None));
    rows.push(Row::new("control_index_memory", "MB", indexed.bytes_max as f64 / 1e6, None));
    Ok(rows)
}

/// By how many bytes the heap of a control plane grows with each thousand resources that one client subscribes to: the
/// names, the entries and the bytes.
fn heap_of_1000_resources(elsewhere: &Handle, services: usize) -> Result<f64, Error> {
    let (few, many) = (1, services);
    let grown = heap_with_a_client(elsewhere, services, many)? - heap_with_a_client(elsewhere, services, few)?;
    Ok(grown / (4 * (many - few)) as f64 * 1e3)
}

/// Heap of a control plane that runs on this thread alone; its client, who uses so many services, runs elsewhere.
fn heap_with_a_client(elsewhere: &Handle, services: usize, used: usize) -> Result<f64, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut made = Err("not made".into());
    let counted = allocation_counter::measure(|| {
        made = runtime.block_on(async {
            let (plane, state) = start(&Handle::current()).await?;
            plane.hold((0..services).flat_map(|n| (0..10).map(move |i| member(n, i, "a"))).collect());
            let address = plane.insecure_address().ok_or("it serves no plaintext")?;
            let client = elsewhere.spawn(uses(address, used)).await??;
            settled(&plane).await?;
            Ok::<_, Error>((plane, state, client))
        });
    });
    let _all = made?;
    Ok(counted.bytes_current as f64)
}

/// A client once it has these services.
async fn uses(address: SocketAddr, services: usize) -> Result<(XdsClient, Vec<Watched<DestinationState>>), Error> {
    let client = client_of(address, Variant::Delta)?;
    let mut states = Vec::with_capacity(services);
    for n in 0..services {
        states.push(client.destination(&dialled(n).parse()?));
    }
    for state in &mut states {
        state.wait_for(|state| matches!(state, DestinationState::Ready(_))).await;
    }
    Ok((client, states))
}

fn member(n: usize, endpoint: u8, zone: &str) -> Registration {
    let [_, _, high, low] = (n as u32).to_be_bytes();
    registration(n, SocketAddr::from(([10, endpoint, high, low], 80)), zone)
}

async fn fan_out(plane: &ControlPlane, all: Vec<Registration>, scale: &Scale) -> Result<Vec<Row>, Error> {
    plane.hold(all);
    let mut clients = Vec::with_capacity(scale.clients);
    let mut first = Vec::with_capacity(scale.clients);
    let mut others = Vec::new();
    let started = Instant::now();
    for at in 0..scale.clients {
        let client = client(plane, if at % 2 == 0 { Variant::Delta } else { Variant::StateOfTheWorld })?;
        // Everybody uses service 0, and some others.
        first.push(client.destination(&dialled(0).parse()?));
        for n in 1..USED {
            let n = 1 + (at * 7 + n) % (scale.clusters - 1);
            others.push(client.destination(&dialled(n).parse()?));
        }
        clients.push(client);
    }
    for state in first.iter_mut().chain(&mut others) {
        state.wait_for(|state| matches!(state, DestinationState::Ready(_))).await;
    }
    let connected = started.elapsed().as_secs_f64();
    let held = clients.iter().map(|client| client.config_dump()["resources"].as_array().map_or(0, Vec::len)).max();

    let (mut last_seen, mut last_ack, mut cpu_each) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..scale.pairs {
        settled(plane).await?;
        let (before, acks) = (cpu::seconds_of("server")?, metric(plane, "mesh_control_acks_total").await?);
        let zone = format!("z{change}");
        let pushed = Instant::now();
        plane.hold(vec![member(0, 0, &zone)]);
        for state in &mut first {
            state.wait_for(|state| is_in(state, &zone)).await;
        }
        last_seen.push(pushed.elapsed().as_secs_f64() * 1e3);
        while metric(plane, "mesh_control_acks_total").await? < acks + scale.clients as f64 {
            // Each look costs the control plane some CPU.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        last_ack.push(pushed.elapsed().as_secs_f64() * 1e3);
        cpu_each.push((cpu::seconds_of("server")? - before) * 1e6 / scale.clients as f64);
    }
    let (bytes, resources) =
        (metric(plane, "mesh_control_resource_bytes").await?, metric(plane, "mesh_control_resources").await?);
    Ok(vec![
        Row::new("control_500_clients_connect", "s", connected, None),
        Row::new("control_change_to_last_seen", "ms", median(last_seen), None),
        Row::new("control_change_to_last_ack", "ms", median(last_ack), None),
        Row::new("control_cpu_for_each_client", "us", median(cpu_each), None),
        // Encoded bytes alone.
        Row::new("control_bytes_of_1000_resources", "kB", bytes / resources, None),
        Row::new("held_by_a_client_of_20", "resources", held.unwrap_or_default() as f64, 4.0 * USED as f64),
    ])
}

/// Waits until everything that was sent is acknowledged.
async fn settled(plane: &ControlPlane) -> Result<(), Error> {
    let mut before = f64::NAN;
    loop {
        let acks = metric(plane, "mesh_control_acks_total").await?;
        if acks == before {
            return Ok(());
        }
        before = acks;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_in(state: &DestinationState, zone: &str) -> bool {
    let DestinationState::Ready(snapshot) = state else { return false };
    snapshot.clusters.values().any(|cluster| match cluster {
        ClusterState::Ready { endpoints, .. } => endpoints.localities.iter().any(|group| group.locality.zone == zone),
        ClusterState::Failed(_) => false,
    })
}

/// A metric without labels, off the debug port.
async fn metric(plane: &ControlPlane, name: &str) -> Result<f64, Error> {
    let address = plane.debug_address().ok_or("it has no debug port")?;
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.ok_or_else(|| format!("no metric {name}"))?.trim().parse()?)
}
