mod clocks;
mod mounted;
mod roots;

use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::TrustDomain;
use mesh_core::identity::{Identity, TrustBundle, peer_spiffe_id};
use mesh_core::telemetry::Renewals;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::bootstrap::FileWatcher;
use crate::connect::Connector;
use crate::proto::certificate::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::trust::{
    FederatedBundle, TrustBundle as Told, TrustBundleService, TrustBundleServiceServer, WatchTrustBundle,
};
use crate::test_plane::{Ca, PeerChain, Serving, connector, crypto, now, serve};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the CA saw of one request: `token <token>` or `certificate <id>`.
type Seen = Arc<Mutex<Vec<String>>>;

#[derive(Clone)]
struct FakeCa {
    ca: Arc<Ca>,
    seen: Seen,
    /// The requests, in PEM.
    asked: Arc<Mutex<Vec<String>>>,
    /// The next answers: an error, or the name to sign for. Empty = sign for reviews.
    script: Arc<Mutex<Vec<Result<&'static str, &'static str>>>>,
    /// Answer with a certificate for this CA's own key instead of the one asked about.
    foreign_key: bool,
    lists: Vec<Vec<u8>>,
    federated: Vec<FederatedBundle>,
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
        let message = request.into_inner();
        self.asked.lock().push(message.csr.clone());
        let step = if self.script.lock().is_empty() { Ok(REVIEWS) } else { self.script.lock().remove(0) };
        let uri = step.map_err(Status::permission_denied)?;
        assert_eq!(message.validity_duration, 86_400);
        let csr = if self.foreign_key { foreign_csr() } else { message.csr };
        let leaf = self.ca.sign(&csr, uri, DAY);
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf, self.ca.root.pem()],
            revocation_lists: self.lists.clone(),
            federated: self.federated.clone(),
        }))
    }
}

fn foreign_csr() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn fake() -> FakeCa {
    FakeCa {
        ca: Arc::new(Ca::new()),
        seen: Seen::default(),
        asked: Arc::default(),
        script: Arc::default(),
        foreign_key: false,
        lists: Vec::new(),
        federated: Vec::new(),
    }
}

async fn start(fake: &FakeCa) -> (Serving, Connector, tempfile::NamedTempFile) {
    let root = fake.ca.root_file();
    let serving = serve(IstioCertificateServiceServer::new(fake.clone()), Some(fake.ca.server_config()), 0).await;
    let connector = connector(serving.port, Some(&root));
    (serving, connector, root)
}

#[tokio::test]
async fn the_token_proves_the_first_certificate_and_the_certificate_the_next() {
    let fake = fake();
    let (_serving, connector, _root) = start(&fake).await;
    let client = CertificateAuthorityClient::new(connector, DAY, None);
    let file = tempfile::NamedTempFile::new().unwrap();
    let token = JoinToken::File(file.path().to_owned());

    fake.script.lock().push(Err("unknown token"));
    std::fs::write(file.path(), "old").unwrap();
    client.first(Some(&token), now()).await.unwrap_err();
    std::fs::write(file.path(), "new\n").unwrap();
    let first = client.first(Some(&token), now()).await.unwrap();
    assert_eq!((first.id().as_str(), first.generation()), (REVIEWS, 0));
    let domain = TrustDomain::new("cluster.local").unwrap();
    assert_eq!(first.bundles().get(&domain).unwrap().roots(), [fake.ca.root.der().clone()]);

    let next = client.renew(&first, now()).await.unwrap();
    assert_eq!(next.generation(), 1);
    assert_ne!(first.certified().cert, next.certified().cert);
    assert_eq!(*fake.seen.lock(), ["Bearer old", "Bearer new", &format!("certificate {REVIEWS}")]);

    fake.script.lock().push(Ok("spiffe://cluster.local/ns/default/sa/other"));
    let error = client.renew(&next, now()).await.unwrap_err();
    assert!(matches!(error, CertificateRefused::OtherName { .. }), "{error}");
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_token_file_that_is_not_read_to_its_end_is_refused_within_seconds() {
    let client = CertificateAuthorityClient::new(connector(1, None), DAY, None);
    let pipe = crate::test_plane::Pipe::new();
    let token = JoinToken::File(PathBuf::from(&pipe.path));
    let (refused, ()) = tokio::join!(client.first(Some(&token), now()), tokio::time::advance(Duration::from_secs(3)));
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("not read within 3s"), "{error}");
}

