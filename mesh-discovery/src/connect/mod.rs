//! One HTTP/2 connection to a control plane, for every gRPC service it offers.
//!
//! TLS is rebuilt for each connection: roots are read from their file again and our certificate is
//! the one of the moment. The server is verified by its host name. Every request carries the call
//! credentials of the server, and only over TLS. What the process says to one control plane can go over one connection:
//! that of the ADS stream is lent to others for as long as it lasts. Refuses to know what is said over the connection, and
//! never reconnects by itself: its users know when that makes sense.

mod jwt;
mod preface;
mod probing;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
mod worker;

pub(crate) use self::worker::AbortOnDrop;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::header::AUTHORIZATION;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::error::BoxError;
use mesh_core::identity::Identity;
use mesh_core::race;
use mesh_core::source::{Watched, WatchedIdentity};
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use self::jwt::JwtTokenFile;
use self::preface::Heard;
use self::probing::Probing;
use crate::bootstrap::{CallCredentials, ChannelCredentials, ServerUri, XdsServer};
use crate::clock::{self, Clock};
use crate::secret::Refusal;

/// Time for TCP connect, TLS handshake and HTTP/2 preface together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message taken; gRPC's default of 4 MiB is too small for the endpoints of a large cluster.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// How to reach a control plane. Clones share what was read of the credentials' files, and like the
/// [ways to others](Connector::to) the connections that are lent.
#[derive(Clone)]
pub struct Connector {
    server: XdsServer,
    identity: Option<WatchedIdentity>,
    /// Of an identity its roots are used and its certificate is not shown.
    unshown: bool,
    refusal: Refusal,
    /// The refusal that a connection failed with last.
    told: Arc<Mutex<Option<Arc<str>>>>,
    crypto: Arc<CryptoProvider>,
    /// By which the server's certificate is judged, and the tokens that go there.
    clock: Clock,
    files: Arc<tls::Files>,
    tokens: Arc<[JwtTokenFile]>,
    probing: Arc<Probing>,
    lent: Arc<Mutex<HashMap<XdsServer, Lent>>>,
}

/// A connection that others may use; it stays its owner's.
struct Lent {
    requests: SendRequest<tonic::body::Body>,
    origin: Uri,
    driver: Weak<worker::Driver>,
}

impl Connector {
    /// A connector without a client certificate of the mesh (files named by the credentials are used
    /// all the same).
    pub fn new(server: XdsServer, crypto: Arc<CryptoProvider>) -> Self {
        let clock = clock::system();
        let tokens = tokens(&server, &clock);
        let (refusal, told) = (Watched::fixed(None), Arc::default());
        let (files, probing, lent) = (Arc::default(), Arc::default(), Arc::default());
        Self { server, identity: None, unshown: false, refusal, told, crypto, clock, files, tokens, probing, lent }
    }

    /// With this clock instead of the system's.
    #[must_use]
    pub(crate) fn with_clock(self, clock: Clock) -> Self {
        let tokens = tokens(&self.server, &clock);
        Self { clock, tokens, ..self }
    }

