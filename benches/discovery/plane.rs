//! A control plane in memory and a client of it: services `s0`, `s1`, …, each with a listener, routes, a cluster
//! and endpoints of its own, as `mesh control-plane` serves them.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use mesh_core::id::Target;
use mesh_core::policy::{Address, Cluster, DestinationState, Endpoint, Listener, RouteSource};
use mesh_core::source::{DestinationSource, Watched};
use mesh_discovery::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use mesh_discovery::codec;
use mesh_discovery::xds::{AdsStream, Ask, Request, StreamError, Transport, Variant, XdsClient, XdsConfig};
use mesh_testkit::policy;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Error;
use super::wire::{self, Any, Resource};

/// Types in the order in which a client comes to ask for them.
pub(crate) const TYPES: [&str; 4] = [codec::LISTENER, codec::ROUTES, codec::CLUSTER, codec::ENDPOINTS];

/// How large a world is.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) clusters: usize,
    /// Of each cluster.
    pub(crate) endpoints: usize,
}

/// A client that follows all services of a control plane, and the other side of its stream.
pub(crate) struct World {
    pub(crate) client: Arc<XdsClient>,
    pub(crate) states: Vec<Watched<DestinationState>>,
    stream: Stream,
    variant: Variant,
    size: Size,
    revision: u64,
}

/// Everything, ready to be sent.
pub(crate) struct Book(Vec<Vec<u8>>);

impl Book {
    pub(crate) fn of(variant: Variant, size: Size) -> Result<Self, Error> {
        let page = |type_url: &&str| {
            let resources = (0..size.clusters).map(|n| resource(type_url, n, size.endpoints, 0));
            Ok::<_, Error>(wire::encode(variant, 1, resources.collect::<Result<_, _>>()?))
        };
        Ok(Self(TYPES.iter().map(page).collect::<Result<_, _>>()?))
    }
}

impl World {
    /// Subscribes to everything and waits until it is there.
    pub(crate) async fn load(variant: Variant, size: Size, book: Book) -> Result<Self, Error> {
        let (sender, streams) = mpsc::unbounded_channel();
        let server = XdsServer::new("memory:1".parse()?, ChannelCredentials::Insecure);
        let mut config = XdsConfig::new(Bootstrap::new(server, Node::default()));
        config.variant = Some(variant);
        let client = XdsClient::spawn(config, move |_| Memory(sender.clone()), &Handle::current());
        Self::load_by(client, streams, variant, size, book).await
    }

    /// The same with a client whose `streams` come here, whatever carries them.
    pub(crate) async fn load_by(
        client: XdsClient,
        mut streams: mpsc::UnboundedReceiver<Stream>,
        variant: Variant,
        size: Size,
        book: Book,
    ) -> Result<Self, Error> {
        let client = Arc::new(client);
        let states = (0..size.clusters).map(|n| Ok::<_, Error>(client.destination(&target(n)?)));
        let states = states.collect::<Result<Vec<_>, _>>()?;
        let stream = streams.recv().await.ok_or("the client opens no stream")?;
        let mut world = Self { client, states, stream, variant, size, revision: 1 };
        for (type_url, page) in TYPES.into_iter().zip(book.0) {
            world.asked_for_all(type_url).await?;
            world.stream.responses.send(page)?;
        }
        for state in &mut world.states {
            state.wait_for(|state| matches!(state, DestinationState::Ready(_))).await;
        }
        while world.acknowledged().await? != codec::ENDPOINTS {}
        Ok(world)
    }

    async fn asked_for_all(&mut self, type_url: &str) -> Result<(), Error> {
        let mut names = 0;
        loop {
            let asked = self.stream.requests.next().await.ok_or("the client closed its stream")?;
            if let Some(error) = asked.error {
                return Err(error.into());
            }
            if asked.type_url == type_url {
                // A client on another thread may ask in several parts, of which delta has what is new.
                names = match self.variant {
                    Variant::StateOfTheWorld => asked.names,
                    Variant::Delta => names + asked.names,
                };
            }
            if names == self.size.clusters {
                return Ok(());
            }
        }
    }

    /// A change of one endpoint of cluster `n`, to be sent with [`push`](Self::push).
    pub(crate) fn change(&mut self, n: usize) -> Result<Vec<u8>, Error> {
        self.revision += 1;
        let resource = resource(codec::ENDPOINTS, n, self.size.endpoints, self.revision)?;
        Ok(wire::encode(self.variant, self.revision, vec![resource]))
    }

    /// Everything again, with a change of cluster 0 if `changed`; one response for each type.
    pub(crate) fn table(&mut self, changed: bool) -> Result<Vec<Vec<u8>>, Error> {
        self.revision += 1;
        let edition = |n: usize| if n == 0 && changed { self.revision } else { 0 };
        let page = |type_url: &&str| {
            let resources = (0..self.size.clusters).map(|n| resource(type_url, n, self.size.endpoints, edition(n)));
            Ok::<_, Error>(wire::encode(self.variant, self.revision, resources.collect::<Result<_, _>>()?))
        };
        TYPES.iter().map(page).collect()
    }

