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
/// So many clients are of one scope where there are many scopes.
const OF_A_SCOPE: usize = 5;
/// Endpoints of a large service, in hundreds.
const LARGE: u8 = 100;

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
    client_of(plane.insecure_address().ok_or("it serves no plaintext")?, variant, Node::default())
}

fn client_of(address: SocketAddr, variant: Variant, node: Node) -> Result<XdsClient, Error> {
    let server = XdsServer::new(address.to_string().parse()?, ChannelCredentials::Insecure);
    let connector = Connector::new(server.clone(), mesh_testkit::crypto());
    let mut config = XdsConfig::new(Bootstrap::new(server, node));
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

/// Who a client of scope `n` says that it is: to the control plane each namespace is a scope of its own, though all of them see
/// the same here.
fn node(n: usize) -> Node {
    let metadata = [("NAMESPACE".to_owned(), format!("n{n}").into())];
    Node { metadata: metadata.into_iter().collect(), ..Node::default() }
}

/// Every row of the control plane.
pub(crate) fn rows(runtime: &Runtime, scale: &Scale) -> Result<Vec<Row>, Error> {
    let all: Vec<_> = (0..scale.clusters).flat_map(|n| (0..10).map(move |i| member(n, i, "a"))).collect();
    let indexed = allocation_counter::measure(|| drop(World::build(&Model::default(), &all)));
    let server = ServerThread::start()?;
    let heap = heap_of_1000_resources(server.handle(), scale.clusters.min(1_000))?;
    let heap_of_a_scope = heap_of_a_scope(server.handle(), scale.clients.min(20))?;
    let mut rows = runtime.block_on(fan_out(server.handle(), all, scale))?;
    rows.extend(runtime.block_on(fan_out_of_a_large_service(server.handle(), scale))?);
    rows.push(Row::new("control_heap_of_1000_resources", "kB", heap / 1e3, None));
    rows.push(Row::new("control_heap_of_a_scope_of_20_services", "kB", heap_of_a_scope / 1e3, None));
    rows.push(Row::new("control_index_memory", "MB", indexed.bytes_max as f64 / 1e6, None));
    Ok(rows)
}

/// By how many bytes the heap of a control plane grows with each thousand resources that one client subscribes to: the
/// names, the entries and the bytes.
fn heap_of_1000_resources(elsewhere: &Handle, services: usize) -> Result<f64, Error> {
    let (few, many) = (1, services);
    let of = |used| heap_with_clients(elsewhere, services, used, &[Node::default()]);
    Ok((of(many)? - of(few)?) / (4 * (many - few)) as f64 * 1e3)
}

/// By how many bytes the heap of a control plane grows with each scope that sees what others see already: clients that are
/// each of a scope of their own, against as many of one.
fn heap_of_a_scope(elsewhere: &Handle, clients: usize) -> Result<f64, Error> {
    let of = |scopes: usize| {
        let nodes: Vec<_> = (0..clients).map(|at| node(at % scopes)).collect();
        heap_with_clients(elsewhere, USED, USED, &nodes)
    };
    Ok((of(clients)? - of(1)?) / (clients - 1) as f64)
}

/// Heap of a control plane that runs on this thread alone; its clients, who use so many services, run elsewhere.
fn heap_with_clients(elsewhere: &Handle, services: usize, used: usize, nodes: &[Node]) -> Result<f64, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut made = Err("not made".into());
    let counted = allocation_counter::measure(|| {
        made = runtime.block_on(async {
            let (plane, state) = start(&Handle::current()).await?;
            plane.hold((0..services).flat_map(|n| (0..10).map(move |i| member(n, i, "a"))).collect());
            let address = plane.insecure_address().ok_or("it serves no plaintext")?;
            let mut clients = Vec::with_capacity(nodes.len());
            for node in nodes {
                clients.push(elsewhere.spawn(uses(address, used, node.clone())).await??);
            }
            settled(&plane).await?;
            Ok::<_, Error>((plane, state, clients))
        });
    });
    let _all = made?;
    Ok(counted.bytes_current as f64)
}

/// A client once it has these services.
async fn uses(
    address: SocketAddr,
    services: usize,
    node: Node,
) -> Result<(XdsClient, Vec<Watched<DestinationState>>), Error> {
    let client = client_of(address, Variant::Delta, node)?;
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

/// A change of one endpoint of a service that all clients use, among whom each uses some others: all of one scope, then of many
/// that see the same. What is made for each scope again, or kept for it, is the difference.
async fn fan_out(server: &Handle, all: Vec<Registration>, scale: &Scale) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    let mut bytes_of_one = f64::NAN;
    let others = |at: usize| (1..USED).map(move |n| 1 + (at * 7 + n) % (scale.clusters - 1));
    for (scopes, name) in [(1, "control"), (scale.clients / OF_A_SCOPE, "control_of_100_scopes")] {
        let (plane, _state) = start(server).await?;
        plane.hold(all.clone());
        let mut fleet = Fleet::connect(&plane, scale.clients, scopes, others).await?;
        let costs = fleet.changes(&plane, scale.pairs, |zone| member(0, 0, zone)).await?;
        let bytes = metric(&plane, "mesh_control_resource_bytes").await?;
        rows.push(Row::new(format!("{name}_500_clients_connect"), "s", fleet.connected, None));
        rows.push(Row::new(format!("{name}_change_to_last_seen"), "ms", median(costs.last_seen), None));
        rows.push(Row::new(format!("{name}_change_to_last_ack"), "ms", median(costs.last_ack), None));
        rows.push(Row::new(format!("{name}_cpu_for_each_client"), "us", median(costs.cpu_each), None));
        if scopes == 1 {
            bytes_of_one = bytes;
            // Encoded bytes alone.
            let resources = metric(&plane, "mesh_control_resources").await?;
            rows.push(Row::new("control_bytes_of_1000_resources", "kB", bytes / resources, None));
            rows.push(Row::new("held_by_a_client_of_20", "resources", fleet.most_held() as f64, 4.0 * USED as f64));
        } else {
            // What scopes see alike has the same bytes.
            rows.push(Row::new(format!("{name}_bytes_against_one"), "ratio", bytes / bytes_of_one, 1.0));
        }
    }
    Ok(rows)
}