    /// Shows the mesh certificate of the moment on every TLS connection; the first connection waits for
    /// it. Without effect on plaintext, and where the bootstrap says how we prove ourselves to this server:
    /// by a certificate of the channel credentials or by call credentials.
    #[must_use]
    pub fn with_identity(mut self, identity: WatchedIdentity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Why there is no identity yet: a connection that waits for one fails with that, once for each reason. The
    /// next one waits on, so that it begins as soon as the identity is there.
    #[must_use]
    pub fn with_refusal(mut self, refusal: Refusal) -> Self {
        self.refusal = refusal;
        self
    }

    /// The way to another control plane, as the same process. What proves us to this server stays here: the
    /// other one gets its own call credentials and files.
    #[must_use]
    pub fn to(&self, server: XdsServer) -> Self {
        let (identity, refusal, lent) = (self.identity.clone(), self.refusal.clone(), self.lent.clone());
        Self { identity, refusal, lent, ..Self::new(server, self.crypto.clone()).with_clock(self.clock.clone()) }
    }

    /// The same way without showing an identity's certificate; the server is verified as before.
    pub(crate) fn unshown(&self) -> Self {
        Self { unshown: true, ..self.clone() }
    }

    /// The server's address as text.
    pub fn server(&self) -> String {
        self.server.uri.to_string()
    }

    pub(crate) fn crypto(&self) -> &Arc<CryptoProvider> {
        &self.crypto
    }

    pub(crate) fn credentials(&self) -> &ChannelCredentials {
        &self.server.credentials
    }

    /// Connects, with our certificate if there is to be one.
    pub(crate) async fn connect(&self) -> Result<Connection, ConnectError> {
        let identity = match self.shows() {
            Some(identity) => self.first(identity).await?,
            None => None,
        };
        self.connect_as(identity.as_deref()).await
    }

    /// Connects, and lends the connection to whoever asks for one [shared](Self::shared) with this control plane.
    pub(crate) async fn connect_to_lend(&self) -> Result<Connection, ConnectError> {
        let connection = self.connect().await?;
        let Connection { requests, origin, driver, .. } = &connection;
        let lent = Lent { requests: requests.clone(), origin: origin.clone(), driver: Arc::downgrade(driver) };
        self.lent.lock().insert(self.server.clone(), lent);
        Ok(connection)
    }

    /// The connection that is lent, else a new one of the caller's own (gRPC's LRS stream uses the channel of ADS).
    pub(crate) async fn shared(&self) -> Result<Connection, ConnectError> {
        let lent = self.lent.lock().get(&self.server).and_then(|lent| {
            let driver = lent.driver.upgrade().filter(|_| !lent.requests.is_closed())?;
            let (requests, origin) = (lent.requests.clone(), lent.origin.clone());
            Some(Connection { requests, origin, tokens: self.tokens.clone(), driver })
        });
        match lent {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        }
    }

    /// Whether a connection with our certificate would wait for the first one.
    pub(crate) fn waits_for_identity(&self) -> bool {
        self.shows().is_some_and(|identity| identity.load().is_none())
    }

    /// The identity that is shown there, if one is.
    fn shows(&self) -> Option<&WatchedIdentity> {
        let ChannelCredentials::Tls(files) = &self.server.credentials else { return None };
        self.identity.as_ref().filter(|_| files.identity.is_none() && self.tokens.is_empty())
    }

    /// Waits for the first identity, or for word that there is none for now.
    async fn first(&self, identity: &WatchedIdentity) -> Result<Option<Arc<Identity>>, ConnectError> {
        let (mut identity, mut refusal) = (identity.clone(), self.refusal.clone());
        tokio::select! {
            biased;
            identity = identity.wait_for(Option::is_some) => Ok((*identity).clone()),
            refused = refusal.wait_for(|why| why.is_some() && *why != *self.told.lock()) => {
                let why = (*refused).as_deref().unwrap_or_default();
                self.told.lock().clone_from(&refused);
                Err(ConnectError { server: self.server(), reason: format!("this process has no certificate: {why}") })
            }
        }
    }

    /// Connects with exactly this certificate.
    pub(crate) async fn connect_as(&self, identity: Option<&Identity>) -> Result<Connection, ConnectError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.handshakes(identity))
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {CONNECT_TIMEOUT:?}")))
            .map_err(|reason| ConnectError { server: self.server(), reason })
    }

    async fn handshakes(&self, identity: Option<&Identity>) -> Result<Connection, String> {
        match &self.server.uri {
            ServerUri::Tcp { host, port } => {
                let found = tokio::net::lookup_host((host.as_str(), *port)).await.map_err(|e| e.to_string())?;
                self.first_of(&found.collect::<Vec<_>>(), host, identity).await
            }
            #[cfg(unix)]
            ServerUri::Unix(path) => {
                let io = tokio::net::UnixStream::connect(path).await.map_err(|e| e.to_string())?;
                self.secured("localhost", io, identity).await
            }
            #[cfg(not(unix))]
            ServerUri::Unix(_) => Err("unix sockets do not exist on this system".to_owned()),
        }
    }

    /// A connection to one of these, which are all `host`: a dead one costs a head start over the next. One that takes
    /// the connection and leaves the handshake unanswered is as dead as one that takes none.
    async fn first_of(
        &self,
        addresses: &[SocketAddr],
        host: &str,
        identity: Option<&Identity>,
    ) -> Result<Connection, String> {
        let connect = |address| async move {
            let io = TcpStream::connect(address).await?;
            // Small frames in both directions: latency counts, not packets.
            io.set_nodelay(true)?;
            self.secured(host, io, identity).await.map_err(io::Error::other)
        };
        race::race(&race::interleave(addresses), connect).await.map_err(|e| e.to_string())
    }

    async fn secured<I>(&self, host: &str, io: I, identity: Option<&Identity>) -> Result<Connection, String>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match &self.server.credentials {
            ChannelCredentials::Insecure if !self.tokens.is_empty() => {
                Err("its call_creds are only sent over TLS; give it channel_creds of type \"tls\"".to_owned())
            }
            ChannelCredentials::Insecure => self.http2(io, "http").await,
            ChannelCredentials::Tls(credentials) => {
                let mut config = self.files.client_config(credentials, identity, !self.unshown, &self.crypto).await?;
                config.time_provider = Arc::new(clock::OfTls(self.clock.clone()));
                let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("{host:?}: {e}"))?;
                let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
                    .connect(name, io)
                    .await
                    .map_err(|e| format!("TLS handshake: {e}"))?;
                self.http2(tls, "https").await
            }
        }
    }

    async fn http2<I>(&self, io: I, scheme: &str) -> Result<Connection, String>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let origin = self.origin(scheme)?;
        let (io, heard) = Heard::of(io);
        let (requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(self.probing.interval())
            .keep_alive_timeout(probing::TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| format!("HTTP/2: {e}"))?;
        let driver = Arc::new(worker::drive(connection, self.probing.clone()));
        // Of a process that hangs the system takes connections all the same: one without the server's preface is none. One
        // that has ended tells whoever uses it why.
        let _ = heard.await;
        Ok(Connection { requests, origin, tokens: self.tokens.clone(), driver })
    }

    fn origin(&self, scheme: &str) -> Result<Uri, String> {
        let authority = match &self.server.uri {
            ServerUri::Tcp { .. } => self.server.uri.to_string(),
            ServerUri::Unix(_) => "localhost".to_owned(),
        };
        Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build().map_err(|e| e.to_string())
    }
}

