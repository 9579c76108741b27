//! Generated tonic clients over the mesh's channel: every kind of streaming, a status after messages, and compression,
//! which is between the two applications alone.

use std::pin::Pin;

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::routing::post;
use futures_util::future::ready;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http::HeaderValue;
use http::uri::PathAndQuery;
use mesh::{Channel, Mesh};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::support::{Plane, Running, eventually};

/// A message either way.
#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

fn text(text: impl Into<String>) -> Text {
    Text { text: text.into() }
}

type Texts = Pin<Box<dyn Stream<Item = Result<Text, Status>> + Send>>;
type Codec = ProstCodec<Text, Text>;
type HttpResponse = http::Response<tonic::body::Body>;

const SERVER_STREAMING: &str = "/test.Kinds/Server";
const CLIENT_STREAMING: &str = "/test.Kinds/Client";
const BIDIRECTIONAL: &str = "/test.Kinds/Both";
/// Where the server says what it was told of the compression of what it got.
const SEEN: &str = "x-seen-encoding";
/// At this message a server ends its stream.
const ENOUGH: &str = "enough";

/// What tonic's generated servers do, for any client that compresses and for any that does not.
fn served() -> tonic::server::Grpc<Codec> {
    tonic::server::Grpc::new(Codec::default()).accept_compressed(Gzip).send_compressed(Gzip)
}

fn seen(request: &HttpRequest) -> Option<HeaderValue> {
    request.headers().get("grpc-encoding").cloned()
}

fn telling(mut response: HttpResponse, seen: Option<HeaderValue>) -> HttpResponse {
    response.headers_mut().insert(SEEN, seen.unwrap_or(HeaderValue::from_static("none")));
    response
}

/// Each word of the message.
async fn server_streaming(request: HttpRequest) -> HttpResponse {
    let seen = seen(&request);
    let words = service_fn(|request: Request<Text>| async move {
        let words: Vec<_> = request.into_inner().text.split(' ').map(|word| answer(text(word))).collect();
        Ok::<_, Status>(Response::new(stream::iter(words).boxed() as Texts))
    });
    telling(served().server_streaming(words, request).await, seen)
}

/// All messages in one.
async fn client_streaming(request: HttpRequest) -> HttpResponse {
    let seen = seen(&request);
    let joined = service_fn(|request: Request<Streaming<Text>>| async move {
        let texts: Vec<Text> = request.into_inner().and_then(|text| ready(answer(text))).try_collect().await?;
        let texts: Vec<_> = texts.into_iter().map(|text| text.text).collect();
        Ok::<_, Status>(Response::new(text(texts.join(" "))))
    });
    telling(served().client_streaming(joined, request).await, seen)
}

/// Each message as it comes.
async fn bidirectional(request: HttpRequest) -> HttpResponse {
    let seen = seen(&request);
    let echo = service_fn(|request: Request<Streaming<Text>>| async move {
        let texts = request.into_inner().map(|text| text.and_then(answer));
        Ok::<_, Status>(Response::new(texts.boxed() as Texts))
    });
    telling(served().streaming(echo, request).await, seen)
}

#[allow(clippy::result_large_err, reason = "a status is what tonic wants")]
fn answer(text: Text) -> Result<Text, Status> {
    if text.text != ENOUGH {
        return Ok(text);
    }
    let mut trailers = MetadataMap::new();
    trailers.insert("x-why", "the test said so".parse().unwrap());
    Err(Status::with_metadata(Code::Aborted, "no more of it", trailers))
}

/// A server of all kinds, and a caller of its mesh.
async fn world() -> (Plane, Running, Mesh) {
    let plane = Plane::start().await;
    let app = Router::new()
        .route(SERVER_STREAMING, post(server_streaming))
        .route(CLIENT_STREAMING, post(client_streaming))
        .route(BIDIRECTIONAL, post(bidirectional));
    let server = plane.serve("greeter", "version=v1", app).await;
    let caller = plane.caller("caller").await;
    eventually("the server is known", || async {
        let said =
            call(&caller, false).server_streaming(Request::new(text("a")), path(SERVER_STREAMING), codec()).await;
        said.is_ok().then_some(())
    })
    .await;
    (plane, server, caller)
}

fn call(mesh: &Mesh, compressed: bool) -> tonic::client::Grpc<Channel> {
    let client = tonic::client::Grpc::new(mesh.channel("greeter:9080").unwrap());
    if compressed { client.send_compressed(Gzip).accept_compressed(Gzip) } else { client }
}

fn codec() -> Codec {
    Codec::default()
}

fn path(path: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(path)
}

/// Requests that the caller counts as under way.
fn in_flight(mesh: &Mesh) -> u32 {
    let dump = mesh.client().dump();
    let endpoints = dump.destinations.iter().flat_map(|it| &it.clusters).flat_map(|it| &it.endpoints);
    endpoints.map(|endpoint| endpoint.in_flight).sum()
}

async fn none_in_flight(mesh: &Mesh) {
    eventually("nothing is counted as under way", || async { (in_flight(mesh) == 0).then_some(()) }).await;
}

/// What came, and the status at its end.
async fn to_the_end(mut answers: Streaming<Text>) -> (Vec<String>, Option<Status>) {
    let mut came = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(text)) => came.push(text.text),
            Ok(None) => return (came, None),
            Err(status) => return (came, Some(status)),
        }
    }
}

