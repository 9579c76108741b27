//! The roots to trust and the revocation lists, as a stream: a workload learns of a change when it happens and not with
//! its next certificate.

use std::sync::Arc;

use futures_util::stream;
use mesh_core::drain::DrainWatch;
use mesh_discovery::proto::trust::{TrustBundle, TrustBundleService, TrustBundleServiceServer, WatchTrustBundle};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{CertificateAuthority, Changes};
use crate::runtime::Peer;

/// The service of trust bundles.
pub(crate) struct TrustService {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) drain: DrainWatch,
}

/// One who watches, and what was sent last.
struct Watching {
    authority: Arc<CertificateAuthority>,
    changes: Changes,
    sent: Option<TrustBundle>,
    drain: DrainWatch,
}

impl TrustService {
    pub(crate) fn into_server(self) -> TrustBundleServiceServer<Self> {
        TrustBundleServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl TrustBundleService for TrustService {
    async fn watch(&self, request: Request<WatchTrustBundle>) -> Result<Response<BoxStream<TrustBundle>>, Status> {
        Peer::of(request.extensions())?.workload()?;
        let authority = self.authority.clone();
        let watching = Watching { changes: authority.changes(), authority, sent: None, drain: self.drain.clone() };
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
    }
}

impl Watching {
    /// Waits for what was not sent yet; `None` = the control plane stops.
    async fn next(mut self) -> Option<(Result<TrustBundle, Status>, Self)> {
        loop {
            let now = self.authority.watched_bundle();
            if self.sent.as_ref() != Some(&now) {
                self.sent = Some(now.clone());
                return Some((Ok(now), self));
            }
            tokio::select! {
                () = self.drain.drained() => return None,
                () = self.changes.changed() => {}
            }
        }
    }
}
