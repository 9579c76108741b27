//! TLS towards endpoints: what the cluster's policy says, and nothing weaker.
//!
//! Configurations are kept per identity generation, so that new connections use a renewed certificate
//! and old ones stay. Refuses to know where the identity comes from.

use std::error::Error as StdError;
use std::fs::File;
use std::io::Read;
#[cfg(unix)]
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::{
    self, BoundedVerifier, InvalidIdentity, PeerRefused, TrustBundles, anonymous_config, client_config,
};
use mesh_core::policy::{Address, ClientCertificate, MeshTls, OriginatedTls, RootsTls, UpstreamTls};
use mesh_core::source::Identities;
use parking_lot::Mutex;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use smallvec::SmallVec;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::stream::TlsIo;
use super::trust::{Trust, Vouching};
use super::verify::{NamesRefused, NamesVerifier, NoVerifier, Roots};
use super::{IoStream, Peer};
use crate::env::Env;
use crate::error::{Cause, PeerMismatch, Source, find};

/// A server's refusal of our certificate, if that is what an error is made of. In TLS 1.3 it comes after the handshake, and before
/// the server has read anything else. Other alerts may come at any time, and whoever is on the way can bring one about.
pub(crate) fn refusal(error: &(dyn StdError + 'static)) -> Option<rustls::Error> {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        DecryptError, HandshakeFailure, UnknownCA, UnsupportedCertificate,
    };
    let alert = find::<rustls::Error>(error)?;
    let refuses = matches!(
        alert,
        rustls::Error::AlertReceived(
            AccessDenied
                | BadCertificate
                | CertificateExpired
                | CertificateRequired
                | CertificateRevoked
                | CertificateUnknown
                | DecryptError
                | HandshakeFailure
                | UnknownCA
                | UnsupportedCertificate
        )
    );
    refuses.then(|| alert.clone())
}

/// Whether a handshake failed for nothing but that the peer speaks none of the protocols offered.
pub(super) fn speaks_none_of_ours(cause: &Cause) -> bool {
    let Cause::TlsHandshake { source, .. } = cause else { return false };
    let none = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
    find::<rustls::Error>(&**source).is_some_and(|error| *error == none)
}

/// Whether what TLS needs is given by somebody else, and was not yet. A look at that costs nothing.
pub(super) fn is_awaited(source: &Source) -> bool {
    matches!(find(&**source), Some(Setup::NothingGiven))
}

/// The protocols offered. To a peer of the mesh beside Istio's names for them, first as Istio's proxies have them: a
/// sidecar in mode `PERMISSIVE` knows the mesh's TLS from an application's own by those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpn {
    Http1,
    Http2,
    Either,
    /// Bytes. Servers outside of the mesh are asked for nothing.
    Raw,
}

impl Alpn {
    fn protocols(self, mesh: bool) -> &'static [&'static [u8]] {
        match (self, mesh) {
            (Self::Raw, true) => &[b"istio"],
            (Self::Raw, false) => &[],
            (Self::Http1, true) => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            (Self::Http1, false) => &[b"http/1.1"],
            (Self::Http2, true) => &[b"istio-h2", b"istio", b"h2"],
            (Self::Http2, false) => &[b"h2"],
            (Self::Either, true) => &[b"istio-h2", b"istio-http/1.1", b"istio", b"h2", b"http/1.1"],
            (Self::Either, false) => &[b"h2", b"http/1.1"],
        }
    }
}

/// The TLS side of one cluster.
pub(super) struct Tls {
    policy: UpstreamTls,
    dialled_host: Arc<str>,
    identities: Identities,
    trust: Trust,
    provider: Option<Arc<CryptoProvider>>,
    clock: Arc<dyn TimeProvider>,
    // Only asked when a connection is made. At most one entry for each way of ALPN.
    made: Mutex<SmallVec<[Made; 3]>>,
}

struct Made {
    alpn: Alpn,
    of: Material,
    at: Instant,
    config: Arc<ClientConfig>,
}

/// What a configuration was made of.
#[derive(Clone, PartialEq, Eq)]
enum Material {
    Files,
    /// The generation of our certificate, if one is shown, and whom we trust.
    Provided(Option<u64>, TrustBundles),
}

/// Files are read again after this time, so that a renewed certificate is taken up.
const FILES_FRESH: Duration = Duration::from_secs(60);

/// Bytes of a file with a private key: it may hold a chain beside it.
const MAX_KEY: usize = 256 * 1024;

