//! R25 in full: a control plane whose certificates live for a quarter of an hour, two processes of its mesh that renew
//! theirs there, a client and a server whose port takes plaintext as well; and that control plane is gone. All go by the
//! test's clock, TLS too. It is years ahead of the system's: whoever asked that one would find every certificate not to have
//! begun yet.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use mesh::parts::mesh_core::id::SpiffeId;
use mesh::parts::mesh_core::identity::Identity;
use mesh::parts::mesh_core::policy::{
    Address, Cluster, Endpoint, EndpointMetadata, InboundState, InboundTls, MeshTls, StringMatcher, UpstreamProtocol,
    UpstreamTls,
};
use mesh::parts::mesh_core::source::{Watched, WatchedIdentity};
use mesh::parts::mesh_core::telemetry::Renewals;
use mesh::parts::mesh_discovery::bootstrap::{ChannelCredentials, TlsCredentials, XdsServer};
use mesh::parts::mesh_discovery::connect::Connector;
use mesh::parts::mesh_discovery::secret::{self, JoinToken, SecretConfig};
use mesh::parts::{mesh_client, mesh_server};
use mesh_testkit::clock::{hold, pass};
use mesh_testkit::{FixedSource, crypto, policy};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::support::{FREE, Plane};

const QUARTER: u64 = 900;
const STEP: u64 = 5;
const REVIEWS: &str = "http://reviews:9080/";

/// The test's clock: that of timers, which begins in 2033.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn since_epoch(self) -> Duration {
        Duration::from_secs(2_000_000_000) + self.0.elapsed()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.since_epoch()))
    }
}

/// What keeps the identity of a process, and the file in which somebody leaves tokens for it.
struct Process {
    account: &'static str,
    identity: WatchedIdentity,
    token: NamedTempFile,
    renewals: Arc<Renewals>,
}

impl Process {
    async fn start(account: &'static str, plane: &Plane, clock: Clock) -> Self {
        let server_id = Some("spiffe://cluster.local/ns/mesh-system/sa/control-plane".parse().unwrap());
        let ca_certificate_file = Some(plane.root_cert_path().to_str().unwrap().to_owned());
        let tls = TlsCredentials { ca_certificate_file, server_id, ..TlsCredentials::default() };
        let server = XdsServer::new(plane.address().to_string().parse().unwrap(), ChannelCredentials::Tls(tls));
        let (token, renewals) = (NamedTempFile::new().unwrap(), Arc::<Renewals>::default());
        let mut config = SecretConfig::new(Some(JoinToken::File(token.path().to_owned())));
        (config.clock, config.renewals) = (Arc::new(move || clock.since_epoch().as_secs()), renewals.clone());
        std::fs::write(token.path(), plane.token(account)).unwrap();
        let (mut identity, _) = secret::spawn(config, Connector::new(server, crypto()), &Handle::current());
        hold(identity.wait_for(Option::is_some)).await;
        Self { account, identity, token, renewals }
    }

    fn identity(&self) -> Arc<Identity> {
        Option::clone(&self.identity.load_full()).expect("nothing takes it away")
    }

    /// With a certificate that has ended nobody renews it; a token is good once.
    fn may_join_again(&self, plane: &Plane) {
        std::fs::write(self.token.path(), plane.token(self.account)).unwrap();
    }
}

/// Automatic mutual TLS, and nobody but the service expected; or what somebody wrote who wants none.
fn upstream(mutual: bool) -> UpstreamTls {
    let peer_ids = [StringMatcher::exact("spiffe://cluster.local/ns/default/sa/reviews")].into();
    if mutual { UpstreamTls::Auto(MeshTls { peer_ids, ..MeshTls::default() }) } else { UpstreamTls::Disable }
}

/// A client with few requests to a connection, or as many as come.
fn client(
    own: &WatchedIdentity,
    server: SocketAddr,
    tls: UpstreamTls,
    requests: Option<u32>,
    clock: Clock,
) -> mesh_client::Client {
    let mut cluster = Cluster { tls, ..Cluster::new("reviews".into()) };
    cluster.connection.max_requests_per_connection = requests;
    cluster.connection.protocol = if requests.is_none() { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
    let mut endpoint = Endpoint::new(Address::Socket(server));
    endpoint.metadata = Arc::new(EndpointMetadata { mesh_tls: true, ..EndpointMetadata::default() });
    let source = FixedSource::of("reviews:9080", policy::snapshot_of(cluster, [endpoint]));
    mesh_client::Client::builder(source).crypto(crypto()).clock(Arc::new(clock)).identity(own.clone()).build()
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

/// Half an hour of requests over a connection that stays open and over new ones, in which the control plane is gone for
/// `minutes` from the fourth one on.
async fn half_an_hour_without_the_authority(minutes: u64, mutual: bool) -> Tally {
    let clock = Clock(Instant::now());
    let wall = mesh_control::Clock::new(move || UNIX_EPOCH + clock.since_epoch());
    let life = Duration::from_secs(QUARTER);
    let mut plane = hold(Plane::with(move |builder| builder.certificate_ttl(life).clock(wall.clone()))).await;
    let web = Process::start("web", &plane, clock).await;
    let reviews = Process::start("reviews", &plane, clock).await;
    let listener = TcpListener::bind(FREE).await.unwrap();
    let address = listener.local_addr().unwrap();
    let permissive = InboundState::Ready(Arc::new(policy::inbound(address, InboundTls::Permissive)));
    let server = mesh_server::Server::builder().identity(reviews.identity.clone()).crypto(crypto());
    let server = server.clock(Arc::new(clock)).inbound(Watched::fixed(permissive)).build();
    let whoami = tower::service_fn(|_: Request<mesh_server::Body>| async {
        let caller = mesh::caller().and_then(|peer| peer.spiffe_id.as_ref().map(SpiffeId::to_string));
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(caller.unwrap_or_default().into())))
    });
    let served = tokio::spawn(server.serve(listener, whoami));
    let kept = client(&web.identity, address, upstream(mutual), None, clock);
    let fresh = client(&web.identity, address, upstream(mutual), Some(1), clock);
    let known = if mutual { web.identity().id().to_string() } else { String::new() };

    let mut tally = Tally::default();
    let away = 240..240 + 60 * minutes;
    for second in (0..1800).step_by(STEP as usize) {
        if second == away.start && !away.is_empty() {
            let place = plane.address();
            hold(plane.stop()).await;
            let refused = hold(TcpStream::connect(place)).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "nobody listens");
        }
        if second == away.end && !away.is_empty() {
            hold(plane.resume()).await;
            for process in [&web, &reviews] {
                process.may_join_again(&plane);
            }
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
        // Once the server has a new one, it is the server that refuses the client's, and says no more than an alert can.
        let by_the_server = *second >= 1200 && why.contains("fatal alert: CertificateUnknown");
        assert!(why.contains("ended") && why.contains("was not renewed") || by_the_server, "{second}: {why}");
    }
    assert_eq!(plaintext, 0);
    let plain = half_an_hour_without_the_authority(16, false).await;
    assert_eq!((plain.made, plain.plaintext), (STEPS, 1), "the control: who speaks plaintext is served, and counted");
}
