//! What happens to a request about which an external authorizer has to be asked: its word is waited for, and then the
//! rest of the policies decide. It is asked in a context of its own: what the caller says of time and retries must not
//! keep the authorizer from answering, for without an answer a provider may let the request pass. The request has its place among those in flight
//! before, and keeps it until it is denied or served.
//!
//! ```text
//! question → answer: no   → the authorizer's refusal
//!                    none → denied, unless the provider fails open
//!                    yes  → headers changed → the other policies → the application
//! ```
//!
//! Refuses to know how an authorizer is asked.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use mesh_core::authz::{CheckBody, CheckRequest, CheckResponse, HeaderChange, Refusal};
use mesh_core::context::{self, RequestContext};
use mesh_core::error::Code;
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{CheckedBody, is_fixed_header, is_reserved_header};

use super::body::Content;
use super::gate::{Answer, Asking, authority};
use super::record::Record;
use super::tunnel::is_tunnel;
use super::{InboundLayer, Refused, Work};
use crate::BodyError;
use crate::body::with_trailers;

/// A request that waits for an authorizer, and what it needs afterwards.
pub(super) struct Ask<S, B> {
    pub(super) layer: InboundLayer,
    /// Ready to be called.
    pub(super) inner: S,
    pub(super) request: Request<B>,
    pub(super) context: Arc<RequestContext>,
    pub(super) grpc: bool,
}

impl<S, B> Ask<S, B> {
    fn peer(&self) -> Option<&PeerIdentity> {
        self.context.caller.as_deref()
    }
}

/// How it goes on.
pub(super) type Proceed<F> = Box<dyn FnOnce(&mut Option<Record>) -> Work<F> + Send>;

/// A question under way. Only requests that somebody is asked about pay for the box.
pub(super) type Asked<F> = Pin<Box<dyn Future<Output = Proceed<F>> + Send>>;

/// Asks until everybody has been asked or one says no.
pub(super) fn ask<S, B>(asking: Asking, mut ask: Ask<S, B>) -> Asked<S::Future>
where
    S: Service<Request<B>> + Send + 'static,
    B: Body<Data: Buf> + Send + 'static,
{
    let context = ask.context.clone();
    Box::pin(context::scope(context, async move {
        let grpc = ask.grpc;
        let proceed: Proceed<S::Future> = match decide(asking, &mut ask).await {
            Ok(more) => Box::new(move |record| {
                let Ask { layer, mut inner, request, context, grpc, .. } = ask;
                let mut work = layer.hand_over(&mut inner, request, context, grpc, record);
                if let Work::Serving { more: place, .. } = &mut work {
                    *place = (!more.is_empty()).then(|| more.into());
                }
                work
            }),
            Err((why, details)) => Box::new(move |record| {
                if let Some(record) = record {
                    // How long the application would have taken nobody knows.
                    record.release();
                    record.note(details);
                }
                Work::Refused { why, grpc }
            }),
        };
        proceed
    }))
}

/// The changes of the answer's headers that come with a yes.
async fn decide<S, B: Send + 'static>(
    first: Asking,
    ask: &mut Ask<S, B>,
) -> Result<Vec<HeaderChange>, (Refused, Box<str>)> {
    let mut more = Vec::new();
    let mut next = Some(first);
    while let Some(asking) = next {
        let mut question = question(&asking, ask);
        // What follows CONNECT is no body, and its sender may wait for the answer.
        let wanted = asking.authorizer().body().filter(|_| !is_tunnel(&ask.request));
        if let Some(wanted) = wanted {
            question.body = Some(body(&mut ask.request, wanted).await?);
        }
        let of_question = Arc::new(ask.context.of_question());
        match context::scope(of_question, async { asking.authorizer().check(question).await }).await {
            Ok(CheckResponse::Allowed { mut request, response }) => {
                asking.count(Answer::Allowed);
                request.retain(|change| !is_reserved_header(change.name()));
                HeaderChange::apply(&request, ask.request.headers_mut());
                if !request.is_empty()
                    && let Some(body) = with_trailers(&mut ask.request)
                {
                    body.withhold(request.iter().map(|change| change.name().clone()).collect());
                }
                more.extend(response.into_iter().filter(|change| !is_fixed_header(change.name())));
            }
            Ok(CheckResponse::Denied(refusal)) => {
                asking.count(Answer::Denied);
                told(&asking, ask, "denied", &refusal.status, "the external authorizer denies it");
                return Err((Refused::External(Box::new(refusal)), "ext_authz_denied".into()));
            }
            Err(unavailable) => {
                asking.count(Answer::Unavailable);
                let decision = if unavailable.fail_open { "allowed" } else { "denied" };
                told(&asking, ask, decision, &unavailable, "the external authorizer gives no answer");
                if !unavailable.fail_open {
                    return Err((Refused::Unavailable(unavailable.status), "ext_authz_error".into()));
                }
            }
        }
        let server_name = ask.layer.connection.server_name.as_deref();
        let judged = asking.go_on(&ask.request, ask.peer(), server_name, ask.context.tokens.as_deref());
        next = judged.map_err(|closed| (Refused::Closed(closed.code), closed.details))?;
    }
    Ok(more)
}

