//! The TLS side of an accepted socket: our current certificate, the client's mandatory one.

use std::future::Future;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use mesh_core::id::SpiffeId;
use mesh_core::identity::{
    Identity, InvalidIdentity, PeerRefused, TrustBundles, Usage, peer_spiffe_id, server_config, verify_svid,
};
use mesh_core::source::WatchedIdentity;

/// Accepts TLS with the identity of the moment.
pub(crate) struct TlsAccept {
    identity: WatchedIdentity,
    provider: Arc<CryptoProvider>,
    // The configuration of the identity seen last: built by the first handshake after a rotation.
    current: ArcSwapOption<Built>,
}

struct Built {
    identity: Arc<Identity>,
    config: Arc<ServerConfig>,
}

/// A client that was let in, and by what.
pub(crate) struct Verified {
    pub(crate) id: SpiffeId,
    chain: Box<[CertificateDer<'static>]>,
    by: TrustBundles,
}

/// Why a TLS client was turned away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsRefused {
    #[error("this process has no certificate yet")]
    NoIdentity,
    #[error("our own certificate cannot be used: {0}")]
    OwnIdentity(#[from] InvalidIdentity),
    #[error("the handshake failed: {0}")]
    Handshake(#[from] io::Error),
    #[error(transparent)]
    Peer(#[from] PeerRefused),
    #[error("the client showed no certificate")]
    NoCertificate,
}

/// HTTP/2 before HTTP/1.1.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

impl TlsAccept {
    pub(crate) fn new(identity: WatchedIdentity, provider: Arc<CryptoProvider>) -> Self {
        Self { identity, provider, current: ArcSwapOption::empty() }
    }

    /// The identity of the moment and its changes.
    pub(crate) fn identity(&self) -> &WatchedIdentity {
        &self.identity
    }

    /// Performs the handshake; the caller sets the time limit.
    pub(crate) async fn accept(&self, tcp: TcpStream) -> Result<(TlsStream<TcpStream>, Verified), TlsRefused> {
        let identity = Option::clone(&self.identity.load()).ok_or(TlsRefused::NoIdentity)?;
        let tls = TlsAcceptor::from(self.config(&identity)?).accept(tcp).await?;
        let (_, session) = tls.get_ref();
        let chain = session.peer_certificates().ok_or(TlsRefused::NoCertificate)?;
        let id = peer_spiffe_id(chain.first().ok_or(TlsRefused::NoCertificate)?)?;
        // A peer under a former name of a trust domain is the one that policy knows under the present name.
        let id = identity.bundles().aliased(&id).unwrap_or(id);
        let chain = chain.to_vec().into();
        Ok((tls, Verified { id, chain, by: identity.bundles().clone() }))
    }

    /// Waits until the peer of a connection would not be let in any more: its root was taken out of the bundle, or
    /// it was revoked.
    pub(crate) fn distrusted(&self, peer: Verified) -> impl Future<Output = ()> + Send + use<> {
        let (mut identity, provider) = (self.identity.clone(), self.provider.clone());
        let Verified { chain, mut by, .. } = peer;
        async move {
            loop {
                identity.changed().await;
                let Some(now) = Option::clone(&identity.load()) else { continue };
                // Most changes are a certificate of ours that was renewed.
                if *now.bundles() == by {
                    continue;
                }
                by = now.bundles().clone();
                let algorithms = provider.signature_verification_algorithms.all;
                if let Err(refused) = verify_svid(&chain, &by, algorithms, UnixTime::now(), Usage::Client) {
                    tracing::info!(%refused, "a connection's peer is not trusted any more: it is closed");
                    return;
                }
            }
        }
    }

    fn config(&self, identity: &Arc<Identity>) -> Result<Arc<ServerConfig>, TlsRefused> {
        if let Some(built) = self.current.load().as_ref()
            && Arc::ptr_eq(&built.identity, identity)
        {
            return Ok(built.config.clone());
        }
        let config = Arc::new(server_config(identity, true, ALPN, &self.provider)?);
        self.current.store(Some(Arc::new(Built { identity: identity.clone(), config: config.clone() })));
        Ok(config)
    }
}
