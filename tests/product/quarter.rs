//! R25 in full: two processes whose certificates live for a quarter of an hour, and an authority that is away. What keeps
//! their identities, the client, and the server, whose port takes plaintext as well, are the mesh's; the clock is the test's.
//! TLS alone asks the system for the time: it is shown each certificate with its dates moved by what the clocks are apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use mesh::parts::mesh_core::id::SpiffeId;
use mesh::parts::mesh_core::identity::Identity;
use mesh::parts::mesh_core::policy::{
    Address, Cluster, Endpoint, EndpointMetadata, InboundState, InboundTls, MeshTls, StringMatcher, UpstreamProtocol,
    UpstreamTls,
};
use mesh::parts::mesh_core::source::{Publisher, Watched, WatchedIdentity};
use mesh::parts::mesh_core::telemetry::Renewals;
use mesh::parts::mesh_discovery::bootstrap::{ChannelCredentials, XdsServer};
use mesh::parts::mesh_discovery::connect::Connector;
use mesh::parts::mesh_discovery::proto::certificate::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceServer,
};
use mesh::parts::mesh_discovery::secret::{self, JoinToken, SecretConfig};
use mesh::parts::{mesh_client, mesh_server};
use mesh_testkit::clock::{hold, pass};
use mesh_testkit::{FixedSource, TestCa, crypto, policy};
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;

use crate::support::FREE;

const QUARTER: u64 = 900;
const STEP: u64 = 5;
const REVIEWS: &str = "http://reviews:9080/";

/// The test's clock.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    base: u64,
}

impl Clock {
    fn seconds(&self) -> u64 {
        self.base + self.start.elapsed().as_secs()
    }

    /// The time by the system's clock at which it is as late as it is `seconds` by this one.
    fn by_the_system(&self, seconds: u64) -> u64 {
        seconds + system() - self.seconds()
    }
}

fn system() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Signs for a quarter of an hour of the test's clock, whom the token names.
#[derive(Clone)]
struct Authority {
    ca: Arc<TestCa>,
    clock: Clock,
    /// What it was asked to sign.
    requests: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<tonic::Response<IstioCertificateResponse>, tonic::Status> {
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap();
        let id = self.ca.id("default", token.split('.').nth(1).unwrap());
        let now = self.clock.seconds();
        let request = request.into_inner().csr;
        let leaf = self.ca.sign(&request, &id, (now - QUARTER / 4, now + QUARTER));
        self.requests.lock().push(request);
        let cert_chain = vec![leaf.pem(), self.ca.root_pem().to_owned()];
        Ok(tonic::Response::new(IstioCertificateResponse { cert_chain, ..Default::default() }))
    }
}

impl Authority {
    async fn serve(&self, address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(IstioCertificateServiceServer::new(self.clone()));
        let serving = server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        (address, tokio::spawn(async move { serving.await.unwrap() }))
    }

    /// The same key and names with dates by the system's clock.
    fn moved(&self, identity: &Identity) -> Arc<Identity> {
        let dates = [identity.not_before(), identity.not_after()].map(|date| self.clock.by_the_system(date));
        let moved = self.requests.lock().iter().rev().find_map(|request| {
            let leaf = self.ca.sign(request, identity.id(), (dates[0], dates[1]));
            let certified = CertifiedKey::new(vec![leaf.der().clone()], identity.certified().key.clone());
            // Only one of them asked for this key.
            Identity::new(certified, identity.bundles().clone(), identity.generation()).ok()
        });
        Arc::new(moved.expect("it was asked to sign it"))
    }
}

/// Who a process is: as the mesh keeps it, and as TLS is shown it.
struct Process {
    kept: WatchedIdentity,
    shown: (Publisher<Option<Arc<Identity>>>, WatchedIdentity),
    renewals: Arc<Renewals>,
}