/// Makes one TLS connection.
pub(super) struct Connector<'t> {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// Who watches over the connection, and by what its peer is let in. `None` = roots are in files, or the system's.
    watched: Option<(&'t Tls, TrustBundles)>,
}

/// TLS that cannot be set up as the policy says.
#[derive(Debug, thiserror::Error)]
enum Setup {
    #[error("no crypto provider was given to the client")]
    NoProvider,
    #[error("{0} is not a server name")]
    Name(String),
    #[error("{file}: {reason}")]
    File { file: String, reason: String },
    #[error("the certificate provider has given no roots yet")]
    NothingGiven,
    #[error("the system has no trusted roots")]
    NoRoots,
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A failure while what we show is good for nobody.
#[derive(Debug, thiserror::Error)]
#[error("our own certificate ended {ago} seconds ago and was not renewed, which peers refuse: {source}")]
struct OwnEnded {
    ago: u64,
    source: Source,
}

impl Tls {
    pub(super) fn new(policy: UpstreamTls, dialled_host: &str, env: &Env) -> Self {
        let (roots, by) = match &policy {
            UpstreamTls::Auto(mesh) | UpstreamTls::Mesh(mesh) => (mesh.instances.roots.as_deref(), Vouching::Ids),
            UpstreamTls::Roots(tls) => (tls.instance.as_deref(), Vouching::Any),
            UpstreamTls::Disable | UpstreamTls::Simple(_) | UpstreamTls::Mutual(..) => (None, Vouching::Ids),
        };
        let identities = env.identities.clone();
        let trusted = identities.trusted(roots);
        let trust = Trust::new(trusted, by, env.runtime.clone(), env.metrics.peers().clone(), env.clock.clone());
        let (provider, clock) = (env.crypto.clone(), env.clock.clone());
        Self { policy, dialled_host: dialled_host.into(), identities, trust, provider, clock, made: Mutex::default() }
    }

    /// Whether a connection to `peer` uses TLS.
    pub(super) fn applies_to(&self, peer: &Peer) -> bool {
        match &self.policy {
            UpstreamTls::Disable => false,
            UpstreamTls::Auto(_) => peer.metadata.mesh_tls,
            UpstreamTls::Mesh(_) | UpstreamTls::Roots(_) | UpstreamTls::Simple(_) | UpstreamTls::Mutual(..) => true,
        }
    }

    /// Whether that is the mesh's, in which the peer has a SPIFFE ID.
    pub(super) fn is_mesh(&self, peer: &Peer) -> bool {
        match &self.policy {
            UpstreamTls::Mesh(_) => true,
            UpstreamTls::Auto(_) => peer.metadata.mesh_tls,
            UpstreamTls::Disable | UpstreamTls::Roots(_) | UpstreamTls::Simple(_) | UpstreamTls::Mutual(..) => false,
        }
    }

    /// Whether its peer is let in by roots that change, so that it has to prove anew now and then who it is.
    pub(super) fn is_watched(&self, peer: &Peer) -> bool {
        self.is_mesh(peer) || matches!(self.policy, UpstreamTls::Roots(_))
    }

    /// A failure as it is told once our own certificate has ended: peers refuse it, and what they say of that is an alert.
    pub(super) fn explained(&self, cause: Cause) -> Cause {
        match (cause, self.ended_ago()) {
            (Cause::TlsHandshake { address, source }, Some(ago)) => {
                Cause::TlsHandshake { address, source: Arc::new(OwnEnded { ago, source }) }
            }
            (cause, _) => cause,
        }
    }

    /// Since how many seconds the certificate has ended that peers of the mesh are shown.
    fn ended_ago(&self) -> Option<u64> {
        let (UpstreamTls::Auto(mesh) | UpstreamTls::Mesh(mesh)) = &self.policy else { return None };
        let identity = Option::clone(&self.identities.of(mesh.instances.certificate.as_deref()).load())?;
        let now = self.clock.current_time()?.as_secs();
        now.checked_sub(identity.not_after()).filter(|ago| *ago > 0)
    }

    /// What keeps connections to `peer` from being made now, as far as that is known without a look at files.
    pub(super) fn lacks(&self, peer: &Peer) -> Option<Cause> {
        self.in_hand(peer, Alpn::Either).err()
    }

