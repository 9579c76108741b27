use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::proto::registry::announce_request::Action;
use crate::proto::registry::{AnnounceRequest, AnnounceResponse, RegistryService, RegistryServiceServer};
use crate::test_plane::{connector, serve};

/// A registry that reports what it hears and answers by its rule, as fast as it is let.
#[derive(Clone)]
struct FakeRegistry {
    heard: mpsc::UnboundedSender<Action>,
    refuse: Arc<Mutex<Vec<&'static str>>>,
    called: Arc<Notify>,
    /// One is taken by each stream before it begins.
    streams: Arc<Semaphore>,
    /// One is taken by each answer, after the request has been heard.
    answers: Arc<Semaphore>,
}

#[tonic::async_trait]
impl RegistryService for FakeRegistry {
    async fn announce(
        &self,
        requests: Request<Streaming<AnnounceRequest>>,
    ) -> Result<Response<BoxStream<AnnounceResponse>>, Status> {
        self.called.notify_one();
        self.streams.acquire().await.unwrap().forget();
        let registry = self.clone();
        let answers = requests.into_inner().then(move |request| {
            let registry = registry.clone();
            async move {
                registry.heard.send(request?.action.unwrap()).unwrap();
                registry.answers.acquire().await.unwrap().forget();
                Ok(match registry.refuse.lock().pop() {
                    Some(reason) => AnnounceResponse { accepted: false, reason: reason.to_owned() },
                    None => AnnounceResponse { accepted: true, reason: String::new() },
                })
            }
        });
        Ok(Response::new(answers.boxed()))
    }
}

