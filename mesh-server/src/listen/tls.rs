//! The TLS side of an accepted socket: our current certificate, the client's mandatory one.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use mesh_core::id::SpiffeId;
use mesh_core::identity::{Identity, InvalidIdentity, PeerRefused, peer_spiffe_id, server_config};
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
    pub(crate) async fn accept(&self, tcp: TcpStream) -> Result<(TlsStream<TcpStream>, SpiffeId), TlsRefused> {
        let tls = TlsAcceptor::from(self.config()?).accept(tcp).await?;
        let (_, session) = tls.get_ref();
        let leaf = session.peer_certificates().and_then(<[_]>::first).ok_or(TlsRefused::NoCertificate)?;
        let peer = peer_spiffe_id(leaf)?;
        Ok((tls, peer))
    }

    fn config(&self) -> Result<Arc<ServerConfig>, TlsRefused> {
        let identity = self.identity.load();
        let identity = Option::as_ref(&identity).ok_or(TlsRefused::NoIdentity)?;
        if let Some(built) = self.current.load().as_ref()
            && Arc::ptr_eq(&built.identity, identity)
        {
            return Ok(built.config.clone());
        }
        let mut config = server_config(identity, true, ALPN, &self.provider)?;
        // A resumed session skips the check of the client's certificate, so there are none: a removed
        // root or an expired certificate counts from the next connection on.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        self.current.store(Some(Arc::new(Built { identity: identity.clone(), config: config.clone() })));
        Ok(config)
    }
}
