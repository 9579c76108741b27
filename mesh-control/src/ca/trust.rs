//! The roots to trust, the revocation lists and the federated trust domains, as a stream: a workload learns of a change when
//! it happens and not with its next certificate. Who has no certificate is told once: a member whose own root is gone has
//! none that is good here.

use std::sync::Arc;

use futures_util::stream;
use mesh_core::drain::DrainWatch;
use mesh_core::identity::TrustBundles;
use mesh_core::source::Watched;
use mesh_discovery::proto::trust::{TrustBundle, TrustBundleService, TrustBundleServiceServer, WatchTrustBundle};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{CertificateAuthority, Changes, Federation};
use crate::runtime::{Caller, Peer};

/// The service of trust bundles.
pub(crate) struct TrustService {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) federation: Arc<Federation>,
    pub(crate) drain: DrainWatch,
}

/// One who watches, and what was sent last.
struct Watching {
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    changes: (Changes, Watched<TrustBundles>),
    sent: Option<TrustBundle>,
    drain: DrainWatch,
    /// Ends with the first answer.
    once: bool,
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
        let once = peer.caller == Caller::Anonymous;
        if !once {
            peer.workload()?;
        }
        let (authority, federation, drain) = (self.authority.clone(), self.federation.clone(), self.drain.clone());
        let changes = (authority.changes(), federation.watch());
        let watching = Watching { authority, federation, changes, sent: None, drain, once };
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
    }
}

impl Watching {
    /// Waits for what was not sent yet; `None` = the control plane stops, or all is said.
    async fn next(mut self) -> Option<(Result<TrustBundle, Status>, Self)> {
        if self.once && self.sent.is_some() {
            return None;
        }
        loop {
            let now = TrustBundle { federated: self.federation.told(), ..self.authority.watched_bundle() };
            if self.sent.as_ref() != Some(&now) {
                self.sent = Some(now.clone());
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
