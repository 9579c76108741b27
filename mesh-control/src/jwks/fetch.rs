//! One fetch: over https, from an address that was checked after it was resolved and that is the one dialled, so that a
//! name that changes its address gains nothing. Redirects are not followed, answers are bounded in size and time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::identity::BoundedVerifier;
use mesh_core::jwt::KeySet;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{FetchOptions, address};
use crate::model::{KeySource, PublicKeys};

/// Most bytes of an answer.
const MOST_BYTES: usize = 1 << 20;
const USER_AGENT: &str = concat!("mesh/", env!("CARGO_PKG_VERSION"));

/// Fetches keys.
pub(crate) struct Fetch {
    options: FetchOptions,
    crypto: Arc<CryptoProvider>,
    /// Roots of the options.
    roots: Vec<CertificateDer<'static>>,
    /// Made when it is needed: the system's roots are many.
    tls: OnceLock<Result<TlsConnector, FetchError>>,
    resolve: Resolve,
}

/// Asks for the keys of a source, in so long at most.
pub(crate) type Ask = Arc<dyn Fn(KeySource, Duration) -> BoxFuture<'static, Result<String, FetchError>> + Send + Sync>;

/// Where a host is.
pub(super) type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The roots of [`FetchOptions::roots`] cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("roots for fetching keys of issuers: {}: {why}", path.display())]
pub struct RootsError {
    path: PathBuf,
    why: String,
}

/// Why keys were not fetched. The text is the same as long as the reason is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0:?} is no URL to fetch keys by: {1}")]
    Url(String, &'static str),
    #[error(
        "{host} is at {address}, a {class} address, from which a manifest may not make this process fetch anything; \
         allow its network (--jwks-network) if the issuer is there"
    )]
    Address { host: String, address: IpAddr, class: &'static str },
    #[error("{0} cannot be resolved: {1}")]
    Resolve(String, String),
    #[error("{0} cannot be reached: {1}")]
    Connect(String, String),
    #[error("{0} answered with {1}")]
    Status(String, StatusCode),
    #[error("{0} sends elsewhere ({1}), and redirects are not followed; write down where the keys are")]
    Redirect(String, StatusCode),
    #[error("{0} broke off: {1}")]
    Broken(String, String),
    #[error("{0} answered with over {most} bytes", most = MOST_BYTES)]
    TooLarge(String),
    #[error("{0} did not answer in time")]
    Timeout(String),
    #[error("{0}: {1}")]
    Content(String, String),
    /// The issuer's word that no token of it is good.
    #[error("{0} answered with a key set in which no key can check a signature")]
    NoKeys(String),
    #[error("no root is trusted: the system has none and none were given (--jwks-roots)")]
    NoRoots,
}

