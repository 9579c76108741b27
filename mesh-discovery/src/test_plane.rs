//! A control plane's sockets for the tests: a CA, and gRPC services over loopback with or without TLS.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers and use the system's clock")]

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::id::TrustDomain;
use mesh_core::identity::{Identity, TrustBundle, TrustBundles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::bootstrap::{ChannelCredentials, TlsCredentials, XdsServer};
use crate::connect::{AbortOnDrop, Connector};

pub(crate) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A file that is never read to its end: a pipe that nobody writes to.
#[cfg(unix)]
pub(crate) struct Pipe {
    _folder: tempfile::TempDir,
    pub(crate) path: String,
}

#[cfg(unix)]
impl Pipe {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe").to_str().unwrap().to_owned();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        Self { _folder: folder, path }
    }
}

#[cfg(unix)]
impl Drop for Pipe {
    /// Whoever reads it is at its end: a runtime waits for its threads. To open it for both waits for nobody.
    fn drop(&mut self) {
        drop(std::fs::File::options().read(true).write(true).open(&self.path));
    }
}

/// The serial number of each server's certificate.
pub(crate) const SERVER_SERIAL: u64 = 77;

/// The client's certificate, in a request's extensions.
#[derive(Clone)]
pub(crate) struct PeerChain(pub(crate) Vec<CertificateDer<'static>>);

/// A root of trust that signs requests.
#[derive(Clone)]
pub(crate) struct Ca {
    issuer: Arc<Issuer<'static, KeyPair>>,
    pub(crate) root: rcgen::Certificate,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap();
        Self { issuer: Arc::new(Issuer::new(params, key)), root }
    }

    /// A file with the root.
    pub(crate) fn root_file(&self) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.root.pem()).unwrap();
        file
    }

    /// Signs a request in the name of `uri`, valid from a minute ago for `life`.
    pub(crate) fn sign(&self, csr: &str, uri: &str, life: Duration) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params = workload(uri, life);
        request.signed_by(&*self.issuer).unwrap().pem()
    }

    /// A list of revoked certificates with none in it, valid for an hour.
    pub(crate) fn revocation_list(&self) -> Vec<u8> {
        self.revoking(&[], now() + 3_600)
    }

    /// A list with these serial numbers that ends then.
    pub(crate) fn revoking(&self, serials: &[u64], ends: u64) -> Vec<u8> {
        let at = |seconds: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        let revoked = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from(*serial),
            revocation_time: at(ends - 7_200),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: at(ends - 7_200),
            next_update: at(ends),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&*self.issuer).unwrap().der().to_vec()
    }

    /// Chain and key as PEM, in the name of `uri`, for a day.
    pub(crate) fn pem(&self, uri: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let leaf = workload(uri, Duration::from_secs(24 * 3600)).signed_by(&key, &*self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }

    /// Writes them to `chain.pem` and `key.pem` of a directory; the paths.
    pub(crate) fn write_identity(&self, directory: &Path, uri: &str) -> (String, String) {
        let (chain, key) = self.pem(uri);
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        (write("chain.pem", &chain), write("key.pem", &key))
    }

    /// An identity of generation `generation` in the name of `uri`, for a day.
    pub(crate) fn identity(&self, uri: &str, generation: u64) -> Identity {
        self.identity_between(uri, generation, (now() - 60, now() + 24 * 3600))
    }

    /// The same, with its begin and its end.
    pub(crate) fn identity_between(&self, uri: &str, generation: u64, (begins, ends): (u64, u64)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let leaf = between(uri, begins, ends).signed_by(&key, &*self.issuer).unwrap();
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let signing = crypto().key_provider.load_private_key(der).unwrap();
        let bundle = TrustBundle::new([self.root.der().clone()]).unwrap();
        let bundles = TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), bundle);
        Identity::new(CertifiedKey::new(vec![leaf.der().clone()], signing), bundles, generation).unwrap()
    }

    /// TLS for a server at 127.0.0.1; clients may show a certificate of this CA.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        self.server_config_of("spiffe://cluster.local/ns/mesh-system/sa/control-plane")
    }

    /// The same of somebody else who has a certificate for 127.0.0.1.
    pub(crate) fn server_config_of(&self, uri: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = workload(uri, Duration::from_secs(3600));
        params.serial_number = Some(rcgen::SerialNumber::from(SERVER_SERIAL));
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        let leaf = params.signed_by(&key, &*self.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

fn workload(uri: &str, life: Duration) -> CertificateParams {
    between(uri, now() - 60, now() + life.as_secs())
}

fn between(uri: &str, begins: u64, ends: u64) -> CertificateParams {
    let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (at(begins), at(ends));
    params
}

/// A way to a server at 127.0.0.1, verified by the root file if there is one.
pub(crate) fn connector(port: u16, root: Option<&tempfile::NamedTempFile>) -> Connector {
    let credentials = root.map_or(ChannelCredentials::Insecure, |file| {
        let ca_certificate_file = Some(file.path().to_str().unwrap().to_owned());
        ChannelCredentials::Tls(TlsCredentials { ca_certificate_file, ..Default::default() })
    });
    let uri = format!("127.0.0.1:{port}").parse().unwrap();
    Connector::new(XdsServer::new(uri, credentials), crypto())
}

/// A server; it stops, with all its connections, when dropped.
pub(crate) struct Serving {
    pub(crate) port: u16,
    _task: AbortOnDrop,
}

/// Serves a gRPC service on a port of its own (0) or a given one.
pub(crate) async fn serve<S, F>(service: S, tls: Option<Arc<ServerConfig>>, port: u16) -> Serving
where
    S: tower_service::Service<
            http::Request<hyper::body::Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future = F,
        > + Clone
        + Send
        + 'static,
    F: Future<Output = Result<http::Response<tonic::body::Body>, Infallible>> + Send + 'static,
{
    // A server that was just dropped may still hold its port for a moment.
    let listener = loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => break listener,
            Err(error) => assert!(port != 0, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((io, _)) = listener.accept().await else { return };
            let (service, tls) = (service.clone(), tls.clone());
            connections.spawn(async move {
                match tls {
                    None => http2(io, service, PeerChain(Vec::new())).await,
                    Some(config) => {
                        let Ok(io) = tokio_rustls::TlsAcceptor::from(config).accept(io).await else { return };
                        let chain = io.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                        http2(io, service, PeerChain(chain)).await;
                    }
                }
            });
        }
    });
    Serving { port, _task: AbortOnDrop(task) }
}

async fn http2<I, S, F>(io: I, service: S, peer: PeerChain)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: tower_service::Service<
            http::Request<hyper::body::Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future = F,
        > + Clone,
    F: Future<Output = Result<http::Response<tonic::body::Body>, Infallible>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        service.clone().call(request)
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}
