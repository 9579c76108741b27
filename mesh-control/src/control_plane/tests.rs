//! The running control plane over loopback: TLS, tokens, xDS, registration, restart.

mod certificates;
mod client;
mod operator;
mod scale;

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use mesh_discovery::codec;
use mesh_discovery::proto::registry::{AnnounceRequest, Announcement};
use tempfile::TempDir;
use tonic::Code;

use self::client::{Ads, Connection, join, page};
use super::*;
use crate::test_log::Listening;
use crate::xds::Kind;

const REVIEWS_EDS: &str = "outbound|9080||reviews.default.svc.cluster.local";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: { name: reviews, namespace: default }
spec:
  selector: { app: reviews }
  ports: [{ name: http, port: 9080 }]
";

const VIRTUAL_SERVICE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: reviews, namespace: default }
spec:
  hosts: [reviews]
  http: [{ timeout: 3s, route: [{ destination: { host: reviews } }] }]
";

/// A control plane on free ports with one Service in its manifests.
struct Setup {
    manifests: TempDir,
    state: TempDir,
}

impl Setup {
    fn new() -> Self {
        let setup = Self { manifests: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() };
        setup.write("reviews.yaml", SERVICE);
        setup
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.manifests.path().join(file), text).unwrap();
    }

    fn builder(&self) -> Builder {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        ControlPlane::builder()
            .manifests(self.manifests.path())
            .state_dir(self.state.path())
            .listen(free)
            .debug_listen(Some(free))
    }

    async fn start(&self) -> ControlPlane {
        self.builder().start().await.unwrap()
    }
}

/// Addresses in an EDS response.
fn endpoints(response: &DiscoveryResponse) -> Vec<String> {
    let decoded = response.resources.iter().map(|any| codec::decode_endpoints(any).unwrap().value);
    decoded.flat_map(|e| e.iter().map(|e| e.address.to_string()).collect::<Vec<_>>()).collect()
}

/// The next EDS response with exactly these addresses; anything may come before it.
async fn endpoints_become(ads: &mut Ads, wanted: &[&str]) {
    loop {
        let response = ads.expect(Kind::Endpoints).await;
        let found = endpoints(&response);
        ads.acknowledge(&response, &[REVIEWS_EDS], None).await;
        if found == wanted {
            return;
        }
    }
}

#[tokio::test]
async fn a_token_joins_once_and_the_certificate_renews_itself() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let anonymous = Connection::anonymous(&plane).await;
    assert_eq!(anonymous.certificate(None).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(anonymous.certificate(Some("a.b")).await.unwrap_err().code(), Code::Unauthenticated);

    let token = plane.join_tokens().mint("default", "reviews", Duration::from_secs(60)).unwrap();
    let identity = anonymous.certificate(Some(&token)).await.unwrap();
    assert_eq!(identity.id().as_str(), "spiffe://cluster.local/ns/default/sa/reviews");
    assert_eq!(anonymous.certificate(Some(&token)).await.unwrap_err().code(), Code::Unauthenticated);

    let renewed = Connection::mutual(&plane, &identity).await.certificate(None).await.unwrap();
    assert_eq!(renewed.id(), identity.id());
    assert_ne!(renewed.certified().cert, identity.certified().cert);
}

/// A control plane that dies before it answers costs nobody a token, and nobody else gets anything for it.
#[tokio::test]
async fn s93_after_a_restart_a_used_token_is_good_for_the_key_it_was_used_for() {
    let setup = Setup::new();
    let request = || {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
    };
    let (ours, others) = (request(), request());
    let plane = setup.start().await;
    let token = plane.join_tokens().mint("default", "reviews", Duration::from_secs(60)).unwrap();
    Connection::anonymous(&plane).await.certificate_for(ours.clone(), &token).await.unwrap();
    plane.shutdown().await;
    let plane = setup.start().await;
    let anonymous = Connection::anonymous(&plane).await;
    let refused = anonymous.certificate_for(others, &token).await.unwrap_err();
    assert!(refused.code() == Code::Unauthenticated && refused.message().contains("used before"), "{refused}");
    anonymous.certificate_for(ours, &token).await.unwrap();
}

