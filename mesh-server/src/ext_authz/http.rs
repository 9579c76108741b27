//! The question and the answer over plain HTTP, as Envoy's `http_service` has them: a request with the method, path and
//! host of the one in question, and a status that decides.

use ::http::header::{AUTHORIZATION, EXPECT, LOCATION, WWW_AUTHENTICATE};
use ::http::uri::Authority;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::Full;

use mesh_core::authz::{CheckRequest, CheckResponse, HeaderChange, Refusal};
use mesh_core::context::{RETRIED, SentHost, is_of_hop};
use mesh_core::orca;
use mesh_core::policy::{HttpCheck, NamePattern, is_fixed_header};

use super::{Answered, Failed, PARTIAL};

/// In which Envoy is told what to take away from the request.
const REMOVED: &str = "x-envoy-auth-headers-to-remove";

/// A request to the authorizer.
pub(super) fn question(to: &Authority, how: &HttpCheck, of: CheckRequest) -> Result<Request<Full<Bytes>>, Failed> {
    if of.method == Method::CONNECT || !of.path_and_query.starts_with('/') {
        return Err(Failed::Garbled("a request without a path cannot be asked about over HTTP".to_owned()));
    }
    let path = format!("{}{}", how.path_prefix, of.path_and_query);
    let uri = Uri::builder().scheme("http").authority(to.clone()).path_and_query(path).build();
    let uri = uri.map_err(|error| Failed::Garbled(format!("its path cannot be asked for: {error}")))?;
    let (partial, body) = of.body.map(|body| (body.partial, body.bytes)).unzip();
    let mut question = Request::new(Full::new(body.unwrap_or_default()));
    (*question.method_mut(), *question.uri_mut()) = (of.method, uri);
    if let Ok(host) = HeaderValue::from_str(&of.authority)
        && !host.is_empty()
    {
        question.extensions_mut().insert(SentHost(host));
    }
    let headers = question.headers_mut();
    let told = |name: &HeaderName| *name == AUTHORIZATION || any(&how.request_headers, name);
    // Those of one hop, and of the body that goes along or not, are this request's own.
    let own = |name: &HeaderName| is_fixed_header(name) || *name == EXPECT;
    // What the caller says of time, retries and faults would be said of the question.
    for (name, value) in of.headers.iter().filter(|(name, _)| !own(name) && !is_of_hop(name) && told(name)) {
        headers.append(name, value.clone());
    }
    for write in how.added_headers.iter().filter(|write| !own(&write.name)) {
        headers.insert(&write.name, write.value.clone());
    }
    if let Some(partial) = partial {
        headers.insert(PARTIAL, HeaderValue::from_static(if partial { "true" } else { "false" }));
    }
    Ok(question)
}

pub(super) fn answer(how: &HttpCheck, (head, body): Answered) -> Result<CheckResponse, Failed> {
    match head.status {
        StatusCode::OK => allowed(how, &head.headers).map_err(Failed::Garbled),
        status if status.is_server_error() => Err(Failed::Silent(format!("HTTP status {status}"))),
        status => {
            let mut headers = head.headers;
            let refused: Vec<HeaderName> = headers.keys().filter(|name| !is_told(how, name)).cloned().collect();
            for name in refused {
                headers.remove(name);
            }
            Ok(CheckResponse::Denied(Refusal { status, headers, body: body.to_bytes() }))
        }
    }
}

fn allowed(how: &HttpCheck, headers: &HeaderMap) -> Result<CheckResponse, String> {
    let mut request = Vec::new();
    for name in headers.keys().filter(|name| any(&how.upstream_on_allow, name)) {
        let mut values = headers.get_all(name).iter().cloned();
        request.extend(values.next().map(|value| HeaderChange::Set(name.clone(), value)));
        request.extend(values.map(|value| HeaderChange::Append(name.clone(), value)));
    }
    for list in headers.get_all(REMOVED) {
        let list = list.to_str().map_err(|_| format!("{REMOVED} is no text"))?;
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty() && !name.starts_with(':')) {
            request.push(HeaderChange::Remove(name.parse().map_err(|_| format!("{name:?} is no header"))?));
        }
    }
    let of_answer = headers.iter().filter(|(name, _)| any(&how.downstream_on_allow, name));
    let response: Vec<_> = of_answer.map(|(name, value)| HeaderChange::Append(name.clone(), value.clone())).collect();
    let asked = request.len() + response.len();
    if asked > HeaderChange::MOST {
        return Err(format!("it asks for {asked} changes of headers; at most {} are made", HeaderChange::MOST));
    }
    Ok(CheckResponse::Allowed { request, response })
}

/// Whether the caller is told a header of a no.
fn is_told(how: &HttpCheck, name: &HeaderName) -> bool {
    // What the mesh says of the authorizer concerns who asked it.
    let of_the_mesh = *name == RETRIED || *name == orca::BINARY;
    let listed = how.downstream_on_deny.is_empty() || any(&how.downstream_on_deny, name);
    !of_the_mesh && (listed || *name == LOCATION || *name == WWW_AUTHENTICATE)
}

fn any(patterns: &[NamePattern], name: &HeaderName) -> bool {
    patterns.iter().any(|pattern| pattern.holds(name))
}
