//! What the inbound layer does with each request.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{Empty, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::{Layer, ServiceExt};

use mesh_core::context;
use mesh_core::error::BoxError;
use mesh_core::policy::{InboundState, InboundTls};
use mesh_core::source::Watched;
use mesh_server::debug::prometheus;
use mesh_server::{Body, Config, InboundLayer, Server};

use crate::kit::{Http, World, eventually, get, policy, spawn, text, within};

impl World {
    /// The lines of `istio_requests_total`.
    pub(crate) fn metrics_text(&self) -> String {
        let all = prometheus::encode("0", &self.metrics, None);
        all.lines().filter(|line| line.starts_with("istio_requests_total")).collect::<Vec<_>>().join("\n")
    }

    /// Waits for a line that holds all of `parts`.
    async fn metric(&self, parts: &[&str]) -> String {
        let found =
            |text: String| text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
        eventually(|| found(self.metrics_text())).await
    }
}

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn the_handler_sees_the_context_and_calls_of_it_carry_it_on() {
    let service = tower::service_fn(|_: Request<Body>| {
        // Before and after the first wait.
        let early = context::current().expect("open in call");
        async move {
            tokio::task::yield_now().await;
            let now = context::current().expect("open in the future");
            assert_eq!(early.trace, now.trace);
            let mut headers = HeaderMap::new();
            now.write_headers(&mut headers);
            let sent = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("-").to_owned();
            let caller = now.caller.as_ref().and_then(|caller| caller.spiffe_id.as_ref());
            let caller = caller.map(ToString::to_string).unwrap_or_default();
            text(format!(
                "{} {} {} {caller} {}",
                sent("traceparent"),
                sent("tracestate"),
                sent("x-request-id"),
                now.deadline.is_some()
            ))
        }
    });
    let world = World::start(policy(InboundTls::Strict), Config::default(), service).await;
    let mut request = get("/");
    for (name, value) in
        [("traceparent", TRACEPARENT), ("tracestate", "a=b"), ("x-request-id", "r-1"), ("grpc-timeout", "5S")]
    {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let response = world.mutual(Http::Two).await.send(request).await.unwrap();
    let (_, body) = crate::kit::read(response).await.unwrap();
    let wanted = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 a=b r-1 \
                  spiffe://cluster.local/ns/default/sa/productpage true";
    assert_eq!(body, wanted);
    assert!(context::current().is_none());
}

#[tokio::test]
async fn headers_that_only_the_mesh_may_set_do_not_reach_the_handler() {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let seen: Vec<_> = request.headers().keys().filter(|name| name.as_str().starts_with("x-")).collect();
        text(format!("{seen:?}"))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut request = get("/");
    for name in ["x-forwarded-client-cert", "x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-mine"] {
        request.headers_mut().insert(name, HeaderValue::from_static("By=spiffe://forged"));
    }
    let response = world.plain(Http::One).await.send(request).await.unwrap();
    assert_eq!(crate::kit::read(response).await.unwrap().1, "[\"x-mine\"]");
}

#[tokio::test]
async fn requests_are_counted_when_their_response_has_ended() {
    let service = tower::service_fn(|request: Request<Body>| async move {
        match request.uri().path() {
            "/teapot" => {
                Ok(Response::builder().status(418).body(Full::new(Bytes::from_static(b"short and stout"))).unwrap())
            }
            "/error" => Err(BoxError::from("as ordered")),
            _ => text("hello"),
        }
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut client = world.mutual(Http::Two).await;
    assert_eq!(client.get("/").await.unwrap().0, 200);
    assert_eq!(client.get("/teapot").await.unwrap().0, 418);
    assert_eq!(client.get("/error").await.unwrap().0, 500);
    assert_eq!(world.plain(Http::One).await.get("/").await.unwrap().0, 200);
    let mut head = get("/");
    *head.method_mut() = http::Method::HEAD;
    assert_eq!(world.plain(Http::One).await.send(head).await.unwrap().status(), 200);

    let line = world.metric(&["response_code=\"200\"", "connection_security_policy=\"mutual_tls\""]).await;
    for part in [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/productpage\"",
        "source_workload_namespace=\"default\"",
        "destination_workload=\"reviews-v1\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/reviews\"",
        "destination_service=\"reviews.default.svc.cluster.local\"",
        "destination_service_name=\"reviews\"",
        "request_protocol=\"http\"",
        "response_flags=\"-\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    world.metric(&["response_code=\"418\"", "} 1"]).await;
    world.metric(&["response_code=\"500\"", "} 1"]).await;
    // Plaintext GET and HEAD: HEAD's body is never asked for, and that is no disconnect.
    world.metric(&["response_code=\"200\"", "connection_security_policy=\"none\"", "} 2"]).await;
    assert!(!world.metrics_text().contains("\"DC\""), "{}", world.metrics_text());
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_as_such() {
    let (began, mut begins) = tokio::sync::mpsc::channel(1);
    let service = tower::service_fn(move |_: Request<Body>| {
        let began = began.clone();
        async move {
            began.send(()).await?;
            std::future::pending::<()>().await;
            text("never")
        }
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut client = world.plain(Http::Two).await;
    let sent = spawn(client.send(get("/")));
    within(begins.recv()).await.unwrap();
    sent.abort();
    world.metric(&["response_code=\"0\"", "response_flags=\"DC\"", "} 1"]).await;
}

#[tokio::test]
async fn an_upgraded_connection_belongs_to_the_application() {
    let service = tower::service_fn(|mut request: Request<Body>| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
        });
        let switching = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        Ok::<_, BoxError>(switching.body(Empty::<Bytes>::new()).unwrap())
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nping";
    tcp.write_all(request).await.unwrap();
    let mut answer = String::new();
    within(tcp.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101") && answer.ends_with("ping"), "{answer}");
    world.metric(&["response_code=\"101\"", "response_flags=\"-\""]).await;
}

#[tokio::test]
async fn the_layer_alone_opens_the_context_and_twice_is_once() {
    let metrics = Arc::<mesh_core::telemetry::Metrics>::default();
    let layer: InboundLayer = Server::builder().metrics(metrics.clone()).build().inbound_layer();
    let inner = tower::service_fn(|_: Request<Empty<Bytes>>| async {
        let found = context::current().and_then(|context| Some(context.trace?.trace_id().to_string()));
        text(found.unwrap_or_default())
    });
    let service = layer.layer(layer.layer(inner));
    let mut request = get("/");
    request.headers_mut().insert("traceparent", HeaderValue::from_static(TRACEPARENT));
    let response = service.oneshot(request).await.unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_string().as_bytes());
    let text = prometheus::encode("0", &metrics, None);
    let counted: Vec<_> = text.lines().filter(|line| line.starts_with("istio_requests_total")).collect();
    assert!(matches!(counted[..], [line] if line.ends_with(" 1")), "{counted:?}");
}

#[test]
fn routes_have_linkerds_names_and_labels() {
    let metrics = mesh_core::telemetry::Metrics::default();
    assert!(!prometheus::encode("0", &metrics, None).contains("route_"), "control: nothing is counted by route");
    let series = metrics.route("web.default.svc.cluster.local:80", "GET /\"x\"");
    series.record(true, std::time::Duration::from_millis(3));
    series.record(false, std::time::Duration::from_secs(7200));
    let text = prometheus::encode("0", &metrics, None);
    let labels = "direction=\"outbound\",dst=\"web.default.svc.cluster.local:80\",rt_route=\"GET /\\\"x\\\"\"";
    for line in [
        format!("route_response_total{{{labels},classification=\"success\"}} 1"),
        format!("route_response_total{{{labels},classification=\"failure\"}} 1"),
        format!("route_response_latency_ms_bucket{{{labels},le=\"5\"}} 1"),
        format!("route_response_latency_ms_bucket{{{labels},le=\"+Inf\"}} 2"),
        format!("route_response_latency_ms_sum{{{labels}}} 7200003"),
        format!("route_response_latency_ms_count{{{labels}}} 2"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn the_layer_alone_lets_nothing_pass_until_the_policy_it_was_given_has_come() {
    for word in [InboundState::Pending, InboundState::Failed("no such listener".into())] {
        let (publisher, inbound) = Watched::channel(word.clone());
        let layer = Server::builder().inbound(inbound).build().inbound_layer();
        let ask = || {
            let inner = tower::service_fn(|_: Request<Empty<Bytes>>| async { text("hello") });
            layer.layer(inner).oneshot(get("/"))
        };
        let refused = ask().await.unwrap();
        assert_eq!(refused.status(), 503, "{word:?}");
        let said = http_body_util::BodyExt::collect(refused.into_body()).await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&said).contains("MESH-1003"), "{said:?}");
        // Nor inside of a server that has a policy of its own.
        let open = context::RequestContext::from_headers(&HeaderMap::new());
        let inside = context::scope(Arc::new(open), ask()).await.unwrap();
        assert_eq!(inside.status(), 503, "{word:?}");
        // The controls: it has come, and then there is no word.
        publisher.publish(policy(InboundTls::Permissive));
        assert_eq!(ask().await.unwrap().status(), 200, "{word:?}");
        publisher.publish(word.clone());
        assert_eq!(ask().await.unwrap().status(), 200, "{word:?}");
    }
}