#[tokio::test]
async fn s67_a_certificate_comes_with_the_revocation_lists_of_its_authority() {
    let plain = fake();
    let listed = FakeCa { lists: vec![plain.ca.revocation_list()], ..plain.clone() };
    let broken = FakeCa { lists: vec![vec![1, 2, 3]], ..plain.clone() };
    let ask = async |fake: &FakeCa| {
        let (_serving, connector, _root) = start(fake).await;
        let client = CertificateAuthorityClient::new(connector, DAY, None);
        let identity = client.first(Some(&JoinToken::Text("secret".to_owned())), now()).await?;
        let domain = identity.id().trust_domain();
        Ok::<_, CertificateRefused>(identity.bundles().get(&domain).unwrap().revocation_lists().to_vec())
    };
    assert_eq!(ask(&listed).await.unwrap(), listed.lists);
    assert_eq!(ask(&plain).await.unwrap(), Vec::<Vec<u8>>::new());
    assert!(matches!(ask(&broken).await, Err(CertificateRefused::Bundle(_))));
}

fn federated(name: &str, roots: Vec<Vec<u8>>) -> FederatedBundle {
    FederatedBundle { trust_domain: name.to_owned(), roots }
}

/// The trust domains of an identity, and the root of each.
fn trusted(identity: &Identity) -> Vec<(String, Vec<u8>)> {
    let one = |(domain, bundle): (&TrustDomain, &TrustBundle)| (domain.to_string(), bundle.roots()[0].to_vec());
    identity.bundles().iter().map(one).collect()
}

#[tokio::test]
async fn s62_a_certificate_comes_with_federated_domains_and_none_of_them_speaks_for_ours() {
    let plain = fake();
    let (own, theirs) = (plain.ca.root.der().to_vec(), Ca::new().root.der().to_vec());
    let told = vec![
        federated("cluster.local", vec![theirs.clone()]),
        federated("old.test", vec![theirs.clone()]),
        federated("Not Valid", vec![theirs.clone()]),
        federated("broken.test", vec![vec![1, 2, 3]]),
        federated("empty.test", Vec::new()),
        federated("other.example", vec![theirs.clone()]),
    ];
    let ask = async |fake: &FakeCa| {
        let (_serving, connector, _root) = start(fake).await;
        let aliases = vec![TrustDomain::new("old.test").unwrap()];
        let client = CertificateAuthorityClient::new(connector, DAY, None).trust_domain_aliases(aliases);
        client.first(Some(&JoinToken::Text("secret".to_owned())), now()).await.unwrap()
    };
    let identity = ask(&FakeCa { federated: told, ..plain.clone() }).await;
    let home = ("cluster.local".to_owned(), own.clone());
    assert_eq!(trusted(&identity), [home.clone(), ("other.example".to_owned(), theirs)]);
    let alias = identity.bundles().get(&TrustDomain::new("old.test").unwrap()).unwrap();
    assert_eq!(alias.roots()[0].to_vec(), own, "our own roots vouch for the alias");
    assert_eq!(trusted(&ask(&plain).await), [home], "the control");
}

/// Tells of these, one after the other.
struct Tells(Vec<Told>);

#[tonic::async_trait]
impl TrustBundleService for Tells {
    async fn watch(&self, _: Request<WatchTrustBundle>) -> Result<Response<tonic::codegen::BoxStream<Told>>, Status> {
        let told: Vec<_> = self.0.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(futures_util::stream::iter(told))))
    }
}