    /// What makes the TLS connection to `peer`; `None` = plaintext, because the policy says so.
    pub(super) async fn connector(&self, peer: &Peer, alpn: Alpn) -> Result<Option<Connector<'_>>, Cause> {
        let failed = |e: Setup| Cause::TlsSetup { address: peer.address.clone(), source: Arc::new(e) };
        match &self.policy {
            UpstreamTls::Disable | UpstreamTls::Auto(_) | UpstreamTls::Mesh(_) | UpstreamTls::Roots(_) => {
                self.in_hand(peer, alpn)
            }
            UpstreamTls::Simple(tls) => self.originated(tls, None, peer, alpn).await.map(Some).map_err(failed),
            UpstreamTls::Mutual(tls, client) => {
                self.originated(tls, Some(client), peer, alpn).await.map(Some).map_err(failed)
            }
        }
    }

    /// The same where no file is to be read; `None` where one is, too.
    fn in_hand(&self, peer: &Peer, alpn: Alpn) -> Result<Option<Connector<'_>>, Cause> {
        if peer.metadata.plaintext_refused && !self.applies_to(peer) {
            return Err(Cause::PlaintextToStrict { address: peer.address.clone() });
        }
        match &self.policy {
            UpstreamTls::Auto(_) if !peer.metadata.mesh_tls => Ok(None),
            UpstreamTls::Auto(mesh) | UpstreamTls::Mesh(mesh) => self.mesh(mesh, peer, alpn).map(Some),
            UpstreamTls::Roots(tls) => self.by_roots(tls, peer, alpn).map(Some),
            UpstreamTls::Disable | UpstreamTls::Simple(_) | UpstreamTls::Mutual(..) => Ok(None),
        }
    }

    fn mesh(&self, mesh: &MeshTls, peer: &Peer, alpn: Alpn) -> Result<Connector<'_>, Cause> {
        // Fails closed: no certificate or nobody to trust, no connection.
        let Some((identity, trusted)) = self.identities.paired(&mesh.instances).load() else {
            return Err(Cause::NoIdentity { address: peer.address.clone() });
        };
        let of = (Some(identity.generation()), trusted.clone());
        let make =
            |provider: &_| client_config(&identity.trusting(trusted), &mesh.peer_ids, alpn.protocols(true), provider);
        // The SNI serves routers between us and the peer. Who the peer is, its SPIFFE ID tells.
        self.provided(mesh.sni.as_deref(), peer, alpn, of, make)
    }

    fn by_roots(&self, tls: &RootsTls, peer: &Peer, alpn: Alpn) -> Result<Connector<'_>, Cause> {
        let Some(trusted) = self.identities.trusted(tls.instance.as_deref()).load() else {
            let source = Arc::new(Setup::NothingGiven);
            return Err(Cause::TlsSetup { address: peer.address.clone(), source });
        };
        let of = (None, trusted.clone());
        let make = |provider: &Arc<CryptoProvider>| match trusted.any() {
            Some(roots) => {
                let verifier = NamesVerifier::new(Roots::Given(roots.clone()), tls.names.clone(), provider.clone());
                let mut config = ClientConfig::builder_with_provider(provider.clone())
                    .with_safe_default_protocol_versions()?
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
                    .with_no_client_auth();
                finish(&mut config, alpn);
                Ok(config)
            }
            None => anonymous_config(trusted, &tls.names, alpn.protocols(false), provider),
        };
        self.provided(tls.sni.as_deref(), peer, alpn, of, make)
    }

    /// With a configuration of what certificate providers gave.
    fn provided(
        &self,
        sni: Option<&str>,
        peer: &Peer,
        alpn: Alpn,
        (generation, trusted): (Option<u64>, TrustBundles),
        make: impl FnOnce(&Arc<CryptoProvider>) -> Result<ClientConfig, InvalidIdentity>,
    ) -> Result<Connector<'_>, Cause> {
        let of = Material::Provided(generation, trusted.clone());
        let failed = |source: Source| Cause::TlsSetup { address: peer.address.clone(), source };
        let provider = self.provider.as_ref().ok_or_else(|| failed(Arc::new(Setup::NoProvider)))?;
        let config = match self.kept(alpn, &of) {
            Some(config) => config,
            None => self.keep(alpn, of, make(provider).map_err(|e| failed(Arc::new(e)))?),
        };
        let sni = sni.and_then(|sni| ServerName::try_from(sni.to_owned()).ok());
        let name = sni.unwrap_or_else(|| self.name_of(peer));
        Ok(Connector { config, name, watched: Some((self, trusted)) })
    }

    async fn originated(
        &self,
        tls: &OriginatedTls,
        client: Option<&ClientCertificate>,
        peer: &Peer,
        alpn: Alpn,
    ) -> Result<Connector<'_>, Setup> {
        // One endpoint's name that is none is neither the cluster's matter nor this process'.
        let host = peer.metadata.hostname.as_deref().filter(|_| tls.auto_host_sni);
        let name = match (host.and_then(|host| ServerName::try_from(host.to_owned()).ok()), &tls.sni) {
            (Some(host), _) => host,
            (None, Some(sni)) => ServerName::try_from(sni.clone()).map_err(|_| Setup::Name(sni.clone()))?,
            (None, None) => self.name_of(peer),
        };
        if let Some(config) = self.kept(alpn, &Material::Files) {
            return Ok(Connector { config, name, watched: None });
        }
        let provider = self.provider.clone().ok_or(Setup::NoProvider)?;
        let (tls, client) = (tls.clone(), client.cloned());
        // Reads files, so not on a thread that serves requests.
        let read = move || originated_config(&tls, client.as_ref(), alpn, provider);
        let config = match tokio::task::spawn_blocking(read).await {
            Ok(made) => made?,
            Err(e) => return Err(rustls::Error::General(e.to_string()).into()),
        };
        Ok(Connector { config: self.keep(alpn, Material::Files, config), name, watched: None })
    }

    fn kept(&self, alpn: Alpn, of: &Material) -> Option<Arc<ClientConfig>> {
        let made = self.made.lock();
        let found = made.iter().find(|m| m.alpn == alpn && m.of == *of)?;
        let fresh = *of != Material::Files || found.at.elapsed() < FILES_FRESH;
        fresh.then(|| found.config.clone())
    }

    fn keep(&self, alpn: Alpn, of: Material, mut config: ClientConfig) -> Arc<ClientConfig> {
        config.time_provider = self.clock.clone();
        let config = Arc::new(config);
        let mut made = self.made.lock();
        made.retain(|m| m.alpn != alpn);
        made.push(Made { alpn, of, at: Instant::now(), config: config.clone() });
        config
    }

    /// The SNI where policy names none: the dialled host, or else the address.
    fn name_of(&self, peer: &Peer) -> ServerName<'static> {
        let host = self.dialled_host.trim_start_matches('[').trim_end_matches(']');
        let address = || match &peer.address {
            Address::Socket(address) => address.ip(),
            // Matches no certificate, so verification by name fails closed.
            Address::Name { .. } | Address::Unix(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        };
        ServerName::try_from(host.to_owned()).unwrap_or_else(|_| ServerName::IpAddress(address().into()))
    }
}

