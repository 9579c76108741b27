//! [`ExtAuthz`]: an external authorizer that is a service, asked as Envoy asks: over gRPC
//! (`envoy.service.auth.v3.Authorization/Check`), as OPA and its like are, or over plain HTTP.
//!
//! ```text
//! question ─► exchange, within the time ─┬─► nothing was said: fail_open decides
//!                                        ├─► an error, or something that is not understood: no
//!                                        └─► yes or no
//! ```
//!
//! Refuses to know how the service is reached: any Tower service that carries HTTP requests will do.

mod grpc;
mod http;
mod wire;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::poll_fn;

use ::http::uri::Authority;
use ::http::{Request, Response, StatusCode, response};
use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, LengthLimitError, Limited};
use tokio::time::timeout;
use tower_service::Service;

use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, Unavailable};
use mesh_core::error::BoxError;
use mesh_core::policy::{AuthorizerProtocol, AuthorizerService, CheckedBody};

/// Asks a service: one that implements `envoy.service.auth.v3.Authorization` (Istio `envoyExtAuthzGrpc`), or one that answers
/// a request like the one in question (Istio `envoyExtAuthzHttp`).
///
/// Over gRPC it is told method, path, host, headers, addresses, and both sides' SPIFFE IDs, and of the body what the settings
/// say. Of its yes the headers for the application, those to remove and those for the caller are taken; of its no status,
/// headers and body. Over HTTP it is told, and taken from it, what [`HttpCheck`](mesh_core::policy::HttpCheck) says; a request
/// that has no path (CONNECT, `OPTIONS *`) cannot be asked about in that way, and is denied.
///
/// There is no answer if the service cannot be reached, takes too long, or fails (an HTTP status of 500 and above; over gRPC
/// UNAVAILABLE and DEADLINE_EXCEEDED too): then `fail_open` decides. Over gRPC any other status is no yes, whatever `fail_open`
/// says, nor is an answer that came and cannot be read, says nothing, or asks for what is not done. Envoy lets such a request
/// pass where it fails open; but what was said may have been a no, and a caller can bring it about, by headers larger than the
/// service takes, say (RESOURCE_EXHAUSTED, HTTP 431).
#[derive(Clone)]
pub struct ExtAuthz<S> {
    service: S,
    target: Authority,
    settings: AuthorizerService,
    status: StatusCode,
}

/// Largest answer that is read, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Where Envoy says whether there is more of a body than it tells.
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// A provider that cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the external authorizer {target:?} cannot be asked: {reason}")]
pub struct InvalidProvider {
    target: String,
    reason: String,
}

/// Why there is no answer to go by.
#[derive(Debug)]
enum Failed {
    /// Nothing was said.
    Silent(String),
    /// Something was.
    Garbled(String),
}

/// A whole answer.
type Answered = (response::Parts, Collected<Bytes>);

impl<S> ExtAuthz<S> {
    /// An authorizer that is asked through `service`, as `settings` say.
    ///
    /// # Errors
    /// The target is no `host:port`, the status is none, or it wants more than [`CheckedBody::MOST`] of a body.
    pub fn new(service: S, settings: AuthorizerService) -> Result<Self, InvalidProvider> {
        let invalid = |reason: String| InvalidProvider { target: settings.target.clone(), reason };
        let target = settings.target.parse().map_err(|error: ::http::uri::InvalidUri| invalid(error.to_string()))?;
        let status = StatusCode::from_u16(settings.status_on_error).map_err(|error| invalid(error.to_string()))?;
        if settings.body.is_some_and(|body| body.max_bytes.get() > CheckedBody::MOST) {
            return Err(invalid(format!("of a body it may be told {} bytes at most", CheckedBody::MOST)));
        }
        Ok(Self { service, target, settings, status })
    }

    fn question(&self, request: CheckRequest) -> Result<Request<Full<Bytes>>, Failed> {
        match &self.settings.protocol {
            AuthorizerProtocol::Grpc => {
                let as_bytes = self.settings.body.is_some_and(|body| body.as_bytes);
                grpc::question(&self.target, request, as_bytes)
            }
            AuthorizerProtocol::Http(how) => http::question(&self.target, how, request),
        }
    }

    fn answer(&self, answered: Answered) -> Result<CheckResponse, Failed> {
        match &self.settings.protocol {
            AuthorizerProtocol::Grpc => grpc::answer(answered),
            AuthorizerProtocol::Http(how) => http::answer(how, answered),
        }
    }

    fn unavailable(&self, failed: Failed) -> Unavailable {
        let (reason, fail_open) = match failed {
            Failed::Silent(reason) => (reason, self.settings.fail_open),
            Failed::Garbled(reason) => (reason, false),
        };
        Unavailable { reason: format!("{}: {reason}", self.settings.target), fail_open, status: self.status }
    }
}

impl<S> fmt::Debug for ExtAuthz<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtAuthz").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<S, RB> ExternalAuthorizer for ExtAuthz<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<RB>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    RB: http_body::Body<Data = Bytes> + Send,
    RB::Error: Into<BoxError>,
{
    fn check(&self, request: CheckRequest) -> Checking<'_> {
        let question = self.question(request);
        let service = self.service.clone();
        Box::pin(async move {
            let time = self.settings.timeout;
            let answered = match question {
                Ok(question) => timeout(time, exchange(service, question)).await,
                Err(failed) => Ok(Err(failed)),
            };
            let answered =
                answered.unwrap_or_else(|_| Err(Failed::Silent(format!("there is no answer within {time:?}"))));
            answered.and_then(|answered| self.answer(answered)).map_err(|failed| self.unavailable(failed))
        })
    }

    fn body(&self) -> Option<CheckedBody> {
        self.settings.body
    }
}

/// One request and its whole answer.
async fn exchange<S, RB>(mut service: S, question: Request<Full<Bytes>>) -> Result<Answered, Failed>
where
    S: Service<Request<Full<Bytes>>, Response = Response<RB>>,
    S::Error: Into<BoxError>,
    RB: http_body::Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    let failed = |error: S::Error| Failed::Silent(error.into().to_string());
    poll_fn(|cx| service.poll_ready(cx)).await.map_err(failed)?;
    let (head, body) = service.call(question).await.map_err(failed)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
        let of = if error.is::<LengthLimitError>() { Failed::Garbled } else { Failed::Silent };
        of(format!("its answer cannot be read: {error}"))
    })?;
    Ok((head, body))
}