#[tokio::test]
async fn without_a_certificate_nothing_but_certificates_is_served() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let anonymous = Connection::anonymous(&plane).await;
    assert_eq!(anonymous.ads().await.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(anonymous.announce().await.err().unwrap().code(), Code::Unauthenticated);
    let workload = join(&plane, "default", "productpage").await;
    assert!(workload.ads().await.is_ok());
    let listener = |name: &str| DeltaDiscoveryRequest {
        type_url: codec::LISTENER.to_owned(),
        resource_names_subscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(anonymous.delta(listener("reviews:9080")).await.unwrap_err().code(), Code::Unauthenticated);
    let mut delta = workload.delta(listener("reviews:9080")).await.unwrap();
    let response = delta.message().await.unwrap().unwrap();
    assert_eq!(response.resources[0].name, "reviews:9080");
    assert!(codec::decode_listener(response.resources[0].resource.as_ref().unwrap()).is_ok());
    let mut delta = workload.delta(listener("nobody:1")).await.unwrap();
    assert_eq!(delta.message().await.unwrap().unwrap().removed_resources, ["nobody:1"]);
}

#[tokio::test]
async fn a_destination_resolves_from_name_to_endpoint_and_changes_are_pushed() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let mut announcer = join(&plane, "default", "reviews").await.announce().await.unwrap();
    announcer.reviews(4001).await;
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();

    ads.ask(Kind::Listener, &["reviews:9080", "nobody:1"], None).await;
    let listeners = ads.expect(Kind::Listener).await;
    assert_eq!(listeners.resources.len(), 1, "the other does not exist");
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    endpoints_become(&mut ads, &["127.0.0.1:4001"]).await;

    let mut second = join(&plane, "default", "reviews").await.announce().await.unwrap();
    second.reviews(4002).await;
    let mut addresses = loop {
        let response = ads.next().await.unwrap();
        let found = if response.type_url == codec::ENDPOINTS { endpoints(&response) } else { Vec::new() };
        ads.acknowledge(&response, &[REVIEWS_EDS], None).await;
        if found.len() == 2 {
            break found;
        }
    };
    addresses.sort();
    assert_eq!(addresses, ["127.0.0.1:4001", "127.0.0.1:4002"]);
    assert!(second.send(AnnounceRequest::withdraw()).await.accepted);
    loop {
        let response = ads.next().await.unwrap();
        ads.acknowledge(&response, &[REVIEWS_EDS], None).await;
        if response.type_url == codec::ENDPOINTS && endpoints(&response) == ["127.0.0.1:4001"] {
            break;
        }
    }
}

#[tokio::test]
async fn a_changed_manifest_is_pushed() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Routes, &[REVIEWS_EDS], None).await;
    let before = ads.expect(Kind::Routes).await;
    ads.acknowledge(&before, &[REVIEWS_EDS], None).await;
    setup.write("route.yaml", VIRTUAL_SERVICE);
    let after = ads.expect(Kind::Routes).await;
    let timeout = |response: &DiscoveryResponse| {
        let routes = codec::decode_routes(&response.resources[0]).unwrap().value;
        format!("{:?}", routes.virtual_hosts[0].routes).contains("3s")
    };
    assert_eq!((timeout(&before), timeout(&after)), (false, true));
    assert_ne!(before.version_info, after.version_info);
}

