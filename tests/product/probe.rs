//! A TLS client with an identity of choice, outside of any mesh library client: shows what a server
//! presents and whom it lets in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh::parts::mesh_core::identity::{Identity, TrustBundle, TrustBundles, client_config};
use mesh::parts::mesh_discovery::bootstrap::Bootstrap;
use mesh::parts::mesh_discovery::connect::Connector;
use mesh::parts::mesh_discovery::secret::{CertificateAuthorityClient, JoinToken};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Plane, exchange};

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A certificate of this control plane's authority.
pub(crate) async fn identity(plane: &Plane, account: &str) -> Identity {
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": plane.address(),
            "channel_creds": [{"type": "tls", "config": {"ca_certificate_file": plane.root_cert_path()}}],
            "server_features": ["xds_v3"],
        }],
    });
    let server = Bootstrap::from_json(&bootstrap.to_string()).unwrap().server().clone();
    let day = std::time::Duration::from_secs(86_400);
    let authority = CertificateAuthorityClient::new(Connector::new(server, crypto()), day, None);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    authority.first(Some(&JoinToken::Text(plane.token(account))), now).await.unwrap()
}

/// The same certificate in the hands of somebody who trusts the servers of `plane`.
pub(crate) fn trusting(identity: &Identity, plane: &Plane) -> Identity {
    let roots = TrustBundle::from_pem(&std::fs::read(plane.root_cert_path()).unwrap()).unwrap();
    let bundles = TrustBundles::single(identity.id().trust_domain(), roots);
    Identity::new((**identity.certified()).clone(), bundles, 0).unwrap()
}

pub(crate) async fn connect(address: SocketAddr, identity: &Identity) -> io::Result<TlsStream<TcpStream>> {
    let config = client_config(identity, &[], &[b"http/1.1"], &crypto()).unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

/// One GET over mutual TLS.
pub(crate) async fn get(address: SocketAddr, identity: &Identity) -> io::Result<(u16, String)> {
    exchange(&mut connect(address, identity).await?, "/").await
}

/// The certificate that a server presents.
pub(crate) async fn certificate_of(address: SocketAddr, identity: &Identity) -> CertificateDer<'static> {
    let stream = connect(address, identity).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}
