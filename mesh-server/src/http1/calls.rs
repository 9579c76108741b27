//! A request that a copy of the service is called with, here and of connections that are hyper's: at once where that is ready. A request
//! that is put aside until it is asked is moved twice for that, and is large.
//!
//! A copy for each: what one that is not called after all holds (a place under a limit), or one that panicked has torn, ends
//! with it.
//!
//! Refuses to know what the service is.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower_service::Service;

use mesh_core::error::BoxError;

use crate::Body;

const CALLED_ONCE: &str = "it is called once";

/// The service of a connection.
pub(super) struct Calls<S> {
    pub(super) service: S,
    /// How long a body may be silent.
    pub(super) idle: Option<Duration>,
}

impl<S: Service<Request<Body>, Error: Into<BoxError>> + Clone> hyper::service::Service<Request<Incoming>> for Calls<S> {
    type Response = S::Response;
    type Error = BoxError;
    type Future = Called<S, S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Called::of(self.service.clone(), &mut Some(Body::of(request, self.idle)))
    }
}

pin_project! {
    /// A request that the service was called with, or is to be.
    #[project = CalledProjection]
    pub(super) enum Called<S, F> {
        Serving { #[pin] answer: F },
        // Boxed: most services are ready.
        Waiting { waits: Box<(S, Option<Request<Body>>)> },
        Failed { error: Option<BoxError> },
    }
}

impl<S: Service<Request<Body>, Error: Into<BoxError>>> Called<S, S::Future> {
    /// Takes the `request`.
    pub(super) fn of(mut service: S, request: &mut Option<Request<Body>>) -> Self {
        // Nobody waits yet: it is asked again where somebody does.
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Self::Serving { answer: service.call(request.take().expect(CALLED_ONCE)) },
            Poll::Ready(Err(error)) => Self::Failed { error: Some(error.into()) },
            Poll::Pending => Self::Waiting { waits: Box::new((service, request.take())) },
        }
    }
}

impl<S: Service<Request<Body>, Error: Into<BoxError>>> Future for Called<S, S::Future> {
    type Output = Result<S::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let answer = match self.as_mut().project() {
                CalledProjection::Serving { answer } => return answer.poll(cx).map_err(Into::into),
                CalledProjection::Failed { error } => {
                    return Poll::Ready(Err(error.take().expect("a future is not polled after its end")));
                }
                CalledProjection::Waiting { waits } => {
                    let (service, request) = &mut **waits;
                    ready!(service.poll_ready(cx)).map_err(Into::into)?;
                    service.call(request.take().expect(CALLED_ONCE))
                }
            };
            self.set(Self::Serving { answer });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use super::*;

    /// Is ready when it is asked for this time, or fails then; answers with how often it was asked.
    #[derive(Clone)]
    struct Slow(usize, usize, Result<(), &'static str>);

    impl Service<Request<Body>> for Slow {
        type Response = usize;
        type Error = &'static str;
        type Future = Ready<Result<usize, &'static str>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            self.0 += 1;
            if self.0 < self.1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(self.2)
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            ready(Ok(self.0))
        }
    }

    #[tokio::test]
    async fn a_service_is_called_when_it_is_ready_and_not_where_it_fails() {
        let of =
            |at, how| Called::of(Slow(0, at, how), &mut Some(Request::new(Body::whole(bytes::Bytes::new(), None))));
        for at in 1..4 {
            assert_eq!(of(at, Ok(())).await.unwrap(), at);
            assert_eq!(of(at, Err("closed")).await.unwrap_err().to_string(), "closed");
        }
    }
}