    /// Sends responses and waits until each is acknowledged: by then what it changed is published.
    pub(crate) async fn push(&mut self, responses: impl IntoIterator<Item = Vec<u8>>) -> Result<(), Error> {
        for response in responses {
            self.stream.responses.send(response)?;
            self.acknowledged().await?;
        }
        Ok(())
    }

    /// The type of the next response that is acknowledged.
    async fn acknowledged(&mut self) -> Result<&'static str, Error> {
        let asked = self.stream.requests.next().await.ok_or("the client closed its stream")?;
        match asked.error {
            Some(error) => Err(error.into()),
            None => Ok(asked.type_url),
        }
    }

    /// Whether cluster `n` is published as of this edition.
    pub(crate) fn shows(&self, n: usize, edition: u64) -> bool {
        let wanted = Address::Socket(address(n, 0, edition));
        match &**self.states[n].load() {
            DestinationState::Ready(snapshot) => snapshot.clusters.values().any(|state| match state {
                mesh_core::policy::ClusterState::Ready { endpoints, .. } => {
                    endpoints.iter().any(|endpoint| endpoint.address == wanted)
                }
                mesh_core::policy::ClusterState::Failed(_) => false,
            }),
            _ => false,
        }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn clusters(&self) -> usize {
        self.size.clusters
    }
}

pub(crate) fn target(n: usize) -> Result<Target, Error> {
    Ok(format!("s{n}:80").parse()?)
}

/// Places among which the first endpoint of a cluster moves from edition to edition.
pub(crate) const MOVES: u64 = 64;

/// Where an endpoint is: on loopback, so that some can be served. The first one moves, the others stay.
pub(crate) fn address(n: usize, endpoint: usize, edition: u64) -> SocketAddr {
    let [_, _, high, low] = (n as u32).to_be_bytes();
    let port = if endpoint == 0 { 20_000 + edition % MOVES } else { 1_000 + endpoint as u64 };
    SocketAddr::from(([127, 1, high, low], port as u16))
}

fn resource(type_url: &str, n: usize, endpoints: usize, edition: u64) -> Result<Resource, Error> {
    macro_rules! packed {
        ($any:expr) => {{
            let any = $any;
            Any { type_url: any.type_url.into(), value: any.value.into() }
        }};
    }
    let cluster = format!("c{n}");
    let (name, any) = match type_url {
        codec::LISTENER => {
            let name = format!("s{n}:80");
            let routes = RouteSource::Named(format!("r{n}"));
            let listener = Listener::new(name.clone(), routes);
            (name, packed!(codec::encode_listener(&listener)))
        }
        codec::ROUTES => {
            let mut routes = policy::routes([policy::route_to(cluster.as_str().into())]);
            routes.name = format!("r{n}");
            (routes.name.clone(), packed!(codec::encode_routes(&routes)))
        }
        codec::CLUSTER => {
            let policy = Cluster::new(cluster.as_str().into());
            (cluster, packed!(codec::encode_cluster(&policy)))
        }
        codec::ENDPOINTS => {
            let endpoint = |i| Endpoint::new(Address::Socket(address(n, i, edition)));
            let list = policy::endpoints(&cluster.as_str().into(), (0..endpoints).map(endpoint).collect());
            (cluster, packed!(codec::encode_endpoints(&list)))
        }
        other => return Err(format!("no resources of type {other}").into()),
    };
    Ok(Resource { name, any })
}

/// The control plane's side of a stream.
pub(crate) struct Stream {
    pub(crate) requests: Requests,
    /// Responses as they are encoded.
    pub(crate) responses: mpsc::UnboundedSender<Vec<u8>>,
}

/// What the client says, by the way it comes.
pub(crate) enum Requests {
    Memory(mpsc::Receiver<Request>),
    Socket(mpsc::UnboundedReceiver<Asked>),
}

/// A request, as far as anybody looks at it here.
pub(crate) struct Asked {
    pub(crate) type_url: &'static str,
    /// How many are asked for.
    pub(crate) names: usize,
    /// Why the last response is refused.
    pub(crate) error: Option<String>,
}

impl Requests {
    async fn next(&mut self) -> Option<Asked> {
        let Request { type_url, error, ask, .. } = match self {
            Self::Memory(requests) => requests.recv().await?,
            Self::Socket(requests) => return requests.recv().await,
        };
        let names = match &ask {
            Ask::World { names, .. } => names.len(),
            Ask::Changes { subscribe, .. } => subscribe.len(),
        };
        Some(Asked { type_url, names, error })
    }
}

#[derive(Clone)]
struct Memory(mpsc::UnboundedSender<Stream>);

impl Transport for Memory {
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        let (requests, received) = mpsc::channel(1);
        let (responses, incoming) = mpsc::unbounded_channel();
        let sent = self.0.send(Stream { requests: Requests::Memory(received), responses });
        Box::pin(async move {
            sent.map_err(|_| StreamError::new("nobody listens"))?;
            let bytes = stream::unfold(incoming, |mut incoming| async { Some((incoming.recv().await?, incoming)) });
            let read = move |bytes: Vec<u8>| {
                wire::decode(variant, bytes.into()).map_err(|error| StreamError::new(error.to_string()))
            };
            Ok(AdsStream { requests, responses: bytes.map(read).boxed() })
        })
    }
}