/// What an authorizer is told of a body. Only bodies of this server's own acceptor can be read and served all the same.
async fn body<B: Send + 'static>(
    request: &mut Request<B>,
    wanted: CheckedBody,
) -> Result<CheckBody, (Refused, Box<str>)> {
    let refused = |status, text: &'static str, details: &str| {
        let refusal = Refusal { body: Bytes::from_static(text.as_bytes()), ..Refusal::new(status) };
        (Refused::External(Box::new(refusal)), details.into())
    };
    let body: &mut (dyn Any + Send) = request.body_mut();
    let Some(body) = body.downcast_mut::<crate::Body>() else {
        let text = "the external authorizer wants the body, which cannot be read here";
        return Err(refused(StatusCode::FORBIDDEN, text, "ext_authz_error"));
    };
    let most = usize::try_from(wanted.max_bytes.get()).unwrap_or(usize::MAX);
    match body.look_ahead(most).await {
        Ok((_, true)) if !wanted.allow_partial => {
            let text = "the body is larger than the external authorizer takes";
            Err(refused(StatusCode::PAYLOAD_TOO_LARGE, text, "request_payload_too_large"))
        }
        Ok((bytes, partial)) => Ok(CheckBody { bytes, partial }),
        Err(BodyError::Stalled(_)) => {
            Err(refused(StatusCode::REQUEST_TIMEOUT, "the request's body stopped coming", "stream_idle_timeout"))
        }
        Err(BodyError::Connection(_)) => {
            Err(refused(StatusCode::BAD_REQUEST, "the request's body is not whole", "request_payload_broken"))
        }
    }
}

fn question<S, B>(asking: &Asking, ask: &Ask<S, B>) -> CheckRequest {
    let request = &ask.request;
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let mut question = CheckRequest::new(request.method().clone(), path, asking.destination());
    question.caller = ask.peer().and_then(|peer| peer.spiffe_id.clone());
    question.own = ask.layer.connection.shared.own_id();
    question.source = ask.peer().map(|peer| peer.address);
    question.authority = authority(request).to_owned();
    question.version = request.version();
    question.headers = request.headers().clone();
    question.server_name = ask.layer.connection.server_name.as_deref().unwrap_or_default().to_owned();
    question
}

#[cold]
fn told<S, B>(
    asking: &Asking,
    ask: &Ask<S, B>,
    decision: &'static str,
    why: &dyn std::fmt::Display,
    text: &'static str,
) {
    let (provider, policy, rule) = asking.names();
    tracing::info!(
        target: "mesh::audit",
        decision,
        provider,
        policy,
        rule,
        why = %why,
        principal = ask.peer().and_then(|peer| peer.spiffe_id.as_ref()).map(tracing::field::display),
        peer = ask.peer().map(|peer| tracing::field::display(peer.address)),
        method = %ask.request.method(),
        path = ask.request.uri().path(),
        "{text}"
    );
}

/// An authorizer's refusal as an answer.
pub(super) fn answer<B>(grpc: bool, refusal: &Refusal) -> Response<Content<B>> {
    let mut response = if grpc {
        // A message is percent-encoded; what is no plain ASCII is left out.
        let text = if refusal.body.is_empty() { b"denied by the external authorizer" } else { &refusal.body[..] };
        let mut response = super::answer(true, StatusCode::OK, grpc_status_of(refusal.status), "");
        let plain = |b: &u8| (b' '..=b'~').contains(b) && *b != b'%';
        let text: Vec<u8> = text.iter().copied().filter(plain).take(1024).collect();
        if let Ok(message) = HeaderValue::from_bytes(&text) {
            response.headers_mut().insert("grpc-message", message);
        }
        response
    } else {
        let text = (!refusal.body.is_empty()).then(|| Bytes::clone(&refusal.body));
        let mut response = Response::new(Content::Text { text });
        *response.status_mut() = refusal.status;
        response
    };
    for (name, value) in refusal.headers.iter().filter(|(name, _)| !is_fixed_header(name)) {
        if !(grpc && response.headers().contains_key(name)) {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

/// What a refusal's status is in gRPC, as Envoy translates it.
pub(super) fn grpc_status_of(status: StatusCode) -> i32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => Code::ACCESS_DENIED.grpc_status(),
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
