use std::sync::Arc;

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::proto::registry::announce_request::Action;
use crate::proto::registry::{AnnounceRequest, AnnounceResponse, RegistryService, RegistryServiceServer};
use crate::test_plane::{connector, serve};

/// A registry that reports what it hears and answers by its rule.
#[derive(Clone)]
struct FakeRegistry {
    heard: mpsc::UnboundedSender<Action>,
    refuse: Arc<Mutex<Vec<&'static str>>>,
}

#[tonic::async_trait]
impl RegistryService for FakeRegistry {
    async fn announce(
        &self,
        requests: Request<Streaming<AnnounceRequest>>,
    ) -> Result<Response<BoxStream<AnnounceResponse>>, Status> {
        let registry = self.clone();
        let answers = requests.into_inner().map(move |request| {
            registry.heard.send(request?.action.unwrap()).unwrap();
            Ok(match registry.refuse.lock().pop() {
                Some(reason) => AnnounceResponse { accepted: false, reason: reason.to_owned() },
                None => AnnounceResponse { accepted: true, reason: String::new() },
            })
        });
        Ok(Response::new(answers.boxed()))
    }
}

fn registry() -> (FakeRegistry, mpsc::UnboundedReceiver<Action>) {
    let (heard, hearing) = mpsc::unbounded_channel();
    (FakeRegistry { heard, refuse: Arc::default() }, hearing)
}

fn reviews() -> Announcement {
    Announcement {
        service: "reviews".to_owned(),
        namespace: "default".to_owned(),
        service_port: 9080,
        address: "127.0.0.1:1234".to_owned(),
        ..Default::default()
    }
}

fn is_announcement(action: Action) -> bool {
    matches!(action, Action::Announce(announcement) if announcement == reviews())
}

#[tokio::test]
async fn an_announcement_is_repeated_after_a_restart_and_withdrawn_at_the_end() {
    let (registry, mut heard) = registry();
    let serving = serve(RegistryServiceServer::new(registry.clone()), None, 0).await;
    let port = serving.port;
    let registration = announce(reviews(), connector(port, None), &Handle::current());
    assert!(is_announcement(heard.recv().await.unwrap()));
    let mut state = registration.state();
    state.wait_for(|state| *state == RegistrationState::Accepted).await;

    drop(serving);
    state.wait_for(|state| *state == RegistrationState::Pending).await;
    let _serving = serve(RegistryServiceServer::new(registry), None, port).await;
    assert!(is_announcement(heard.recv().await.unwrap()));
    state.wait_for(|state| *state == RegistrationState::Accepted).await;

    registration.withdraw().await;
    assert!(matches!(heard.recv().await.unwrap(), Action::Withdraw(_)));
}

#[tokio::test]
async fn a_refusal_tells_why_and_is_tried_again() {
    let (registry, mut heard) = registry();
    registry.refuse.lock().push("namespace default is not yours");
    let serving = serve(RegistryServiceServer::new(registry), None, 0).await;
    let registration = announce(reviews(), connector(serving.port, None), &Handle::current());
    let mut state = registration.state();
    let refused = state.wait_for(|state| *state != RegistrationState::Pending).await;
    assert_eq!(*refused, RegistrationState::Refused("namespace default is not yours".into()));
    state.wait_for(|state| *state == RegistrationState::Accepted).await;
    assert!(is_announcement(heard.recv().await.unwrap()) && is_announcement(heard.recv().await.unwrap()));
}

#[tokio::test]
async fn without_a_control_plane_a_withdrawal_has_nothing_to_wait_for() {
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let registration = announce(reviews(), connector(port, None), &Handle::current());
    assert_eq!(**registration.state().load(), RegistrationState::Pending);
    registration.withdraw().await;
}
