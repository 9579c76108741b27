//! How one health check is made: over connections of its own, with the cluster's transport security, past every limit
//! on requests. Refuses to know what follows from its outcome.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use mesh_core::health::CheckOutcome;
use mesh_core::policy::{
    self, Address, ConnectionOptions, HeaderOps, HealthCheck, HealthProbe, HttpProbe, TcpProbe, UpstreamProtocol,
};
use mesh_core::protobuf::{Value, field};
use mesh_core::retry::grpc_status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::body::{Incoming, Outgoing};
use crate::connect::{Dialer, Lease, Needs, Peer, Pool, Room, Want};
use crate::error::Cause;

/// Bytes of an answer that are read, so that its connection can be used again.
const MAX_ANSWER: usize = 64 * 1024;
const CHECK_PATH: &str = "/grpc.health.v1.Health/Check";
/// `HealthCheckResponse.SERVING`.
const SERVING: u64 = 1;

/// One check of a cluster's policy.
pub(super) struct Prober {
    policy: HealthCheck,
    dialer: Arc<Dialer>,
    cluster: String,
}

/// One endpoint as it is checked.
pub(super) struct Patient {
    peer: Peer,
    host: Option<String>,
    // While its connection is kept.
    pool: Option<Pool>,
}

/// Why a check was not passed.
pub(super) struct Refusal {
    // None = it could not be made.
    outcome: Option<CheckOutcome>,
    why: String,
}

impl Refusal {
    fn failed(why: impl fmt::Display) -> Self {
        Self { outcome: Some(CheckOutcome::Failed), why: why.to_string() }
    }

    fn denied(why: impl fmt::Display) -> Self {
        Self { outcome: Some(CheckOutcome::Denied), why: why.to_string() }
    }
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        let ours = cause.is_ours();
        let failed = Self::failed(cause);
        Self { outcome: failed.outcome.filter(|_| !ours), ..failed }
    }
}

impl Prober {
    pub(super) fn new(policy: &HealthCheck, cluster: &policy::Cluster, dialer: &Dialer) -> Self {
        let http2 = match &policy.probe {
            HealthProbe::Http(probe) => probe.http2,
            HealthProbe::Grpc { .. } => true,
            HealthProbe::Tcp(_) => false,
        };
        let protocol = if http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
        let options = ConnectionOptions { protocol, connect_timeout: policy.timeout, ..cluster.connection.clone() };
        Self { policy: policy.clone(), dialer: Arc::new(dialer.with(options)), cluster: cluster.name.to_string() }
    }

    /// An endpoint with what is said of its check: another address, port, host.
    pub(super) fn patient(&self, endpoint: &policy::Endpoint) -> Patient {
        let target = &endpoint.metadata.health_check;
        let port = target.port.or(self.policy.port);
        let at = |address: &Address| port.map_or_else(|| address.clone(), |port| with_port(address, port));
        let additional = endpoint.additional_addresses.iter().filter(|_| target.address.is_none());
        let peer = Peer {
            // An address of its own has its own port.
            address: target.address.as_ref().map_or_else(
                || at(&endpoint.address),
                |own| target.port.map_or_else(|| own.clone(), |port| with_port(own, port)),
            ),
            additional: additional.map(at).collect(),
            metadata: endpoint.metadata.clone(),
        };
        Patient { peer, host: target.host.clone(), pool: None }
    }

