//! What hyper calls for each request of a connection that was handed to it.

use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use tower_service::Service;

use crate::Body;

/// The service of a connection.
pub(super) struct Calls<S> {
    service: TowerToHyperService<S>,
    // How long a body may be silent.
    idle: Option<Duration>,
}

impl<S> Calls<S> {
    pub(super) fn new(service: S, idle: Option<Duration>) -> Self {
        Self { service: TowerToHyperService::new(service), idle }
    }
}

impl<S: Service<Request<Body>> + Clone> hyper::service::Service<Request<Incoming>> for Calls<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = TowerToHyperServiceFuture<S, Request<Body>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        hyper::service::Service::call(&self.service, Body::of(request, self.idle))
    }
}
