//! Requests of our own to an endpoint, beside those of the application.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use mesh_core::orca::{PROBE_PATH, STREAM_PATH};
use mesh_core::policy::Address;

use crate::body::{Broken, Incoming, Outgoing};
use crate::cluster::Endpoint;
use crate::connect::{Lease, Pool};

/// Asks once for the endpoint's load.
pub(super) fn probe(endpoint: &Endpoint, http2: bool) -> http::Result<Request<Outgoing>> {
    request(endpoint, Method::GET, PROBE_PATH, http2, Outgoing::Empty)
}

/// Asks for a stream of reports; `message` is framed.
pub(super) fn stream(endpoint: &Endpoint, message: Bytes) -> http::Result<Request<Outgoing>> {
    let mut request = request(endpoint, Method::POST, STREAM_PATH, true, Outgoing::Full(Some(message), None))?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

/// Sends a request on a connection; one that is gone is forgotten.
pub(super) async fn send(
    pool: &Pool,
    lease: &mut Lease,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, Broken> {
    match lease {
        Lease::Sole(connection) => connection.send(request).await.map_err(|unanswered| unanswered.error),
        Lease::Shared(stream) => {
            let sent = stream.send(request).await.map_err(|unanswered| unanswered.error);
            if sent.is_err() && stream.connection.is_closed() {
                pool.discard(&stream.connection);
            }
            sent
        }
    }
}

fn request(
    endpoint: &Endpoint,
    method: Method,
    path: &'static str,
    http2: bool,
    body: Outgoing,
) -> http::Result<Request<Outgoing>> {
    let host = match (endpoint.hostname(), endpoint.address()) {
        (Some(hostname), _) => hostname.to_owned(),
        (None, Address::Unix(_)) => "localhost".to_owned(),
        // The dot at its end is for DNS.
        (None, Address::Name { host, port }) => format!("{}:{port}", host.strip_suffix('.').unwrap_or(host)),
        (None, address) => address.to_string(),
    };
    let mut request = Request::builder().method(method).header(USER_AGENT, HeaderValue::from_static("mesh-load"));
    request = if http2 {
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(host).path_and_query(path).build()?;
        request.version(Version::HTTP_2).uri(uri)
    } else {
        request.uri(path).header(HOST, host)
    };
    request.body(body)
}