    /// Checks once; `None`: it could not be made, for what is missing here. The text says why it was not passed.
    pub(super) async fn check(&self, patient: &mut Patient) -> (Option<CheckOutcome>, String) {
        let outcome = match timeout(self.policy.timeout, self.ask(patient)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Whatever comes over the connection now belongs to this check.
                patient.pool = None;
                Err(Refusal::failed(format_args!("no answer within {:?}", self.policy.timeout)))
            }
        };
        if !self.policy.reuse_connection {
            patient.pool = None;
        }
        match outcome {
            Ok(()) => (Some(CheckOutcome::Passed), String::new()),
            Err(Refusal { outcome, why }) => (outcome, why),
        }
    }

    async fn ask(&self, patient: &mut Patient) -> Result<(), Refusal> {
        match &self.policy.probe {
            HealthProbe::Tcp(probe) => self.ask_tcp(patient, probe).await,
            HealthProbe::Http(probe) => {
                let host = patient.host.as_ref().unwrap_or(&probe.host);
                let request = http_request(probe, self.host(host)).map_err(Refusal::failed)?;
                let (response, lease) = self.send(patient, &request, None).await?;
                let verdict = judge(probe, response.status());
                finish(patient, response, lease).await;
                verdict
            }
            HealthProbe::Grpc { service, authority } => {
                let host = patient.host.as_ref().unwrap_or(authority);
                let request = grpc_request(self.host(host)).map_err(Refusal::failed)?;
                let (response, _lease) = self.send(patient, &request, Some(grpc_message(service))).await?;
                judge_grpc(response).await
            }
        }
    }

    fn host<'h>(&'h self, own: &'h str) -> &'h str {
        if own.is_empty() { &self.cluster } else { own }
    }

    /// Sends a request; once more if its connection had been closed since the last check.
    async fn send(
        &self,
        patient: &mut Patient,
        request: &Request<()>,
        body: Option<Bytes>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let new = || Pool::new(self.dialer.clone(), patient.peer.clone(), Arc::default());
        let pool = patient.pool.get_or_insert_with(new);
        for fresh in [false, true] {
            let mut lease =
                pool.acquire(Needs::Nothing, fresh, Instant::now(), Room::ANY, |_| Ok(()), &mut None).await?;
            let outgoing = body.clone().map_or(Outgoing::Empty, |bytes| Outgoing::Full(Some(bytes), None));
            let request = form(request, lease.is_http2(), outgoing);
            let sent = match &mut lease {
                Lease::Sole(connection) => connection.send(request).await,
                Lease::Shared(stream) => stream.send(request).await,
            };
            match sent.map_err(|unanswered| unanswered.error) {
                Ok(response) => return Ok((response, lease)),
                Err(_) if !fresh && lease.is_reused() => {
                    if let Lease::Shared(stream) = &lease {
                        pool.discard(&stream.connection);
                    }
                }
                Err(error) => return Err(Refusal::failed(chain(&error))),
            }
        }
        Err(Refusal::failed("the connection was closed twice"))
    }

    async fn ask_tcp(&self, patient: &Patient, probe: &TcpProbe) -> Result<(), Refusal> {
        let mut stream = self.dialer.stream(&patient.peer, Want::Http1).await?;
        stream.write_all(&probe.send).await.map_err(Refusal::failed)?;
        stream.flush().await.map_err(Refusal::failed)?;
        let mut received = Vec::new();
        while !holds(&received, &probe.receive) {
            if received.len() >= MAX_ANSWER {
                return Err(Refusal::denied("what comes back is not what is expected"));
            }
            let mut chunk = [0; 1024];
            match stream.read(&mut chunk).await.map_err(Refusal::failed)? {
                0 => return Err(Refusal::failed("the connection was closed before all that is expected came back")),
                read => received.extend_from_slice(&chunk[..read]),
            }
        }
        Ok(())
    }
}

/// Reads an answer to its end and puts its connection back; a long one costs its connection.
async fn finish(patient: &Patient, response: Response<Incoming>, lease: Lease) {
    let mut body = response.into_body();
    if Limited::new(&mut body, MAX_ANSWER).collect().await.is_err() {
        return;
    }
    if let (Lease::Sole(connection), Some(pool)) = (lease, &patient.pool) {
        pool.release(connection, body, Instant::now());
    }
}

