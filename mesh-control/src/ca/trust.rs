//! The roots to trust, the revocation lists and the federated trust domains, as a stream: a workload learns of a change when
//! it happens and not with its next certificate. Who has no certificate is told once: a member whose own root is gone has
//! none that is good here.

use std::sync::Arc;

use aws_lc_rs::digest;
use futures_util::stream;
use mesh_core::drain::DrainWatch;
use mesh_core::identity::TrustBundles;
use mesh_core::source::Watched;
use mesh_discovery::proto::trust::{TrustBundle, TrustBundleService, TrustBundleServiceServer, WatchTrustBundle};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{CertificateAuthority, Changes, Federation};
use crate::runtime::{Caller, Peer};

/// The service of trust bundles.
pub(crate) struct TrustService {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) federation: Arc<Federation>,
    pub(crate) drain: DrainWatch,
    /// Places of those without a certificate, each of whom is told once: what they are told is held until they take it.
    pub(crate) strangers: Arc<Semaphore>,
}

/// How many who have no certificate may be told at once.
pub(crate) const STRANGERS: usize = 64;

/// One who watches, and what was sent last.
struct Watching {
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    changes: (Changes, Watched<TrustBundles>),
    /// A digest: a thousand members are not to hold a thousand copies.
    sent: Option<digest::Digest>,
    drain: DrainWatch,
    /// Of who has no certificate: it ends with the first answer.
    once: Option<OwnedSemaphorePermit>,
}

impl TrustService {
    pub(crate) fn into_server(self) -> TrustBundleServiceServer<Self> {
        TrustBundleServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl TrustBundleService for TrustService {
    async fn watch(&self, request: Request<WatchTrustBundle>) -> Result<Response<BoxStream<TrustBundle>>, Status> {
        let peer = Peer::of(request.extensions())?;
        // Roots and lists are no secret, and whose root is gone has no certificate to ask with.
        let once = if peer.caller == Caller::Anonymous {
            let full = |_| Status::resource_exhausted("many ask for the roots without a certificate; try again later");
            Some(self.strangers.clone().try_acquire_owned().map_err(full)?)
        } else {
            peer.workload()?;
            None
        };
        let (authority, federation, drain) = (self.authority.clone(), self.federation.clone(), self.drain.clone());
        let changes = (authority.changes(), federation.watch());
        let watching = Watching { authority, federation, changes, sent: None, drain, once };
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
    }
}

impl Watching {
    /// Waits for what was not sent yet; `None` = the control plane stops, or all is said.
    async fn next(mut self) -> Option<(Result<TrustBundle, Status>, Self)> {
        if self.once.is_some() && self.sent.is_some() {
            return None;
        }
        loop {
            let now = TrustBundle { federated: self.federation.told(), ..self.authority.watched_bundle() };
            let digest = digest::digest(&digest::SHA256, &now.encode_to_vec());
            if self.sent.as_ref().is_none_or(|sent| sent.as_ref() != digest.as_ref()) {
                self.sent = Some(digest);
                return Some((Ok(now), self));
            }
            tokio::select! {
                () = self.drain.drained() => return None,
                () = self.changes.0.changed() => {}
                () = self.changes.1.changed() => {}
            }
        }
    }
}