#[tokio::test]
async fn s62_federated_domains_come_and_go_with_the_stream_of_roots() {
    let ca = Ca::new();
    let (root, other) = (ca.root_file(), Ca::new().root.der().to_vec());
    let told = |federated| Told {
        trust_domain: "cluster.local".to_owned(),
        roots: ca.root.pem(),
        revocation_lists: Vec::new(),
        federated,
    };
    let ask = async |told: Vec<Told>, current: &Identity| {
        let serving = serve(TrustBundleServiceServer::new(Tells(told)), Some(ca.server_config()), 0).await;
        let client = CertificateAuthorityClient::new(connector(serving.port, Some(&root)), DAY, None);
        client.other_roots(current, now).await
    };
    let first = ca.identity(REVIEWS, 0);
    let one = told(vec![federated("other.example", vec![other.clone()])]);
    // What is known already is passed over.
    let both = ask(vec![told(Vec::new()), one.clone()], &first).await.ok().unwrap();
    assert_eq!((both.generation(), trusted(&both).len()), (1, 2));
    assert_eq!(trusted(&both)[1], ("other.example".to_owned(), other));
    let alone = ask(vec![one.clone(), told(Vec::new())], &both).await.ok().unwrap();
    assert_eq!(trusted(&alone), trusted(&first));
    // The control: nothing new.
    assert!(matches!(ask(vec![one], &both).await, Err(issue::RootsEnded::Broken(_))));
}

#[tokio::test]
async fn a_certificate_comes_with_the_former_names_of_its_trust_domain() {
    let fake = fake();
    let (_serving, connector, _root) = start(&fake).await;
    let old = TrustDomain::new("old.test").unwrap();
    let former = REVIEWS.replace("cluster.local", "old.test").parse().unwrap();
    for (aliases, present) in [(vec![old], Some(REVIEWS)), (Vec::new(), None)] {
        let client = CertificateAuthorityClient::new(connector.clone(), DAY, None).trust_domain_aliases(aliases);
        let first = client.first(Some(&JoinToken::Text("secret".to_owned())), now()).await.unwrap();
        for identity in [client.renew(&first, now()).await.unwrap(), first] {
            assert_eq!(identity.bundles().aliased(&former).map(|id| id.to_string()).as_deref(), present);
        }
    }
}

/// A mesh that is renamed gives its members certificates of its new name, which they know before.
#[tokio::test]
async fn a_renewal_brings_the_new_name_of_the_trust_domain_to_who_knows_it() {
    let fake = fake();
    let (_serving, connector, root) = start(&fake).await;
    let domain = |name: &str| TrustDomain::new(name).unwrap();
    let former = "spiffe://old.test/ns/default/sa/reviews";
    let knowing = |aliases: &[&str]| {
        let aliases = aliases.iter().copied().map(domain).collect();
        let client = CertificateAuthorityClient::new(connector.clone(), DAY, Some(domain("old.test")));
        client.trust_domain_aliases(aliases)
    };
    let aware = knowing(&["new.test", "cluster.local"]);
    let token = JoinToken::Text("secret".to_owned());
    fake.script.lock().push(Ok(former));
    let first = aware.first(Some(&token), now()).await.unwrap();
    assert_eq!(first.id().as_str(), former);
    assert_eq!(first.bundles().aliased(&REVIEWS.parse().unwrap()).unwrap().as_str(), former);
    let next = aware.renew(&first, now()).await.unwrap();
    assert_eq!(next.id().as_str(), REVIEWS);
    assert_eq!(next.bundles().aliased(first.id()).unwrap().as_str(), REVIEWS, "the former name counts on");
    assert_eq!(aware.renew(&next, now()).await.unwrap().id().as_str(), REVIEWS);
    // The controls: somebody else under the new name, and who does not know it.
    fake.script.lock().push(Ok("spiffe://cluster.local/ns/default/sa/other"));
    let error = aware.renew(&first, now()).await.unwrap_err();
    assert!(matches!(error, CertificateRefused::OtherName { .. }), "{error}");
    let error = knowing(&["new.test"]).renew(&first, now()).await.unwrap_err();
    assert!(matches!(error, CertificateRefused::OtherName { .. }), "{error}");

    // And roots of either name.
    let roots = fake.ca.root.pem() + &Ca::new().root.pem();
    for (told, aliases, taken) in [
        ("cluster.local", &["cluster.local"][..], true),
        ("cluster.local", &["new.test"], false),
        ("old.test", &[], true),
    ] {
        let told = Told { trust_domain: told.to_owned(), roots: roots.clone(), ..Told::default() };
        let told = TrustBundleServiceServer::new(Tells(vec![told]));
        let serving = serve(told, Some(fake.ca.server_config()), 0).await;
        let client =
            CertificateAuthorityClient::new(self::connector(serving.port, Some(&root)), DAY, Some(domain("old.test")))
                .trust_domain_aliases(aliases.iter().copied().map(domain).collect());
        assert_eq!(client.other_roots(&first, now).await.is_ok(), taken, "{aliases:?}");
    }
}