/// The same of a service of 10,000 endpoints, which to make takes longer than to send; one client of each scope, for what they
/// do with it themselves takes longest.
async fn fan_out_of_a_large_service(server: &Handle, scale: &Scale) -> Result<Vec<Row>, Error> {
    let clients = scale.clients / OF_A_SCOPE;
    let endpoint = |high, low, zone: &str| registration(0, SocketAddr::from(([11, 0, high, low], 80)), zone);
    let mut rows = Vec::new();
    for (scopes, name) in [(1, "control"), (clients, "control_of_100_scopes")] {
        let (plane, _state) = start(server).await?;
        plane.hold((0..LARGE).flat_map(|high| (0..100).map(move |low| endpoint(high, low, "a"))).collect());
        let mut fleet = Fleet::connect(&plane, clients, scopes, |_| std::iter::empty()).await?;
        let costs = fleet.changes(&plane, scale.pairs.min(5), |zone| endpoint(0, 0, zone)).await?;
        let name = format!("{name}_cpu_for_each_client_of_10000_endpoints");
        rows.push(Row::new(name, "us", median(costs.cpu_each), None));
    }
    Ok(rows)
}

/// Clients of a control plane, which all use service 0.
struct Fleet {
    clients: Vec<XdsClient>,
    first: Vec<Watched<DestinationState>>,
    _others: Vec<Watched<DestinationState>>,
    /// Seconds until all of them had what they use.
    connected: f64,
}

/// What each change cost.
#[derive(Default)]
struct Costs {
    /// Milliseconds.
    last_seen: Vec<f64>,
    /// Milliseconds.
    last_ack: Vec<f64>,
    /// Microseconds of the control plane's CPU, for each client.
    cpu_each: Vec<f64>,
}

impl Fleet {
    /// Connects so many clients, in turn of these scopes, and waits until they have their services.
    async fn connect<I: Iterator<Item = usize>>(
        plane: &ControlPlane,
        clients: usize,
        scopes: usize,
        others: impl Fn(usize) -> I,
    ) -> Result<Self, Error> {
        let address = plane.insecure_address().ok_or("it serves no plaintext")?;
        let mut fleet = Self { clients: Vec::new(), first: Vec::new(), _others: Vec::new(), connected: 0.0 };
        let started = Instant::now();
        for at in 0..clients {
            let variant = if at % 2 == 0 { Variant::Delta } else { Variant::StateOfTheWorld };
            let client = client_of(address, variant, node(at % scopes))?;
            fleet.first.push(client.destination(&dialled(0).parse()?));
            for n in others(at) {
                fleet._others.push(client.destination(&dialled(n).parse()?));
            }
            fleet.clients.push(client);
        }
        for state in fleet.first.iter_mut().chain(&mut fleet._others) {
            state.wait_for(|state| matches!(state, DestinationState::Ready(_))).await;
        }
        fleet.connected = started.elapsed().as_secs_f64();
        Ok(fleet)
    }

    /// Has an endpoint of service 0 moved from zone to zone, each time until all have acknowledged it.
    async fn changes(
        &mut self,
        plane: &ControlPlane,
        changes: usize,
        endpoint: impl Fn(&str) -> Registration,
    ) -> Result<Costs, Error> {
        let mut costs = Costs::default();
        let clients = self.clients.len() as f64;
        for change in 0..changes {
            settled(plane).await?;
            let (before, acks) = (cpu::seconds_of("server")?, metric(plane, "mesh_control_acks_total").await?);
            let zone = format!("z{change}");
            let pushed = Instant::now();
            plane.hold(vec![endpoint(&zone)]);
            for state in &mut self.first {
                state.wait_for(|state| is_in(state, &zone)).await;
            }
            costs.last_seen.push(pushed.elapsed().as_secs_f64() * 1e3);
            while metric(plane, "mesh_control_acks_total").await? < acks + clients {
                // Each look costs the control plane some CPU.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            costs.last_ack.push(pushed.elapsed().as_secs_f64() * 1e3);
            costs.cpu_each.push((cpu::seconds_of("server")? - before) * 1e6 / clients);
        }
        Ok(costs)
    }

    /// Resources that a client holds.
    fn most_held(&self) -> usize {
        let held = |client: &XdsClient| client.config_dump()["resources"].as_array().map_or(0, Vec::len);
        self.clients.iter().map(held).max().unwrap_or_default()
    }
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
