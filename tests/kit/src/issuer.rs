//! An issuer of tokens: an HTTPS server with its key set and whatever else it is told to answer, and tokens that its key
//! signed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ED25519, SigningKey};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;

use crate::crypto;
use crate::worker::{Accepted, Worker};

/// An HTTPS server on loopback. Dropping it closes its port and its connections.
///
/// It has a certificate for `localhost`, `issuer.test` and 127.0.0.1 of a root of its own, its key set under `/keys` and
/// its OpenID configuration where that has to be.
pub struct TokenIssuer {
    shared: Arc<Shared>,
    worker: Worker,
    key: KeyPair,
    root_pem: String,
}

struct Shared {
    pages: Mutex<HashMap<String, Page>>,
    requests: AtomicU64,
    resumed: AtomicU64,
}

/// What is answered under a path. Others are 404.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// 200 with this body.
    Text(String),
    /// This status.
    Status(u16),
    /// 302 to there.
    Redirect(String),
    /// Nothing, ever.
    Silence,
}

impl TokenIssuer {
    /// Begins to serve.
    pub async fn start() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root of a token issuer");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = KeyPair::generate().expect("a P-256 key");
        let root = CertifiedIssuer::self_signed(params, root).expect("the parameters are complete");
        let names = ["localhost", "issuer.test", "127.0.0.1"].map(str::to_owned);
        let leaf_key = KeyPair::generate().expect("a P-256 key");
        let leaf = CertificateParams::new(names).expect("names and an address");
        let leaf = leaf.signed_by(&leaf_key, &root).expect("the parameters are complete");
        let config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into()))
            .expect("the key of the certificate");

        let shared =
            Arc::new(Shared { pages: Mutex::default(), requests: AtomicU64::new(0), resumed: AtomicU64::new(0) });
        let serving = shared.clone();
        let worker = Worker::start(Some(config), move |accepted| serve(accepted, serving.clone())).await;
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("an Ed25519 key");
        let issuer = Self { shared, worker, key, root_pem: root.pem() };
        issuer.page("/keys", Page::Text(issuer.key_set()));
        let (url, keys) = (issuer.url(""), issuer.url("/keys"));
        let configuration = format!(r#"{{"issuer": "{url}", "jwks_uri": "{keys}"}}"#);
        issuer.page("/.well-known/openid-configuration", Page::Text(configuration));
        issuer
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.worker.address()
    }

    /// A URL of it; that of the empty path is its name as an issuer.
    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address().port())
    }

    /// The root of its certificate.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Answers so under a path from now on.
    pub fn page(&self, path: &str, page: Page) {
        self.shared.pages.lock().insert(path.to_owned(), page);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Connections so far that took up a TLS session of before again.
    pub fn resumed(&self) -> u64 {
        self.shared.resumed.load(Ordering::Relaxed)
    }

    /// Its public key as a JSON Web Key Set.
    pub fn key_set(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key_raw());
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"one","x":"{x}"}}]}}"#)
    }

    /// A token that says `claims`, a JSON object, signed with its key.
    pub fn token(&self, claims: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","kid":"one"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(signed.as_bytes()).expect("Ed25519 signs anything");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenIssuer").field("address", &self.address()).finish_non_exhaustive()
    }
}

async fn serve(accepted: Accepted, shared: Arc<Shared>) {
    shared.resumed.fetch_add(u64::from(accepted.resumed), Ordering::Relaxed);
    let service = service_fn(move |request: Request<_>| answer(request, shared.clone()));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // Whatever ended it, the client has seen it.
    let _ = builder.serve_connection(TokioIo::new(accepted.stream), service).await;
}

async fn answer<B>(request: Request<B>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let page = shared.pages.lock().get(request.uri().path()).cloned();
    let mut response = Response::new(Full::default());
    match page.unwrap_or(Page::Status(404)) {
        Page::Text(text) => *response.body_mut() = Full::from(text),
        Page::Status(status) => *response.status_mut() = status.try_into().expect("a status"),
        Page::Redirect(to) => {
            *response.status_mut() = http::StatusCode::FOUND;
            response.headers_mut().insert(header::LOCATION, to.try_into().expect("a header value"));
        }
        Page::Silence => std::future::pending().await,
    }
    Ok(response)
}
