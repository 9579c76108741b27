//! The registration service over gRPC: one stream, one endpoint.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use mesh_core::drain::DrainWatch;
use mesh_core::limit::Pace;
use mesh_core::source::Watched;
use mesh_discovery::proto::registry::{
    AnnounceRequest, AnnounceResponse, RegistryService, RegistryServiceServer, announce_request::Action,
};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::table::Registry;
use super::{Registration, announcement};
use crate::model::Model;
use crate::runtime::{Peer, Refusal, Refusals};

/// Messages of one stream that are taken in at once, and then in each second; others wait.
const MESSAGES: (u32, u32) = (100, 20);
/// How long the answer to a withdrawal waits for the save that lacks the endpoint: less than the 2 s after which its process
/// tries another connection.
const SAVED_WITHIN: Duration = Duration::from_millis(1500);

/// The registration service.
pub(crate) struct AnnounceService {
    pub(crate) registry: Arc<Registry>,
    pub(crate) model: Watched<Model>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) drain: DrainWatch,
}

impl AnnounceService {
    /// A place for a stream, if its caller may announce and there is one.
    fn enter(&self, peer: &Peer) -> Result<Held, Status> {
        let (_, namespace, account) = peer.workload()?;
        let id = self.registry.stream(namespace, account, peer.address.ip(), Instant::now());
        let id = id.map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
        Ok(Held { id, registry: self.registry.clone() })
    }

    pub(crate) fn into_server(self) -> RegistryServiceServer<Self> {
        RegistryServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl RegistryService for AnnounceService {
    async fn announce(
        &self,
        request: Request<Streaming<AnnounceRequest>>,
    ) -> Result<Response<BoxStream<AnnounceResponse>>, Status> {
        let peer = Peer::of(request.extensions())?;
        let held = self.enter(&peer).inspect_err(|status| self.refusals.stream("announcement", &peer, status))?;
        let stream = Announcing {
            requests: request.into_inner(),
            held,
            model: self.model.clone(),
            refusals: self.refusals.clone(),
            pace: Pace::new(MESSAGES, Instant::now()),
            drain: self.drain.clone(),
            unsaved: None,
            peer,
        };
        Ok(Response::new(Box::pin(stream::unfold(stream, Announcing::next))))
    }
}

/// One open stream.
struct Announcing {
    requests: Streaming<AnnounceRequest>,
    held: Held,
    model: Watched<Model>,
    refusals: Arc<Refusals>,
    pace: Pace,
    drain: DrainWatch,
    /// The save without what was withdrawn.
    unsaved: Option<u64>,
    peer: Peer,
}

/// A stream's claim on its endpoint. Dropped, however the stream ends, it starts the grace period;
/// after a withdrawal there is nothing left to lose.
struct Held {
    id: u64,
    registry: Arc<Registry>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.registry.lose(self.id, Instant::now());
    }
}

impl Announcing {
    async fn next(mut self) -> Option<(Result<AnnounceResponse, Status>, Self)> {
        let next = async {
            sleep_until(self.pace.next()).await;
            self.requests.message().await
        };
        let message = tokio::select! {
            () = self.drain.drained() => return None,
            message = next => message.ok().flatten()?,
        };
        self.pace.take(Instant::now());
        let response = match self.act(message) {
            Ok(reason) => AnnounceResponse { accepted: true, reason },
            Err(reason) => {
                if let Some(left_out) = self.refusals.of(Refusal::Announcement, &self.peer.caller) {
                    tracing::warn!(peer = %self.peer, ?reason, left_out, "an announcement is refused");
                }
                AnnounceResponse { accepted: false, reason }
            }
        };
        // A control plane that is killed after the answer must not begin anew with the endpoint.
        if let Some(save) = self.unsaved.take() {
            tokio::select! {
                biased;
                () = self.held.registry.saved(save) => {}
                // What came after the save that a shutdown begins with is in the last one, which nobody may live to see: whoever is
                // not answered asks again.
                () = self.drain.drained() => return None,
                () = sleep(SAVED_WITHIN) => tracing::warn!(peer = %self.peer, "a withdrawal is not saved in time"),
            }
        }
        Some((Ok(response), self))
    }

    /// Does what is asked; gives what there is to say all the same, if anything.
    fn act(&mut self, message: AnnounceRequest) -> Result<String, String> {
        let (_, namespace, account) = self.peer.workload().map_err(|status| status.message().to_owned())?;
        match message.action {
            Some(Action::Announce(announced)) => {
                let registration = announcement::check(announced, namespace, account, self.peer.address.ip())
                    .map_err(|e| e.to_string())?;
                self.announce((namespace.to_owned(), registration.service.clone()), registration)
            }
            Some(Action::Withdraw(_)) => {
                tracing::info!(peer = %self.peer, "endpoint withdrawn");
                self.unsaved = self.held.registry.withdraw(self.held.id);
                Ok(String::new())
            }
            None => Err("the message asks for nothing this version knows".to_owned()),
        }
    }

    fn announce(&self, of: (String, String), registration: Registration) -> Result<String, String> {
        let model = self.model.load();
        let service = model.services.get(&of).filter(|service| !service.spec.matches(&registration.labels));
        let said = service.map(|s| s.spec.mismatch(s.name(), &registration.labels)).unwrap_or_default();
        let (port, address) = (registration.service_port, registration.address);
        let announced = self.held.registry.announce(self.held.id, registration, Instant::now());
        announced.map_err(|e| e.to_string())?;
        tracing::info!(peer = %self.peer, service = ?of.1, port, %address, "endpoint announced");
        Ok(said)
    }
}