impl Connector<'_> {
    pub(super) async fn handshake(self, io: IoStream, peer: &Peer) -> Result<IoStream, Cause> {
        let connector = tokio_rustls::TlsConnector::from(self.config);
        let tls = connector.connect(self.name, io).await.map_err(|error| handshake_failed(error, &peer.address))?;
        let vouched = self.watched.and_then(|(of, bundles)| {
            let chain = tls.get_ref().1.peer_certificates()?;
            Some(of.trust.watch(chain, bundles, of.provider.as_ref()?))
        });
        let failed =
            |refused: PeerRefused| Cause::TlsHandshake { address: peer.address.clone(), source: Arc::new(refused) };
        Ok(IoStream::Tls(Box::new(TlsIo { tls, vouched: vouched.transpose().map_err(failed)? })))
    }
}

fn handshake_failed(error: std::io::Error, address: &Address) -> Cause {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let address = address.clone();
    match (tls.and_then(mismatch), tls.and_then(PeerRefused::of)) {
        (Some(refused), _) => Cause::WrongPeerIdentity { address, refused },
        // rustls would print the refusal in debug form.
        (None, Some(refused)) => Cause::TlsHandshake { address, source: Arc::new(refused.clone()) },
        (None, None) => Cause::TlsHandshake { address, source: Arc::new(error) },
    }
}

/// Whether a TLS error says that the peer is somebody else.
fn mismatch(error: &rustls::Error) -> Option<PeerMismatch> {
    use rustls::CertificateError as Refused;
    let rustls::Error::InvalidCertificate(refused) = error else { return None };
    if let Some(wrong @ PeerRefused::WrongId { .. }) = PeerRefused::of(error) {
        return Some(PeerMismatch::Spiffe(wrong.clone()));
    }
    match refused {
        Refused::Other(other) => {
            let names = other.0.downcast_ref::<NamesRefused>()?;
            Some(PeerMismatch::Names { expected: names.expected.clone(), got: names.got.clone() })
        }
        Refused::NotValidForNameContext { expected, presented } => {
            Some(PeerMismatch::Names { expected: format!("{expected:?}"), got: presented.join(", ") })
        }
        _ => None,
    }
}