#[tokio::test]
async fn s82_the_scope_is_the_certificates_namespace_whatever_the_node_says() {
    let log = Listening::begin();
    let audited = |part: &str| log.lines(&["mesh::audit", part]);
    let setup = Setup::new();
    setup.write("other.yaml", &SERVICE.replace("default", "other"));
    let plane = setup.start().await;
    let namespace = Value { kind: Some(ValueKind::StringValue("other".into())) };
    let account = Value { kind: Some(ValueKind::StringValue("ratings".into())) };
    let fields = [("NAMESPACE".to_owned(), namespace), ("SERVICE_ACCOUNT".to_owned(), account)];
    let metadata = Some(Struct { fields: fields.into() });
    let node = Node { id: "sidecar~1.2.3.4~x.other~other".into(), metadata, ..Node::default() };
    // The second is the control: who is of that namespace, by its certificate, gets what is its own.
    for namespace in ["default", "other"] {
        let mut ads = join(&plane, namespace, "productpage").await.ads().await.unwrap();
        ads.ask(Kind::Listener, &["reviews:9080"], Some(node.clone())).await;
        let response = ads.expect(Kind::Listener).await;
        let listener = format!("{:?}", codec::decode_listener(&response.resources[0]).unwrap().value);
        assert!(listener.contains(&format!("reviews.{namespace}.svc")), "{listener}");
        let (_, sync) = page(&plane, "localhost", "/sync").await;
        assert!(sync.contains(&format!("\"namespace\":\"{namespace}\"")), "{sync}");
        // By the ID and by the metadata, and nothing of who says what it is.
        let claims = (audited("namespace other"), audited("account ratings"));
        assert_eq!(claims, if namespace == "default" { (1, 1) } else { (1, 2) }, "{}", log.text());
    }
    assert!(audited("claims=[\"account ratings\"]") == 1 && audited("sa/productpage") == 2, "{}", log.text());
    // A stream that is denied, and a change of policy.
    assert_eq!(audited("stream denied"), 0);
    let denied = Connection::anonymous(&plane).await.ads().await;
    assert_eq!(denied.map(drop).unwrap_err().code(), Code::Unauthenticated);
    assert_eq!((audited("stream denied"), audited("peer=anonymous at 127.0.0.1")), (1, 1), "{}", log.text());
    let policy = |spec: &str| {
        let head =
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: shut, namespace: shop}";
        setup.write("policy.yaml", &format!("{head}\nspec: {spec}\n"));
    };
    let changes = async |change: &str| {
        let told = async {
            while audited(change) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told).await.expect(change);
        assert_eq!(
            audited("policy changed"),
            audited("kind=\"AuthorizationPolicy\" namespace=\"shop\" name=\"shut\""),
            "{change}"
        );
    };
    policy("{}");
    changes("change=Added").await;
    policy("{action: DENY, rules: [{}]}");
    changes("change=Changed").await;
    std::fs::remove_file(setup.manifests.path().join("policy.yaml")).unwrap();
    changes("change=Removed").await;
    assert_eq!(audited("policy changed"), 3, "{}", log.text());
}

#[tokio::test]
async fn a_nack_is_shown_with_its_reason() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Listener, &["reviews:9080"], None).await;
    let response = ads.expect(Kind::Listener).await;
    ads.acknowledge(&response, &["reviews:9080"], Some("field x: too large")).await;
    // The answer to a later request proves that the refusal was taken in; it changes nothing else.
    ads.ask(Kind::Cluster, &["nobody"], None).await;
    ads.expect(Kind::Cluster).await;
    let (status, sync) = page(&plane, "localhost", "/sync").await;
    assert!(status.contains("200") && sync.contains("field x: too large"), "{sync}");
    let (_, metrics) = page(&plane, "localhost", "/metrics").await;
    assert!(metrics.contains("mesh_control_nacks_total 1") && metrics.contains("mesh_control_streams 1"), "{metrics}");
}

#[tokio::test]
async fn announcements_for_others_are_refused_with_a_reason() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let mut announcer = join(&plane, "default", "reviews").await.announce().await.unwrap();
    let foreign = Announcement {
        service: "reviews".into(),
        namespace: "other".into(),
        service_port: 9080,
        address: "127.0.0.1:4001".into(),
        ..Announcement::default()
    };
    let answer = announcer.send(AnnounceRequest::announce(foreign)).await;
    assert!(!answer.accepted && answer.reason.contains("namespace"), "{}", answer.reason);
    announcer.reviews(4001).await;
    assert!(page(&plane, "localhost", "/registrations").await.1.contains("127.0.0.1:4001"));
}