/// Whether each block is there, in order, with anything between them.
fn holds(mut received: &[u8], blocks: &[Vec<u8>]) -> bool {
    blocks.iter().filter(|block| !block.is_empty()).all(|block| {
        let found = received.windows(block.len()).position(|window| window == block);
        if let Some(at) = found {
            received = &received[at + block.len()..];
        }
        found.is_some()
    })
}

fn with_port(address: &Address, port: u16) -> Address {
    match address {
        Address::Socket(socket) => Address::Socket((socket.ip(), port).into()),
        Address::Name { host, .. } => Address::Name { host: host.clone(), port },
        Address::Unix(path) => Address::Unix(path.clone()),
    }
}

fn http_request(probe: &HttpProbe, host: &str) -> http::Result<Request<()>> {
    let path = if probe.path.is_empty() { "/" } else { &probe.path };
    let mut request = request(Method::from_bytes(probe.method.as_bytes())?, path, host)?;
    HeaderOps { write: probe.headers.clone(), remove: Vec::new() }.apply(request.headers_mut());
    Ok(request)
}

fn grpc_request(host: &str) -> http::Result<Request<()>> {
    let mut request = request(Method::POST, CHECK_PATH, host)?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

/// With the whole URI, as HTTP/2 sends it, and the host in a header too.
fn request(method: Method, path: &str, host: &str) -> http::Result<Request<()>> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority(host)).path_and_query(path).build()?;
    Request::builder()
        .method(method)
        .uri(uri)
        .header(HOST, host)
        .header(USER_AGENT, HeaderValue::from_static("mesh-health-check"))
        .body(())
}

/// Names of clusters, such as `outbound|80||reviews`, are no authorities: HTTP/2 gets a plain one then.
fn authority(host: &str) -> &str {
    if host.parse::<http::uri::Authority>().is_ok() { host } else { "health-check" }
}

fn form(request: &Request<()>, http2: bool, body: Outgoing) -> Request<Outgoing> {
    let mut made = Request::new(body);
    *made.method_mut() = request.method().clone();
    *made.headers_mut() = request.headers().clone();
    if http2 {
        *made.version_mut() = Version::HTTP_2;
        *made.uri_mut() = request.uri().clone();
        // A header operation may have set another one.
        made.headers_mut().remove(HOST);
    } else if let Some(path) = request.uri().path_and_query() {
        *made.uri_mut() = Uri::from(path.clone());
    }
    made
}

fn judge(probe: &HttpProbe, status: StatusCode) -> Result<(), Refusal> {
    let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(first, last)| (*first..=*last).contains(&status.as_u16()));
    let why = format!("answered {status}");
    if within(&probe.expected) || (probe.expected.is_empty() && status == StatusCode::OK) {
        Ok(())
    } else if within(&probe.retriable) {
        Err(Refusal::failed(why))
    } else {
        Err(Refusal::denied(why))
    }
}

async fn judge_grpc(response: Response<Incoming>) -> Result<(), Refusal> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(Refusal::denied(format_args!("answered {}", head.status)));
    }
    let early = grpc_status(&head.headers);
    if body.is_end_stream() {
        return Err(Refusal::denied(format_args!("gRPC status {}", early.unwrap_or(2))));
    }
    let read = Limited::new(body, MAX_ANSWER).collect().await.map_err(Refusal::failed)?;
    let status = read.trailers().and_then(grpc_status).or(early);
    if status != Some(0) {
        return Err(Refusal::denied(format_args!("gRPC status {}", status.unwrap_or(2))));
    }
    match serving_status(read.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(other) => Err(Refusal::denied(format_args!("says that it is not serving (status {other})"))),
        None => Err(Refusal::denied("the answer is no HealthCheckResponse")),
    }
}