/// As much of an OpenID configuration as is needed.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl Fetch {
    /// Reads the roots of the options.
    pub(crate) fn new(options: FetchOptions, crypto: Arc<CryptoProvider>) -> Result<Self, RootsError> {
        let roots = match &options.roots {
            Some(path) => read_roots(path).map_err(|why| RootsError { path: path.clone(), why })?,
            None => Vec::new(),
        };
        let resolve: Resolve = Arc::new(|host, port| {
            Box::pin(async move { lookup_host((host.as_str(), port)).await.map(|found| found.collect::<Vec<_>>()) })
        });
        Ok(Self { options, crypto, roots, tls: OnceLock::new(), resolve })
    }

    /// The same, with hosts where `resolve` says.
    #[cfg(test)]
    pub(super) fn resolving(self, resolve: Resolve) -> Self {
        Self { resolve, ..self }
    }

    /// As what is asked.
    pub(crate) fn ask(self) -> Ask {
        let fetch = Arc::new(self);
        Arc::new(move |source, limit| {
            let fetch = fetch.clone();
            Box::pin(async move { fetch.keys(&source, limit).await })
        })
    }

    /// The keys of a source, as a document that holds no private ones.
    pub(super) async fn keys(&self, source: &KeySource, limit: Duration) -> Result<String, FetchError> {
        let whole = async {
            let url = match source {
                KeySource::Uri(url) => url.clone(),
                KeySource::Issuer(issuer) => self.discover(issuer, &source.url()).await?,
            };
            let text = self.get(&url).await?;
            PublicKeys::read(&text).map(|keys| keys.text).map_err(|why| match KeySet::parse(&text) {
                Err(set) if set.has_no_key() => FetchError::NoKeys(url),
                _ => FetchError::Content(url, why),
            })
        };
        let whole = timeout(limit, whole).await;
        whole.unwrap_or_else(|_| Err(FetchError::Timeout(source.url())))
    }

    /// Where the keys are, as the issuer's OpenID configuration says. It must be the issuer's own (OpenID Connect
    /// Discovery 1.0, 4.3).
    async fn discover(&self, issuer: &str, url: &str) -> Result<String, FetchError> {
        let wrong = |why: String| FetchError::Content(url.to_owned(), why);
        let text = self.get(url).await?;
        let configuration: Configuration = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if configuration.issuer != issuer {
            return Err(wrong(format!("it is the configuration of {:?}, not of {issuer:?}", configuration.issuer)));
        }
        Ok(configuration.jwks_uri)
    }

    async fn get(&self, url: &str) -> Result<String, FetchError> {
        let Target { uri, host, port } = target(url)?;
        let mut stream = None;
        let mut failed = String::new();
        for address in self.addresses(&host, port).await? {
            match TcpStream::connect(address).await {
                Ok(connected) => {
                    stream = Some(connected);
                    break;
                }
                Err(error) => failed = error.to_string(),
            }
        }
        let Some(stream) = stream else { return Err(FetchError::Connect(host, failed)) };
        let unreachable = |why: String| FetchError::Connect(host.clone(), why);
        let name = ServerName::try_from(host.clone()).map_err(|error| unreachable(error.to_string()))?;
        let stream = self.tls()?.connect(name, stream).await.map_err(|error| unreachable(error.to_string()))?;
        exchange(stream, &uri, url).await
    }

    /// The addresses of a host that may be dialled. They are dialled as they are: the name is not asked again.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, FetchError> {
        let resolved = (self.resolve)(host.to_owned(), port).await;
        let mut all = resolved.map_err(|error| FetchError::Resolve(host.to_owned(), error.to_string()))?;
        let refused = all.iter().filter_map(|address| Some((address.ip(), self.refuses(address.ip())?))).min();
        all.retain(|address| self.refuses(address.ip()).is_none());
        match (all.is_empty(), refused) {
            (false, _) => Ok(all),
            (true, Some((address, class))) => Err(FetchError::Address { host: host.to_owned(), address, class }),
            (true, None) => Err(FetchError::Resolve(host.to_owned(), "it has no address".to_owned())),
        }
    }

    /// The class of an address that may not be dialled.
    fn refuses(&self, address: IpAddr) -> Option<&'static str> {
        let allowed = self.options.networks.iter().any(|network| network.contains(&address.to_canonical()));
        address::class(address).filter(|_| !allowed)
    }

    fn tls(&self) -> Result<&TlsConnector, FetchError> {
        self.tls.get_or_init(|| self.connector()).as_ref().map_err(Clone::clone)
    }

    fn connector(&self) -> Result<TlsConnector, FetchError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots.add_parsable_certificates(self.roots.iter().cloned());
        if roots.is_empty() {
            return Err(FetchError::NoRoots);
        }
        // It has roots, and no revocation lists.
        let by_name = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.crypto.clone());
        let by_name = by_name.build().map_err(|_| FetchError::NoRoots)?;
        let mut config = ClientConfig::builder_with_provider(self.crypto.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BoundedVerifier::new(by_name)))
            .with_no_client_auth();
        // A resumed session would skip the check of the certificate, which may have ended since.
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// A URL taken apart.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
}

/// Reads a URL. It may have come from an issuer, so nothing is taken for granted.
fn target(url: &str) -> Result<Target, FetchError> {
    let wrong = |why| FetchError::Url(url.to_owned(), why);
    let uri: Uri = url.parse().map_err(|_| wrong("it cannot be parsed"))?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong("it does not begin with https://"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("names and passwords have no place in it"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(wrong("it names no host"));
    }
    let port = authority.port_u16().unwrap_or(443);
    Ok(Target { host, port, uri })
}

/// Asks once, on a connection of its own.
async fn exchange<S>(stream: S, uri: &Uri, url: &str) -> Result<String, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| FetchError::Broken(url.to_owned(), error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driven = async {
        // How it ended, the exchange says.
        let _ = connection.await;
        future::pending::<()>().await;
    };
    let asked = async {
        let response = sender.send_request(request(uri)).await.map_err(broken)?;
        match response.status() {
            StatusCode::OK => read(response.into_body(), url).await,
            status if status.is_redirection() => Err(FetchError::Redirect(url.to_owned(), status)),
            status => Err(FetchError::Status(url.to_owned(), status)),
        }
    };
    tokio::select! {
        answer = asked => answer,
        () = driven => unreachable!("it is pending for ever"),
    }
}

fn request(uri: &Uri) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
    let host = uri.authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    request.headers_mut().extend(host.map(|host| (header::HOST, host)));
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    request
}

async fn read(mut body: Incoming, url: &str) -> Result<String, FetchError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| FetchError::Broken(url.to_owned(), error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MOST_BYTES {
            return Err(FetchError::TooLarge(url.to_owned()));
        }
        bytes.extend_from_slice(&data);
    }
    String::from_utf8(bytes).map_err(|_| FetchError::Content(url.to_owned(), "it is no text".to_owned()))
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let roots: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<_, _>>())
        .map_err(|error| error.to_string())?;
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}

#[cfg(test)]
mod tests;