#[tokio::test]
async fn a_process_that_its_services_selector_does_not_match_is_taken_in_and_told_so() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let mut announcer = join(&plane, "default", "reviews").await.announce().await.unwrap();
    let announcement = |labels: &[(&str, &str)]| Announcement {
        service: "reviews".into(),
        service_port: 9080,
        address: "127.0.0.1:4001".into(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Announcement::default()
    };
    let answer = announcer.send(AnnounceRequest::announce(announcement(&[("ap", "reviews")]))).await;
    assert!(answer.accepted && answer.reason.contains("labels ap=reviews"), "{}", answer.reason);
    assert!(answer.reason.contains("selector app=reviews"), "{}", answer.reason);
    // The control.
    let answer = announcer.send(AnnounceRequest::announce(announcement(&[("app", "reviews")]))).await;
    assert!(answer.accepted && answer.reason.is_empty(), "{}", answer.reason);
}

#[tokio::test]
async fn a_restart_keeps_what_a_broken_manifest_said() {
    let setup = Setup::new();
    setup.write("rules.yaml", VIRTUAL_SERVICE);
    setup.start().await.shutdown().await;
    setup.write("rules.yaml", "apiVersion: [");
    let plane = setup.start().await;
    let (_, findings) = page(&plane, "localhost", "/findings").await;
    assert!(findings.contains("kept from before the restart"), "{findings}");
    plane.shutdown().await;
    // The control: in another state directory nothing is kept.
    let elsewhere = tempfile::tempdir().unwrap();
    let plane = setup.builder().state_dir(elsewhere.path()).start().await.unwrap();
    let (_, findings) = page(&plane, "localhost", "/findings").await;
    assert!(!findings.contains("kept from before the restart") && findings.contains("not usable YAML"), "{findings}");
}

#[tokio::test]
async fn a_restart_keeps_registrations_for_the_grace_period() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let reviews = join(&plane, "default", "reviews").await;
    let mut announcer = reviews.announce().await.unwrap();
    announcer.reviews(4001).await;
    let root = std::fs::read(plane.root_cert_path()).unwrap();
    plane.shutdown().await;

    let plane = setup.start().await;
    assert_eq!(std::fs::read(plane.root_cert_path()).unwrap(), root);
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    endpoints_become(&mut ads, &["127.0.0.1:4001"]).await;
    plane.shutdown().await;

    // The control: nobody came back, and without grace nothing is kept for them.
    let plane = setup.builder().registration_grace(Duration::ZERO).start().await.unwrap();
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    endpoints_become(&mut ads, &[]).await;
}

#[tokio::test]
async fn a_lost_process_keeps_its_endpoint_for_the_grace_period_only() {
    let setup = Setup::new();
    let plane = setup.builder().registration_grace(Duration::from_millis(200)).start().await.unwrap();
    let reviews = join(&plane, "default", "reviews").await;
    let mut announcer = reviews.announce().await.unwrap();
    announcer.reviews(4001).await;
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    endpoints_become(&mut ads, &["127.0.0.1:4001"]).await;
    drop((announcer, reviews));
    endpoints_become(&mut ads, &[]).await;
}

#[tokio::test]
async fn a_bad_manifest_is_reported_and_the_good_ones_are_served() {
    let setup = Setup::new();
    setup.write("bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: [1");
    let plane = setup.start().await;
    let (_, json) = page(&plane, "localhost", "/findings").await;
    assert!(json.contains("bad.yaml"), "{json}");
    assert!(page(&plane, "localhost", "/findings?format=text").await.1.contains("bad.yaml:"));
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Listener, &["reviews:9080"], None).await;
    assert_eq!(ads.expect(Kind::Listener).await.resources.len(), 1);
}