#[tokio::test]
async fn an_identity_comes_even_if_the_authority_is_late() {
    let fake = fake();
    let (serving, connector, root) = start(&fake).await;
    let port = serving.port;
    drop(serving);
    let config = SecretConfig::new(Some(JoinToken::Text("secret".to_owned())));
    let (mut identity, _) = spawn(config, connector, &Handle::current());
    assert!(identity.load().is_none());
    let _serving = serve(IstioCertificateServiceServer::new(fake.clone()), Some(fake.ca.server_config()), port).await;
    identity.wait_for(Option::is_some).await;
    drop(root);
}

/// A join token is good for one key: what is asked again, since the answer was lost or does not hold, is asked about the same
/// one. Each certificate has one of its own.
#[tokio::test]
async fn s93_a_token_is_shown_for_one_key_until_there_is_a_certificate() {
    let fake = fake();
    fake.script.lock().extend([Err("dying"), Ok("https://example.com")]);
    let (_serving, connector, _root) = start(&fake).await;
    let config = SecretConfig::new(Some(JoinToken::Text("secret".to_owned())));
    let (mut identity, _) = spawn(config, connector.clone(), &Handle::current());
    identity.wait_for(Option::is_some).await;
    let first = Option::clone(&identity.load_full()).unwrap();
    let client = CertificateAuthorityClient::new(connector, DAY, None);
    client.renew(&first, now()).await.unwrap();
    client.first(Some(&JoinToken::Text("secret".to_owned())), now()).await.unwrap();
    let keys: Vec<Vec<u8>> = fake.asked.lock().iter().map(|csr| public_key(csr)).collect();
    let [refused, unfit, taken, renewal, other] = &keys[..] else { panic!("{keys:?}") };
    assert!(refused == taken && unfit == taken, "{keys:?}");
    assert!(renewal != taken && other != taken && other != renewal, "the control: {keys:?}");
}

/// The public key of a request.
fn public_key(csr: &str) -> Vec<u8> {
    let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
    rcgen::PublicKeyData::der_bytes(&request.public_key).to_vec()
}

/// Generation to be renewed, and when.
type Asked = Arc<Mutex<Vec<(Option<u64>, u64)>>>;

/// Signs in memory, and sometimes fails.
struct Memory {
    ca: Ca,
    failures: Arc<Mutex<Vec<u64>>>,
    asked: Asked,
}

