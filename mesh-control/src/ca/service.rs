//! The certificate service over gRPC: proof of identity in, certificate out, one audit line each.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::SpiffeId;
use mesh_discovery::proto::certificate::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceServer,
};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{CertificateAuthority, JoinClaims, JoinTokens, RequestedKey};
use crate::runtime::Peer;

/// The certificate service.
pub(crate) struct CertificateService {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) tokens: Arc<JoinTokens>,
}

/// What a requester showed.
enum Proof {
    /// A join token, checked and not yet used up.
    Token(JoinClaims),
    /// The certificate of its connection, to be renewed.
    Certificate(SpiffeId),
}

impl CertificateService {
    pub(crate) fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self)
    }

    /// A token, if one is shown, speaks for its bearer whatever certificate the connection has.
    fn proof(&self, peer: &Peer, metadata: &MetadataMap) -> Result<Proof, Status> {
        if let Some(authorization) = metadata.get("authorization") {
            let (scheme, token) =
                authorization.to_str().ok().and_then(|value| value.split_once(' ')).unwrap_or_default();
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(Status::unauthenticated("authorization must be: Bearer <join token>"));
            }
            let claims = self.tokens.verify(token.trim()).map_err(|e| Status::unauthenticated(e.to_string()))?;
            return Ok(Proof::Token(claims));
        }
        match peer.caller.identity() {
            Some(id) => Ok(Proof::Certificate(id.clone())),
            None => Err(Status::unauthenticated(
                "a certificate is given for a join token (authorization: Bearer …) or for the certificate it renews",
            )),
        }
    }

    fn issue(
        &self,
        peer: &Peer,
        metadata: &MetadataMap,
        request: &IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        let proof = self.proof(peer, metadata)?;
        // Before the token is used up: a broken request must not cost it.
        let key = RequestedKey::from_csr_pem(&request.csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (id, how) = match proof {
            Proof::Certificate(id) => (id, "certificate"),
            Proof::Token(claims) => {
                let domain = self.authority.trust_domain();
                let id = SpiffeId::for_service_account(domain, claims.namespace(), claims.service_account())
                    .map_err(|e| Status::unauthenticated(e.to_string()))?;
                self.tokens.consume(&claims).map_err(|e| Status::unauthenticated(e.to_string()))?;
                (id, "join token")
            }
        };
        // Zero and less mean "as you like".
        let wished = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let issued = self.authority.issue(&key, &id, wished).map_err(|e| Status::permission_denied(e.to_string()))?;
        tracing::info!(
            target: "mesh::ca", %id, proof = how, peer = %peer, serial = %issued.serial,
            not_after = issued.not_after, "certificate issued"
        );
        Ok(issued.chain_pem)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        match self.issue(&peer, request.metadata(), request.get_ref()) {
            Ok(cert_chain) => Ok(Response::new(IstioCertificateResponse { cert_chain })),
            Err(status) => {
                tracing::warn!(target: "mesh::ca", peer = %peer, reason = status.message(), "certificate refused");
                Err(status)
            }
        }
    }
}