fn registry() -> (FakeRegistry, mpsc::UnboundedReceiver<Action>) {
    let (heard, hearing) = mpsc::unbounded_channel();
    let plenty = || Arc::new(Semaphore::new(100));
    let (streams, answers) = (plenty(), plenty());
    (FakeRegistry { heard, refuse: Arc::default(), called: Arc::default(), streams, answers }, hearing)
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

/// The control plane keeps what it knows across its restart.
#[tokio::test]
async fn a_withdrawal_while_the_control_plane_is_away_reaches_it_when_it_is_back() {
    for is_noticed in [true, false] {
        let (registry, mut heard) = registry();
        let serving = serve(RegistryServiceServer::new(registry.clone()), None, 0).await;
        let port = serving.port;
        let registration = announce(reviews(), connector(port, None), &Handle::current());
        assert!(is_announcement(heard.recv().await.unwrap()));
        let mut state = registration.state();
        state.wait_for(|state| *state == RegistrationState::Accepted).await;
        drop(serving);
        if is_noticed {
            state.wait_for(|state| *state == RegistrationState::Pending).await;
        }
        let mut withdrawal = pin!(registration.withdraw());
        let failing = async {
            state.wait_for(|state| *state == RegistrationState::Pending).await;
            yield_often().await;
        };
        tokio::select! {
            biased;
            () = &mut withdrawal => panic!("nobody has confirmed it"),
            () = failing => {}
        }
        let _serving = serve(RegistryServiceServer::new(registry), None, port).await;
        withdrawal.await;
        assert!(is_announcement(heard.recv().await.unwrap()), "it is the stream's endpoint that is withdrawn");
        assert!(matches!(heard.try_recv(), Ok(Action::Withdraw(_))));
    }
}

#[tokio::test]
async fn what_was_refused_is_not_withdrawn() {
    let (registry, mut heard) = registry();
    registry.refuse.lock().push("namespace default is not yours");
    let serving = serve(RegistryServiceServer::new(registry), None, 0).await;
    let registration = announce(reviews(), connector(serving.port, None), &Handle::current());
    let mut state = registration.state();
    state.wait_for(|state| *state != RegistrationState::Pending).await;
    drop(serving);
    registration.withdraw().await;
    assert!(is_announcement(heard.recv().await.unwrap()) && heard.try_recv().is_err());
}

/// It may be in the table of another control plane, or be taken in by then.
#[tokio::test]
async fn what_was_accepted_before_it_was_refused_is_withdrawn() {
    for is_refused_again in [false, true] {
        let (registry, mut heard) = registry();
        let serving = serve(RegistryServiceServer::new(registry.clone()), None, 0).await;
        let port = serving.port;
        let registration = announce(reviews(), connector(port, None), &Handle::current());
        let mut state = registration.state();
        state.wait_for(|state| *state == RegistrationState::Accepted).await;
        drop(serving);
        state.wait_for(|state| *state == RegistrationState::Pending).await;
        let refusals = if is_refused_again { 2 } else { 1 };
        registry.refuse.lock().extend(std::iter::repeat_n("not yours", refusals));
        let _serving = serve(RegistryServiceServer::new(registry), None, port).await;
        state.wait_for(|state| *state == RegistrationState::Refused("not yours".into())).await;
        registration.withdraw().await;
        let mut last = None;
        while let Ok(action) = heard.try_recv() {
            last = Some(action);
        }
        assert!(matches!(last, Some(Action::Withdraw(_))), "{last:?}");
    }
}

#[tokio::test]
async fn a_withdrawal_follows_an_announcement_that_is_still_on_its_way() {
    let (registry, mut heard) = registry();
    registry.streams.forget_permits(100);
    let serving = serve(RegistryServiceServer::new(registry.clone()), None, 0).await;
    let registration = announce(reviews(), connector(serving.port, None), &Handle::current());
    registry.called.notified().await;
    let begin = async { registry.streams.add_permits(1) };
    tokio::join!(registration.withdraw(), begin);
    assert!(is_announcement(heard.try_recv().unwrap()));
    assert!(matches!(heard.try_recv(), Ok(Action::Withdraw(_))), "heard before the process may end");
}

/// The control plane may have taken it in, whatever became of the answer.
#[tokio::test]
async fn a_withdrawal_follows_an_announcement_that_is_not_answered_in_time() {
    let (registry, mut heard) = registry();
    registry.streams.forget_permits(100);
    let serving = serve(RegistryServiceServer::new(registry.clone()), None, 0).await;
    let registration = announce(reviews(), connector(serving.port, None), &Handle::current());
    registry.called.notified().await;
    let mut withdrawal = pin!(registration.withdraw());
    let too_long = async {
        yield_often().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(2)).await;
        yield_often().await;
        tokio::time::resume();
    };
    tokio::select! {
        biased;
        () = &mut withdrawal => panic!("nobody has heard of it"),
        () = too_long => {}
    }
    registry.streams.add_permits(100);
    withdrawal.await;
    let mut last = None;
    while let Ok(action) = heard.try_recv() {
        last = Some(action);
    }
    assert!(matches!(last, Some(Action::Withdraw(_))), "{last:?}");
}

#[tokio::test]
async fn the_late_answer_to_an_announcement_does_not_confirm_its_withdrawal() {
    let (registry, mut heard) = registry();
    registry.answers.forget_permits(100);
    let serving = serve(RegistryServiceServer::new(registry.clone()), None, 0).await;
    let registration = announce(reviews(), connector(serving.port, None), &Handle::current());
    assert!(is_announcement(heard.recv().await.unwrap()));
    let withdrawal = registration.withdraw();
    tokio::pin!(withdrawal);
    let first_answer = async {
        // Lets the worker take in the withdrawal before the answer, then the answer before anything else.
        yield_often().await;
        registry.answers.add_permits(1);
        assert!(matches!(heard.recv().await, Some(Action::Withdraw(_))));
        yield_often().await;
    };
    tokio::select! {
        biased;
        () = &mut withdrawal => panic!("the withdrawal has not been answered"),
        () = first_answer => {}
    }
    registry.answers.add_permits(1);
    withdrawal.await;
}

/// Lets everything else on this thread go on.
async fn yield_often() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}