impl worker::Authority for Memory {
    async fn next(&mut self, current: Option<&Identity>, now: u64) -> Result<Identity, CertificateRefused> {
        let generation = current.map(Identity::generation);
        self.asked.lock().push((generation, now));
        if self.failures.lock().pop().is_some() {
            return Err(CertificateRefused::Status("not now".to_owned()));
        }
        Ok(self.ca.identity(REVIEWS, generation.map_or(0, |g| g + 1)))
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_half_of_the_life_and_failures_keep_the_certificate() {
    let (failures, asked) = (Arc::new(Mutex::new(vec![1])), Asked::default());
    let memory = Memory { ca: Ca::new(), failures: failures.clone(), asked: asked.clone() };
    let (start, base) = (tokio::time::Instant::now(), now());
    let clock: Clock = Arc::new(move || base + start.elapsed().as_secs());
    let renewals = Arc::<Renewals>::default();
    let (mut identity, _) = worker::spawn_with(memory, clock, renewals.clone(), &Handle::current());
    identity.wait_for(Option::is_some).await;
    assert_eq!(renewals.failures(), 1);
    assert!(start.elapsed() < Duration::from_secs(1), "the first retry is quick");

    failures.lock().extend([1, 2, 3, 4, 5]);
    identity.changed().await;
    let renewed = identity.load_full();
    assert_eq!(renewed.as_ref().as_ref().unwrap().generation(), 1, "failures publish nothing");
    let asked = asked.lock().clone();
    assert_eq!(asked.len(), 8, "one failure and a success, five failures and a success: {asked:?}");
    assert_eq!((renewals.failures(), renewals.last_failure()), (6, Some(asked[6].1)));
    assert!(asked[2..].iter().all(|(generation, _)| *generation == Some(0)), "the old one stays the proof");
    let half = (asked[2].1 - base) as f64 / DAY.as_secs_f64();
    assert!((0.39..0.51).contains(&half), "{half}");
}

/// Whoever renews by files does so in their own time: what they do not renew is told of all the same.
#[tokio::test(start_paused = true)]
async fn a_certificate_in_files_that_nobody_renews_is_told_of_at_each_mark() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    let root = directory.path().join("root.pem");
    std::fs::write(&root, ca.root.pem()).unwrap();
    let watcher = FileWatcher {
        identity: Some(ca.write_identity(directory.path(), REVIEWS)),
        ca_certificate_file: Some(root.to_str().unwrap().to_owned()),
        spiffe_trust_bundle_map_file: None,
        certificate_revocation_list_file: None,
        refresh_interval: Duration::from_secs(60),
    };
    let (begun, base) = (tokio::time::Instant::now(), now());
    let renewals = Arc::<Renewals>::default();
    let clock: Clock = Arc::new(move || base + begun.elapsed().as_secs());
    let mut files = worker::follow_files(watcher, crypto(), clock, renewals.clone(), &Handle::current());
    files.identity.wait_for(Option::is_some).await;
    let mut marks = vec![renewals.life_left().percent()];
    for _ in 0..25 * 60 {
        mesh_testkit::clock::pass(Duration::from_secs(60)).await;
        let mark = renewals.life_left().percent();
        if marks.last() != Some(&mark) {
            marks.push(mark);
        }
    }
    assert_eq!(marks, [100, 50, 25, 10, 0]);
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
    // Who has an identity has its roots: the file may be of before a change of roots.
    let identity = fake.ca.identity(REVIEWS, 0);
    client.renew(&identity, now()).await.unwrap();
}

#[tokio::test]
async fn a_projected_token_is_shown_with_a_renewal_and_a_join_token_is_not() {
    let fake = fake();
    let (_serving, connector, _root) = start(&fake).await;
    let client = CertificateAuthorityClient::new(connector, DAY, None);
    let current = fake.ca.identity(REVIEWS, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    let token = JoinToken::File(file.path().to_owned());
    for (text, shown) in [("a.b.c", true), ("d.e.f\n", true), ("a.b", false), ("", false)] {
        std::fs::write(file.path(), text).unwrap();
        client.renew_with(&current, Some(&token), now()).await.unwrap();
        let seen = fake.seen.lock().pop().unwrap();
        if shown {
            assert!(seen.contains(&format!("Bearer {}", text.trim())), "{seen}");
        } else {
            assert_eq!(seen, format!("certificate {REVIEWS}"));
        }
    }
}

#[tokio::test]
async fn an_authority_that_does_not_tell_of_roots_says_so() {
    let fake = fake();
    let (_serving, connector, _root) = start(&fake).await;
    let client = CertificateAuthorityClient::new(connector, DAY, None);
    let ended = client.other_roots(&fake.ca.identity(REVIEWS, 0), now).await;
    assert!(matches!(ended, Err(issue::RootsEnded::Unsupported)));
}

/// Tells of these roots whoever asks; whom TLS refuses does not get as far as that.
#[derive(Clone)]
struct Roots(String);

#[tonic::async_trait]
impl TrustBundleService for Roots {
    async fn watch(&self, _: Request<WatchTrustBundle>) -> Result<Response<BoxStream<Told>>, Status> {
        let roots = Told { trust_domain: "cluster.local".to_owned(), roots: self.0.clone(), ..Told::default() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(roots)))))
    }
}