#[tokio::test]
async fn while_a_file_could_never_be_read_no_server_is_given_a_policy_that_may_lack_its_guards() {
    const INBOUND: &str = "xds.istio.io/grpc/lds/inbound/127.0.0.1:4001";
    const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: default }
spec: { mtls: { mode: STRICT } }
";
    let setup = Setup::new();
    setup.write("strict.yaml", &STRICT.replace("spec: {", "spec: {{"));
    let plane = setup.start().await;
    let mut ads = join(&plane, "default", "reviews").await.ads().await.unwrap();
    let node = Node { user_agent_name: "mesh".into(), ..Node::default() };
    let names = ["reviews:9080", INBOUND];
    ads.ask(Kind::Listener, &names, Some(node)).await;
    let response = ads.expect(Kind::Listener).await;
    assert_eq!(response.resources.len(), 1, "what is called is not held back");
    let [missing] = &response.resource_errors[..] else { panic!("{response:?}") };
    let why = &missing.error_detail.as_ref().unwrap().message;
    assert!(why.contains("strict.yaml") && why.contains("could not be read"), "{why}");
    let (_, findings) = page(&plane, "localhost", "/findings?format=text").await;
    assert!(findings.contains("strict.yaml") && findings.contains("no inbound policy"), "{findings}");
    ads.acknowledge(&response, &names, None).await;
    // It can be read: what it says holds from the beginning.
    setup.write("strict.yaml", STRICT);
    let response = ads.expect(Kind::Listener).await;
    let all: Vec<_> = response.resources.iter().map(|any| codec::decode_listener(any).unwrap().value).collect();
    assert!(all.len() == 2 && format!("{all:?}").contains("Strict"), "{all:?}");
    // The control: one that breaks later keeps what it said, and the server its policy.
    ads.acknowledge(&response, &names, None).await;
    setup.write("strict.yaml", "{");
    let told = async {
        while !page(&plane, "localhost", "/findings?format=text").await.1.contains("stays in force") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.unwrap();
    let mut again = join(&plane, "default", "reviews").await.ads().await.unwrap();
    again.ask(Kind::Listener, &[INBOUND], None).await;
    assert_eq!(again.expect(Kind::Listener).await.resources.len(), 1);
}

#[tokio::test]
async fn shutting_down_ends_streams_and_closes_the_port() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let address = plane.address();
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Listener, &["reviews:9080"], None).await;
    ads.expect(Kind::Listener).await;
    plane.shutdown().await;
    assert!(ads.next().await.is_none());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn s83_ports_without_protection_are_loopback_only() {
    let setup = Setup::new();
    let everywhere = Some(SocketAddr::from(([0, 0, 0, 0], 0)));
    let debug = setup.builder().debug_listen(everywhere).start().await;
    assert!(matches!(debug, Err(StartError::NotLoopback { .. })));
    let xds = setup.builder().insecure_xds(everywhere).start().await;
    assert!(matches!(xds, Err(StartError::NotLoopback { .. })));

    let loopback = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let plane = setup.builder().insecure_xds(loopback).start().await.unwrap();
    let plaintext = Connection::plaintext(plane.insecure_address().unwrap()).await;
    let mut ads = plaintext.ads().await.unwrap();
    ads.ask(Kind::Listener, &["reviews:9080"], None).await;
    assert_eq!(ads.expect(Kind::Listener).await.resources.len(), 1);
    // Configuration is all there is on that port.
    assert_eq!(plaintext.certificate(None).await.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(plaintext.announce().await.err().unwrap().code(), Code::Unimplemented);
}

#[tokio::test]
async fn s85_the_debug_port_answers_loopback_names_only() {
    let setup = Setup::new();
    let plane = setup.start().await;
    for path in ["/healthz", "/readyz", "/status", "/sync", "/load", "/findings", "/registrations", "/metrics"] {
        assert!(page(&plane, "localhost", path).await.0.contains("200"), "{path}");
        assert!(page(&plane, "evil.example", path).await.0.contains("403"), "{path}");
    }
}