impl Process {
    async fn start(account: &str, authority: &Authority, address: SocketAddr) -> Self {
        let server = XdsServer::new(address.to_string().parse().unwrap(), ChannelCredentials::Insecure);
        let (clock, renewals) = (authority.clock, Arc::<Renewals>::default());
        // One that is good more than once.
        let mut config = SecretConfig::new(Some(JoinToken::Text(format!("token.{account}.signed"))));
        (config.clock, config.renewals) = (Arc::new(move || clock.seconds()), renewals.clone());
        let (mut kept, _) = secret::spawn(config, Connector::new(server, crypto()), &Handle::current());
        hold(kept.wait_for(Option::is_some)).await;
        let process = Self { kept, shown: Watched::channel(None), renewals };
        process.show(authority);
        process
    }

    fn identity(&self) -> Arc<Identity> {
        Option::clone(&self.kept.load_full()).expect("nothing takes it away")
    }

    fn show(&self, authority: &Authority) {
        self.shown.0.publish(Some(authority.moved(&self.identity())));
    }
}

/// A client to an endpoint that takes the mesh's TLS, or does not; with few requests to a connection, or as many as come.
fn client(own: &WatchedIdentity, server: SocketAddr, mesh_tls: bool, requests: Option<u32>) -> mesh_client::Client {
    let peer_ids = [StringMatcher::exact("spiffe://cluster.local/ns/default/sa/reviews")].into();
    let tls = MeshTls { peer_ids, ..MeshTls::default() };
    let mut cluster = Cluster { tls: UpstreamTls::Auto(tls), ..Cluster::new("reviews".into()) };
    cluster.connection.max_requests_per_connection = requests;
    cluster.connection.protocol = if requests.is_none() { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
    let mut endpoint = Endpoint::new(Address::Socket(server));
    endpoint.metadata = Arc::new(EndpointMetadata { mesh_tls, ..EndpointMetadata::default() });
    let source = FixedSource::of("reviews:9080", policy::snapshot_of(cluster, [endpoint]));
    mesh_client::Client::builder(source).crypto(crypto()).identity(own.clone()).build()
}

/// Who the server took the caller for.
async fn ask(client: &mesh_client::Client) -> Result<String, String> {
    let request = Request::get(REVIEWS).body(mesh_client::Body::empty()).unwrap();
    let response =
        hold(tower::ServiceExt::oneshot(client.clone(), request)).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let text = hold(response.into_body().collect()).await.map_err(|error| error.to_string())?.to_bytes();
    let text = String::from_utf8_lossy(&text).into_owned();
    if status == 200 { Ok(text) } else { Err(text) }
}

/// What came of half an hour.
#[derive(Debug, Default)]
struct Tally {
    /// Requests over the connection that was open before the authority left.
    served: u64,
    /// Requests each over a connection of its own.
    made: u64,
    /// Second and reason of those that failed.
    refused: Vec<(u64, String)>,
    generation: u64,
    /// The marks of a life that certificates of the server passed without being renewed, in percent; 100 = none.
    marks: Vec<u8>,
    /// Peers of which the server took connections in plaintext.
    plaintext: usize,
}

/// Half an hour of requests over a connection that stays open and over new ones, in which the authority is away for
/// `minutes` from the fourth one on.
async fn half_an_hour_without_the_authority(minutes: u64, endpoint_has_tls: bool) -> Tally {
    let clock = Clock { start: Instant::now(), base: system() };
    let authority = Authority { ca: Arc::new(TestCa::new()), clock, requests: Arc::default() };
    let (place, mut serving) = authority.serve(FREE).await;
    let web = Process::start("web", &authority, place).await;
    let reviews = Process::start("reviews", &authority, place).await;
    let listener = TcpListener::bind(FREE).await.unwrap();
    let address = listener.local_addr().unwrap();
    let permissive = InboundState::Ready(Arc::new(policy::inbound(address, InboundTls::Permissive)));
    let server = mesh_server::Server::builder().identity(reviews.shown.1.clone()).crypto(crypto());
    let server = server.inbound(Watched::fixed(permissive)).build();
    let whoami = tower::service_fn(|_: Request<mesh_server::Body>| async {
        let caller = mesh::caller().and_then(|peer| peer.spiffe_id.as_ref().map(SpiffeId::to_string));
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(caller.unwrap_or_default().into())))
    });
    let served = tokio::spawn(server.serve(listener, whoami));
    let kept = client(&web.shown.1, address, endpoint_has_tls, None);
    let fresh = client(&web.shown.1, address, endpoint_has_tls, Some(1));
    let known = if endpoint_has_tls { web.identity().id().to_string() } else { String::new() };

    let mut tally = Tally::default();
    let away = 240..240 + 60 * minutes;
    for second in (0..1800).step_by(STEP as usize) {
        if second == away.start && !away.is_empty() {
            serving.abort();
            let _ = (&mut serving).await;
        }
        if second == away.end && !away.is_empty() {
            (_, serving) = authority.serve(place).await;
        }
        for process in [&web, &reviews] {
            process.show(&authority);
        }
        assert_eq!(ask(&kept).await.unwrap(), known);
        tally.served += 1;
        match ask(&fresh).await {
            Ok(caller) => {
                assert_eq!(caller, known);
                tally.made += 1;
            }
            Err(error) => tally.refused.push((second, error)),
        }
        let mark = reviews.renewals.life_left().percent();
        if tally.marks.last() != Some(&mark) {
            tally.marks.push(mark);
        }
        pass(Duration::from_secs(STEP)).await;
    }
    tally.generation = reviews.identity().generation();
    tally.plaintext = server.stats().plaintext_peers().len();
    served.abort();
    serving.abort();
    tally
}

