//! The TLS side of an accepted socket: our current certificate, the client's mandatory one.

use std::collections::BTreeMap;
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
use mesh_core::policy::InboundState;
use mesh_core::source::{Identities, Watched, WatchedIdentity};

/// Accepts TLS with the identity of the moment.
pub(crate) struct TlsAccept {
    own: Own,
    named: BTreeMap<Box<str>, Own>,
    provider: Arc<CryptoProvider>,
}

/// One of our identities.
struct Own {
    identity: WatchedIdentity,
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
    identity: WatchedIdentity,
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

/// HTTP/2 before HTTP/1.1; then the name by which Istio's proxies know each other, where they offer nothing else. What is
/// spoken is known by its first bytes, whatever was chosen.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1", b"istio"];

impl TlsAccept {
    pub(crate) fn new(identities: &Identities, provider: Arc<CryptoProvider>) -> Self {
        let own = |identity: &WatchedIdentity| Own { identity: identity.clone(), current: ArcSwapOption::empty() };
        let named = identities.named().map(|(name, identity)| (name.into(), own(identity))).collect();
        Self { own: own(identities.own()), named, provider }
    }

    fn own(&self, instance: Option<&str>) -> Option<&Own> {
        match instance {
            None => Some(&self.own),
            Some(name) => self.named.get(name),
        }
    }

    /// The identity that policy wants shown, now and as it changes; none for ever if it names one that there is not.
    pub(crate) fn identity(&self, inbound: &InboundState) -> WatchedIdentity {
        let instance = match inbound {
            InboundState::Ready(listener) => listener.instance.as_deref(),
            InboundState::Pending | InboundState::Failed(_) => None,
        };
        self.own(instance).map_or_else(|| Watched::fixed(None), |own| own.identity.clone())
    }

    /// Performs the handshake as the identity of `instance`; the caller sets the time limit.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
        instance: Option<&str>,
    ) -> Result<(TlsStream<TcpStream>, Verified), TlsRefused> {
        let own = self.own(instance).ok_or(TlsRefused::NoIdentity)?;
        let identity = Option::clone(&own.identity.load()).ok_or(TlsRefused::NoIdentity)?;
        let tls = TlsAcceptor::from(own.config(&identity, &self.provider)?).accept(tcp).await?;
        let (_, session) = tls.get_ref();
        let chain = session.peer_certificates().ok_or(TlsRefused::NoCertificate)?;
        let id = peer_spiffe_id(chain.first().ok_or(TlsRefused::NoCertificate)?)?;
        // A peer under a former name of a trust domain is the one that policy knows under the present name.
        let id = identity.bundles().aliased(&id).unwrap_or(id);
        let chain = chain.to_vec().into();
        let by = identity.bundles().clone();
        Ok((tls, Verified { id, chain, by, identity: own.identity.clone() }))
    }

    /// Waits until the peer of a connection would not be let in any more: its root was taken out of the bundle, or
    /// it was revoked.
    pub(crate) fn distrusted(&self, peer: Verified) -> impl Future<Output = ()> + Send + use<> {
        let provider = self.provider.clone();
        let Verified { chain, mut by, mut identity, .. } = peer;
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
}

impl Own {
    fn config(
        &self,
        identity: &Arc<Identity>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<ServerConfig>, TlsRefused> {
        if let Some(built) = self.current.load().as_ref()
            && Arc::ptr_eq(&built.identity, identity)
        {
            return Ok(built.config.clone());
        }
        let config = Arc::new(server_config(identity, true, ALPN, provider)?);
        self.current.store(Some(Arc::new(Built { identity: identity.clone(), config: config.clone() })));
        Ok(config)
    }
}
