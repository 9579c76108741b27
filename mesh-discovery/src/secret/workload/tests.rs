use futures_util::stream;
use mesh_core::source::Watched;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::proto::workload::{WorkloadApi as Agency, WorkloadApiServer, X509SvidRequest};
use crate::secret::spawn_workload_api;
use crate::test_plane::{Ca, crypto, now, serve};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const RATINGS: &str = "spiffe://cluster.local/ns/default/sa/ratings";

fn der_of(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn svid(ca: &Ca, uri: &str, hint: &str) -> X509Svid {
    let (chain, key) = ca.pem(uri);
    X509Svid {
        spiffe_id: uri.to_owned(),
        x509_svid: der_of(&chain),
        x509_svid_key: rcgen::KeyPair::from_pem(&key).unwrap().serialize_der(),
        bundle: ca.root.der().to_vec(),
        hint: hint.to_owned(),
    }
}

fn message(svids: Vec<X509Svid>) -> X509SvidResponse {
    X509SvidResponse { svids, ..X509SvidResponse::default() }
}

fn reading(hint: Option<&str>) -> Reading {
    let hint = hint.map(str::to_owned);
    Reading { hint, crypto: crypto(), federated: BTreeMap::new(), lists: Vec::new(), generation: 0 }
}

fn domains(identity: &Identity) -> Vec<String> {
    identity.bundles().iter().map(|(domain, _)| domain.to_string()).collect()
}

#[test]
fn an_endpoint_is_a_path_or_an_address_and_never_a_name() {
    let uri = |text: &str| text.parse::<WorkloadApi>().map(|api| api.server);
    assert_eq!(uri("unix:///run/agent.sock").unwrap(), ServerUri::Unix("/run/agent.sock".to_owned()));
    assert_eq!(uri("unix:/run/agent.sock").unwrap(), ServerUri::Unix("/run/agent.sock".to_owned()));
    assert_eq!(uri("tcp://127.0.0.1:8000").unwrap(), ServerUri::Tcp { host: "127.0.0.1".to_owned(), port: 8000 });
    for bad in [
        "",
        "/run/agent.sock",
        "unix:run",
        "unix://run/agent.sock",
        "unix:///a?b",
        "tcp://agent:8000",
        "http://1.2.3.4:5",
    ] {
        assert!(uri(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_first_identity_counts_or_the_one_that_is_asked_for() {
    let ca = Ca::new();
    let both = || message(vec![svid(&ca, REVIEWS, "internal"), svid(&ca, RATINGS, "external")]);
    assert_eq!(reading(None).take(both(), now()).unwrap().id().as_str(), REVIEWS);
    let mut asked = reading(Some("external"));
    assert_eq!(asked.take(both(), now()).unwrap().id().as_str(), RATINGS);
    assert_eq!(asked.take(both(), now()).unwrap().generation(), 1);
    let none = reading(Some("other")).take(both(), now()).unwrap_err();
    assert!(none.to_string().contains("\"other\""), "{none}");
    assert!(reading(None).take(message(Vec::new()), now()).is_err());
}

#[test]
fn s63_a_message_that_does_not_hold_is_refused_and_a_bad_federated_bundle_changes_nothing() {
    let (ca, other) = (Ca::new(), Ca::new());
    let with = |change: fn(&mut X509Svid)| {
        let mut svid = svid(&ca, REVIEWS, "");
        change(&mut svid);
        reading(None).take(message(vec![svid]), now())
    };
    assert!(with(|_| {}).is_ok(), "control");
    assert!(matches!(with(|s| s.spiffe_id = RATINGS.to_owned()), Err(AgentRefused::OtherName { .. })));
    assert!(matches!(with(|s| s.x509_svid.push(0)), Err(AgentRefused::Certificate(_))));
    assert!(with(|s| s.x509_svid.clear()).is_err());
    assert!(with(|s| s.bundle.clear()).is_err());
    assert!(with(|s| s.bundle = Ca::new().root.der().to_vec()).is_err(), "roots that did not sign it");
    assert!(with(|s| s.x509_svid_key = rcgen::KeyPair::generate().unwrap().serialize_der()).is_err());
    assert!(with(|s| s.x509_svid_key.clear()).is_err());
    let ended = reading(None).take(message(vec![svid(&ca, REVIEWS, "")]), now() + 365 * 86_400);
    assert!(matches!(ended, Err(AgentRefused::Certificate(_))));

    let mut reading = reading(None);
    let mut federated = |bundles: &[(&str, Vec<u8>)]| {
        let federated_bundles = bundles.iter().map(|(name, der)| ((*name).to_owned(), der.clone())).collect();
        let svids = vec![svid(&ca, REVIEWS, "")];
        domains(&reading.take(X509SvidResponse { svids, federated_bundles, crl: Vec::new() }, now()).unwrap())
    };
    let root = other.root.der().to_vec();
    let both = ["cluster.local", "elsewhere"];
    assert_eq!(federated(&[("spiffe://elsewhere", root.clone())]), both);
    assert_eq!(federated(&[("elsewhere", b"rubbish".to_vec())]), both, "the last good one");
    assert_eq!(federated(&[("spiffe://Not Valid", root.clone())]), ["cluster.local"], "absent: unloaded");
    assert_eq!(federated(&[("cluster.local", root)]), ["cluster.local"]);
    // Its own domain's roots are those beside the certificate.
    let identity = reading.take(message(vec![svid(&ca, REVIEWS, "")]), now()).unwrap();
    assert_eq!(identity.bundles().get(&identity.id().trust_domain()).unwrap().roots(), [ca.root.der().clone()]);
}

#[test]
fn s68_a_revocation_list_that_cannot_be_read_leaves_the_last_good_one() {
    let ca = Ca::new();
    let mut reading = reading(None);
    let mut with = |crl: Vec<Vec<u8>>| {
        let svids = vec![svid(&ca, REVIEWS, "")];
        reading.take(X509SvidResponse { svids, crl, ..X509SvidResponse::default() }, now())
    };
    assert!(with(Vec::new()).is_ok(), "the control: no lists");
    assert!(
        with(vec![b"rubbish".to_vec()]).is_err(),
        "there is no good one yet, and none at all is not what was meant"
    );
    assert!(with(vec![vec![0; 5 << 20]]).is_err(), "too long");
    // One that says nothing of our certificate: unknown is refused.
    let elsewhere = Ca::new().revocation_list();
    assert!(with(vec![elsewhere]).is_err());
    assert!(with(vec![b"rubbish".to_vec()]).is_err(), "and it is not taken for a good one");
    assert!(with(vec![ca.revocation_list()]).is_ok());
    for of_no_use in [b"rubbish".to_vec(), Ca::new().revocation_list(), ca.revoking(&[], now())] {
        let identity = with(vec![of_no_use]).unwrap();
        let kept = identity.bundles().get(&identity.id().trust_domain()).unwrap().revocation_lists().len();
        assert_eq!(kept, 1, "the good one stays");
    }
    let newer = ca.revoking(&[7], now() + 7_200);
    let mut in_use = |lists: Vec<Vec<u8>>| {
        let identity = with(lists).unwrap();
        identity.bundles().get(&identity.id().trust_domain()).unwrap().revocation_lists().to_vec()
    };
    assert_eq!(in_use(vec![newer.clone()]), std::slice::from_ref(&newer));
    let older = ca.revoking(&[], now() + 7_100);
    let why = "whom the newer one took back would be let in again";
    assert_eq!(in_use(vec![older.clone()]), [newer], "{why}");
    assert!(in_use(Vec::new()).is_empty(), "the control: whoever means it takes all lists away");
    assert_eq!(in_use(vec![older.clone()]), [older]);
}

/// Of a message that does not hold nothing stays.
#[test]
fn s68_the_lists_of_a_message_that_does_not_hold_are_not_the_last_good_ones() {
    let ca = Ca::new();
    let mut reading = reading(None);
    let mut with = |crl: Vec<Vec<u8>>, break_it: bool| {
        let mut svids = vec![svid(&ca, REVIEWS, "")];
        if break_it {
            svids[0].x509_svid_key.clear();
        }
        reading.take(X509SvidResponse { svids, crl, ..X509SvidResponse::default() }, now())
    };
    assert!(with(Vec::new(), false).is_ok());
    assert!(with(vec![ca.revocation_list()], true).is_err());
    assert!(with(vec![b"rubbish".to_vec()], false).is_err(), "there is no good one to stand in");
    assert!(with(vec![ca.revocation_list()], false).is_ok(), "the control");
    assert!(with(vec![b"rubbish".to_vec()], false).is_ok());
}

#[test]
fn s92_a_key_of_a_message_is_never_printed() {
    let svid = svid(&Ca::new(), REVIEWS, "");
    let key = svid.x509_svid_key[40..44].iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    assert!(format!("{:?}", svid.x509_svid_key).contains(&key), "the control");
    let shown = format!("{:?}", message(vec![svid]));
    assert!(!shown.contains(&key) && shown.contains(REVIEWS), "{shown}");
}

/// What one call is answered with.
type Answer = Result<Vec<X509SvidResponse>, Status>;

/// Answers each call with the messages of the moment and, while there is more to come, leaves the stream open.
#[derive(Clone)]
struct FakeAgent {
    calls: Arc<Mutex<Vec<Answer>>>,
    changes: Watched<Option<X509SvidResponse>>,
}

#[tonic::async_trait]
impl Agency for FakeAgent {
    async fn fetch_x509_svid(
        &self,
        _: Request<X509SvidRequest>,
    ) -> Result<Response<BoxStream<X509SvidResponse>>, Status> {
        let first = self.calls.lock().pop().unwrap_or_else(|| Ok(Vec::new()))?;
        let later = stream::unfold(self.changes.clone(), |mut changes| async move {
            changes.changed().await;
            let message = changes.load_full().as_ref().clone();
            message.map(|message| (Ok(message), changes))
        });
        let first = stream::iter(first.into_iter().map(Ok));
        Ok(Response::new(Box::pin(futures_util::StreamExt::chain(first, later))))
    }
}

#[tokio::test]
async fn an_agent_is_listened_to_and_asked_again_when_it_fails() {
    let ca = Ca::new();
    let (publisher, changes) = Watched::channel(None);
    let first = Ok(vec![message(vec![svid(&ca, REVIEWS, "")])]);
    let calls = Arc::new(Mutex::new(vec![first, Err(Status::permission_denied("no identity issued"))]));
    let agent = FakeAgent { calls: calls.clone(), changes };
    let serving = serve(WorkloadApiServer::new(agent), None, 0).await;
    let api: WorkloadApi = format!("tcp://127.0.0.1:{}", serving.port).parse().unwrap();
    let (mut identity, mut refusal) = spawn_workload_api(api, crypto(), Arc::default(), &Handle::current());
    let refused = refusal.wait_for(Option::is_some).await;
    assert!((*refused).as_ref().unwrap().contains("no identity issued"), "{refused:?}");
    let first = identity.wait_for(Option::is_some).await.as_ref().clone().unwrap();
    assert_eq!(first.id().as_str(), REVIEWS);

    publisher.publish(Some(message(vec![svid(&ca, RATINGS, "")])));
    identity.wait_for(|identity| identity.as_ref().is_some_and(|i| i.id().as_str() == RATINGS)).await;
    // The stream ends; what was said last stays, until the agent is back with something else.
    calls.lock().push(Ok(vec![message(vec![svid(&ca, REVIEWS, "")])]));
    publisher.publish(None);
    identity.wait_for(|identity| identity.as_ref().is_some_and(|i| i.id().as_str() == REVIEWS)).await;
}