const STEPS: u64 = 1800 / STEP;

/// Nothing fails while the authority is away for ten minutes of the fifteen that a certificate lives: neither a request
/// over a connection that is open nor a new connection; and nothing goes in plaintext to a port that would take it.
#[tokio::test(start_paused = true)]
async fn a_life_of_fifteen_minutes_bridges_ten_without_the_authority_r25() {
    let tally = half_an_hour_without_the_authority(10, true).await;
    assert_eq!((tally.served, tally.made, tally.refused), (STEPS, STEPS, Vec::new()));
    assert!(tally.generation >= 2, "it is renewed in time, and goes on to be: {}", tally.generation);
    assert_eq!(tally.marks, [100, 50, 25, 10, 100], "each mark is told, and taken back with the renewal");
    assert_eq!(tally.plaintext, 0);
    let calm = half_an_hour_without_the_authority(0, true).await;
    assert_eq!((calm.made, calm.marks), (STEPS, vec![100]), "the control: who renews in time tells nothing");
}

/// The control: where an outage is longer than a life, new connections fail from the end of a certificate on, say so, and
/// send nothing in plaintext; once the authority is back they come about within a minute. And plaintext would be
/// served, and seen.
#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_a_life_is_refused_in_words_and_never_in_plaintext_r25() {
    let Tally { served, made, refused, marks, plaintext, .. } = half_an_hour_without_the_authority(16, true).await;
    assert_eq!(served, STEPS, "an open connection was proved when it was made");
    // Both were new when the outage began at second 240, so both end at second 900.
    let (first, last) = (refused.first().unwrap().0, refused.last().unwrap().0);
    assert!((895..=905).contains(&first), "{first}");
    // The longest wait is half a minute; then a client asks its endpoint again within five seconds.
    assert!((1195..1200 + 60).contains(&(last + STEP)), "{last}");
    assert_eq!(made + refused.len() as u64, STEPS);
    assert_eq!(marks, [100, 50, 25, 10, 0, 100]);
    for (second, why) in &refused {
        assert!(why.contains("ended") && why.contains("was not renewed"), "{second}: {why}");
    }
    assert_eq!(plaintext, 0);
    let plain = half_an_hour_without_the_authority(0, false).await;
    assert_eq!((plain.made, plain.plaintext), (STEPS, 1), "who speaks plaintext is served, and counted");
}