/// What was said of the compression of the request, as the server saw it, and of the answer, as the caller did.
fn encodings<T>(response: &Response<T>) -> [Option<String>; 2] {
    [SEEN, "grpc-encoding"].map(|name| response.metadata().get(name).map(|value| value.to_str().unwrap().to_owned()))
}

#[track_caller]
fn assert_aborted(status: Option<Status>) {
    let status = status.expect("the stream ends with a status");
    assert_eq!((status.code(), status.message()), (Code::Aborted, "no more of it"));
    let why = status.metadata().get("x-why").map(|value| value.to_str().unwrap());
    assert_eq!(why, Some("the test said so"), "trailers of the application's own");
}

#[tokio::test]
async fn a_server_streams_to_its_end_or_to_a_status_in_trailers() {
    let (_plane, _server, caller) = world().await;
    for (asked, aborted) in [("one two three", false), ("one two three enough four", true)] {
        let asked = Request::new(text(asked));
        let answers = call(&caller, false).server_streaming(asked, path(SERVER_STREAMING), codec()).await.unwrap();
        let (came, status) = to_the_end(answers.into_inner()).await;
        assert_eq!(came, ["one", "two", "three"]);
        // The control is the stream that ends well.
        if aborted { assert_aborted(status) } else { assert!(status.is_none(), "{status:?}") }
    }
    none_in_flight(&caller).await;
}

#[tokio::test]
async fn a_client_streams_and_has_one_answer_or_a_status() {
    let (_plane, _server, caller) = world().await;
    let send = async |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| text(*word)).collect();
        let words = Request::new(stream::iter(words));
        call(&caller, false).client_streaming(words, path(CLIENT_STREAMING), codec()).await
    };
    let answer: Response<Text> = send(&["one", "two", "three"]).await.unwrap();
    assert_eq!(answer.into_inner().text, "one two three");
    assert_aborted(send(&["one", ENOUGH, "two"]).await.err());
    none_in_flight(&caller).await;
}

/// A stream both ways, of which "0" is sent.
async fn both_stream(caller: &Mesh) -> (mpsc::UnboundedSender<Text>, Streaming<Text>) {
    let (sender, words) = mpsc::unbounded_channel();
    sender.send(text("0")).unwrap();
    let words = Request::new(UnboundedReceiverStream::new(words));
    let answers = call(caller, false).streaming(words, path(BIDIRECTIONAL), codec()).await.unwrap();
    (sender, answers.into_inner())
}

#[tokio::test]
async fn both_sides_stream_in_turn_and_a_status_ends_it() {
    let (_plane, _server, caller) = world().await;
    let (sender, mut answers) = both_stream(&caller).await;
    // Each is sent after the answer to the one before: nothing is held back until there is more of it.
    for turn in 0..20 {
        assert_eq!(answers.message().await.unwrap(), Some(text(turn.to_string())));
        sender.send(text((turn + 1).to_string())).unwrap();
    }
    assert_eq!(in_flight(&caller), 1, "control: what is under way is counted");
    sender.send(text(ENOUGH)).unwrap();
    let (came, status) = to_the_end(answers).await;
    assert_eq!(came, ["20"]);
    assert_aborted(status);
    none_in_flight(&caller).await;
}

#[tokio::test]
async fn a_stream_that_its_caller_drops_is_not_under_way_any_more() {
    let (_plane, _server, caller) = world().await;
    let (sender, mut answers) = both_stream(&caller).await;
    assert_eq!(answers.message().await.unwrap(), Some(text("0")));
    assert_eq!(in_flight(&caller), 1, "control");
    drop(answers);
    none_in_flight(&caller).await;
    // The server's end of it, too.
    eventually("the stream is closed", || async { sender.is_closed().then_some(()) }).await;
}

#[tokio::test]
async fn compression_is_between_the_applications_and_goes_through_untouched() {
    let (_plane, _server, caller) = world().await;
    // Worth compressing, and more than one frame of HTTP/2.
    let long = "x".repeat(100_000);
    // The control: a client that does not ask for it.
    for (compressed, seen, answered) in [(true, Some("gzip"), Some("gzip")), (false, Some("none"), None)] {
        let want = [seen, answered].map(|name| name.map(str::to_owned));
        let asked = Request::new(text(format!("{long} {long}")));
        let answers = call(&caller, compressed).server_streaming(asked, path(SERVER_STREAMING), codec()).await.unwrap();
        assert_eq!(encodings(&answers), want, "from the server");
        let (came, status) = to_the_end(answers.into_inner()).await;
        assert!(came == [long.clone(), long.clone()] && status.is_none(), "{status:?}");

        let words = Request::new(stream::iter([text(long.clone()), text("end")]));
        let answer = call(&caller, compressed).client_streaming(words, path(CLIENT_STREAMING), codec()).await;
        let answer: Response<Text> = answer.unwrap();
        assert_eq!(encodings(&answer), want, "from the client");
        assert!(answer.into_inner().text == format!("{long} end"));

        let words = Request::new(stream::iter([text(long.clone()), text(ENOUGH)]));
        let answers = call(&caller, compressed).streaming(words, path(BIDIRECTIONAL), codec()).await.unwrap();
        assert_eq!(encodings(&answers), want, "both ways");
        let (came, status) = to_the_end(answers.into_inner()).await;
        assert!(came == [long.clone()]);
        assert_aborted(status);
    }
    none_in_flight(&caller).await;
}