#[tokio::test]
async fn whose_root_is_gone_asks_without_its_certificate_and_joins_anew() {
    let (old, fake) = (Ca::new(), fake());
    let current = old.identity(REVIEWS, 3);
    let domain = TrustDomain::new("cluster.local").unwrap();
    // A file with the new root; peers of the old one are refused in the handshake.
    let file = fake.ca.root_file();
    let roots = TrustBundleServiceServer::new(Roots(fake.ca.root.pem()));
    let serving = serve(roots, Some(fake.ca.server_config()), 0).await;
    let client = |port: u16| CertificateAuthorityClient::new(connector(port, Some(&file)), DAY, None);
    let asking = client(serving.port);
    assert!(asking.vouches_for(&current, now()));
    let orphan = asking.other_roots(&current, now).await.ok().unwrap();
    assert_eq!(orphan.bundles().get(&domain).unwrap().roots(), [fake.ca.root.der().clone()]);
    assert_eq!(orphan.certified().cert, current.certified().cert);
    assert!(!asking.vouches_for(&orphan, now()));

    let serving = serve(IstioCertificateServiceServer::new(fake.clone()), Some(fake.ca.server_config()), 0).await;
    let mut proved = worker::Proved {
        client: client(serving.port),
        token: Some(JoinToken::Text("secret".to_owned())),
        key: None,
        clock: Arc::new(now),
    };
    fake.script.lock().push(Err("it was used before"));
    let error = worker::Authority::next(&mut proved, Some(&orphan), now()).await.unwrap_err().to_string();
    assert!(error.contains("trusted no more") && error.contains("it was used before"), "{error}");
    let next = worker::Authority::next(&mut proved, Some(&orphan), now()).await.unwrap();
    assert!(next.generation() == orphan.generation() + 1 && proved.client.vouches_for(&next, now()));
    assert_eq!(*fake.seen.lock(), ["Bearer secret", "Bearer secret"]);
    // The control: whose root is there proves itself.
    worker::Authority::next(&mut proved, Some(&next), now()).await.unwrap();
    assert_eq!(fake.seen.lock()[2], format!("certificate {REVIEWS}"));
}

#[test]
fn tokens_are_never_printed() {
    let config = SecretConfig::new(Some(JoinToken::Text("hush".to_owned())));
    assert!(!format!("{config:?}").contains("hush"));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_token_file_that_hangs_is_not_taken_for_another() {
    let files = TokenFiles::default();
    let (pipe, good) = (crate::test_plane::Pipe::new(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(good.path(), "other\n").unwrap();
    let (hanging, other) = (JoinToken::File(pipe.path.clone().into()), JoinToken::File(good.path().into()));
    let (late, ()) = tokio::join!(hanging.read(&files), tokio::time::advance(Duration::from_secs(3)));
    assert!(matches!(late, Err(CertificateRefused::Token { .. })));
    // Where it waited for the first it would be late too.
    tokio::time::resume();
    assert_eq!(other.read(&files).await.unwrap(), "other");
}
