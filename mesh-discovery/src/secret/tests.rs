use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::TrustDomain;
use mesh_core::identity::peer_spiffe_id;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tonic::{Request, Response, Status};

use super::*;
use crate::proto::certificate::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceServer,
};
use crate::test_plane::{Ca, PeerChain, Serving, connector, now, serve};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the CA saw of one request: `token <token>` or `certificate <id>`.
type Seen = Arc<Mutex<Vec<String>>>;

#[derive(Clone)]
struct FakeCa {
    ca: Arc<Ca>,
    seen: Seen,
    /// The next answers: an error, or the name to sign for. Empty = sign for reviews.
    script: Arc<Mutex<Vec<Result<&'static str, &'static str>>>>,
    /// Answer with a certificate for this CA's own key instead of the one asked about.
    foreign_key: bool,
}

#[tonic::async_trait]
impl IstioCertificateService for FakeCa {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let chain = request.extensions().get::<PeerChain>().unwrap().0.clone();
        let token = request.metadata().get("authorization").map(|t| t.to_str().unwrap().to_owned());
        self.seen.lock().push(match (token, chain.first()) {
            (Some(token), None) => token,
            (None, Some(leaf)) => format!("certificate {}", peer_spiffe_id(leaf).unwrap()),
            other => format!("{other:?}"),
        });
        let step = if self.script.lock().is_empty() { Ok(REVIEWS) } else { self.script.lock().remove(0) };
        let uri = step.map_err(Status::permission_denied)?;
        let message = request.into_inner();
        assert_eq!(message.validity_duration, 86_400);
        let csr = if self.foreign_key { foreign_csr() } else { message.csr };
        let leaf = self.ca.sign(&csr, uri, DAY);
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf, self.ca.root.pem()] }))
    }
}

fn foreign_csr() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn fake() -> FakeCa {
    FakeCa { ca: Arc::new(Ca::new()), seen: Seen::default(), script: Arc::default(), foreign_key: false }
}

async fn start(fake: &FakeCa) -> (Serving, Connector, tempfile::NamedTempFile) {
    let root = fake.ca.root_file();
    let serving = serve(IstioCertificateServiceServer::new(fake.clone()), Some(fake.ca.server_config()), 0).await;
    let connector = connector(serving.port, Some(&root));
    (serving, connector, root)
}

/// A clock that follows the paused timer.
fn config(token: JoinToken) -> SecretConfig {
    let (start, base) = (tokio::time::Instant::now(), now());
    let clock: Clock = Arc::new(move || base + start.elapsed().as_secs());
    SecretConfig { clock, ..SecretConfig::new(Some(token)) }
}

use crate::connect::Connector;

#[tokio::test(start_paused = true)]
async fn the_first_certificate_takes_the_token_and_renewals_take_the_certificate() {
    let fake = fake();
    let (_serving, connector, _root) = start(&fake).await;
    let begun = tokio::time::Instant::now();
    let mut identity = spawn(config(JoinToken::Text("secret\n".to_owned())), connector, &Handle::current());
    let first = identity.wait_for(Option::is_some).await.as_ref().clone().unwrap();
    assert_eq!((first.id().as_str(), first.generation()), (REVIEWS, 0));
    let domain = TrustDomain::new("cluster.local").unwrap();
    assert_eq!(first.bundles().get(&domain).unwrap().roots(), [fake.ca.root.der().clone()], "chain and file united");

    let next = identity.wait_for(|i| i.as_ref().is_some_and(|i| i.generation() == 1)).await.as_ref().clone().unwrap();
    let half = begun.elapsed().as_secs_f64() / DAY.as_secs_f64();
    assert!((0.39..0.61).contains(&half), "{half}");
    assert_ne!(first.certified().cert, next.certified().cert);
    assert_eq!(*fake.seen.lock(), ["Bearer secret".to_owned(), format!("certificate {REVIEWS}")]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_renewal_keeps_the_certificate_and_is_tried_again() {
    let fake = fake();
    fake.script.lock().extend([Ok(REVIEWS), Err("not now"), Ok("spiffe://cluster.local/ns/default/sa/other")]);
    let (_serving, connector, _root) = start(&fake).await;
    let mut identity = spawn(config(JoinToken::Text("secret".to_owned())), connector, &Handle::current());
    let first = identity.wait_for(Option::is_some).await;
    let mut published = 0;
    loop {
        identity.changed().await;
        published += 1;
        let now = identity.load_full();
        let now = now.as_ref().as_ref().unwrap();
        assert_eq!(now.id(), first.as_ref().as_ref().unwrap().id(), "nobody else's name is ever taken over");
        if now.generation() == 1 {
            break;
        }
    }
    assert_eq!(published, 1, "nothing was published for the failures");
    assert_eq!(fake.seen.lock().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_token_file_is_read_again_for_each_attempt() {
    let fake = fake();
    fake.script.lock().push(Err("unknown token"));
    let (_serving, connector, _root) = start(&fake).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "old").unwrap();
    let seen = fake.seen.clone();
    let path = file.path().to_owned();
    let mut identity = spawn(config(JoinToken::File(path.clone())), connector, &Handle::current());
    while seen.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    std::fs::write(&path, "new").unwrap();
    identity.wait_for(Option::is_some).await;
    assert_eq!(*seen.lock(), ["Bearer old", "Bearer new"]);
}

#[tokio::test]
async fn answers_that_do_not_hold_are_refused() {
    let token = JoinToken::Text("secret".to_owned());
    let ask = async |fake: &FakeCa, domain: Option<&str>| {
        let (_serving, connector, _root) = start(fake).await;
        let domain = domain.map(|d| TrustDomain::new(d).unwrap());
        let client = CertificateAuthorityClient::new(connector, DAY, domain);
        client.first(Some(&token), now()).await.map(|identity| identity.id().to_string())
    };
    assert_eq!(ask(&fake(), Some("cluster.local")).await.unwrap(), REVIEWS);

    let error = ask(&fake(), Some("elsewhere")).await.unwrap_err();
    assert!(matches!(error, CertificateRefused::OtherName { .. }), "{error}");

    let foreign = FakeCa { foreign_key: true, ..fake() };
    let error = ask(&foreign, None).await.unwrap_err();
    assert!(matches!(error, CertificateRefused::Identity(_)), "{error}");

    let refusing = fake();
    refusing.script.lock().push(Err("no such token"));
    let error = ask(&refusing, None).await.unwrap_err();
    assert!(error.to_string().contains("no such token"), "{error}");

    let nameless = fake();
    nameless.script.lock().push(Ok("https://example.com"));
    let error = ask(&nameless, None).await.unwrap_err();
    assert!(matches!(error, CertificateRefused::Leaf(_)), "{error}");
}

#[tokio::test]
async fn a_ca_that_the_root_file_does_not_know_is_not_told_the_token() {
    let fake = fake();
    let (serving, _, _) = start(&fake).await;
    let stranger = Ca::new().root_file();
    let client = CertificateAuthorityClient::new(connector(serving.port, Some(&stranger)), DAY, None);
    let token = JoinToken::Text("secret".to_owned());
    let error = client.first(Some(&token), now()).await.unwrap_err();
    assert!(matches!(error, CertificateRefused::Connect(_)), "{error}");
    assert!(fake.seen.lock().is_empty());
}

#[test]
fn tokens_are_never_printed() {
    let config = SecretConfig::new(Some(JoinToken::Text("hush".to_owned())));
    assert!(!format!("{config:?}").contains("hush"));
}
