//! Code of the application that panics (R37): its request fails, and nothing else does.

use std::convert::Infallible;
use std::future::{Future, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::sync::Semaphore;
use tower_service::Service;

use mesh_core::authz::{CheckRequest, Checking, ExternalAuthorizer, ExternalAuthorizers};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, InboundState, InboundTls,
    PathMatch, Permission, Principal,
};
use mesh_server::{Body, Config, ServerBuilder};

use crate::filters::adaptive;
use crate::kit::{Client, Http, World, eventually, get, listener, policy as plain, read, within};

/// An application whose code panics where the path says, and answers `hello` otherwise.
#[derive(Clone)]
struct Panicking {
    /// When it is asked whether it is ready, which knows no path.
    at_ready: bool,
    /// When a body does.
    go: Arc<Semaphore>,
}

type Answered = Pin<Box<dyn Future<Output = Result<Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>> + Send>>;

impl Service<Request<Body>> for Panicking {
    type Response = Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = BoxError;
    type Future = Answered;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        assert!(!self.at_ready, "as ordered");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answered {
        assert_ne!(request.uri().path(), "/layer", "as ordered");
        let go = self.go.clone();
        let go = async move { go.acquire().await.unwrap().forget() };
        Box::pin(async move {
            assert_ne!(request.uri().path(), "/handler", "as ordered");
            tokio::task::yield_now().await;
            assert_ne!(request.uri().path(), "/later", "as ordered");
            Ok(Response::new(match request.uri().path() {
                "/body" => Breaking { begun: false, go: Box::pin(go) }.boxed_unsync(),
                _ => Full::new("hello".into()).map_err(Into::into).boxed_unsync(),
            }))
        })
    }
}

/// A body that panics after its first frame, when it is told to.
struct Breaking {
    begun: bool,
    go: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl http_body::Body for Breaking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !std::mem::replace(&mut self.begun, true) {
            return Poll::Ready(Some(Ok(Frame::data("begun".into()))));
        }
        ready!(self.go.as_mut().poll(cx));
        panic!("as ordered");
    }
}

/// An authorizer that panics: when it is asked, or when it is looked for.
#[derive(Debug)]
struct Faint;

impl ExternalAuthorizer for Faint {
    fn check(&self, _: CheckRequest) -> Checking<'_> {
        Box::pin(async { panic!("as ordered") })
    }
}

impl ExternalAuthorizers for Faint {
    fn authorizer(&self, provider: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        assert_eq!(provider.name, "asked", "as ordered");
        Some(Arc::new(Self))
    }
}

fn policy(providers: [&str; 2]) -> InboundState {
    let asking = |name: &str| {
        let permissions = vec![Permission::Path(PathMatch::Prefix(format!("/{name}")))];
        let rule = AuthorizationRule { name: "rule".into(), permissions, principals: vec![Principal::Any] };
        let action = AuthorizationAction::Custom(AuthorizerProvider::named(name));
        AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new(name, action) }
    };
    let mut listener = listener(InboundTls::Permissive);
    listener.authorization = providers.map(asking).into();
    InboundState::Ready(Arc::new(listener))
}

/// One request at a time: a place that is not given back is missed at once.
async fn world(at_ready: bool) -> (World, Arc<Semaphore>) {
    let mut config = Config::default();
    config.max_requests = Some(1);
    config.adaptive_concurrency = Some(mesh_core::policy::AdaptiveConcurrency { max_limit: 1, ..adaptive() });
    let settings = |server: ServerBuilder| server.authorizers(Arc::new(Faint));
    let go = Arc::new(Semaphore::new(0));
    let service = Panicking { at_ready, go: go.clone() };
    (World::start_with(policy(["asked", "sought"]), config, settings, service).await, go)
}

async fn status(client: &mut Client, path: &str) -> u16 {
    within(client.get(path)).await.unwrap().0
}

/// Requests that were counted with a status.
fn counted(world: &World, code: u16) -> u64 {
    let mut all = 0;
    world.metrics.visit(|_, outcome, counters| all += if outcome.code == code { counters.requests() } else { 0 });
    all
}

#[tokio::test]
async fn a_panicking_handler_costs_its_request_only() {
    for version in [Http::One, Http::Two] {
        let (world, _) = world(false).await;
        let mut client = world.plain(version).await;
        for path in ["/layer", "/handler", "/later", "/asked"] {
            assert_eq!(status(&mut client, path).await, 500, "{version:?} {path}");
            assert_eq!(status(&mut client, "/").await, 200, "{version:?} {path}: the connection goes on");
            let mut call = get(path);
            call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let answer = within(client.send(call)).await.unwrap();
            assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &"13".parse().unwrap()));
            assert_eq!(within(read(answer)).await.unwrap().1, "", "{version:?} {path}");
        }
        // Nobody can be asked, so it is denied.
        assert_eq!(status(&mut client, "/sought").await, 403, "{version:?}");
        assert_eq!(status(&mut client, "/").await, 200, "{version:?}");
        eventually(|| (counted(&world, 500) == 4).then_some(())).await;
    }
}

#[tokio::test]
async fn a_service_that_panics_when_asked_whether_it_is_ready_costs_its_requests_only() {
    for version in [Http::One, Http::Two] {
        let (world, _) = world(true).await;
        let mut client = world.plain(version).await;
        assert_eq!([status(&mut client, "/").await, status(&mut client, "/").await], [500; 2], "{version:?}");
    }
}

/// Panics the first time that anybody asks it, and is as good as new afterwards but where it was torn.
#[derive(Clone)]
struct Once(Arc<AtomicBool>, bool);

impl Service<Request<Body>> for Once {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        assert!(!self.1, "it is torn");
        self.1 = !self.0.swap(true, Ordering::Relaxed);
        assert!(!self.1, "it panics once");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        std::future::ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
    }
}

#[tokio::test]
async fn what_has_panicked_is_asked_for_no_other_request_of_its_connection() {
    for version in [Http::One, Http::Two] {
        let service = Once(Arc::default(), false);
        let world = World::start(plain(InboundTls::Permissive), Config::default(), service).await;
        let mut client = world.plain(version).await;
        assert_eq!([status(&mut client, "/").await, status(&mut client, "/").await], [500, 200], "{version:?}");
    }
}

#[tokio::test]
async fn a_body_that_panics_breaks_off_and_gives_its_place_back() {
    for version in [Http::One, Http::Two] {
        let (world, go) = world(false).await;
        let mut client = world.plain(version).await;
        let answer = within(client.send(get("/body"))).await.unwrap();
        assert_eq!(answer.status(), 200, "{version:?}");
        go.add_permits(1);
        assert!(within(read(answer)).await.is_err(), "{version:?}: it does not look whole");
        // HTTP/1.1 has no other way to say so than to close.
        let mut client = if version == Http::One { world.plain(version).await } else { client };
        assert_eq!(status(&mut client, "/").await, 200, "{version:?}");
    }
}
