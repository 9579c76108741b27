//! The TLS side of an accepted socket: our current certificate, the client's mandatory one.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::time_provider::TimeProvider;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use mesh_core::id::SpiffeId;
use mesh_core::identity::{
    Identity, InvalidIdentity, PeerRefused, TrustBundles, Usage, date, peer_spiffe_id, root_of, server_config,
    verify_again,
};
use mesh_core::policy::{InboundState, Instances};
use mesh_core::source::{Identities, Paired};
use mesh_core::telemetry::{CountedPeer, PeersByRoot, Reporter};

/// Accepts TLS with the identity of the moment.
pub(crate) struct TlsAccept {
    identities: Identities,
    own: Current,
    named: BTreeMap<Box<str>, Current>,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
    peers: Arc<PeersByRoot>,
}

/// The configuration with one of our identities, as it was seen last: built by the first handshake after a rotation.
type Current = ArcSwapOption<Built>;

struct Built {
    identity: Arc<Identity>,
    trusted: TrustBundles,
    config: Arc<ServerConfig>,
}

/// A client that was let in, and by what.
pub(crate) struct Verified {
    pub(crate) id: SpiffeId,
    chain: Box<[CertificateDer<'static>]>,
    by: TrustBundles,
    ours: Paired,
    counted: Option<CountedPeer>,
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
/// spoken is known by its first bytes; HTTP/2 is not, where something else was chosen.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1", b"istio"];

impl TlsAccept {
    /// `peers` = where connections are counted by root.
    pub(crate) fn new(
        identities: &Identities,
        provider: Arc<CryptoProvider>,
        clock: Arc<dyn TimeProvider>,
        peers: Arc<PeersByRoot>,
    ) -> Self {
        let named = identities.named().map(|(name, _)| (name.into(), Current::empty())).collect();
        Self { identities: identities.clone(), own: Current::empty(), named, provider, clock, peers }
    }

    /// The identity that policy wants shown and the roots that it wants trusted, now and as they change; none for ever
    /// if it names one that there is not.
    pub(crate) fn identity(&self, inbound: &InboundState) -> Paired {
        match inbound {
            InboundState::Ready(listener) => self.identities.paired(&listener.instances),
            InboundState::Pending | InboundState::Failed(_) => self.identities.paired(&Instances::default()),
        }
    }

    /// Performs the handshake by these instances; the caller sets the time limit.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
        instances: &Instances,
    ) -> Result<(TlsStream<TcpStream>, Verified), TlsRefused> {
        let ours = self.identities.paired(instances);
        let (identity, trusted) = now(&ours).ok_or(TlsRefused::NoIdentity)?;
        let config = self.config(instances, &identity, &trusted)?;
        let tls = TlsAcceptor::from(config).accept(tcp).await?;
        let (_, session) = tls.get_ref();
        let chain = session.peer_certificates().ok_or(TlsRefused::NoCertificate)?;
        let id = peer_spiffe_id(chain.first().ok_or(TlsRefused::NoCertificate)?)?;
        // A peer under a former name of a trust domain is the one that policy knows under the present name.
        let id = trusted.aliased(&id).unwrap_or(id);
        let algorithms = self.provider.signature_verification_algorithms.all;
        let root = root_of(chain, &trusted, algorithms, date(&*self.clock), Usage::Client);
        let counted = root.map(|root| self.peers.count(Reporter::Destination, root));
        let chain = chain.to_vec().into();
        Ok((tls, Verified { id, chain, by: trusted, ours, counted }))
    }

    fn config(
        &self,
        instances: &Instances,
        identity: &Arc<Identity>,
        trusted: &TrustBundles,
    ) -> Result<Arc<ServerConfig>, TlsRefused> {
        let current = match &instances.certificate {
            None => &self.own,
            Some(name) => self.named.get(&**name).ok_or(TlsRefused::NoIdentity)?,
        };
        if let Some(built) = current.load().as_ref()
            && Arc::ptr_eq(&built.identity, identity)
            && built.trusted == *trusted
        {
            return Ok(built.config.clone());
        }
        let mut config = server_config(&identity.trusting(trusted.clone()), true, ALPN, &self.provider)?;
        config.time_provider = self.clock.clone();
        let config = Arc::new(config);
        let (identity, trusted) = (identity.clone(), trusted.clone());
        current.store(Some(Arc::new(Built { identity, trusted, config: config.clone() })));
        Ok(config)
    }

    /// Waits until the peer of a connection would not be let in any more, its root being taken out of the bundle or its
    /// certificate revoked, or is somebody else. `renamed` is told of one that is the same under another name, under which it is
    /// watched over from then on.
    pub(crate) fn distrusted<F>(&self, peer: Verified, renamed: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Fn() + Send,
    {
        let (provider, clock) = (self.provider.clone(), self.clock.clone());
        let Verified { mut id, chain, mut by, mut ours, counted } = peer;
        async move {
            let _counted = counted;
            loop {
                ours.changed().await;
                // Most changes are a certificate of ours that was renewed.
                match now(&ours) {
                    Some((_, trusted)) if trusted != by => by = trusted,
                    _ => continue,
                }
                let algorithms = provider.signature_verification_algorithms.all;
                let present = |id: SpiffeId| by.aliased(&id).unwrap_or(id);
                match verify_again(&chain, &by, algorithms, date(&*clock), Usage::Client).map(present) {
                    Ok(again) if again == id => {}
                    Ok(again) => {
                        tracing::info!(was = %id, is = %again, "a connection's peer has another name now: it ends");
                        // A former name that still stands for the present one is the same peer's.
                        if present(id) != again {
                            return;
                        }
                        renamed();
                        id = again;
                    }
                    Err(refused) => {
                        tracing::info!(%refused, "a connection's peer is not trusted any more: it is closed");
                        return;
                    }
                }
            }
        }
    }
}

/// Who we are and whom we trust at the moment. Roots of nobody in particular vouch for our own trust domain only: a
/// caller's name decides what it may do, so nobody else's authority may give names of ours.
fn now(ours: &Paired) -> Option<(Arc<Identity>, TrustBundles)> {
    let (identity, trusted) = ours.load()?;
    let trusted = trusted.within(identity.id().trust_domain());
    Some((identity, trusted))
}