/// A framed `HealthCheckRequest { service }`.
fn grpc_message(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 6);
    if !service.is_empty() {
        // Field 1, length-delimited.
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// `status` of a framed `HealthCheckResponse`; `None` if it is none.
fn serving_status(mut framed: Bytes) -> Option<u64> {
    if framed.len() < 5 || framed.get_u8() != 0 {
        return None;
    }
    let length = framed.get_u32() as usize;
    let mut message = framed.get(..length)?;
    let mut status = 0;
    while !message.is_empty() {
        if let (1, Value::Number(value)) = field(&mut message)? {
            status = value;
        }
    }
    Some(status)
}

/// An error with its causes: hyper's own text says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_must_come_back_in_order_with_anything_between() {
        let blocks = |list: &[&str]| list.iter().map(|block| block.as_bytes().to_vec()).collect::<Vec<_>>();
        for (received, wanted, want) in [
            ("", &[][..], true),
            ("+PONG", &["PONG"], true),
            ("PO", &["PONG"], false),
            ("a..b..c", &["a", "c"], true),
            ("c..a", &["a", "c"], false),
            ("aa", &["a", "a"], true),
            ("a", &["a", "a"], false),
            ("a", &[""], true),
        ] {
            assert_eq!(holds(received.as_bytes(), &blocks(wanted)), want, "{received:?} {wanted:?}");
        }
    }

    #[test]
    fn what_no_health_service_says_is_no_answer() {
        let status = |bytes: &[u8]| serving_status(Bytes::copy_from_slice(bytes));
        assert_eq!(status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(SERVING));
        assert_eq!(status(&[0, 0, 0, 0, 2, 0x08, 2]), Some(2));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0), "an absent field is UNKNOWN");
        // With fields nobody here knows, and what follows the message left alone.
        assert_eq!(status(&[0, 0, 0, 0, 7, 0x12, 1, 7, 0x18, 5, 0x08, 1, 9, 9]), Some(SERVING));
        for bad in [
            &[][..],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 2, 0x08, 1],
            &[0, 0, 0, 0, 3, 0x08, 1],
            &[0, 255, 255, 255, 255, 0x08],
            &[0, 0, 0, 0, 2, 0x08, 0x80],
            &[0, 0, 0, 0, 2, 0x12, 9],
            &[0, 0, 0, 0, 1, 0x0b],
        ] {
            assert_eq!(status(bad), None, "{bad:?}");
        }
        let endless = [&[0, 0, 0, 0, 12, 0x08][..], &[0xff; 11]].concat();
        assert_eq!(status(&endless), None);
    }

    #[test]
    fn the_request_of_a_health_service_is_framed() {
        assert_eq!(grpc_message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(grpc_message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = grpc_message(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
    }

    #[test]
    fn statuses_are_judged_by_their_ranges() {
        let probe = HttpProbe { expected: vec![(200, 204)], retriable: vec![(500, 503)], ..HttpProbe::get("/") };
        let outcome = |probe: &HttpProbe, status| judge(probe, StatusCode::from_u16(status).unwrap()).err();
        let outcome = |probe: &HttpProbe, status| outcome(probe, status).and_then(|refusal| refusal.outcome);
        for (status, want) in [
            (200, None),
            (204, None),
            (205, Some(CheckOutcome::Denied)),
            (503, Some(CheckOutcome::Failed)),
            (504, Some(CheckOutcome::Denied)),
        ] {
            assert_eq!(outcome(&probe, status), want, "{status}");
        }
        assert_eq!(outcome(&HttpProbe::get("/"), 200), None);
        assert_eq!(outcome(&HttpProbe::get("/"), 204), Some(CheckOutcome::Denied), "200 only, unless said otherwise");
    }

    #[test]
    fn a_cluster_s_name_may_stand_where_no_host_is_given() {
        let request = http_request(&HttpProbe::get("/healthz?a=b"), "outbound|80||reviews").unwrap();
        assert_eq!(request.headers()[HOST], "outbound|80||reviews");
        let (one, two) = (form(&request, false, Outgoing::Empty), form(&request, true, Outgoing::Empty));
        assert_eq!(one.uri(), "/healthz?a=b");
        assert_eq!(two.uri(), "http://health-check/healthz?a=b");
        assert!(!two.headers().contains_key(HOST));
    }
}