fn originated_config(
    tls: &OriginatedTls,
    client: Option<&ClientCertificate>,
    alpn: Alpn,
    provider: Arc<CryptoProvider>,
) -> Result<ClientConfig, Setup> {
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let verifier: Arc<dyn ServerCertVerifier> = if tls.insecure_skip_verify {
        Arc::new(NoVerifier(provider))
    } else {
        let roots = roots(tls.ca_file.as_deref())?;
        let by_names: Arc<dyn ServerCertVerifier> = if tls.subject_alt_names.is_empty() {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?
        } else {
            Arc::new(NamesVerifier::new(Roots::Read(roots), tls.subject_alt_names.clone(), provider))
        };
        Arc::new(BoundedVerifier::new(by_names))
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(files) => builder
            .with_client_auth_cert(certificates(&files.certificate_file)?, private_key(&files.private_key_file)?)?,
    };
    finish(&mut config, alpn);
    Ok(config)
}

/// What all have that is not the mesh's.
fn finish(config: &mut ClientConfig, alpn: Alpn) {
    config.alpn_protocols = alpn.protocols(false).iter().map(|p| p.to_vec()).collect();
    // A resumed session would skip the check of the certificate, which may have expired since.
    config.resumption = Resumption::disabled();
}

/// The text is wiped; the key itself is TLS' to keep.
fn private_key(file: &str) -> Result<PrivateKeyDer<'static>, Setup> {
    let failed = |reason: String| Setup::File { file: file.to_owned(), reason };
    let opened = File::open(file).map_err(|e| failed(e.to_string()))?;
    // With room for all of it, and for the look at its end: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY + 64));
    // Told of and no reason to refuse it: so are the files that Kubernetes projects.
    if let Some(exposed) = exposed(file, &opened) {
        tracing::warn!(file, "{exposed}");
    }
    opened.take(MAX_KEY as u64 + 1).read_to_end(&mut text).map_err(|e| failed(e.to_string()))?;
    if text.len() > MAX_KEY {
        return Err(failed(format!("it is longer than any private key ({MAX_KEY} bytes)")));
    }
    identity::private_key(&text).map_err(|why| failed(why.to_owned()))
}

/// What others could do to the private key in a file.
#[cfg(unix)]
fn exposed(file: &str, opened: &File) -> Option<&'static str> {
    use std::os::unix::fs::MetadataExt;
    let folder = Path::new(file).parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // What cannot be asked is not said to be open.
    let mode = |metadata: std::io::Result<std::fs::Metadata>| metadata.map_or(0, |metadata| metadata.mode());
    identity::exposure(mode(opened.metadata()), mode(std::fs::metadata(folder)))
}

#[cfg(not(unix))]
fn exposed(_: &str, _: &File) -> Option<&'static str> {
    None
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, Setup> {
    let failed = |reason: String| Setup::File { file: file.to_owned(), reason };
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|e| failed(e.to_string()))?;
    if found.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(found) }
}

fn roots(file: Option<&str>) -> Result<RootCertStore, Setup> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate)?;
            }
        }
        None => {
            // Systems ship odd certificates; those that parse are enough, none at all is not.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Setup::NoRoots);
            }
        }
    }
    Ok(roots)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use mesh_testkit::memory::{certified, copies};

    use super::*;

    #[test]
    fn of_a_key_that_was_read_nothing_is_left() {
        let files = certified();
        let read = Zeroizing::new(private_key(&files.key).unwrap());
        assert_eq!((copies(&files.number), copies(&files.text)), (1, 0), "the control: it is held");
        drop(read);
        assert_eq!((copies(&files.number), copies(&files.text)), (0, 0));
    }

    #[test]
    fn s94_a_destinations_key_that_others_can_read_or_write_is_noticed() {
        use std::os::unix::fs::PermissionsExt;
        let files = certified();
        let noticed = |mode| {
            std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
            exposed(&files.key, &File::open(&files.key).unwrap())
        };
        assert_eq!(noticed(0o600), None, "the control");
        assert!(noticed(0o640).is_some_and(|said| said.contains("read by others")));
        assert!(noticed(0o620).is_some_and(|said| said.contains("written by others")));
    }
}