fn tokens(server: &XdsServer, clock: &Clock) -> Arc<[JwtTokenFile]> {
    let token = |credentials: &CallCredentials| match credentials {
        CallCredentials::JwtTokenFile { path } => JwtTokenFile::new(path.clone(), clock.clone()),
    };
    server.call_credentials.iter().map(token).collect()
}

/// An open connection: a gRPC transport for generated clients. It closes when the last clone is dropped.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<tonic::body::Body>,
    origin: Uri,
    tokens: Arc<[JwtTokenFile]>,
    driver: Arc<worker::Driver>,
}

impl Connection {
    /// Scheme and authority that requests must carry.
    pub(crate) fn origin(&self) -> Uri {
        self.origin.clone()
    }
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Connection {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.requests.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        // The answer keeps the connection open until its head is there; a stream's owner keeps a clone.
        let mut connection = self.clone();
        Box::pin(async move {
            // A request that proves itself, by a join token say, needs no other proof.
            if !request.headers().contains_key(AUTHORIZATION) {
                for token in &*connection.tokens {
                    // A failure is a `Status` and comes out of the generated client as such.
                    request.headers_mut().append(AUTHORIZATION, token.header().await?);
                }
            }
            Ok(connection.requests.send_request(request).await?)
        })
    }
}

/// A connection that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot connect to the control plane at {server}: {reason}")]
pub struct ConnectError {
    server: String,
    reason: String,
}

/// What a gRPC status says, as text: codes of the control plane mean nothing to the application.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    let message = status.message();
    if message.is_empty() { status.code().to_string() } else { message.to_owned() }
}
